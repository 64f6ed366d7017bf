"""purse: attempts under way never hold more than is set aside, and what is lost is gone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from hypothesis import given
from hypothesis import strategies as st

from headgate.filters.purse import Purse
from headgate.filters.stores.rules import Granted

if TYPE_CHECKING:
    from headgate.proxy.attempt import Attempt

STEPS = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 60), st.booleans()), max_size=30)


def purse(amount: int) -> Purse:
    made = Purse("m")
    made.amount = amount
    return made


def attempt(made: Purse, cost: int) -> Attempt:
    """At a target of its own, which may cost so much. It is under way."""
    target: Any = object()
    made.costs[target] = cost
    return cast("Attempt", SimpleNamespace(target=target, ended_at=None))


def test_one_after_the_other_may_each_use_all_of_it() -> None:
    made = purse(10)
    assert made.pays(10, [], 0)
    one = attempt(made, 10)
    assert not made.pays(1, [one], 0)
    one.ended_at = 1.0
    assert made.pays(10, [one], 0)
    assert not made.pays(10, [one], 1)
    assert made.pays(9, [one], 1)


@given(st.integers(0, 100), STEPS)
def test_what_is_held_is_never_more_than_what_is_set_aside(amount: int, steps: list[tuple[int, int, bool]]) -> None:
    made, lost = purse(amount), 0
    attempts: list[Attempt] = []
    held: dict[int, int] = {}
    under_way: dict[int, Attempt] = {}
    for number, cost, ends in steps:
        if number in held:
            under_way.pop(number).ended_at = 1.0
            cost = held.pop(number)
            lost += cost // 2 if ends else 0
        elif made.pays(cost, attempts, lost):
            held[number] = cost
            under_way[number] = attempt(made, cost)
            attempts.append(under_way[number])
        else:
            assert sum(held.values()) + lost + cost > amount
        assert sum(held.values()) + lost <= amount


@given(st.lists(st.integers(0, 50), min_size=1, max_size=5), st.integers(0, 300), st.booleans())
def test_all_that_was_spent_is_shared_out_over_the_pieces(amounts: list[int], spent: int, in_one_go: bool) -> None:
    made, granted = Purse("m"), [Granted[object]() for _ in amounts]
    if in_one_go:
        made.counted, made.amount = cast("Any", granted[0]), amounts[0]
    for one, amount in list(zip(granted, amounts, strict=True))[in_one_go:]:
        made.add(one, amount)
    assert made.amount == sum(amounts)
    pieces = made.empty(spent)
    assert [one for one, _ in pieces] == granted
    assert sum(part for _, part in pieces) == spent
    assert all(part <= amount for (_, part), amount in zip(pieces[:-1], amounts[:-1], strict=True))
    assert (made.amount, made.empty(0)) == (0, [])
