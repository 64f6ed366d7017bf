"""clock: a deadline fires once it is over and at most one sweep late, whatever other holders do meanwhile."""

from __future__ import annotations

import asyncio
import time
from math import inf
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.clock import NEVER, Deadlines, LoopClock
from tests_support.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

PERIOD = 0.1


class Holder:
    """Fires once and notes when, unless `then` says otherwise."""

    def __init__(self, clock: FakeClock, deadline: float, then: Callable[[Holder], None] | None = None) -> None:
        self.clock = clock
        self.deadline = deadline
        self.fired: list[float] = []
        self.then = then

    def on_deadline(self) -> None:
        self.fired.append(self.clock.monotonic())
        self.deadline = NEVER
        if self.then is not None:
            self.then(self)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=20))
def test_every_deadline_fires_once_never_early_and_at_most_one_sweep_late(waits: list[float]) -> None:
    clock = FakeClock()
    deadlines = Deadlines(clock, PERIOD)
    start = clock.monotonic()
    holders = [Holder(clock, start + wait) for wait in waits]
    for holder in holders:
        deadlines.add(holder)
    clock.advance(21)
    for holder, wait in zip(holders, waits, strict=True):
        (fired,) = holder.fired
        assert start + wait <= fired <= start + wait + PERIOD + 1e-6


def test_nothing_is_scheduled_without_holders() -> None:
    clock = FakeClock()
    deadlines = Deadlines(clock, PERIOD)
    assert clock.pending == []
    holder = Holder(clock, NEVER)
    deadlines.add(holder)
    assert len(deadlines) == len(clock.pending) == 1
    deadlines.discard(holder)
    deadlines.discard(holder)
    clock.advance(1)
    assert clock.pending == []
    deadlines.add(holder)
    assert len(clock.pending) == 1


def test_a_deadline_moves_by_writing_it() -> None:
    clock = FakeClock()
    deadlines = Deadlines(clock, PERIOD)
    holder = Holder(clock, clock.monotonic() + 1)
    deadlines.add(holder)
    for _ in range(10):
        clock.advance(0.5)
        holder.deadline = clock.monotonic() + 1
    assert holder.fired == []
    holder.deadline = inf
    clock.advance(100)
    assert holder.fired == []


def test_a_holder_may_discard_another_that_is_over_as_well() -> None:
    clock = FakeClock()
    deadlines = Deadlines(clock, PERIOD)
    holders: list[Holder] = []

    def discard_the_others(holder: Holder) -> None:
        for other in holders:
            if other is not holder:
                deadlines.discard(other)

    for _ in range(2):
        holders.append(Holder(clock, clock.monotonic(), discard_the_others))
        deadlines.add(holders[-1])
    clock.advance(1)
    assert sorted(len(holder.fired) for holder in holders) == [0, 1]


def test_a_holder_that_raises_does_not_stop_the_others() -> None:
    clock = FakeClock()
    deadlines = Deadlines(clock, PERIOD)

    def fail(holder: Holder) -> None:
        holder.deadline = 0.0
        raise ZeroDivisionError

    broken = [Holder(clock, clock.monotonic(), fail) for _ in range(5)]
    good = Holder(clock, clock.monotonic() + 0.5)
    for holder in [*broken, good]:
        deadlines.add(holder)
    clock.advance(1)
    assert len(good.fired) == 1
    assert all(len(holder.fired) > 1 for holder in broken)


async def test_the_real_clock_runs_timers_and_sleeps() -> None:
    clock = LoopClock()
    ran: list[int] = []
    done = asyncio.Event()
    now = clock.monotonic()
    clock.call_at(now + 0.01, ran.append, 3).cancel()
    clock.call_at(now - 1, ran.append, 1)
    clock.call_at(now + 0.02, ran.append, 2)
    clock.call_at(now + 0.04, done.set)
    async with asyncio.timeout(5):
        await done.wait()
        await clock.sleep(0.001)
    assert ran == [1, 2]
    assert clock.wall() == pytest.approx(time.time(), abs=1)
