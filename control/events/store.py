"""The event store: the ledger in one SQLite file.

A batch of spool lines becomes rows, open exchanges, dead letters and the new offset in one transaction, so a crash
leaves either all of it or none, and the lines are read again. An exchange has one row, whatever happens: its id is
unique, and only `lost` gives way to what really became of it. A row that SQLite cannot hold goes to the dead letters
with its reason, and the others of its batch are stored.

Every method blocks and belongs into a thread, one at a time. They raise sqlite3.Error when the store is away; nothing
of the batch is in it then.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from ...proxy.accounting.record import Done, Forgotten, Issued, Opened, Reserved, Spent, decode
from .issuers import change_issuers, trim_issuers
from .schema import migrate
from .spending import Spending, read_spent
from .totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .spending import Of

BUSY_SECONDS: Final = 2.0
WAL_BYTES: Final = 16 * 1024 * 1024
DEAD_LETTER_BYTES: Final = 4096
MOST_DEAD_LETTERS: Final = 10_000
TRIM_ROWS: Final = 2000
VACUUM_PAGES: Final = 4096
# Below the bound after a trim, so that not every batch trims.
TRIM_TO: Final = 0.9

# A statement for each row would let go of the interpreter's lock for each, and the loop's thread fight for it. SQLite
# takes 32 766 values in a statement.
ROWS_AT_ONCE: Final = 100

_COLUMNS: Final = Done.__struct_fields__
_ROW: Final = f"({', '.join('?' * len(_COLUMNS))})"
_INSERT: Final = f"INSERT INTO usage ({', '.join(_COLUMNS)}) VALUES {_ROW} ON CONFLICT (id) DO NOTHING"  # noqa: S608 - our own field names
_INSERT_MANY: Final = _INSERT.replace(_ROW, ", ".join([_ROW] * ROWS_AT_ONCE))
_SELECT: Final = f"SELECT {', '.join(_COLUMNS)} FROM usage WHERE id = ?"  # noqa: S608 - our own field names


class Batch(msgspec.Struct):
    """Lines of one segment up to `position`, sorted into what they are."""

    spool: str
    segment: str
    position: int
    done: list[Done] = []
    opened: dict[str, bytes] = {}
    closed: list[str] = []
    dead: list[tuple[str, bytes]] = []
    issued: list[Issued | Forgotten] = []
    money: list[Reserved | Spent] = []


class Store:
    """The SQLite file at `path`, made when it is not there. `wall` is in Unix seconds."""

    def __init__(self, path: str | os.PathLike[str], *, wall: Callable[[], float]) -> None:
        self.path = Path(path)
        self._wall = wall
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # SQLite gives -wal and -shm the mode of the file itself.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._db = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # counts only before the first table
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
            migrate(self._db, wall())
        except BaseException:
            self._db.close()
            raise
        self._totals = Totals(self._db)
        self.spending = Spending(self._db)

    def close(self) -> None:
        """Close the file; the last one to close it folds the write-ahead log into it."""
        self._db.close()

    def position(self, segment: str) -> int:
        """How many bytes of a segment are in the store."""
        found = self._db.execute("SELECT position FROM offsets WHERE segment = ?", (segment,)).fetchone()
        return int(found[0]) if found else 0

    def apply(self, batch: Batch) -> int:
        """Take over a batch. Returns how many of its lines became dead letters."""
        with self._transaction():
            letters = [*batch.dead, *self._insert(batch.done)]
            self._bury(batch.spool, letters)
            self._db.executemany(
                "INSERT INTO open_exchanges VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                [(id, batch.spool, line) for id, line in batch.opened.items()],
            )
            self._db.executemany("DELETE FROM open_exchanges WHERE id = ?", [(id,) for id in batch.closed])
            for record in batch.issued:
                change_issuers(self._db, record)
            if batch.money:
                self.spending.add(batch.spool, batch.money, self._wall())
            self._db.execute(
                "INSERT INTO offsets VALUES (?, ?) ON CONFLICT (segment) DO UPDATE SET position = excluded.position",
                (batch.segment, batch.position),
            )
        return len(letters)

    def lose(self, spool: str) -> int:
        """Write `lost` for what a dead spool left open, at most TRIM_ROWS at a time, and charge what it had set aside;
        returns how many, 0 for no more."""
        found = self._db.execute(
            "SELECT id, line FROM open_exchanges WHERE spool = ? LIMIT ?", (spool, TRIM_ROWS)
        ).fetchall()
        with self._transaction():
            self.spending.lose(spool, self._wall())
            if found:
                rows = [lost(opened) for _, line in found if isinstance(opened := decode(line), Opened)]
                self._bury(spool, self._insert(rows))
                self._db.executemany("DELETE FROM open_exchanges WHERE id = ?", [(id,) for id, _ in found])
        return len(found)

    def open_spools(self) -> set[str]:
        """Spools with open exchanges, or money set aside."""
        both = "SELECT spool FROM open_exchanges UNION SELECT spool FROM reserved"
        return {spool for (spool,) in self._db.execute(both)}

    def spent(self, wanted: Sequence[tuple[Of, str]]) -> list[dict[str, int]]:
        """See `read_spent`."""
        return read_spent(self._db, wanted)

    def segments(self) -> set[str]:
        """Segments that have been read."""
        return {segment for (segment,) in self._db.execute("SELECT segment FROM offsets")}

    def forget_segments(self, gone: set[str]) -> None:
        """Drop the offsets of segments that are no more."""
        with self._transaction():
            self._db.executemany("DELETE FROM offsets WHERE segment = ?", [(segment,) for segment in gone])

    def trim(self, retention: float, max_size: int) -> int:
        """Delete rows older than `retention` seconds, then the oldest until the file fits; returns how many.

        Issuers have bounds of their own (issuers.py)."""
        deleted = 0
        oldest = self._wall() - retention
        while count := self._delete("SELECT rowid FROM usage WHERE at < ? ORDER BY at LIMIT ?", (oldest, TRIM_ROWS)):
            deleted += count
        goal = max_size
        while self._size() > goal and (
            count := self._delete("SELECT rowid FROM usage ORDER BY at LIMIT ?", (TRIM_ROWS,))
        ):
            goal = int(max_size * TRIM_TO)
            deleted += count
        with self._transaction():
            self._db.execute("DELETE FROM dead_letters WHERE at < ?", (oldest,))
            self._db.execute(
                "DELETE FROM dead_letters WHERE rowid <= (SELECT MAX(rowid) FROM dead_letters) - ?",
                (MOST_DEAD_LETTERS,),
            )
            trim_issuers(self._db, self._wall(), max_size)
            self.spending.trim(self._wall())
        # The pragma frees one page for each step, and of the ways to run a statement only this one steps to the end.
        # Pages beyond the number are reused meanwhile, and go at the next trim.
        self._db.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
        return deleted

    def _bury(self, spool: str, letters: list[tuple[str, bytes]]) -> None:
        now = self._wall()
        self._db.executemany(
            "INSERT INTO dead_letters VALUES (?, ?, ?, ?)",
            [(now, spool, reason, line[:DEAD_LETTER_BYTES]) for reason, line in letters],
        )

    def _size(self) -> int:
        """Bytes in use, free pages left out: those are what a trim makes."""
        pages, free, size = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _delete(self, rowids: str, parameters: tuple[float, ...]) -> int:
        with self._transaction():
            return self._db.execute(f"DELETE FROM usage WHERE rowid IN ({rowids})", parameters).rowcount  # noqa: S608 - our own text

    def _insert(self, rows: list[Done]) -> list[tuple[str, bytes]]:
        """Insert rows and their sums; returns the reason and the line of those that do not fit."""
        if not rows:
            return []
        self._db.execute("SAVEPOINT rows")
        try:
            inserted = self._insert_all(rows)
            if inserted == len(rows):
                self._totals.add(rows)
                return []
        except (OverflowError, ValueError, sqlite3.IntegrityError, sqlite3.DataError):
            inserted = 0
        self._db.execute("ROLLBACK TO rows")
        self._totals.forget()
        return [refused for row in rows if (refused := self._insert_one(row)) is not None]

    def _insert_all(self, rows: list[Done]) -> int:
        """How many of them were new."""
        inserted = 0
        for at in range(0, len(rows) - ROWS_AT_ONCE + 1, ROWS_AT_ONCE):
            values = list(chain.from_iterable(map(msgspec.structs.astuple, rows[at : at + ROWS_AT_ONCE])))
            inserted += self._db.execute(_INSERT_MANY, values).rowcount
        rest = rows[len(rows) // ROWS_AT_ONCE * ROWS_AT_ONCE :]
        if rest:
            inserted += self._db.executemany(_INSERT, map(msgspec.structs.astuple, rest)).rowcount
        return inserted

    def _insert_one(self, row: Done) -> tuple[str, bytes] | None:
        """One row by itself: known ids and values that do not fit are told apart here."""
        values = msgspec.structs.astuple(row)
        try:
            if self._db.execute(_INSERT, values).rowcount == 0:
                known = msgspec.convert(
                    dict(zip(_COLUMNS, self._db.execute(_SELECT, (row.id,)).fetchone(), strict=True)),
                    Done,
                    strict=False,
                )
                if known.outcome != "lost" or row.outcome == "lost":
                    return None
                self._totals.add([known], -1)
                self._db.execute("DELETE FROM usage WHERE id = ?", (row.id,))
                self._db.execute(_INSERT, values)
            self._totals.add([row])
        except (OverflowError, ValueError, sqlite3.IntegrityError, sqlite3.DataError) as error:
            return str(error), msgspec.json.encode(row)
        return None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")  # interrupted late, it fails and has begun all the same
            yield
            self._db.execute("COMMIT")
            self.spending.commit()
        except BaseException:
            self._totals.forget()
            self.spending.forget()
            # SQLite rolls back by itself when the disk is full or failing.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


def lost(opened: Opened) -> Done:
    """The row of an exchange whose worker died: what it would have used is estimated, what it cost is unknown."""
    return Done(
        id=opened.id,
        at=opened.at,
        outcome="lost",
        key=opened.key,
        team=opened.team,
        owner=opened.owner,
        endpoint=opened.endpoint,
        model=opened.model,
        client_request_id=opened.client_request_id,
        prompt_tokens=opened.est_prompt,
        usage_source="estimated" if opened.est_prompt else "none",
        worker=opened.worker,
    )
