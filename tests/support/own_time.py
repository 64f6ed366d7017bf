"""Time as this process has it, for a gateway, its providers and its clients on one loop with real sockets between.

    clock = OwnTime()
    ...                       # give it to all of them
    began = clock.monotonic()

What the process computes counts as it does on the real clock, so whoever keeps the loop busy is late. A time in which
it has nothing to do is over at once. And what the machine gives to others does not exist: a deadline never falls due
because a neighbour computed. So what a test says of deadlines holds on any machine, and takes as long as it computes.

The one idea: time moves on to the next timer when nothing happens without it. That is so when the loop has turned
`_QUIET_TURNS` times and never had a callback of a socket to run, twice, with a pause between in which the kernel may
deliver what is still on its way. It moves by one timer at a time, and where somebody sweeps ten times a second that is
little: a packet that is later than the pause finds most of its time left.

Where work is done in threads, `elsewhere` says whether some is: time is not skipped then.
"""

from __future__ import annotations

import asyncio
import heapq
import select
import time
from typing import TYPE_CHECKING, Any, Protocol, cast

from .clock import WALL_START, FakeTimer

if TYPE_CHECKING:
    from collections.abc import Callable

_QUIET_TURNS = 8
_PAUSE = 0.001


class _KnowsItsSelector(Protocol):
    """What uvloop's loop has beyond the interface."""

    def _get_backend_id(self) -> int:
        """The descriptor of its epoll, which is readable while a callback of a socket is due."""


class OwnTime:
    """A `headgate.proxy.clock.Clock` on the running uvloop."""

    def __init__(self, elsewhere: Callable[[], bool] = lambda: False) -> None:
        self._elsewhere = elsewhere
        self._loop = asyncio.get_running_loop()
        self._poll = select.poll()
        self._poll.register(cast("_KnowsItsSelector", self._loop)._get_backend_id(), select.POLLIN)
        self.skipped = 0.0
        """Seconds in which there was nothing to do."""
        self._timers: list[tuple[float, int, FakeTimer]] = []
        self._count = 0
        self._turning = self._paused = False
        self._quiet = 0

    def monotonic(self) -> float:
        """Seconds: computed, and skipped."""
        return time.process_time() + self.skipped

    def wall(self) -> float:
        """Unix seconds."""
        return WALL_START + self.monotonic()

    def call_at(self, when: float, fn: Callable[..., object], *args: Any) -> FakeTimer:
        """Run `fn(*args)` once `when` is reached; on the next turn of the loop at the earliest."""
        timer = FakeTimer(when, fn, args)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, timer))
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)
        return timer

    async def sleep(self, seconds: float) -> None:
        """Wait; cancellation leaves nothing behind."""
        woken = asyncio.Event()
        timer = self.call_at(self.monotonic() + seconds, woken.set)
        try:
            await woken.wait()
        finally:
            timer.cancel()

    def _turn(self) -> None:
        due = self._due()
        if due or self._poll.poll(0):
            self._quiet, self._paused = 0, False
        else:
            self._quiet += 1
        for timer in due:
            if not timer.cancelled:  # by one that ran before it
                timer.fn(*timer.args)
        if not self._timers:
            self._turning = False
        elif self._quiet < _QUIET_TURNS:
            self._loop.call_soon(self._turn)
        elif not self._paused:
            self._quiet, self._paused = 0, True
            self._loop.call_later(_PAUSE, self._turn)
        else:
            self._quiet, self._paused = 0, False
            if not self._elsewhere():
                self.skipped += max(0.0, self._timers[0][0] - self.monotonic())
            self._loop.call_soon(self._turn)

    def _due(self) -> list[FakeTimer]:
        """Those whose time has come, in order; those that were cancelled are forgotten on the way."""
        now = self.monotonic()
        due = []
        while self._timers and (self._timers[0][0] <= now or self._timers[0][2].cancelled):
            timer = heapq.heappop(self._timers)[2]
            if not timer.cancelled:
                due.append(timer)
        return due
