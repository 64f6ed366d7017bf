"""The spool: each worker's own append-only files, from which the ledger is filled.

Each append is one `write` to a file opened with O_APPEND, so its record, or the few that belong together, are in the
kernel when it returns and survive kill -9 without fsync. A spool is named by its worker and its incarnation and lives
in three kinds of files:

    w0-18c2a5f0e1b2.lock          flocked as long as the worker lives; the kernel lets go, however it dies
    w0-18c2a5f0e1b2.00000001.seg  sealed: a segment with a higher number exists, nobody writes to it again
    w0-18c2a5f0e1b2.00000002.seg  active

Readers delete sealed segments once they are consumed, and the whole spool once its lock is free (control/events/).

The directory is bounded. The bound is kept from this worker's own bytes and a look at the directory at each rotation,
so N workers may pass it by N segments. Above it, `drop` loses records and counts them, `refuse` turns new exchanges
away; room is kept for the end of what was admitted. An error of the disk is counted and never reaches the exchange.

Not here: reading (control/events/spools.py). Not fork-safe: a spool is opened by the worker that writes to it.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from .record import OPENED_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

LOCK_SUFFIX: Final = ".lock"
SEGMENT_SUFFIX: Final = ".seg"
SEGMENT_BYTES: Final = 8 * 1024 * 1024
# A full spool looks at the directory again after this time: the ledger may have caught up.
LOOK_AGAIN_SECONDS: Final = 0.25
_LINE_END: Final = 0x0A


class SpoolFullError(Exception):
    """The spool is full and its policy is `refuse`: the exchange must not be admitted."""


class Spool:
    """Appends records to `directory` on behalf of `worker`.

    `full` tells readiness to warn; `dropped` and `errors` count records that are not in the spool. Raises OSError
    when the directory cannot be made or written at the start; later errors are only counted.
    """

    __slots__ = (
        "_active",
        "_clear",
        "_directory",
        "_granted",
        "_limit",
        "_lock",
        "_look_at",
        "_monotonic",
        "_open_limit",
        "_policy",
        "_segment",
        "_segment_bytes",
        "_segment_size",
        "_torn",
        "_used",
        "_write",
        "dropped",
        "errors",
        "full",
        "name",
    )

    def __init__(
        self,
        directory: str | os.PathLike[str],
        worker: str,
        *,
        max_size: int,
        monotonic: Callable[[], float],
        on_full: Literal["drop", "refuse"] = "drop",
        segment_size: int = SEGMENT_BYTES,
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._limit = max_size
        # `done` of what was admitted must still fit when nothing new is admitted any more.
        self._open_limit = max_size - max_size // 8
        self._policy = on_full
        self._segment_size = max(1, min(segment_size, max_size // 8))
        self._write = write
        self.name = f"{_file_safe(worker)}-{secrets.token_hex(6)}"
        self.dropped = 0
        self.errors = 0
        self.full = False
        self._monotonic = monotonic
        self._look_at = 0.0
        self._torn = False
        self._clear = self._granted = 0  # bytes that fit whatever they are, left and once they were counted
        self._segment = 0
        self._active = -1
        self._lock = _locked(self._directory, self.name)
        try:
            self._next_segment()
        except OSError:
            self._give_up()
            raise

    def append(self, lines: bytes) -> bool:
        """Write encoded records, their line ends included, in one piece; False when some were lost, which are counted.

        Raises SpoolFullError where the first is `opened`, and only under `refuse`.
        """
        size = len(lines)
        if size > self._clear:
            return self._append_with_care(lines)
        try:
            written = self._write(self._active, lines)
        except OSError:
            self.errors += lines.count(b"\n")
            return False
        self._clear -= written
        return written == size or self._is_cut(lines, lines, written)

    def close(self) -> None:
        """Let go of the spool. Exchanges still open in it become `lost`, so close after the last `done`."""
        for fd in (self._active, self._lock):
            if fd >= 0:
                os.close(fd)
        self._active = self._lock = -1

    def _append_with_care(self, lines: bytes) -> bool:
        """Where a bound may be near, or the last write was cut."""
        self._take_stock()
        opened = lines.startswith(OPENED_PREFIX)
        limit = self._open_limit if opened else self._limit
        if self._used + len(lines) > limit and not self._has_room(lines, opened):
            return False
        if self._segment_bytes >= self._segment_size:
            self._rotate()
        data = b"\n" + lines if self._torn else lines  # which ends half a line, so that only that one is lost
        try:
            written = self._write(self._active, data)
        except OSError:
            self.errors += lines.count(b"\n")
            return False
        self._used += written
        self._segment_bytes += written
        if written < len(data):
            return self._is_cut(lines, data, written)
        self._torn = False
        room = min(self._open_limit - self._used, self._segment_size - self._segment_bytes)
        self._clear = self._granted = max(0, room)
        return True

    def _take_stock(self) -> None:
        """Count what was written without a look at the bounds."""
        size = self._granted - self._clear
        self._used += size
        self._segment_bytes += size
        self._clear = self._granted = 0

    def _is_cut(self, lines: bytes, data: bytes, written: int) -> bool:
        """A short write of `data`: of `lines`, which it ends with, what is not there whole is lost. Returns False."""
        self._take_stock()
        if written:
            self._torn = data[written - 1] != _LINE_END
        self.errors += min(lines.count(b"\n"), data.count(b"\n", written))
        return False

    def _has_room(self, lines: bytes, opened: bool) -> bool:
        """Decide about what does not fit the last known size of the directory."""
        now = self._monotonic()
        if not self.full or now >= self._look_at:
            self._look_at = now + LOOK_AGAIN_SECONDS
            self._used = self._measure()
        if self._used + len(lines) <= (self._open_limit if opened else self._limit):
            self.full = False
            return True
        self.full = True
        if self._policy == "refuse":
            if opened:
                raise SpoolFullError
            return True
        self.dropped += lines.count(b"\n")
        return False

    def _measure(self) -> int:
        """Bytes of all spools in the directory; what was known when it cannot be read."""
        total = 0
        try:
            with os.scandir(self._directory) as entries:
                for entry in entries:
                    if entry.name.endswith(SEGMENT_SUFFIX):
                        total += _size(entry)
        except OSError:
            self.errors += 1
            return self._used
        return total

    def _rotate(self) -> None:
        try:
            self._next_segment()
        except OSError:
            # The old segment goes on; the next append tries again.
            self.errors += 1

    def _next_segment(self) -> None:
        path = self._directory / f"{self.name}.{self._segment + 1:08d}{SEGMENT_SUFFIX}"
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        old, self._active = self._active, fd
        if old >= 0:
            os.close(old)
        self._segment += 1
        self._segment_bytes = 0
        self._torn = False
        self._used = self._measure()
        self.full = self.full and self._used > self._open_limit

    def _give_up(self) -> None:
        (self._directory / f"{self.name}{LOCK_SUFFIX}").unlink(missing_ok=True)
        self.close()


def _locked(directory: Path, name: str) -> int:
    """The lock file of a new spool. It gets its name once it is locked: a free lock means dead, not new."""
    unborn = directory / f".{name}"
    fd = os.open(unborn, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unborn.rename(directory / f"{name}{LOCK_SUFFIX}")
    except OSError:
        os.close(fd)
        unborn.unlink(missing_ok=True)
        raise
    return fd


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:  # consumed in between
        return 0


def _file_safe(worker: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", worker)[:64] or "worker"
