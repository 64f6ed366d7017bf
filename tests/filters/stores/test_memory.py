"""memory: all rules or none, one meter for each caller, a bounded number of them, and none is forgotten that counts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.filters.stores import memory
from headgate.filters.stores.memory import MemoryLimits, MemoryStore, Table
from headgate.filters.stores.rules import Granted, Kind, Refused, Rule, tightest
from tests_support.limits import ShortWay

S = 1_000_000
PER_SECOND = Kind("requests", ("user",), "second")
EVENLY = Kind("requests", ("user",), "second", continuous=True)
PER_MINUTE = Kind("requests", ("address",), "minute")
TOKENS = Kind("tokens", ("user",), "minute")
AT_ONCE = Kind("concurrent", ("user",), "")
MONEY = Kind("money", ("team",), "month")


def limits(*rules: tuple[Kind, int], most: int = 100) -> MemoryLimits:
    """Of tables that have room for `most`."""
    return MemoryLimits([(Rule(kind, limit), Table(kind, most)) for kind, limit in rules])


def granted(result: Granted[Any] | Refused) -> Granted[Any]:
    assert isinstance(result, Granted)
    return result


def refused(result: Granted[Any] | Refused) -> Refused:
    assert isinstance(result, Refused)
    return result


def test_callers_do_not_affect_each_other() -> None:
    made = limits((PER_SECOND, 1))
    assert isinstance(made.take(["ann"], 0, 0), Granted)
    assert isinstance(made.take(["ann"], 0, 0), Refused)
    assert isinstance(made.take(["bob"], 0, 0), Granted)


def test_what_one_rule_refuses_is_counted_under_none() -> None:
    made = limits((PER_SECOND, 5), (PER_MINUTE, 1))
    granted(made.take(["ann", "here"], 0, 0))
    for _ in range(9):
        assert refused(made.take(["ann", "here"], 0, 0)).rule.kind is PER_MINUTE
    report = granted(made.take(["ann", "there"], 0, 0)).requests
    assert report is not None
    assert (report.limit, report.left) == (1, 0)
    assert [isinstance(made.take(["ann", str(n)], 0, 0), Granted) for n in range(4)] == [True, True, True, False]


def test_of_several_that_refuse_the_longest_wait_is_told() -> None:
    made = limits((PER_SECOND, 1), (PER_MINUTE, 1), (AT_ONCE, 1))
    granted(made.take(["ann", "here", "ann"], 0, 0))
    told = refused(made.take(["ann", "here", "ann"], 0, 0))
    assert (told.rule.kind, told.wait, told.report.left) == (PER_MINUTE, 60 * S, 0)


def test_tokens_and_slots_are_settled_once_the_call_is_over() -> None:
    made = limits((TOKENS, 100), (AT_ONCE, 1))
    call = granted(made.take(["ann", "ann"], 90, 0))
    assert call.tokens is not None
    assert (call.tokens.left, call.requests) == (10, None)
    assert refused(made.take(["ann", "ann"], 5, 0)).rule.kind is AT_ONCE
    made.settle(call, 30, S)
    assert granted(made.take(["ann", "ann"], 70, S)).tokens == (100, 0, 60 * S)


def test_the_report_is_of_the_rule_with_the_least_left() -> None:
    made = limits((PER_SECOND, 9), (PER_MINUTE, 3), (Kind("requests", ("team",), "hour"), 9))
    assert granted(made.take(["ann", "here", "web"], 0, 0)).requests == (3, 2, 60 * S)
    same = limits((PER_SECOND, 3), (PER_MINUTE, 3))
    assert granted(same.take(["ann", "here"], 0, 0)).requests == (3, 2, 60 * S)
    assert tightest(None, None) is None


def test_a_caller_whose_window_is_over_makes_room() -> None:
    made = limits((PER_SECOND, 1), most=2)
    granted(made.take(["ann"], 0, 0))
    granted(made.take(["bob"], 0, S // 2))
    granted(made.take(["cid"], 0, S))
    assert made.crowded == 0
    assert isinstance(made.take(["bob"], 0, S), Refused)


def test_where_every_window_still_counts_newcomers_share_one_meter() -> None:
    made = limits((PER_SECOND, 2), most=2)
    for name in ("ann", "ann", "bob"):
        granted(made.take([name], 0, 0))
    granted(made.take(["cid"], 0, 1))
    granted(made.take(["dan"], 0, 1))
    assert made.crowded == 2
    assert isinstance(made.take(["eve"], 0, 1), Refused)
    assert isinstance(made.take(["ann"], 0, 1), Refused)
    granted(made.take(["bob"], 0, 1))
    assert isinstance(made.take(["eve"], 0, S), Refused)  # there is room, but she may be one of the two
    granted(made.take(["eve"], 0, S + 1))
    assert made.crowded == 2


def test_a_meter_that_is_paid_back_evenly_is_forgotten_once_nothing_is_owed() -> None:
    made = limits((EVENLY, 2), most=1)
    granted(made.take(["ann"], 0, 0))
    granted(made.take(["bob"], 0, S // 2 - 1))
    assert made.crowded == 1
    granted(made.take(["bob"], 0, S - 2))
    assert made.crowded == 2
    granted(made.take(["bob"], 0, 2 * S))
    assert made.crowded == 2


def test_a_meter_of_slots_is_there_only_while_one_is_held() -> None:
    table = Table(AT_ONCE, 1)
    made = MemoryLimits([(Rule(AT_ONCE, 2), table)])
    calls = [granted(made.take(["ann"], 0, 0)) for _ in range(2)]
    stranger = granted(made.take(["bob"], 0, 0))
    assert (len(table), made.crowded) == (1, 1)
    made.settle(stranger, 0, 0)
    for call in calls:
        assert len(table) == 1
        made.settle(call, 0, 0)
    assert len(table) == 0


def test_what_is_counted_under_a_name_is_there_for_the_next_to_open_it() -> None:
    store = MemoryStore()
    before = store.open("mine", [Rule(PER_MINUTE, 2), Rule(PER_SECOND, 9)])
    granted(before.take(["here", "ann"], 0, 0))
    after = store.open("mine", [Rule(PER_MINUTE, 3)])
    other = store.open("other", [Rule(PER_MINUTE, 3)])
    del before
    assert granted(after.take(["here"], 0, 0)).requests == (3, 1, 60 * S)
    assert granted(other.take(["here"], 0, 0)).requests == (3, 2, 60 * S)


def test_what_nobody_opens_any_more_is_gone() -> None:
    store = MemoryStore()
    for _ in range(2):
        granted(store.open("mine", [Rule(PER_MINUTE, 1)]).take(["here"], 0, 0))


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, S), st.sampled_from("abcdefgh")), max_size=80),
    st.booleans(),
)
def test_no_caller_ever_gets_more_than_the_limit_however_many_there_are(
    most: int, limit: int, calls: list[tuple[int, str]], evenly: bool
) -> None:
    table = Table(EVENLY if evenly else PER_SECOND, most)
    rules = [Rule(table._kind, limit)]
    made = ShortWay(MemoryLimits([(rules[0], table)]), rules)
    now = 0
    admitted: dict[str, list[int]] = {}
    for pause, name in calls:
        now += pause
        if isinstance(made.take([name], 0, now), Granted):
            admitted.setdefault(name, []).append(now)
        assert len(table) <= most
    for times in admitted.values():
        for first, since in enumerate(times):
            within = [at for at in times[first:] if at - since < S]
            assert len(within) <= 2 * limit


def test_the_short_way_counts_where_windows_are_open_and_have_room_and_else_nothing() -> None:
    made = limits((PER_SECOND, 3), (TOKENS, 100), (AT_ONCE, 2))
    names = ["ann"] * 3
    assert made.count("ann", 10, 0) is None
    first = granted(made.take(names, 10, 0))
    counted = made.count("ann", 20, 5)
    assert counted is not None
    assert counted[:5] == (1, S, 70, 60 * S, 20)
    assert made.count("ann", 20, 5) is None
    assert refused(made.take(names, 20, 5)).rule.kind is AT_ONCE
    made.settle(first, 10, 6)
    made.recount(counted, 50)
    assert made.count("ann", 41, 6) is None
    third = made.count("ann", 40, 6)
    assert third is not None
    assert third[:4] == (0, S, 0, 60 * S)
    assert made.count("ann", 0, 7) is None
    assert refused(made.take(names, 0, 7)).rule.kind is PER_SECOND
    assert made.count("ann", 0, S) is None
    made.recount(third, 10)
    assert granted(made.take(names, 0, S)).tokens == (100, 30, 60 * S)


def test_a_correction_that_comes_the_short_way_counts_in_its_own_window_only() -> None:
    made = limits((TOKENS, 100))
    granted(made.take(["ann"], 10, 0))
    late = made.count("ann", 10, 1)
    assert late is not None
    granted(made.take(["ann"], 10, 60 * S))
    made.recount(late, 90)
    assert granted(made.take(["ann"], 10, 60 * S)).tokens == (100, 80, 120 * S)


def test_whoever_has_lost_its_meter_is_not_counted_on_it() -> None:
    made = limits((PER_SECOND, 2), most=1)
    granted(made.take(["ann"], 0, 0))
    assert made.count("ann", 0, 0) is not None
    granted(made.take(["bob"], 0, S))
    assert made.count("ann", 0, S) is None
    granted(made.take(["ann"], 0, S))
    assert made.crowded == 1
    assert made.count("ann", 0, S) is None
    granted(made.take(["ann"], 0, S))
    assert isinstance(made.take(["ann"], 0, S), Refused)


def test_the_short_way_gives_no_slot_where_there_is_no_room_for_a_meter() -> None:
    table = Table(AT_ONCE, 1)
    made = MemoryLimits([(Rule(AT_ONCE, 2), table)])
    first = made.count("ann", 0, 0)
    assert first is not None
    assert made.count("bob", 0, 0) is None
    stranger = granted(made.take(["bob"], 0, 0))
    made.recount(first, 0)
    assert (len(table), made.count("bob", 0, 0)) == (0, None)
    made.settle(stranger, 0, 0)
    assert made.count("bob", 0, 0) is not None


@pytest.mark.parametrize(
    "rules",
    [
        [(PER_SECOND, 2), (PER_MINUTE, 2)],
        [(EVENLY, 2)],
        [(PER_SECOND, 2), (Kind("requests", ("user",), "day"), 2)],
        [(MONEY, 2), (Kind("money", ("team",), "day"), 2)],
    ],
)
def test_there_is_no_short_way_for_several_callers_several_of_a_kind_or_an_even_refill(
    rules: list[tuple[Kind, int]],
) -> None:
    made = limits(*rules)
    granted(made.take(["ann"] * len(rules), 1, 0))
    assert made.count("ann", 1, 0) is None


def test_the_callers_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST_KNOWN", 2)
    made = limits((PER_MINUTE, 9))
    for name in "abcab":
        granted(made.take([name], 0, 0))
        assert made.count(name, 0, 0) is not None
        assert len(made._known) <= 2


def test_money_is_taken_as_it_may_cost_and_corrected_to_what_it_did() -> None:
    made = limits((MONEY, 100))
    first = granted(made.take(["ann 2026-11"], 60, 0))
    assert refused(made.take(["ann 2026-11"], 60, 0)).report.left == 40
    granted(made.take(["ann 2026-12"], 60, 0))
    made.settle(first, 25, 0)
    granted(made.take(["ann 2026-11"], 75, 31 * 86_400 * S))
    assert str(Rule(MONEY, 1_500_000_000)) == "1.5 USD per month for each team"


async def test_what_was_spent_before_counts_once_and_not_where_something_is_counted() -> None:
    store, rule = MemoryStore(), Rule(MONEY, 100)
    await store.restore("budget", MONEY, {"ann": 90}, 0)
    made = store.open("budget", [rule])
    await store.restore("budget", MONEY, {"ann": 90, "bob": 90}, 0)
    assert refused(made.take(["ann"], 11, 0)).report.left == 10
    granted(made.take(["bob"], 100, 0))
    opened = MemoryStore()
    late = opened.open("budget", [rule])
    await opened.restore("budget", MONEY, {"ann": 90}, 0)
    assert refused(late.take(["ann"], 11, 0)).report.left == 10
    other = MemoryStore()
    await other.restore("budget", MONEY, {"ann": 90}, 0)
    granted(other.open("another", [rule]).take(["ann"], 100, 0))
