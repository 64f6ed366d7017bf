"""How much retrying one provider may see: a rate, so that a failing provider is not drowned by those who mean well.

Over the last 10 seconds, retries may be at most a share of the first attempts plus a floor per second. It is counted
where all calls of a provider meet, in its cluster, and in whole-second buckets: no timer, no lock.
"""

from __future__ import annotations

WINDOW = 10


class RetryBudget:
    """First attempts and retries of the last `WINDOW` seconds."""

    __slots__ = ("_at", "_firsts", "_retries", "_second")

    def __init__(self) -> None:
        self._firsts = [0] * WINDOW
        self._retries = [0] * WINDOW
        self._second = 0
        self._at = 0
        """Its bucket."""

    def count_first(self, now: float) -> None:
        """A first attempt starts at monotonic time `now`."""
        if now >= self._second + 1:
            self._turn(int(now))
        self._firsts[self._at] += 1

    def take(self, now: float, *, percent: float, min_per_second: float) -> bool:
        """Count a retry if it fits: retries ≤ percent/100 · first attempts + min_per_second · window."""
        self._turn(int(now))
        if sum(self._retries) + 1 > sum(self._firsts) * percent / 100 + min_per_second * WINDOW:
            return False
        self._retries[self._at] += 1
        return True

    def _turn(self, second: int) -> None:
        """Empty the buckets of the seconds that have passed."""
        passed = second - self._second
        if passed <= 0:
            return
        for at in range(1, min(passed, WINDOW) + 1):
            slot = (self._second + at) % WINDOW
            self._firsts[slot] = self._retries[slot] = 0
        self._second = second
        self._at = second % WINDOW
