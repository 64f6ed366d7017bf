"""A lock between processes that a dead one cannot hold.

It belongs to an opening of a file (`flock`), so the kernel takes it back from a process that is killed, at whatever
instruction. A process that uses it opens the file for itself.

Whoever does not get it within its tries is not made to wait longer: a decision takes some microseconds, so a holder of
50 ms stands still for another reason (SIGSTOP, no core), and the event loop of the one who asks must not.
"""

from __future__ import annotations

import fcntl
import os
from time import sleep  # noqa: TID251 - it must stop the loop: nobody may come between a lock and its call
from typing import Final

YIELDS: Final = 200
NAPS: Final = 100
NAP_SECONDS: Final = 0.0005
"""Most callers get it after a few yields. Where its holder has lost its core, only sleep gives it back."""
_TAKE: Final = fcntl.LOCK_EX | fcntl.LOCK_NB


class FileLock:
    """That of one opening of a file."""

    __slots__ = ("_file", "_flock", "_tries")

    def __init__(self, file: int) -> None:
        self._file = file
        self._flock = fcntl.flock
        self._tries = YIELDS + NAPS

    def take(self) -> bool:
        """Whether it was to be had. After a failure only one try is made, until it is to be had again: whoever holds it
        then stands still."""
        try:
            self._flock(self._file, _TAKE)
        except BlockingIOError:
            return self._insist()
        self._tries = YIELDS + NAPS
        return True

    def _insist(self) -> bool:
        for tried in range(1, self._tries):
            if tried < YIELDS:
                os.sched_yield()
            else:
                sleep(NAP_SECONDS)
            try:
                self._flock(self._file, _TAKE)
            except BlockingIOError:
                continue
            self._tries = YIELDS + NAPS
            return True
        self._tries = 1
        return False

    def release(self) -> None:
        """Let others have it."""
        self._flock(self._file, fcntl.LOCK_UN)
