"""Quantiles of what was seen lately, in bounded memory.

A histogram with buckets that grow by 5 % each, so the answer is within 5 % of a value that was seen, whatever its size.
What is old weighs less: instead of shrinking all buckets all the time, new values get a weight that doubles every half
life, and the buckets are scaled down when that has become large (forward decay). Adding costs a logarithm and a power.

Source: Cormode et al. 2009 (forward decay); the buckets are those of DDSketch (Masson et al. 2019).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate
from math import log

GROWTH = 1.05
_PER_LOG = 1 / log(GROWTH)
_MAX_EXPONENT = 60.0


class DecayedQuantile:
    """Quantiles of positive values between `lowest` and `highest`; what lies outside counts as the nearer of them."""

    __slots__ = ("_counts", "_half_life", "_lowest", "_origin", "_total", "_top")

    def __init__(self, half_life: float, *, lowest: float = 0.001, highest: float = 600.0) -> None:
        self._half_life = half_life
        """Seconds after which a value weighs half."""
        self._lowest = lowest
        self._top = int(log(highest / lowest) * _PER_LOG)
        self._counts = [0.0] * (self._top + 1)
        self._total = 0.0
        self._origin = 0.0
        """When a value weighed 1."""

    def add(self, value: float, now: float) -> None:
        """A value seen at monotonic time `now`."""
        age = (now - self._origin) / self._half_life
        if age > _MAX_EXPONENT:
            self._rescale(age)
            self._origin = now
            age = 0.0
        weight: float = 2.0**age
        at = min(int(log(value / self._lowest) * _PER_LOG), self._top) if value > self._lowest else 0
        self._counts[at] += weight
        self._total += weight

    def count(self, now: float) -> float:
        """How many values are remembered; one seen a half life ago counts as half."""
        return self._total * _faded((now - self._origin) / self._half_life)

    def quantile(self, q: float) -> float | None:
        """The value that a share `q` of what was seen stays below; None when nothing was. Costs a sum over the buckets,
        about 5 µs: for a decision on every request, keep it for a while."""
        if not self._total:
            return None
        sums = list(accumulate(self._counts))
        rank = q * sums[-1]
        at = bisect_left(sums, rank) if rank else bisect_right(sums, 0.0)
        return self._value(at + 1 - (sums[at] - rank) / self._counts[at])

    def _value(self, at: float) -> float:
        value: float = self._lowest * GROWTH**at
        return value

    def _rescale(self, age: float) -> None:
        scale = _faded(age)
        self._counts = [count * scale for count in self._counts]
        self._total = sum(self._counts)


def _faded(age: float) -> float:
    """What is left of a weight after `age` half lives; 0 after a thousand."""
    left: float = 2.0 ** -min(age, 1100.0)
    return left
