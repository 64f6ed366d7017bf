"""Time, injected: the one module of the package that may ask the operating system what time it is.

Two kinds of waiting are offered. `Clock.call_at` is an exact timer, 1.4 µs each. `Deadlines` is one coarse timer shared
by everything that has a deadline that moves with every request or event: a holder writes a float, and one sweep every
100 ms finds those that are over. Moving a deadline therefore costs an attribute write, and a deadline fires at most one
sweep late, never early.
"""

from __future__ import annotations

import asyncio
import time
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

SWEEP_SECONDS = 0.1

_log = structlog.get_logger("headgate.clock")


class Timer(Protocol):
    """A scheduled call that has not run yet."""

    def cancel(self) -> None:
        """Never run it; harmless when it already ran."""


class Clock(Protocol):
    """Where every part gets its time from. Tests hand in a clock that only moves when told."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back. All durations and deadlines are measured on it."""

    def wall(self) -> float:
        """Unix seconds, for what is written down; it may jump and decides nothing."""

    def call_at(self, when: float, fn: Callable[..., object], *args: Any) -> Timer:
        """Run `fn(*args)` on the loop once `monotonic()` has reached `when`."""

    async def sleep(self, seconds: float) -> None:
        """Wait; cancellation leaves nothing behind."""


class LoopClock:
    """The real clock, on the running event loop."""

    __slots__ = ("_loop", "monotonic", "wall")

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self.monotonic = time.monotonic
        self.wall = time.time

    def call_at(self, when: float, fn: Callable[..., object], *args: Any) -> Timer:
        """Run `fn(*args)` once `when` is reached; at once, on the next turn of the loop, when it is already past."""
        return self._loop.call_later(max(0.0, when - time.monotonic()), fn, *args)

    async def sleep(self, seconds: float) -> None:
        """Wait `seconds`."""
        await asyncio.sleep(seconds)


def wall_time() -> float:
    """Unix seconds, for a command that has no loop."""
    return time.time()


def monotonic_time() -> float:
    """Seconds from an arbitrary start, for what is built without a loop."""
    return time.monotonic()


class DeadlineHolder(Protocol):
    """Something with one moving deadline: `deadline` is in monotonic seconds, `inf` for none."""

    deadline: float

    def on_deadline(self) -> None:
        """Called once the deadline is over; sets a new one or lets go, else it is called again at the next sweep."""


class Deadlines:
    """One coarse timer for many moving deadlines.

    The sweep is scheduled only while there are holders, so an idle process sleeps. A holder may add or discard holders,
    itself included, from `on_deadline`.
    """

    __slots__ = ("_clock", "_holders", "_period", "_timer", "discard", "soon")

    def __init__(self, clock: Clock, period: float = SWEEP_SECONDS) -> None:
        self._clock = clock
        self._period = period
        self._holders: set[DeadlineHolder] = set()
        self.discard: Callable[[DeadlineHolder], None] = self._holders.discard
        """Stop watching; harmless when it is not watched."""
        self._timer: Timer | None = None
        self.soon = clock.monotonic()
        """When the next sweep is due while somebody is watched: `soon + seconds` is never early and asks no clock."""

    def __len__(self) -> int:
        return len(self._holders)

    def now(self) -> float:
        """The time, for a holder that has no clock of its own."""
        return self._clock.monotonic()

    def add(self, holder: DeadlineHolder) -> None:
        """Watch `holder` until it is discarded."""
        self._holders.add(holder)
        if self._timer is None:
            self._schedule()

    def _schedule(self) -> None:
        self.soon = self._clock.monotonic() + self._period
        self._timer = self._clock.call_at(self.soon, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        over = [holder for holder in self._holders if holder.deadline <= now]
        if self._holders:
            self._schedule()
        for holder in over:
            if holder in self._holders:
                try:
                    holder.on_deadline()
                except Exception:  # a bug in one holder must not be the end of everybody's deadlines
                    _log.exception("on_deadline failed", holder=repr(holder))


NEVER = inf
