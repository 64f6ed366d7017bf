"""Reading spools: what proxy/accounting/spool.py wrote, in bounded bites, and what of it can go.

A line counts once its line end is there: the tail of an active segment may be half a record that is being written. In a
sealed segment, or in the spool of a dead worker, such a tail stays what it is, and is a dead letter.
"""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from ...proxy.accounting.record import (
    OPENED_PREFIX,
    Done,
    Forgotten,
    Issued,
    Opened,
    Record,
    Reserved,
    Spent,
    decode,
)
from ...proxy.accounting.spool import LOCK_SUFFIX, SEGMENT_SUFFIX
from .store import Batch

# About 1 500 records: one transaction of some 10 ms. Smaller ones write the pages of the indexes more often.
BITE_BYTES: Final = 1024 * 1024
# The year 9999: beyond it is no date, and no day for the sums.
LAST_SECOND: Final = 253_402_300_800

# How `encode` begins an `opened`, up to its id.
_OPENED: Final = OPENED_PREFIX + b',"id":"'
_ID_AT: Final = len(_OPENED)

_FILE: Final = re.compile(
    rf"(?P<spool>\w+-[0-9a-f]{{12}})(?:{re.escape(LOCK_SUFFIX)}|\.(?P<number>\d{{8,}}){re.escape(SEGMENT_SUFFIX)})",
    re.ASCII,
)


class SpoolFiles(msgspec.Struct):
    """The files of one spool: its segments in the order they were written."""

    name: str
    lock: Path
    segments: list[Path] = []


def list_spools(directory: Path) -> list[SpoolFiles]:
    """All spools in the directory, those whose lock file is gone included; none when the directory is not there."""
    spools: dict[str, SpoolFiles] = {}
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    for name in sorted(names):
        parts = _FILE.fullmatch(name)
        if parts is None:
            continue
        spool = parts["spool"]
        files = spools.setdefault(spool, SpoolFiles(spool, directory / f"{spool}{LOCK_SUFFIX}"))
        if parts["number"]:
            files.segments.append(directory / name)
    return list(spools.values())


def measure_spools(directory: Path) -> dict[Path, int]:
    """Every segment there is now, and its bytes."""
    sizes: dict[Path, int] = {}
    for spool in list_spools(directory):
        for segment in spool.segments:
            with suppress(FileNotFoundError):  # consumed in between
                sizes[segment] = segment.stat().st_size
    return sizes


def take_lock(path: Path) -> int | None:
    """The lock of a spool whose worker is gone, as a descriptor to close; None while the worker lives.

    A spool without lock file belongs to nobody: its lock is made, and taken.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return fd


def read_batch(spool: str, segment: Path, position: int, *, final: bool) -> Batch | None:
    """The next bite of a segment from `position`; None when there is nothing (yet).

    `final`: nobody writes to the segment any more.
    """
    with segment.open("rb") as file:
        file.seek(position)
        data = file.read(BITE_BYTES)
    whole = data.rfind(b"\n") + 1
    if not whole and (final or len(data) == BITE_BYTES):
        # Either cut off for good, or longer than any record: taken away piece by piece.
        whole = len(data)
    if not whole:
        return None
    batch = Batch(spool, segment.name, position + whole)
    # Most exchanges open and end within a bite, and never reach the table of open ones: such an `opened` is not read.
    unread: dict[bytes, bytes] = {}
    for line in data[:whole].split(b"\n"):
        if line.startswith(_OPENED):
            unread[line[_ID_AT : line.find(b'"', _ID_AT)]] = line
        elif line and (record := _read(line, batch)) is not None:
            if record.__class__ is Done:
                batch.done.append(record)
                if unread.pop(record.id.encode(), None) is None and batch.opened.pop(record.id, None) is None:
                    batch.closed.append(record.id)
            elif record.__class__ is Reserved or record.__class__ is Spent:
                batch.money.append(record)
            else:
                _sort(record, line, batch)
    for line in unread.values():
        record = _read(line, batch)
        if record is not None:
            _sort(record, line, batch)
    return batch


def _read(line: bytes, batch: Batch) -> Record | None:
    """The record of a line; None where it is none, which makes it a dead letter."""
    try:
        record = decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        batch.dead.append((str(error), line))
        return None
    if not record.id or not 0 <= record.at < LAST_SECOND:
        batch.dead.append(("no id" if not record.id else "no date", line))
        return None
    return record


def _sort(record: Record, line: bytes, batch: Batch) -> None:
    if isinstance(record, Opened):
        batch.opened[record.id] = line
    elif isinstance(record, Issued | Forgotten):
        batch.issued.append(record)
