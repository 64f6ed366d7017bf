"""schema: a new file gets every table, an old one what it lacks, and a newer one is left alone."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from headgate.control.events.schema import MIGRATIONS, SchemaError, migrate
from headgate.proxy.accounting.record import Done

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    yield connection
    connection.close()


def columns(db: sqlite3.Connection, table: str) -> list[str]:
    return [name for (_, name, *_) in db.execute(f"PRAGMA table_info({table})")]


def test_a_new_file_gets_every_table(db: sqlite3.Connection) -> None:
    assert migrate(db, 12.5) == len(MIGRATIONS)
    assert db.execute("SELECT version, at FROM migrations").fetchall() == [
        (version, 12.5) for version in range(1, len(MIGRATIONS) + 1)
    ]
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    ledger = {
        "usage",
        "totals",
        "open_exchanges",
        "offsets",
        "dead_letters",
        "issuers",
        "audit",
        "spending",
        "reserved",
    }
    assert tables == {"migrations", *ledger}


def test_a_row_has_the_fields_of_a_record_and_in_their_order(db: sqlite3.Connection) -> None:
    migrate(db, 0.0)
    assert columns(db, "usage") == list(Done.__struct_fields__)


def test_a_current_file_is_left_alone(db: sqlite3.Connection) -> None:
    migrate(db, 0.0)
    assert migrate(db, 1.0) == 0


def test_an_old_file_gets_what_it_lacks_and_keeps_its_rows(db: sqlite3.Connection) -> None:
    first, second = "CREATE TABLE a (x);", "ALTER TABLE a ADD COLUMN y; CREATE INDEX i ON a (y);"
    migrate(db, 0.0, (first,))
    db.execute("INSERT INTO a VALUES (7)")
    assert migrate(db, 1.0, (first, second)) == 1
    assert db.execute("SELECT x, y FROM a").fetchall() == [(7, None)]


def test_a_newer_file_is_refused(db: sqlite3.Connection) -> None:
    migrate(db, 0.0, (*MIGRATIONS, "CREATE TABLE later (x);"))
    ours = len(MIGRATIONS)
    with pytest.raises(SchemaError, match=f"has schema {ours + 1}, this version knows {ours}: upgrade headgate"):
        migrate(db, 1.0)
    assert not db.in_transaction


def test_a_step_that_fails_leaves_nothing_of_itself(db: sqlite3.Connection) -> None:
    steps = ("CREATE TABLE a (x);", "CREATE TABLE b (x); CREATE TABLE a (x);")
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        migrate(db, 0.0, steps)
    assert db.execute("SELECT MAX(version) FROM migrations").fetchone() == (1,)
    assert columns(db, "b") == []
