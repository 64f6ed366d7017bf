"""purse: attempts under way never hold more than is set aside, and what is lost is gone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headgate.filters.purse import Purse
from headgate.filters.stores.rules import Granted

STEPS = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 60), st.booleans()), max_size=30)


def purse(amount: int) -> Purse:
    made = Purse()
    made.amount = amount
    return made


def test_one_after_the_other_may_each_use_all_of_it() -> None:
    made = purse(10)
    assert made.hold(1, 10, 0)
    assert not made.hold(2, 1, 0)
    made.let_go(1)
    assert made.hold(2, 10, 0)
    made.let_go(2)
    made.let_go(2)
    assert not made.hold(3, 10, 1)
    assert made.hold(3, 9, 1)


@given(st.integers(0, 100), STEPS)
def test_what_is_held_is_never_more_than_what_is_set_aside(amount: int, steps: list[tuple[int, int, bool]]) -> None:
    made, lost = purse(amount), 0
    held: dict[int, int] = {}
    for number, cost, ends in steps:
        if number in held:
            made.let_go(number)
            cost = held.pop(number)
            lost += cost // 2 if ends else 0
        elif made.hold(number, cost, lost):
            held[number] = cost
        else:
            assert sum(held.values()) + lost + cost > amount
        assert sum(held.values()) + lost <= amount


@given(st.lists(st.integers(0, 50), min_size=1, max_size=5), st.integers(0, 300))
def test_all_that_was_spent_is_shared_out_over_the_pieces(amounts: list[int], spent: int) -> None:
    made, granted = Purse(), [Granted[object]() for _ in amounts]
    for one, amount in zip(granted, amounts, strict=True):
        made.add(one, amount)
    assert made.amount == sum(amounts)
    pieces = made.empty(spent)
    assert [one for one, _ in pieces] == granted
    assert sum(part for _, part in pieces) == spent
    assert all(part <= amount for (_, part), amount in zip(pieces[:-1], amounts[:-1], strict=True))
    assert (made.amount, made.empty(0)) == (0, [])
