"""The memory that the processes of one host count in: a file without a name, which the supervisor makes and every
worker maps.

It is a table of 64-bit words. A word is written by one machine instruction and has one writer at a time, so whoever is
killed leaves it as it was or as it should be, never in between; what takes several words is written in an order in
which each prefix of the writes is sound. Two kinds of writer there are:

- Whoever holds the lock writes what is common in a row, and the tags of its own cells.
- A process writes the values of its own cells at any time, without the lock. A cell counts in its row only while it has
  the row's tag, and a tag is never used twice; so what comes late, for a time or a caller that is over, counts nowhere.

                         lock                                lock               no lock
    row: select · 2 × state of a debt · key │ generation · until · used · tag │ tag · value │ tag · value │ …
                                                                                process 0     process 1

Not here: which row is whose (shared_table.py), what is written when (shared_counts.py).
"""

from __future__ import annotations

import os
from errno import ENXIO
from mmap import mmap
from typing import TYPE_CHECKING, Final

from .shared_lock import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT: Final = 2
"""A process that was started from another version does not count here."""
ROWS: Final = 65_536
MONEY_ROWS: Final = 16_384
"""Apart, so that no flood of callers of a rate limit takes the room in which money is counted."""
ALL_ROWS: Final = ROWS + MONEY_ROWS

# Words of the file's head.
_FORMAT: Final = 0
_ROOM: Final = 1
IN_USE: Final = 2
_SERIAL: Final = 3
HEAD: Final = 8

# Words of a row. A debt has two states, and SELECT says which one holds.
SELECT: Final = 0
STATES: Final = 1
STATE_WORDS: Final = 3
KEY: Final = 7
GENERATION: Final = 9
UNTIL: Final = 10
USED: Final = 11
TAG: Final = 12
CELLS: Final = 13
CELL_WORDS: Final = 2

SLOTS: Final = -1
"""The tag of slots. They are given back when their process is gone, all else stays counted."""
_WORD: Final = 8


class SharedMemory:
    """One opening of the file. `processes`: how many there is room for, at one time."""

    def __init__(self, file: int) -> None:
        self.file = file
        self.map = mmap(file, os.fstat(file).st_size)
        self.words = memoryview(self.map).cast("q")
        self.processes = self.words[_ROOM]
        self.row_words = CELLS + CELL_WORDS * self.processes
        self.lock = FileLock(file)
        if self.words[_FORMAT] != FORMAT:
            self._unmap()
            raise OSError("the shared memory was made by another version: restart the gateway")

    @classmethod
    def create(cls, processes: int) -> SharedMemory:
        """New and empty; it takes up room where something is counted. Raises OSError."""
        file = os.memfd_create("headgate-limits", os.MFD_CLOEXEC)
        try:
            os.ftruncate(file, _WORD * (HEAD + ALL_ROWS * (CELLS + CELL_WORDS * processes)))
            with mmap(file, _WORD * HEAD) as head, memoryview(head).cast("q") as words:
                words[_FORMAT], words[_ROOM], words[IN_USE] = FORMAT, processes, 1
            return cls(file)
        except BaseException:
            os.close(file)
            raise

    @classmethod
    def attach(cls, file: int) -> SharedMemory:
        """An opening of its own of a file that somebody else has opened. Raises OSError."""
        own = os.open(f"/proc/self/fd/{file}", os.O_RDWR | os.O_CLOEXEC)
        try:
            return cls(own)
        except BaseException:
            os.close(own)
            raise

    def close(self) -> None:
        """Unmap it; a lock is gone with it."""
        self._unmap()
        os.close(self.file)

    def _unmap(self) -> None:
        self.words.release()
        self.map.close()

    def serial(self) -> int:
        """A number that nobody had before, from 1. Under the lock."""
        number = self.words[_SERIAL] + 1
        self.words[_SERIAL] = number
        return number

    def expect(self, process: int) -> None:
        """From now on the cells of that one count. They never stop to: what it has counted stays."""
        self.words[IN_USE] = max(self.words[IN_USE], process + 1)

    def clear(self, process: int) -> None:
        """Give back every slot of a process that is no more."""
        words, step = self.words, self.row_words
        cell = HEAD + CELLS + CELL_WORDS * process
        for begin, end in self._written():
            rows = slice(cell + begin * step, HEAD + end * step, step)
            for row, tag in enumerate(words[rows].tolist(), begin):
                if tag == SLOTS:
                    words[cell + row * step + 1] = 0

    def _written(self) -> Iterator[tuple[int, int]]:
        """From which row to which something may be: to look at the others would give them memory."""
        size, at, row = len(self.map), 0, _WORD * self.row_words
        while at < size:
            try:
                begin = os.lseek(self.file, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == ENXIO:  # nothing more
                    return
                raise
            at = os.lseek(self.file, begin, os.SEEK_HOLE)
            yield max(0, begin - _WORD * HEAD) // row, min(ALL_ROWS, -(-max(0, at - _WORD * HEAD) // row))


class Berths:
    """Which process of a supervisor has which cells."""

    def __init__(self, memory: SharedMemory) -> None:
        self.memory = memory
        self._free = set(range(memory.processes))

    def take(self) -> int:
        """The lowest that is free. Raises OSError when there is none."""
        if not self._free:
            raise OSError("there are as many processes as shared memory was made for")
        process = min(self._free)
        self._free.discard(process)
        self.memory.expect(process)
        return process

    def leave(self, process: int) -> None:
        """Its process has ended, by whatever way."""
        self.memory.clear(process)
        self._free.add(process)
