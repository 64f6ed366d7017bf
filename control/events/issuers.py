"""The table of issuers: who made which object, for which team.

A provider's object outlives the answer that named it, so its row has bounds of its own and not those of usage rows. A
stored response or chat is kept as long as its provider keeps it, every other object until it is deleted; and above one
row for each KiB that the store may take (a million for 1 GiB, an eighth of the file) the oldest go first.

The first to make an id keeps it: a second row of the same provider for another team would be a way to take it over.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...proxy.accounting.record import Forgotten, Issued

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

STORED_SECONDS: Final = 30 * 86_400
"""OpenAI and Azure keep responses and chats for 30 days."""
STORED_KINDS: Final = ("responses", "chat/completions")
BYTES_PER_ROW: Final = 1024
BUSY_SECONDS: Final = 1.0
_AT_ONCE: Final = 500
_TRIM_ROWS: Final = 100_000


def change_issuers(db: sqlite3.Connection, record: Issued | Forgotten) -> None:
    """Take one record over, within the caller's transaction."""
    if isinstance(record, Issued):
        db.execute(
            "INSERT INTO issuers (id, provider, team, kind, at) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (record.id, record.provider, record.team, record.kind, record.at),
        )
    else:
        db.execute("DELETE FROM issuers WHERE id = ? AND provider = ?", (record.id, record.provider))


def trim_issuers(db: sqlite3.Connection, now: float, max_size: int) -> None:
    """Keep the table within its bounds, within the caller's transaction. `now` in Unix seconds, `max_size` in bytes."""
    places = ", ".join("?" * len(STORED_KINDS))
    db.execute(
        f"DELETE FROM issuers WHERE (id, provider) IN "  # noqa: S608 - our own text
        f"(SELECT id, provider FROM issuers WHERE at < ? AND kind IN ({places}) LIMIT ?)",
        (now - STORED_SECONDS, *STORED_KINDS, _TRIM_ROWS),
    )
    excess = db.execute("SELECT COUNT(*) FROM issuers").fetchone()[0] - max_size // BYTES_PER_ROW
    if excess > 0:
        db.execute(
            "DELETE FROM issuers WHERE (id, provider) IN (SELECT id, provider FROM issuers ORDER BY at LIMIT ?)",
            (min(excess, _TRIM_ROWS),),
        )


class IssuerTable:
    """Reads the table in the store at `path`, whoever writes it. A store that is not there yet holds nothing.

    Every method blocks and belongs into a thread, one at a time; they raise sqlite3.Error when the store is away.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._db: sqlite3.Connection | None = None
        self._inode = 0

    def find(self, ids: Iterable[str]) -> dict[str, list[Issued]]:
        """The rows of those that are known."""
        db, wanted = self._open(), list(dict.fromkeys(ids))
        found: dict[str, list[Issued]] = {}
        if db is None or not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'issuers'").fetchone():
            return found
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            places = ", ".join("?" * len(some))
            rows = db.execute(f"SELECT id, at, provider, team, kind FROM issuers WHERE id IN ({places})", some)  # noqa: S608 - our own text
            for row in rows:
                found.setdefault(row[0], []).append(Issued(*row))
        return found

    def lacks(self, ends: Mapping[Path, int]) -> bool:
        """Whether the store has not yet taken over all that stood in the spools when `ends` was measured."""
        left = {segment: size for segment, size in ends.items() if segment.exists()}
        db = self._open()
        if not left or db is None or not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'offsets'").fetchone():
            return bool(left)
        taken: dict[str, int] = dict(db.execute("SELECT segment, position FROM offsets"))
        # One that went between the two looks is consumed.
        return any(taken.get(segment.name, 0) < size and segment.exists() for segment, size in left.items())

    def close(self) -> None:
        """Let go of the file."""
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def _open(self) -> sqlite3.Connection | None:
        try:
            inode = self._path.stat().st_ino
        except FileNotFoundError:
            self.close()
            return None
        if self._db is not None and inode != self._inode:  # moved away, and another is in its place
            self.close()
        if self._db is None:
            self._db = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode=rw",
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            self._db.execute("PRAGMA query_only = 1")
            self._inode = inode
        return self._db
