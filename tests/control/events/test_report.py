"""report: sums by any label from a store that others write to, beyond the rows that are still there."""

from __future__ import annotations

import json
import shutil
import sqlite3
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from headgate.control.events.report import GROUPINGS, UsageRow, as_json, as_table, usage
from headgate.control.events.store import Batch, Store
from headgate.proxy.accounting.record import Done

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAY = 86400
NOON = 19_700 * DAY + DAY // 2  # 2023-12-09


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "events #1?.db", wall=lambda: NOON)
    yield store
    store.close()


def put(store: Store, *rows: dict[str, Any]) -> None:
    common = {"at": float(NOON), "usage_source": "reported", "endpoint": "chat"}
    done = [Done(**{**common, "id": f"{store._db.total_changes}-{number}", **row}) for number, row in enumerate(rows)]
    store.apply(Batch("w0", "w0.seg", 1, done=done))


@pytest.fixture
def ledger(store: Store) -> Store:
    put(
        store,
        {"key": "app", "team": "t", "model": "fast", "provider": "p", "prompt_tokens": 100, "cost_usd": 0.5},
        {"key": "app", "team": "t", "model": "big", "provider": "q", "completion_tokens": 7, "cost_usd": 2.0},
        {"key": "app", "model": "fast", "outcome": "truncated", "usage_source": "estimated", "prompt_tokens": 11},
        {"key": "", "model": "fast", "outcome": "refused", "usage_source": "none"},
        {"key": "job", "model": "fast", "cached_tokens": 3, "cost_usd": 0.0, "at": NOON - 2.0 * DAY},
        {"key": "job", "model": "fast", "outcome": "lost", "usage_source": "none", "at": NOON - 2.0 * DAY},
    )
    return store


def test_sums_by_key_with_the_dearest_first(ledger: Store) -> None:
    assert usage(ledger.path, "key") == [
        UsageRow("app", 3, 2, 111, 7, 0, 2.5, 1, 1),
        UsageRow("job", 2, 1, 0, 0, 3, 0.0, 1, 0),
        UsageRow("", 1, 0, 0, 0, 0, 0.0, 0, 0),
    ]


def test_days_are_in_their_order(ledger: Store) -> None:
    assert [(row.group, row.requests) for row in usage(ledger.path, "day")] == [("2023-12-07", 2), ("2023-12-09", 4)]


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("model", ["big", "fast"]),
        ("team", ["t", ""]),
        ("provider", ["q", "p", ""]),
        ("endpoint", ["chat"]),
    ],
)
def test_sums_by_other_labels(ledger: Store, by: Any, groups: list[str]) -> None:
    rows = usage(ledger.path, by)
    assert [row.group for row in rows] == groups
    assert sum(row.requests for row in rows) == 6


@pytest.mark.parametrize("by", GROUPINGS)
def test_every_grouping_counts_every_exchange_once(ledger: Store, by: Any) -> None:
    for since in (None, 0, NOON - 3 * DAY, NOON - 2.5 * DAY):
        rows = usage(ledger.path, by, since)
        assert (sum(row.requests for row in rows), sum(row.cost_usd for row in rows)) == (6, 2.5)


def test_since_may_be_in_the_middle_of_a_day(ledger: Store) -> None:
    put(ledger, {"key": "early", "at": NOON - 60.0}, {"key": "late", "at": NOON + 60.0})
    assert {row.group for row in usage(ledger.path, "key", NOON)} == {"app", "", "late"}
    assert {row.group for row in usage(ledger.path, "key", NOON - 60)} == {"app", "", "late", "early"}
    assert usage(ledger.path, "key", NOON + DAY) == []


def test_sums_outlive_the_rows(ledger: Store) -> None:
    before = usage(ledger.path, "key")
    ledger.trim(0, 1 << 30)
    assert ledger.trim(-DAY, 1 << 30) > 0  # every row is older than tomorrow
    assert usage(ledger.path, "key") == before


def test_it_reads_while_somebody_writes(ledger: Store) -> None:
    ledger._db.execute("BEGIN IMMEDIATE")
    ledger._db.execute("DELETE FROM totals")
    assert len(usage(ledger.path, "key")) == 3
    ledger._db.execute("ROLLBACK")


def test_it_writes_nothing(ledger: Store) -> None:
    ledger.close()
    before = ledger.path.read_bytes()
    usage(ledger.path)
    assert ledger.path.read_bytes() == before


def test_a_copy_where_nothing_can_be_written_is_read(
    ledger: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a read-only volume: the shared memory of the write-ahead log cannot be made there."""
    ledger.close()
    copy = tmp_path / "copy.db"
    shutil.copy(ledger.path, copy)
    real = sqlite3.connect

    class Unopenable(sqlite3.Connection):
        def execute(self, *_: object) -> NoReturn:
            raise sqlite3.OperationalError("unable to open database file")

    def connect(place: str, **options: Any) -> sqlite3.Connection:
        return real(place, factory=Unopenable if "mode=ro" in place else sqlite3.Connection, **options)

    monkeypatch.setattr(sqlite3, "connect", connect)
    assert len(usage(copy, "key")) == 3


def test_no_ledger_and_no_such_grouping_are_said(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no ledger at .*nowhere"):
        usage(tmp_path / "nowhere.db")
    with pytest.raises(ValueError, match="cannot group by 'worker; DROP TABLE usage', expected one of key, team"):
        usage(store.path, "worker; DROP TABLE usage")  # type: ignore[arg-type]
    empty = tmp_path / "empty.db"
    empty.write_bytes(b"")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        usage(empty)


def test_an_empty_ledger_has_no_rows(store: Store) -> None:
    assert usage(store.path, "day") == []


def test_json_names_the_group_by_its_grouping(ledger: Store) -> None:
    body = json.loads(as_json(usage(ledger.path, "model"), "model"))
    assert body["by"] == "model"
    assert body["data"][0] == {
        "model": "big",
        "requests": 1,
        "ok": 1,
        "prompt_tokens": 0,
        "completion_tokens": 7,
        "cached_tokens": 0,
        "cost_usd": 2.0,
        "unknown_cost": 0,
        "estimated": 0,
    }


def test_the_table_lines_up_and_says_what_is_unknown(ledger: Store) -> None:
    assert as_table(usage(ledger.path, "key"), "key") == (
        "key    requests  ok  prompt  cached  completion    cost USD  estimated\n"
        "app           3   2     111       0           7  2.500000+?          1\n"
        "job           2   1       0       3           0  0.000000+?          0\n"
        "-             1   0       0       0           0    0.000000          0\n"
        "total         6   3     111       3           7  2.500000+?          1"
    )


def test_a_table_of_one_row_needs_no_total() -> None:
    assert as_table([UsageRow("app", 1, 1, 2, 3, 4, 0.5, 0, 0)], "key").splitlines()[1:] == [
        "app         1   1       2       4           3  0.500000          0"
    ]
    assert as_table([], "day").startswith("day  requests")
