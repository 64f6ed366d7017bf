"""How many requests a cluster takes at once, learned from its first tokens.

When requests queue at a provider, the first token comes later. Whether it is late is asked so that neither long prompts
nor a wide spread look like a queue: each is compared with what is usual for its size (usual.py), the middle of a window
is the window's lateness, and it is held against a low quantile of the latenesses of the last minutes, the good times.
Those are never taken for worse than usual, or the limit would creep up with the queue it causes. The doubt of a middle
of few counts in the provider's favour, and a late window teaches nothing.

A late window cuts the limit; others let it grow, but only while it is used: by its square root, and before the first
late window by doubling. There is no probe phase. What is good is found at the start, by halving the limit as long as
that makes first tokens come faster, and afterwards in passing: a cut empties the queue and shows the good times again.
Two things keep a wrong reading cheap. The limit never falls below half of what was recently in flight. And where cuts
have taken a good part of it and made nothing faster, the limit returns to what it was; when that happens again, it is
no queue, the provider has become slower, and all is learned anew.

Not here: fixed bounds and the queue (limits.py). Off unless configured.

Source: Envoy's adaptive concurrency (square root headroom, tolerance), without its minRTT phase.
"""

from __future__ import annotations

from math import inf, sqrt
from typing import NamedTuple

from .quantile import DecayedQuantile
from .usual import Usual

MAX_SAMPLES = 500
DOUBT = 0.8
"""A standard error of the middle is half the square root of the number, in ranks; this is 1.6 of them."""
MILD, HARD, ROOT = 0.85, 0.6, 1 / 8
"""A cut is the eighth root of good / late, within these: where requests wait for places, a few too many make the first
token many times later."""
ENOUGH = 0.6
"""The part of the limit that is left when cuts must have shown that they help."""
HALF, MOST = 0.5, 0.75
"""Of what a queue would lose, what must be gained for a smaller limit to have helped: to look further, to go on."""


class GradientSettings(NamedTuple):
    """Times in seconds. `tolerance`, `minimum` and `maximum` are Envoy's."""

    initial: int = 16
    minimum: int = 3
    maximum: int = 1000
    window: float = 1.0
    """The limit moves at most this often, and …"""
    samples: int = 20
    """… on no fewer first tokens than these."""
    tolerance: float = 0.25
    """Lateness above the good times that is not yet a queue."""
    good: float = 0.25
    """The quantile of latenesses that is taken for the good times."""
    half_life: float = 600.0
    """Of what is good."""
    peak_half_life: float = 60.0


class Gradient:
    """The limit for one cluster and model. `cuts` and `relearned` count."""

    __slots__ = (
        "_from",
        "_full",
        "_good",
        "_last",
        "_lateness",
        "_limit",
        "_moved",
        "_opened",
        "_peak",
        "_peak_at",
        "_rising",
        "_sought",
        "_start",
        "_strange",
        "_used",
        "_useless",
        "_usual",
        "_worst",
        "cuts",
        "relearned",
        "settings",
    )

    def __init__(self, settings: GradientSettings) -> None:
        self.settings = settings
        self.cuts = 0
        self.relearned = 0
        self._limit = float(settings.initial)
        self._rising = True
        """Nothing was late so far."""
        self._moved = -inf
        """When the limit's last change took effect: who was sent before says nothing about the limit that is."""
        self._last = 0.0
        self._usual = Usual()
        self._learn()
        self._peak = 0.0
        self._peak_at = 0.0
        self._open(0.0)

    def _learn(self) -> None:
        """Look for the start, knowing nothing."""
        self._good = DecayedQuantile(self.settings.half_life, lowest=1e-4, highest=1e4)
        self._usual.clear()
        self._full = False
        """As many are in flight as may be."""
        self._sought = inf
        """While the start is looked for, how late the window at the limit `_from` was; then 0."""
        self._from = self._limit
        self._start = 0.0
        """The limit when windows began to be late; 0 while they are not."""
        self._worst = 0.0
        """How late they were at worst since."""
        self._useless = 0
        """Rounds of cuts in a row that did not help."""
        self._strange = 0
        """First tokens of sizes that cannot be compared."""

    def _open(self, now: float) -> None:
        """Begin a window."""
        self._lateness: list[float] = []
        self._opened = now
        self._used = 0
        """The most in flight in this window."""

    def limit(self) -> int:
        """How many requests may be in flight."""
        return int(self._limit)

    def on_sample(self, first_token_s: float, prompt_tokens: int, in_flight: int, now: float) -> None:
        """A first token came, `first_token_s` after its request was sent; `in_flight` requests run, it included."""
        settings = self.settings
        faded: float = 2.0 ** ((self._peak_at - now) / settings.peak_half_life)
        self._peak = max(self._peak * faded, in_flight)
        self._peak_at = now
        self._used = max(self._used, in_flight)
        self._last = first_token_s
        if not self._full and in_flight >= int(self._limit):
            self._full = True
            self._usual.clear()  # what was sent while the queue grew has not seen it
            self._moved = now
            self._open(now)
        if now - first_token_s < self._moved or len(self._lateness) >= MAX_SAMPLES:
            return
        comparing = self._start > 0 or 0 < self._sought < inf
        lateness = self._usual.lateness(first_token_s, prompt_tokens, learn=not comparing)
        if lateness is None:
            self._strange += comparing
            if self._strange > MAX_SAMPLES:  # the prompts are others than those we compare with
                self._learn()
            return
        self._lateness.append(lateness)
        if now - self._opened >= settings.window and len(self._lateness) >= settings.samples:
            self._usual.end(good=self._judge(now))
            self._open(now)

    def _judge(self, now: float) -> bool:
        """Move the limit at the end of a window; whether it was good."""
        lateness, settings, count = sorted(self._lateness), self.settings, len(self._lateness)
        middle = lateness[count // 2]
        in_use = 2 * self._used >= self._limit
        if self._sought:
            self._seek(middle, now, in_use=in_use)
            return False
        good = min(1.0, self._good.quantile(settings.good) or 1.0)
        if lateness[int(count / 2 - DOUBT * sqrt(count))] > good * (1 + settings.tolerance):
            self._rising = False
            self._cut(middle, good, now)
            return False
        self._start, self._useless = 0.0, 0
        self._good.add(middle, now)
        if in_use:
            self._move(self._limit + (self._limit if self._rising else sqrt(self._limit)), now)
        return True

    def _seek(self, middle: float, now: float, *, in_use: bool) -> None:
        """Halve the limit until that no longer helps."""
        faster = _faster(middle, self._sought, self._limit / self._from, HALF)
        if faster and in_use and self._limit > self._lowest():
            self._from, self._sought = self._limit, middle
            self._move(self._limit / 2, now)
            return
        self._sought = 0.0
        self._usual.clear()  # learned in a queue, perhaps
        if not faster:
            self._move(self._from, now)

    def _cut(self, middle: float, good: float, now: float) -> None:
        """Less for a late window; what it was, and a new beginning, once cuts have shown that they do not help."""
        if not self._start:
            self._start, self._worst = self._limit, 0.0
        self._worst = max(self._worst, middle)
        if self._limit <= max(self.settings.minimum, ENOUGH * self._start):
            if not _faster(middle, self._worst, self._limit / self._start, MOST):
                self._undo(now)
                return
            self._start, self._worst, self._useless = self._limit, middle, 0
        if self._limit > self._lowest():
            self.cuts += 1
            self._move(self._limit * max(HARD, min(MILD, (good / middle) ** ROOT)), now)

    def _undo(self, now: float) -> None:
        """Cuts did not help. The first time they are made once more: a queue that was still growing looks the same."""
        self._move(self._start, now)
        self._start = 0.0
        self._useless += 1
        if self._useless == 2:
            self.relearned += 1
            self._learn()

    def _move(self, limit: float, now: float) -> None:
        before, self._limit = self._limit, min(max(limit, self._lowest()), self.settings.maximum)
        # Less is felt by the next that is let in. More is felt once the queue has had the time to grow.
        self._moved = now + self._last if self._limit > before else now

    def _lowest(self) -> float:
        return max(self.settings.minimum, self._peak / 2)


def _faster(now: float, before: float, part: float, gain: float) -> bool:
    """Whether first tokens gained that much of what a queue would at least, with `part` of the limit left."""
    return now <= before * (1 - gain * (1 - part))
