"""shared: as exact as memory, over processes, and over their sudden ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.filters.stores import shared
from headgate.filters.stores.memory import MemoryStore
from headgate.filters.stores.rules import Granted, Kind, Limits, Refused, Rule
from headgate.filters.stores.shared import Berths, SharedMemory, SharedStore
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
WORKER = """
import sys
from headgate.filters.stores.rules import Granted, Kind, Rule
from headgate.filters.stores.shared import SharedMemory, SharedStore
from headgate.proxy.errors import OverloadError
file, process, calls, slots, tokens, much = map(int, sys.argv[1:])
rules = [Rule(Kind("requests", ("user",), "day"), calls), Rule(Kind("concurrent", ("user",), ""), slots),
         Rule(Kind("tokens", ("user",), "day"), tokens)]
limits = SharedStore(SharedMemory.attach(file), process).open("it", rules)
print("ready", flush=True)
sys.stdin.readline()
now = 0
for _ in range(much):
    now += 1
    try:
        call = limits.take(["ann", "ann", "ann"], 10, now)
    except OverloadError:
        continue
    if isinstance(call, Granted):
        sys.stdout.write("+"); sys.stdout.flush()
        limits.settle(call, 5, now)
        sys.stdout.write("-"); sys.stdout.flush()
print(flush=True)
"""


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


def test_there_is_a_berth_for_as_many_as_were_planned(memory: SharedMemory) -> None:
    berths = Berths(memory)
    assert [berths.take() for _ in range(8)] == list(range(8))
    with pytest.raises(OSError, match="as many processes"):
        berths.take()


def test_a_call_that_cannot_be_counted_is_refused_and_what_it_used_is_settled_later(memory: SharedMemory) -> None:
    limits = SharedStore(memory).open("it", [Rule(TOKENS, 100), Rule(AT_ONCE, 1)])
    with another(memory) as other:
        call = granted(limits.take(["ann", "ann"], 60, 0))
        assert other.lock()
        limits.settle(call, 10, 0)
        for _ in range(3):
            with pytest.raises(OverloadError):
                limits.take(["ann", "ann"], 60, 0)
        other.unlock()
    assert granted(limits.take(["ann", "ann"], 60, 0)).tokens == (100, 30, 60 * S)


def test_newcomers_share_one_meter_where_there_is_no_room(
    memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "PROBE", 1)
    monkeypatch.setattr(shared, "RECORDS", shared.OTHERS + 1)
    limits = SharedStore(memory).open("it", [Rule(PER_SECOND, 2)])
    granted(limits.take(["ann"], 0, 0))
    for name in ("bob", "cid"):
        granted(limits.take([name], 0, 1))
    assert isinstance(limits.take(["dan"], 0, 1), Refused)
    granted(limits.take(["ann"], 0, 1))
    assert isinstance(limits.take(["bob"], 0, S), Refused)  # ann's is over, theirs is not
    granted(limits.take(["dan"], 0, S + 1))
    assert limits.crowded == 2


def test_a_write_that_a_kill_cuts_short_leaves_the_state_before_it(memory: SharedMemory) -> None:
    """Every write to the map but the last of `save` is undone in turn: what is read is old, or nobody's."""
    key, rule = b"k" * 16, Rule(PER_DAY, 9)
    meter = rule.kind.meter()
    meter.take(9, 4, 1)
    memory.save(2000, key, meter, 9)
    before = memory.map[:]
    meter.take(9, 1, 2)
    memory.save(2000, key, meter, 9)
    after = memory.map[:]
    selector = next(at for at in range(64, len(before)) if before[at] != after[at])
    memory.map[selector] = before[selector]
    assert memory.meter(2000, key, rule).left(9, 3) == 5
    memory.map[selector] = after[selector]
    assert memory.meter(2000, key, rule).left(9, 3) == 4


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


def started(memory: SharedMemory, berth: int, *numbers: int) -> subprocess.Popen[bytes]:
    """A process that counts once it is sent a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, *map(str, (memory.file, berth, *numbers))],
        pass_fds=[memory.file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def killed(seed: int, rounds: int) -> None:
    """Two processes take and give back; each in turn is killed at any moment, and replaced."""
    rng = Random(seed)
    most, kills, said = 10**6, 0, 0
    memory = SharedMemory.create(4)
    berths = Berths(memory)

    def start() -> tuple[subprocess.Popen[bytes], int]:
        berth = berths.take()
        process = started(memory, berth, most, 2, 10**9, 10**9)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        return process, berth

    running = [start() for _ in range(2)]
    for left in reversed(range(rounds)):
        process, berth = running.pop(0)
        assert process.stdout is not None
        for _ in range(rng.randrange(1, 300)):
            said += process.stdout.read(1).count(b"+")
        os.kill(process.pid, signal.SIGKILL)
        said += process.stdout.readall().count(b"+")  # type: ignore[attr-defined]  # a FileIO, for it is not buffered
        process.communicate()
        berths.leave(berth)
        kills += 1
        if left > 1:
            running.append(start())
    assert not running
    limits = SharedStore(memory, 0).open("it", rules_of(most, 2, 10**9))
    first, _ = (granted(limits.take(["ann"] * 3, 10, 1)) for _ in range(2))
    assert isinstance(limits.take(["ann"] * 3, 10, 1), Refused)  # two slots, no more and no less
    assert first.requests is not None
    assert first.tokens is not None
    counted, used = most - first.requests.left - 1, 10**9 - first.tokens.left - 10
    assert said <= counted <= said + kills  # each may be killed between its call and its word
    assert 5 * (counted - kills) <= used <= 5 * (counted + kills)  # and before it settles, or between two rules
    memory.close()


def rules_of(calls: int, slots: int, tokens: int) -> list[Rule]:
    """Those of WORKER."""
    return [Rule(PER_DAY, calls), Rule(AT_ONCE, slots), Rule(Kind("tokens", ("user",), "day"), tokens)]


def test_processes_that_are_killed_give_their_slots_back_and_were_never_uncounted() -> None:
    killed(1, 4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
def test_hundreds_of_kills(seed: int) -> None:
    killed(seed, 40)


def test_processes_that_take_at_once_get_exactly_the_limit_together() -> None:
    memory = SharedMemory.create(4)
    for process in range(4):
        memory.expect(process)
    workers = [started(memory, n, 1000, 100, 10**6, 600) for n in range(4)]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(b"\n")
    admitted = sum(worker.communicate(timeout=60)[0].count(b"+") for worker in workers)
    refused = SharedStore(memory, 0).open("it", [Rule(PER_DAY, 1000)]).take(["ann"], 0, 1)
    memory.close()
    assert (admitted, isinstance(refused, Refused)) == (1000, True)


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
