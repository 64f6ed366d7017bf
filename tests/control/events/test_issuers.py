"""issuers: the table keeps who made what, the first maker wins, deletions and bounds take rows away, and it is read by
whoever shares the file."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from headgate.control.events.issuers import BYTES_PER_ROW, STORED_SECONDS, IssuerTable
from headgate.control.events.schema import MIGRATIONS, migrate
from headgate.control.events.spools import measure_spools, read_batch
from headgate.control.events.store import Batch, Store
from headgate.proxy.accounting.record import Forgotten, Issued, encode
from tests_support.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AT = 1_700_000_000.0
DAY = 86_400.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(wall=AT)


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    store = Store(tmp_path / "events.db", wall=clock.wall)
    yield store
    store.close()


@pytest.fixture
def table(store: Store) -> Iterator[IssuerTable]:
    table = IssuerTable(store.path)
    yield table
    table.close()


def issued(id: str, provider: str = "up", team: str = "red", kind: str = "files", at: float = AT) -> Issued:
    return Issued(id=id, at=at, provider=provider, team=team, kind=kind)


def apply(store: Store, *records: Issued | Forgotten, position: int = 1) -> None:
    store.apply(Batch("w0-000000000000", "w0.seg", position, issued=list(records)))


def test_what_was_made_is_found_and_nothing_else(store: Store, table: IssuerTable) -> None:
    apply(store, issued("file-a"), issued("file-b", "up2", ""))
    assert table.find(["file-a", "file-b", "file-c", "FILE-A"]) == {
        "file-a": [issued("file-a")],
        "file-b": [issued("file-b", "up2", "")],
    }


def test_two_providers_may_call_two_objects_the_same(store: Store, table: IssuerTable) -> None:
    apply(store, issued("file-1", "up", "red"), issued("file-1", "up2", "blue"))
    assert {row.provider: row.team for row in table.find(["file-1"])["file-1"]} == {"up": "red", "up2": "blue"}
    apply(store, Forgotten(id="file-1", at=AT, provider="up"))
    assert [row.provider for row in table.find(["file-1"])["file-1"]] == ["up2"]


def test_an_id_stays_with_the_team_that_made_it_first(store: Store, table: IssuerTable) -> None:
    apply(store, issued("file-a", team="red"))
    apply(store, issued("file-a", team="blue"))
    assert table.find(["file-a"]) == {"file-a": [issued("file-a", team="red")]}


def test_records_of_a_batch_count_in_their_order(store: Store, table: IssuerTable) -> None:
    gone = Forgotten(id="file-a", at=AT, provider="up")
    apply(store, issued("file-a"), gone)
    assert table.find(["file-a"]) == {}
    apply(store, gone, issued("file-a", team="blue"))
    assert table.find(["file-a"]) == {"file-a": [issued("file-a", team="blue")]}


def test_more_ids_than_a_statement_takes_are_found(store: Store, table: IssuerTable) -> None:
    apply(store, *(issued(f"file-{n}") for n in range(1200)))
    assert len(table.find([f"file-{n}" for n in range(1300)])) == 1200


def test_a_spools_lines_become_rows(store: Store, table: IssuerTable, tmp_path: Path) -> None:
    segment = tmp_path / "w0-000000000000.00000001.seg"
    segment.write_bytes(encode(issued("file-a")) + encode(Forgotten(id="file-b", at=AT, provider="up")))
    batch = read_batch("w0-000000000000", segment, 0, final=True)
    assert batch is not None
    assert batch.dead == []
    store.apply(batch)
    assert list(table.find(["file-a", "file-b"])) == ["file-a"]


def test_responses_go_when_their_provider_forgets_them_and_files_stay(
    store: Store, table: IssuerTable, clock: FakeClock
) -> None:
    old = AT - STORED_SECONDS - 1
    apply(store, issued("resp_old", kind="responses", at=old), issued("resp_new", kind="responses"))
    apply(store, issued("chat_old", kind="chat/completions", at=old), issued("file_old", at=old - 400 * DAY))
    store.trim(1.0, 1 << 30)
    assert set(table.find(["resp_old", "resp_new", "chat_old", "file_old"])) == {"resp_new", "file_old"}


def test_above_the_bound_the_oldest_go(store: Store, table: IssuerTable) -> None:
    apply(store, *(issued(f"file-{n}", at=AT + n) for n in range(30)))
    store.trim(30 * DAY, 20 * BYTES_PER_ROW)
    assert set(table.find([f"file-{n}" for n in range(30)])) == {f"file-{n}" for n in range(10, 30)}


def test_a_store_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    table = IssuerTable(tmp_path / "events.db")
    assert table.find(["file-a"]) == {}
    assert not table.lacks({})
    (tmp_path / "w0.seg").write_bytes(b"x")
    assert table.lacks({tmp_path / "w0.seg": 1})
    assert not table.lacks({tmp_path / "gone.seg": 1})
    with closing(sqlite3.connect(tmp_path / "events.db")) as db:
        db.execute("CREATE TABLE other (x)")
    assert table.find(["file-a"]) == {}
    assert table.lacks({tmp_path / "w0.seg": 1})
    table.close()


def test_a_store_that_was_replaced_is_opened_again(store: Store, table: IssuerTable, clock: FakeClock) -> None:
    apply(store, issued("file-a"))
    assert table.find(["file-a"])
    store.path.rename(store.path.with_name("old.db"))
    other = Store(store.path, wall=clock.wall)
    try:
        apply(other, issued("file-b"))
        assert list(table.find(["file-a", "file-b"])) == ["file-b"]
    finally:
        other.close()


def test_it_says_whether_the_store_has_what_stood_in_the_spools(
    store: Store, table: IssuerTable, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    segment = folder / "w0-000000000000.00000001.seg"
    segment.write_bytes(b"x" * 10)
    ends = measure_spools(folder)
    assert ends == {segment: 10}
    assert table.lacks(ends)
    store.apply(Batch("w0-000000000000", segment.name, 9))
    assert table.lacks(ends)
    segment.write_bytes(b"x" * 20)  # what comes later does not matter
    store.apply(Batch("w0-000000000000", segment.name, 10))
    assert not table.lacks(ends)
    assert table.lacks(measure_spools(folder))
    segment.unlink()
    assert not table.lacks({segment: 20})
    assert measure_spools(tmp_path / "nowhere") == {}


def test_it_writes_nothing(store: Store, table: IssuerTable) -> None:
    table.find(["file-a"])
    assert table._db is not None
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        table._db.execute("DELETE FROM issuers")


def test_an_older_store_gets_the_table(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "events.db", isolation_level=None)) as db:
        migrate(db, AT, MIGRATIONS[:1])
    store = Store(tmp_path / "events.db", wall=lambda: AT)
    table = IssuerTable(store.path)
    apply(store, issued("file-a"))
    assert table.find(["file-a"])
    table.close()
    store.close()
