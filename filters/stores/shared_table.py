"""Whose row is which: found by a digest of filter, rule and caller, claimed under the lock.

A row is given to another caller only when it is as good as new, so nobody ever gets a limit anew for room's sake. A
caller has `PROBE` places; where none of them is to be had, newcomers share the row of the rule among the first
`OTHERS`, until that one is as good as new (see memory.py).

What somebody claims has a generation that no row had before: whoever remembers row and generation knows by one look
whether the row is still the caller's. While it changes hands it is nobody's.

Not here: what is counted in a row (shared_counts.py).
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct
from typing import TYPE_CHECKING, Final

from ...proxy.errors import OverloadError
from .shared_memory import (
    CELL_WORDS,
    CELLS,
    GENERATION,
    HEAD,
    IN_USE,
    KEY,
    SELECT,
    SLOTS,
    STATE_WORDS,
    STATES,
    TAG,
    UNTIL,
    USED,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .shared_memory import SharedMemory

OTHERS: Final = 1_024
"""Of the rows of a table: for those that newcomers of one rule share."""
PROBE: Final = 32

Key = tuple[int, int]
_KEY_BYTES: Final = 16
_KEY: Final = Struct("@2q")
_NEVER_USED: Final = 0
_CHANGING: Final = -1


def digest(name: bytes) -> Key:
    """The key of a row: 128 bits."""
    first, second = _KEY.unpack(blake2b(name, digest_size=_KEY_BYTES).digest())
    return first, second


class Table:
    """`rows` of the memory from the row `first` on, each named by the number of its first word."""

    def __init__(self, memory: SharedMemory, first: int, rows: int, others: int = OTHERS) -> None:
        self._memory = memory
        self._first = HEAD + first * memory.row_words
        self._first_own = self._first + others * memory.row_words
        self._others = others
        self._own = rows - others

    def is_own(self, row: int) -> bool:
        """It counts one caller, not the newcomers of a rule."""
        return row >= self._first_own

    def claim(self, key: Key, others: Key, tag: int, taken: Sequence[int], now: int) -> int:
        """The row of `key`, if need be a new one that is not among `taken`, or that of `others`. `tag`: of a new one.
        Under the lock. Raises OverloadError where there is not even room for `others`."""
        words, step = self._memory.words, self._memory.row_words
        start = key[0] % self._own
        room = -1
        for place in range(start, start + PROBE):
            row = self._first_own + place % self._own * step
            generation = words[row + GENERATION]
            if generation > 0 and words[row + KEY] == key[0] and words[row + KEY + 1] == key[1]:
                return row
            if room < 0 and row not in taken and self._is_idle(row, now):
                room = row
            if generation == _NEVER_USED:
                break
        shared = self._find_others(others, now)
        is_theirs = self._key(shared) == others
        if room >= 0 and (not is_theirs or self._is_idle(shared, now)):
            return self._give(room, key, tag)
        return shared if is_theirs else self._give(shared, others, tag)

    def _find_others(self, key: Key, now: int) -> int:
        words, step = self._memory.words, self._memory.row_words
        start = key[0] % self._others
        room = -1
        for place in range(start, start + self._others):
            row = self._first + place % self._others * step
            if self._key(row) == key:
                return row
            if room < 0 and self._is_idle(row, now):
                room = row
            if words[row + GENERATION] == _NEVER_USED:
                break
        if room < 0:
            raise OverloadError("The gateway has more limits than it has room to count.", retry_after=60)
        return room

    def _key(self, row: int) -> Key | None:
        words = self._memory.words
        return (words[row + KEY], words[row + KEY + 1]) if words[row + GENERATION] > 0 else None

    def _is_idle(self, row: int, now: int) -> bool:
        words = self._memory.words
        if words[row + GENERATION] <= 0:
            return True
        return not self.held(row) if words[row + TAG] == SLOTS else now >= words[row + UNTIL]

    def held(self, row: int) -> int:
        """What its cells add up to."""
        words = self._memory.words
        tag, first = words[row + TAG], row + CELLS
        cells = range(first, first + CELL_WORDS * words[IN_USE], CELL_WORDS)
        return sum([words[cell + 1] for cell in cells if words[cell] == tag])

    def _give(self, row: int, key: Key, tag: int) -> int:
        words = self._memory.words
        words[row + GENERATION] = _CHANGING
        words[row + KEY], words[row + KEY + 1] = key
        words[row + UNTIL] = words[row + USED] = words[row + SELECT] = 0
        for word in range(row + STATES, row + STATES + STATE_WORDS):
            words[word] = 0
        words[row + TAG] = tag
        words[row + GENERATION] = self._memory.serial()
        return row
