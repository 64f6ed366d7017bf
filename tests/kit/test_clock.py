"""FakeClock: nothing happens until time is moved, and then in order."""

from __future__ import annotations

import asyncio

from headgate.proxy.clock import Deadlines
from tests_support.clock import FakeClock


def test_due_timers_run_in_order_each_at_its_own_time() -> None:
    clock = FakeClock(start=0)
    seen: list[tuple[str, float]] = []
    clock.call_at(2, lambda: seen.append(("b", clock.monotonic())))
    clock.call_at(1, lambda: seen.append(("a", clock.monotonic())))
    clock.call_at(2, lambda: seen.append(("c", clock.monotonic())))
    clock.call_at(1.5, lambda: seen.append(("never", 0))).cancel()
    clock.call_at(9, lambda: seen.append(("later", 0)))
    clock.advance(5)
    assert seen == [("a", 1), ("b", 2), ("c", 2)]
    assert clock.monotonic() == 5
    assert clock.pending == [9]


def test_a_timer_scheduled_by_a_timer_runs_if_it_is_due() -> None:
    clock = FakeClock(start=0)
    seen: list[float] = []
    clock.call_at(1, lambda: clock.call_at(2, lambda: seen.append(clock.monotonic())))
    clock.advance(2)
    assert seen == [2]


async def test_sleepers_wake_when_their_time_has_come() -> None:
    clock = FakeClock(start=0)
    woken: list[float] = []

    async def thrice() -> None:
        for _ in range(3):
            await clock.sleep(1)
            woken.append(clock.monotonic())

    task = asyncio.get_running_loop().create_task(thrice())
    await clock.run(2.5)
    assert woken == [1, 2]
    await clock.run(1)
    await task
    assert clock.pending == []


async def test_a_cancelled_sleep_leaves_no_timer() -> None:
    clock = FakeClock()
    task = asyncio.get_running_loop().create_task(clock.sleep(1))
    await clock.run(0)
    task.cancel()
    await asyncio.wait([task])
    assert clock.pending == []


def test_the_wall_jumps_alone() -> None:
    clock = FakeClock(start=0, wall=100)
    clock.jump_wall(3600)
    clock.advance(1)
    assert (clock.monotonic(), clock.wall()) == (1, 3701)


def test_drives_the_shared_deadlines() -> None:
    class Holder:
        deadline = 10.0
        fired_at: float | None = None

        def on_deadline(self) -> None:
            self.fired_at = clock.monotonic()
            deadlines.discard(self)

    clock = FakeClock(start=0)
    deadlines = Deadlines(clock)
    holder = Holder()
    deadlines.add(holder)
    clock.advance(9.9)
    assert holder.fired_at is None
    clock.advance(0.3)
    assert holder.fired_at is not None
    assert 10 <= holder.fired_at <= 10.2
