"""shared: as exact as memory, over processes that come and go."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.filters.stores import shared_counts
from headgate.filters.stores.memory import MemoryStore
from headgate.filters.stores.rules import Granted, Kind, Limits, Refused, Rule
from headgate.filters.stores.shared import SharedLimits, SharedStore
from headgate.filters.stores.shared_memory import Berths, SharedMemory
from headgate.filters.stores.shared_table import Table
from headgate.proxy.errors import OverloadError

if TYPE_CHECKING:
    from collections.abc import Iterator

S = 1_000_000
PER_SECOND = Kind("requests", ("user",), "second")
PER_DAY = Kind("requests", ("user",), "day")
EVENLY = Kind("tokens", ("user",), "day", continuous=True)
TOKENS = Kind("tokens", ("user",), "minute")
AT_ONCE = Kind("concurrent", ("user",), "")
MONEY = Kind("money", ("team",), "month")


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    made = SharedMemory.create(8)
    yield made
    made.close()


@contextmanager
def another(memory: SharedMemory) -> Iterator[SharedMemory]:
    """An opening of its own, as another process has."""
    made = SharedMemory.attach(memory.file)
    yield made
    made.close()


def granted(result: Granted[Any] | Refused) -> Granted[Any]:
    assert isinstance(result, Granted)
    return result


def test_two_processes_count_together(memory: SharedMemory) -> None:
    memory.expect(1)
    rules = [Rule(PER_SECOND, 3), Rule(TOKENS, 100), Rule(AT_ONCE, 2)]
    with another(memory) as other:
        one, two = SharedStore(memory, 0).open("it", rules), SharedStore(other, 1).open("it", rules)
        names = ["ann"] * 3
        first = granted(one.take(names, 30, 0))
        assert granted(two.take(names, 30, 0)).tokens == (100, 40, 60 * S)
        refused = one.take(names, 30, 0)
        assert isinstance(refused, Refused)
        assert refused.rule.kind is AT_ONCE
        one.settle(first, 10, 0)
        third = granted(two.take(names, 60, 0))
        assert (third.requests, third.tokens) == ((3, 0, S), (100, 0, 60 * S))


def test_an_even_refill_of_any_size_is_exact(memory: SharedMemory) -> None:
    limits = SharedStore(memory).open("it", [Rule(EVENLY, 10**12)])
    call = granted(limits.take(["ann"], 10**12, 0))
    assert isinstance(limits.take(["ann"], 1, 0), Refused)
    limits.settle(call, 10**12 - 1, 0)
    granted(limits.take(["ann"], 1, 0))
    assert isinstance(limits.take(["ann"], 1, 0), Refused)


def test_filters_and_callers_do_not_affect_each_other(memory: SharedMemory) -> None:
    store = SharedStore(memory)
    for name in ("one", "two"):
        limits = store.open(name, [Rule(PER_DAY, 1)])
        for caller in ("ann", "bob"):
            granted(limits.take([caller], 0, 0))
            assert isinstance(limits.take([caller], 0, 0), Refused)


def test_a_reload_finds_what_was_counted(memory: SharedMemory) -> None:
    store = SharedStore(memory)
    granted(store.open("it", [Rule(PER_DAY, 1)]).take(["ann"], 0, 0))
    assert granted(store.open("it", [Rule(PER_DAY, 5)]).take(["ann"], 0, 0)).requests == (5, 3, 86_400 * S)


def test_the_slots_of_a_dead_process_are_given_back_and_its_tokens_stay_charged(memory: SharedMemory) -> None:
    berths = Berths(memory)
    assert (berths.take(), berths.take()) == (0, 1)
    rules = [Rule(AT_ONCE, 1), Rule(TOKENS, 100)]
    with another(memory) as other:
        granted(SharedStore(other, 1).open("it", rules).take(["ann", "ann"], 60, 0))
    alive = SharedStore(memory, 0).open("it", rules)
    assert isinstance(alive.take(["ann", "ann"], 10, 0), Refused)
    berths.leave(1)
    assert granted(alive.take(["ann", "ann"], 10, 0)).tokens == (100, 30, 60 * S)
    assert berths.take() == 1


@pytest.mark.parametrize("kind", [TOKENS, EVENLY])
def test_a_call_that_cannot_be_counted_is_refused_and_what_it_used_is_settled_all_the_same(
    memory: SharedMemory, kind: Kind
) -> None:
    limits = SharedStore(memory).open("it", [Rule(kind, 100), Rule(AT_ONCE, 1)])
    with another(memory) as other:
        call = granted(limits.take(["ann", "ann"], 60, 0))
        assert other.lock.take()
        limits.settle(call, 10, 0)
        for _ in range(3):
            with pytest.raises(OverloadError):
                limits.take(["ann", "ann"], 60, 0)
        other.lock.release()
    call = granted(limits.take(["ann", "ann"], 60, 0))
    assert call.tokens is not None
    assert call.tokens.left == 30


def test_a_settlement_needs_no_lock(memory: SharedMemory) -> None:
    memory.expect(1)
    rules = [Rule(TOKENS, 100), Rule(AT_ONCE, 1)]
    with another(memory) as other:
        one, two = SharedStore(memory, 0).open("it", rules), SharedStore(other, 1).open("it", rules)
        call = granted(one.take(["ann", "ann"], 60, 0))
        assert other.lock.take()
        one.settle(call, 10, 0)
        other.lock.release()
        assert granted(two.take(["ann", "ann"], 60, 0)).tokens == (100, 30, 60 * S)


def test_what_is_settled_after_its_window_counts_in_no_other(memory: SharedMemory) -> None:
    memory.expect(1)
    with another(memory) as other:
        one, two = (SharedStore(of, n).open("it", [Rule(TOKENS, 100)]) for n, of in enumerate((memory, other)))
        late = granted(one.take(["ann"], 60, 0))
        granted(two.take(["ann"], 30, 60 * S))
        one.settle(late, 100, 60 * S)
        assert granted(two.take(["ann"], 30, 60 * S)).tokens == (100, 40, 120 * S)
        late = granted(one.take(["ann"], 10, 60 * S))
        granted(one.take(["ann"], 30, 120 * S))
        one.settle(late, 100, 120 * S)
        assert granted(one.take(["ann"], 30, 120 * S)).tokens == (100, 40, 180 * S)


def test_what_a_dead_process_had_settled_stays_settled(memory: SharedMemory) -> None:
    berths = Berths(memory)
    first, second = berths.take(), berths.take()
    alive = SharedStore(memory, first).open("it", [Rule(TOKENS, 100)])
    for _ in range(2):
        with another(memory) as other:
            limits = SharedStore(other, second).open("it", [Rule(TOKENS, 100)])
            limits.settle(granted(limits.take(["ann"], 40, 0)), 10, 0)
        berths.leave(second)
        assert berths.take() == second
    assert granted(alive.take(["ann"], 40, 0)).tokens == (100, 40, 60 * S)


def test_a_caller_that_comes_again_has_the_row_it_had_though_others_came_between(
    memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_counts, "MOST_KNOWN", 2)
    limits = SharedStore(memory).open("it", [Rule(PER_DAY, 2)])
    for left in (1, 0):
        for caller in "abcde":
            assert granted(limits.take([caller], 0, 0)).requests == (2, left, 86_400 * S)


def test_however_much_is_set_aside_and_not_used_it_is_counted(memory: SharedMemory) -> None:
    most = shared_counts.MOST
    limits = SharedStore(memory).open("it", [Rule(TOKENS, most)])
    for n in range(20):
        call = granted(limits.take(["ann"], most - n, 0))
        assert call.tokens == (most, 0, 60 * S)
        limits.settle(call, 1, 0)
    limits.settle(granted(limits.take(["ann"], 1, 0)), 3 * most, 0)
    assert isinstance(limits.take(["ann"], 1, 0), Refused)


def test_the_short_way_counts_with_others_and_needs_the_lock(memory: SharedMemory) -> None:
    memory.expect(1)
    rules = [Rule(PER_SECOND, 5), Rule(TOKENS, 100), Rule(AT_ONCE, 3)]
    names = ["ann"] * 3
    with another(memory) as other:
        one, two = SharedStore(memory, 0).open("it", rules), SharedStore(other, 1).open("it", rules)
        assert one.count("ann", 10, 0) is None
        first = granted(one.take(names, 10, 0))
        assert two.count("ann", 10, 0) is None  # its cells have no tag yet
        granted(two.take(names, 10, 0))
        counted = two.count("ann", 30, 0)
        assert counted is not None
        assert counted[:5] == (2, S, 50, 60 * S, 30)
        assert one.count("ann", 1, 0) is None
        one.settle(first, 20, 0)
        assert two.count("ann", 41, 0) is None
        two.recount(counted, 0)
        assert memory.lock.take()
        assert two.count("ann", 1, 0) is None
        memory.lock.release()
        last = one.count("ann", 70, 0)
        assert last is not None
        assert last[:4] == (1, S, 0, 60 * S)
        assert one.count("ann", 0, S) is None


def test_the_short_way_sees_who_came_later(memory: SharedMemory) -> None:
    rules = [Rule(TOKENS, 100)]
    alone = SharedStore(memory, 0).open("it", rules)
    granted(alone.take(["ann"], 10, 0))
    assert alone.count("ann", 10, 0) is not None
    memory.expect(1)
    with another(memory) as other:
        two = SharedStore(other, 1).open("it", rules)
        two.settle(granted(two.take(["ann"], 10, 0)), 70, 0)
        assert alone.count("ann", 11, 0) is None
        assert alone.count("ann", 10, 0) is not None


@pytest.mark.parametrize("kind", [PER_SECOND, AT_ONCE])
def test_the_short_way_does_not_count_in_a_row_that_is_anothers_by_now(memory: SharedMemory, kind: Kind) -> None:
    table = Table(memory, 0, 2, 1)
    first, second = (SharedLimits(memory, table, 0, name, [Rule(kind, 2)]) for name in ("one", "two"))
    call = granted(first.take(["ann"], 0, 0))
    counted = first.count("ann", 0, 0)
    assert counted is not None
    first.settle(call, 0, 0)
    first.recount(counted, 0)
    granted(second.take(["ann"], 0, S))
    assert first.count("ann", 0, S) is None
    assert second.count("ann", 0, S) is not None
    assert second.count("ann", 0, S) is None


def test_what_the_short_way_sets_aside_and_is_not_used_is_counted(memory: SharedMemory) -> None:
    most = shared_counts.MOST
    limits = SharedStore(memory).open("it", [Rule(TOKENS, most)])
    granted(limits.take(["ann"], 1, 0))
    for n in range(1, 20):
        counted = limits.count("ann", most - n, 0)
        if counted is None:
            call = granted(limits.take(["ann"], most - n, 0))
            assert call.tokens == (most, 0, 60 * S)
            limits.settle(call, 1, 0)
        else:
            assert counted[2] == 0
            limits.recount(counted, 1)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 4 * S), st.integers(1, 40), st.integers(0, 60), st.booleans()),
        max_size=40,
    )
)
def test_it_decides_as_memory_does(calls: list[tuple[str, int, int, int, bool]]) -> None:
    rules = [Rule(PER_SECOND, 2), Rule(TOKENS, 100), Rule(EVENLY, 150), Rule(AT_ONCE, 3)]
    made = SharedMemory.create(1)
    both: tuple[Limits, Limits] = (MemoryStore().open("it", rules), SharedStore(made).open("it", rules))
    open_calls: list[tuple[Any, ...]] = []
    now = 0
    for name, pause, guess, used, ends in calls:
        now += pause
        results = [limits.take([name] * 4, guess, now) for limits in both]
        if isinstance(results[0], Refused):
            assert results[0] == results[1]
        else:
            first, second = granted(results[0]), granted(results[1])
            assert (first.requests, first.tokens) == (second.requests, second.tokens)
            open_calls.append((first, second))
        if ends and open_calls:
            for limits, call in zip(both, open_calls.pop(0), strict=True):
                limits.settle(call, used, now)
    made.close()


async def test_what_was_spent_before_counts_for_every_process_and_once(memory: SharedMemory) -> None:
    store, rule = SharedStore(memory), Rule(MONEY, 10**12)
    await store.restore("budget", MONEY, {"ann": 9 * 10**11}, 0)
    memory.expect(1)
    with another(memory) as other:
        made = SharedStore(other, 1).open("budget", [rule])
        refused = made.take(["ann"], 2 * 10**11, 0)
        assert isinstance(refused, Refused)
        assert refused.report.left == 10**11
        call = granted(made.take(["ann"], 10**11, 0))
        await store.restore("budget", MONEY, {"ann": 9 * 10**11}, 0)
        made.settle(call, 1, 0)
        granted(made.take(["ann"], 10**11 - 1, 0))
