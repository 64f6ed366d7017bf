"""Time that only moves when told.

clock = FakeClock()
clock.advance(5)            # runs every timer that falls due on the way, in order, each at its own time
await clock.run(5)          # the same, and lets tasks run between: for chains of sleeps
"""

from __future__ import annotations

import asyncio
import heapq
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

START = 1000.0
WALL_START = 1_700_000_000.0
TURNS = 5


class FakeTimer:
    """A scheduled call of a FakeClock."""

    __slots__ = ("args", "cancelled", "fn", "when")

    def __init__(self, when: float, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.when = when
        self.fn = fn
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        """Never run it."""
        self.cancelled = True


class FakeClock:
    """A `headgate.proxy.clock.Clock`. Monotonic and wall time move together; `jump_wall` moves the wall alone."""

    def __init__(self, start: float = START, wall: float = WALL_START) -> None:
        self._now = start
        self._wall_offset = wall - start
        self._timers: list[tuple[float, int, FakeTimer]] = []
        self._count = 0

    def monotonic(self) -> float:
        """Seconds since an arbitrary start."""
        return self._now

    def wall(self) -> float:
        """Unix seconds."""
        return self._now + self._wall_offset

    def call_at(self, when: float, fn: Callable[..., object], *args: Any) -> FakeTimer:
        """Run `fn(*args)` when time has come there; a time already past waits for the next `advance`, even by 0."""
        timer = FakeTimer(when, fn, args)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, timer))
        return timer

    async def sleep(self, seconds: float) -> None:
        """Wait until time has moved by `seconds`; cancellation leaves nothing behind."""
        woken = asyncio.Event()
        timer = self.call_at(self._now + seconds, woken.set)
        try:
            await woken.wait()
        finally:
            timer.cancel()

    @property
    def pending(self) -> list[float]:
        """When the timers that nobody cancelled fall due."""
        return sorted(when for when, _, timer in self._timers if not timer.cancelled)

    def advance(self, seconds: float) -> None:
        """Move on; what falls due on the way runs in order of time, then of scheduling."""
        until = self._now + seconds
        while (timer := self._due(until)) is not None:
            timer.fn(*timer.args)
        self._now = until

    async def run(self, seconds: float) -> None:
        """Move on like `advance`, letting tasks run after each timer, so that what they schedule is in time, too."""
        until = self._now + seconds
        await _turns()
        while (timer := self._due(until)) is not None:
            timer.fn(*timer.args)
            await _turns()
        self._now = until
        await _turns()

    def jump_wall(self, seconds: float) -> None:
        """The wall clock is set; monotonic time does not notice."""
        self._wall_offset += seconds

    def _due(self, until: float) -> FakeTimer | None:
        while self._timers and self._timers[0][0] <= until:
            when, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                self._now = max(self._now, when)
                return timer
        return None


async def _turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)
