"""When a dead worker is replaced, and when replacing has become pointless. Pure.

A worker that served and died is replaced at once: it may have been one bad request. Many deaths in a minute slow
replacing down, so that a crash loop does not eat the machine. Only workers that die before they were ever ready end the
supervisor: then nothing that can be waited for will make the next one start.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

WINDOW_SECONDS = 60.0
FREE_DEATHS = 9
FIRST_DELAY = 0.5
LONGEST_DELAY = 10.0
STILLBORN = 5


class Verdict(NamedTuple):
    """Replace after `delay` seconds, or give up."""

    delay: float
    give_up: bool


class RestartPolicy:
    """Counts deaths over the last minute, for all workers together."""

    __slots__ = ("_deaths", "_stillborn", "total")

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()
        self._stillborn: deque[float] = deque()
        self.total = 0

    def died(self, now: float, *, was_ready: bool) -> Verdict:
        """A worker died at monotonic time `now`."""
        self.total += 1
        self._deaths.append(now)
        if not was_ready:
            self._stillborn.append(now)
        for times in (self._deaths, self._stillborn):
            while times and times[0] <= now - WINDOW_SECONDS:
                times.popleft()
        if len(self._stillborn) >= STILLBORN:
            return Verdict(0.0, give_up=True)
        above = len(self._deaths) - FREE_DEATHS
        if above <= 0:
            # A worker that never became ready is given a moment: what it lacks may be about to come.
            return Verdict(0.0 if was_ready else FIRST_DELAY, give_up=False)
        return Verdict(min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(above - 1, 16)), give_up=False)
