"""The rows of the `audit` table: changes asked for over the admin listener, one row each, only ever added.

They are few and written by the control half itself, so each has a connection of its own, which waits for whoever holds
the store. Above MOST_KEPT the oldest go: whoever may change something could otherwise fill the disk.

Everything blocks, and raises sqlite3.Error where the store is away.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec

if TYPE_CHECKING:
    import os

BUSY_SECONDS: Final = 2.0
MOST_KEPT: Final = 100_000
MOST_READ: Final = 1000


class Change(msgspec.Struct, frozen=True):
    """One row. `at` is Unix seconds, `key` the name of who asked, `client` his address, `status` what came of it."""

    at: float
    key: str
    client: str
    what: str
    status: int
    request_id: str


_COLUMNS: Final = ", ".join(Change.__struct_fields__)


def append(store: str | os.PathLike[str], change: Change) -> None:
    """Add it for good."""
    with closing(_open(store, "rw")) as db, db:
        added = db.execute(
            f"INSERT INTO audit ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608 - our own field names
            msgspec.structs.astuple(change),
        )
        db.execute("DELETE FROM audit WHERE n <= ?", ((added.lastrowid or 0) - MOST_KEPT,))


def latest(store: str | os.PathLike[str], limit: int) -> list[Change]:
    """The newest first; none where there is no store yet."""
    if not Path(store).is_file():
        return []
    with closing(_open(store, "ro")) as db:
        found = db.execute(f"SELECT {_COLUMNS} FROM audit ORDER BY n DESC LIMIT ?", (limit,))  # noqa: S608 - our own field names
        return [Change(*row) for row in found]


def _open(store: str | os.PathLike[str], mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(Path(store).resolve()))}?mode={mode}", uri=True, timeout=BUSY_SECONDS)
