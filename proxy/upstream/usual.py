"""How late a first token is: its time, divided by what prompts of its size usually take.

A long prompt takes long to read, so times of different prompts cannot be compared as they are. Sizes are powers of two,
and each has the geometric mean of the first tokens that were seen while nothing was wrong. Only the first hundred
count: if it went on following what is seen, yesterday's good times would look late by today's measure. Whoever finds
that it no longer fits clears it.
"""

from __future__ import annotations

from math import exp, log, log2

KNOWN = 10
"""First tokens of a size before it has a usual time …"""
FIXED = 100
"""… and before that stays."""


class Usual:
    """By size; there are at most about thirty."""

    __slots__ = ("_pending", "_sizes")

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}
        self._pending: list[tuple[_Size, float]] = []

    def __len__(self) -> int:
        return len(self._sizes)

    def lateness(self, seconds: float, tokens: int, *, learn: bool) -> float | None:
        """1 is as usual; None where too little is known of the size, and then this one is learned if `learn`."""
        at = int(log2(tokens)) if tokens > 1 else 0
        size = self._sizes.get(at)
        if size is None:
            size = self._sizes[at] = _Size()
        if size.count < KNOWN:
            if learn:
                size.add(seconds)
            return None
        if size.count < FIXED:
            self._pending.append((size, seconds))
        return seconds / size.seconds

    def end(self, *, good: bool) -> None:
        """A window ends; what it showed is learned if it was `good`."""
        if good:
            for size, seconds in self._pending:
                size.add(seconds)
        self._pending.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._sizes.clear()
        self._pending.clear()


class _Size:
    __slots__ = ("_log", "count", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self._log = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self._log += (log(max(seconds, 1e-6)) - self._log) / self.count
        self.seconds = exp(self._log)
