"""When a circuit opens and closes: the decisions of one target's circuit breaker.

    CLOSED ── enough failures in the window, and a large enough part ──▶ OPEN ── open_for ──▶ HALF-OPEN
       ▲                                                                  ▲                      │
       └───────────────────────── the probe succeeds ─────────────────────┼──────────────────────┤
                                                                          └── the probe fails ───┘

What is counted lies in ten slices of the window, which are forgotten one by one: nothing that is older than the window
counts, and nothing that is younger than nine tenths of it is missing. Half-open, one probe may be under way at a time.
Only what began after the rest was over says whether the target has recovered: answers to older calls come late, and
tell of before.

Pure: the time is an argument, in monotonic seconds. Not here: which attempts are asked about (circuit_breaker.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..proxy.errors import GatewayError

OPEN = "circuit open"
SLICES = 10
BUSY = 429
_FAILURES = frozenset(("connect-failure", "reset", "5xx", "timeout"))


class BreakerSettings(NamedTuple):
    """Open after `failures` within `window` seconds that are at least `percent` of what ended, for `open_for`."""

    failures: int = 5
    percent: int = 50
    window: float = 60.0
    open_for: float = 30.0


class Breaker:
    """Of one target. `probe` is the attempt that tries it while it is half-open, until somebody takes it back.

    While `now` is before `calm_until`, a success is one more in `recent`, and `succeed` need not be asked."""

    __slots__ = ("_bad", "_good", "_settings", "_slice", "calm_until", "probe", "recent", "rests_until")

    def __init__(self, settings: BreakerSettings) -> None:
        self._settings = settings
        self._good = [0] * SLICES
        self._bad = [0] * SLICES
        self._slice = 0
        self.recent = 0
        """Successes in the slice under way."""
        self.calm_until = 0.0
        """When that slice ends; 0 while the circuit is not closed, and until the first success since."""
        self.rests_until: float | None = None
        """None while closed; half-open from this time on."""
        self.probe: object | None = None

    def objection(self, now: float) -> str | None:
        """Why the target should not be asked; None while it may be."""
        rests_until = self.rests_until
        if rests_until is None or (now >= rests_until and self.probe is None):
            return None
        return OPEN

    def begin(self, attempt: object, now: float) -> bool:
        """An attempt starts; whether it is the probe. Another one, while it is not closed, was made all the same."""
        if self.rests_until is None or now < self.rests_until or self.probe is not None:
            return False
        self.probe = attempt
        return True

    def succeed(self, began: float, now: float) -> bool:
        """What began at `began` went well; returns whether that closes it."""
        if self.rests_until is None:
            at = int(now * SLICES / self._settings.window)
            self._turn(at)
            self.recent += 1
            self.calm_until = (at + 1) * self._settings.window / SLICES
            return False
        if began < self.rests_until:
            return False
        self.rests_until = self.probe = None
        self._good = [0] * SLICES
        self._bad = [0] * SLICES
        return True

    def fail(self, began: float, now: float) -> bool:
        """What began at `began` failed; returns whether that opens it, for the first time or again."""
        if self.rests_until is not None:
            again = began >= self.rests_until
        else:
            at = int(now * SLICES / self._settings.window)
            self._turn(at)
            self._bad[at % SLICES] += 1
            bad = sum(self._bad)
            of = bad + sum(self._good)
            again = bad >= self._settings.failures and bad * 100 >= self._settings.percent * of
        if again:
            self.rests_until = now + self._settings.open_for
            self.calm_until = 0.0
        return again

    def is_quiet(self, now: float) -> bool:
        """There is nothing to remember."""
        self._turn(int(now * SLICES / self._settings.window))
        return self.rests_until is None and not (any(self._bad) or any(self._good))

    def _turn(self, at: int) -> None:
        """It is the time of slice `at` since the beginning of time: forget what is too old."""
        self._good[self._slice % SLICES] += self.recent
        self.recent = 0
        for passed in range(min(at - self._slice, SLICES)):
            self._good[(at - passed) % SLICES] = self._bad[(at - passed) % SLICES] = 0
        self._slice = max(at, self._slice)


def verdict(error: GatewayError | None, status: int, *, in_time: bool) -> bool | None:
    """Whether an attempt speaks for its target, against it (False), or not about it (None).

    A 4xx is an answer. A 429, a refused key, a limit of ours, and a caller who waits no longer (`in_time` False) say
    nothing about whether the target works.
    """
    if error is None:
        return None if status == BUSY else True
    if error.condition not in _FAILURES or (error.condition == "timeout" and not in_time):
        return None
    return False
