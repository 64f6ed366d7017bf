"""Whole answers in the memory of one process, bounded by their bytes and by their age.

The least recently used goes first. An answer that is too old is never given out, whether or not somebody has cleaned up
by then. Answers are immutable, so what is given out is what was put in.

Not here: what is kept, and under which key (cache.py, cache_key.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachetools import TTLCache

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...proxy.tape import Recorded


class MemoryAnswers:
    """`size` and `max_entry` in bytes, `ttl` in seconds; `monotonic` is the time."""

    def __init__(self, *, size: int, max_entry: int, ttl: float, monotonic: Callable[[], float]) -> None:
        self._shelf = _Shelf(size, ttl, monotonic)
        self._max_entry = min(max_entry, size)

    def __len__(self) -> int:
        return len(self._shelf)

    @property
    def size(self) -> int:
        """Of what is kept now."""
        return int(self._shelf.currsize)

    @property
    def evicted(self) -> int:
        """Answers that had to go before their time, for want of room."""
        return self._shelf.evicted

    def get(self, key: bytes) -> Recorded | None:
        """The answer, if it is here and young enough."""
        return self._shelf.get(key)

    def put(self, key: bytes, answer: Recorded) -> bool:
        """Keep it; False where it is too large."""
        if answer.size > self._max_entry:
            return False
        self._shelf[key] = answer
        return True


class _Shelf(TTLCache[bytes, "Recorded"]):
    """Counts what goes for want of room."""

    def __init__(self, size: int, ttl: float, monotonic: Callable[[], float]) -> None:
        super().__init__(size, ttl, monotonic, lambda answer: answer.size)
        self.evicted = 0

    def popitem(self) -> tuple[bytes, Recorded]:
        """The least recently used of those that are not too old."""
        self.evicted += 1
        return super().popitem()
