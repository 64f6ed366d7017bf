"""Rows of shared memory: each caller's own, never two of one call, and where there is no room, one for newcomers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from headgate.filters.stores import shared_table
from headgate.filters.stores.rules import Granted, Kind, Refused, Rule
from headgate.filters.stores.shared import SharedLimits, SharedStore
from headgate.filters.stores.shared_memory import ROWS, SharedMemory
from headgate.filters.stores.shared_table import Table
from headgate.proxy.errors import OverloadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

S = 1_000_000
PER_SECOND = Kind("requests", ("user",), "second")
PER_DAY = Kind("requests", ("user",), "day")
TOKENS = Kind("tokens", ("user",), "minute")
EVENLY = Kind("tokens", ("user",), "day", continuous=True)
AT_ONCE = Kind("concurrent", ("user",), "")


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    made = SharedMemory.create(2)
    yield made
    made.close()


def limits_of(memory: SharedMemory, own: int, rules: Sequence[Rule], name: str = "it", others: int = 1) -> SharedLimits:
    """In a table of `own` rows, and `others` for newcomers."""
    return SharedLimits(memory, Table(memory, 0, own + others, others), 0, name, rules)


def granted(result: Granted[Any] | Refused) -> Granted[Any]:
    assert isinstance(result, Granted)
    return result


def test_newcomers_share_one_meter_where_there_is_no_room(memory: SharedMemory) -> None:
    limits = limits_of(memory, 1, [Rule(PER_SECOND, 2)])
    granted(limits.take(["ann"], 0, 0))
    for name in ("bob", "cid"):
        granted(limits.take([name], 0, 1))
    assert isinstance(limits.take(["dan"], 0, 1), Refused)
    granted(limits.take(["ann"], 0, 1))
    assert isinstance(limits.take(["bob"], 0, S), Refused)  # ann's is over, theirs is not
    granted(limits.take(["dan"], 0, S + 1))
    assert limits.crowded == 2


@pytest.mark.parametrize("kind", [PER_DAY, TOKENS, EVENLY, AT_ONCE])
def test_a_meter_that_counts_is_never_given_away(memory: SharedMemory, kind: Kind) -> None:
    """Whatever the kind of the others that look for room."""
    kept = limits_of(memory, 1, [Rule(kind, 1)], others=8)
    granted(kept.take(["ann"], 1, 0))
    for other in (PER_DAY, TOKENS, EVENLY, AT_ONCE):
        limits = limits_of(memory, 1, [Rule(other, 1)], "that", others=8)
        granted(limits.take(["bob"], 1, 0))
        assert limits.crowded == 1
    assert isinstance(kept.take(["ann"], 1, 0), Refused)


@pytest.mark.parametrize("kind", [PER_SECOND, TOKENS, EVENLY, AT_ONCE])
@pytest.mark.parametrize("after", [PER_SECOND, TOKENS, EVENLY, AT_ONCE])
def test_a_meter_that_is_as_good_as_new_is_given_to_whoever_comes(
    memory: SharedMemory, kind: Kind, after: Kind
) -> None:
    limits = limits_of(memory, 1, [Rule(kind, 2)])
    limits.settle(granted(limits.take(["ann"], 2, 0)), 1, 0)
    much_later = 10**12
    others = limits_of(memory, 1, [Rule(after, 2)], "that")
    granted(others.take(["bob"], 1, much_later))
    granted(others.take(["bob"], 1, much_later))
    assert isinstance(others.take(["bob"], 1, much_later), Refused)
    assert not others.crowded
    granted(limits.take(["ann"], 2, much_later))
    assert limits.crowded == 1


def test_two_rules_of_one_call_never_get_one_row(memory: SharedMemory) -> None:
    """Not even where the first takes over what was the second's of the same caller, and is as good as new."""
    rules = [Rule(PER_SECOND, 1), Rule(PER_DAY, 9)]
    second = limits_of(memory, 2, rules[1:])
    granted(second.take(["ann"], 0, 0))
    later = 86_400 * S
    for names in (["eve", "ann"], ["ann", "eve"]):
        both = limits_of(memory, 2, rules)
        granted(both.take(names, 0, later))
        assert isinstance(both.take(names, 0, later), Refused)
        assert not both.crowded
        later *= 2


def test_where_there_is_not_even_room_for_newcomers_a_call_is_refused(memory: SharedMemory) -> None:
    for name in ("one", "two"):
        granted(limits_of(memory, 1, [Rule(PER_DAY, 1)], name).take(["ann"], 0, 0))
    with pytest.raises(OverloadError, match="more limits than"):
        limits_of(memory, 1, [Rule(PER_DAY, 1)], "three").take(["ann"], 0, 0)


def test_a_caller_is_found_behind_rows_that_were_given_up(
    memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_table, "PROBE", 4)
    limits = limits_of(memory, 4, [Rule(PER_SECOND, 1)])
    days = limits_of(memory, 4, [Rule(PER_DAY, 1)])
    for name in "abc":
        granted(limits.take([name], 0, 0))
    granted(days.take(["ann"], 0, 0))
    assert isinstance(limits_of(memory, 4, [Rule(PER_DAY, 1)]).take(["ann"], 0, 2 * S), Refused)


def test_many_callers_have_a_row_each(memory: SharedMemory) -> None:
    limits = SharedLimits(memory, Table(memory, 0, ROWS), 0, "it", [Rule(PER_DAY, 1)])
    for n in range(10_000):
        granted(limits.take([f"caller-{n}"], 0, 0))
    assert sum(isinstance(limits.take([f"caller-{n}"], 0, 0), Refused) for n in range(10_000)) == 10_000
    assert not limits.crowded


async def test_a_flood_of_callers_of_other_limits_leaves_money_its_room(memory: SharedMemory) -> None:
    store = SharedStore(memory)
    calls, money = store.open("it", [Rule(PER_DAY, 1)]), store.open("it", [Rule(Kind("money", ("key",), "day"), 1)])
    for n in range(ROWS):
        if isinstance(calls.take([f"caller-{n}"], 0, 0), Refused):
            break
    assert calls.crowded
    for n in range(100):
        granted(money.take([f"key-{n}"], 1, 0))
    assert not money.crowded
