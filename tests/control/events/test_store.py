"""store: one row for each exchange whatever is read twice, and no row that spoils the others."""

from __future__ import annotations

import random
import sqlite3
import stat
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from headgate.control.events.store import DEAD_LETTER_BYTES, Batch, Store, lost
from headgate.control.events.totals import MOST_GROUPS, OTHER
from headgate.proxy.accounting.record import Done, Opened, encode
from tests_support.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AT = 1_700_000_000.0
DAY = 86400


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(wall=AT)


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    store = Store(tmp_path / "deep" / "events.db", wall=clock.wall)
    yield store
    store.close()


def done(id: str, **fields: Any) -> Done:
    return Done(id=id, **{"at": AT, "key": "app", "model": "m", "usage_source": "reported", **fields})


def batch(*rows: Done, position: int = 1, **fields: Any) -> Batch:
    return Batch("w0-000000000000", "w0.seg", position, done=list(rows), **fields)


def query(store: Store, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(store.path)) as db:
        return db.execute(sql).fetchall()


def sums(store: Store) -> dict[str, tuple[Any, ...]]:
    """The totals by model, and the same from the rows."""
    return {
        model: tuple(rest)
        for model, *rest in query(
            store, "SELECT model, requests, ok, prompt_tokens, cost_usd, unknown_cost, estimated FROM totals"
        )
    }


def test_rows_are_stored_with_the_position_they_were_read_to(store: Store) -> None:
    rows = [done("a", cost_usd=0.5, stream=True, ttft_ms=3.5), done("b", outcome="truncated")]
    assert store.apply(batch(*rows, position=77)) == 0
    assert query(store, "SELECT id, outcome, cost_usd, stream, ttft_ms FROM usage ORDER BY id") == [
        ("a", "ok", 0.5, 1, 3.5),
        ("b", "truncated", None, 0, None),
    ]
    assert store.position("w0.seg") == 77
    assert store.position("w1.seg") == 0


def test_nobody_else_can_read_the_file(store: Store) -> None:
    store.apply(batch(done("a")))
    files = list(store.path.parent.iterdir())
    assert len(files) == 3  # with its write-ahead log and shared memory
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_what_is_read_twice_is_counted_once(store: Store) -> None:
    for _ in range(3):
        store.apply(batch(done("a", cost_usd=1.0), done("b")))
    store.apply(batch(done("b"), done("c"), done("c")))
    assert query(store, "SELECT id FROM usage ORDER BY id") == [("a",), ("b",), ("c",)]
    assert sums(store)["m"][:2] == (3, 3)


def test_what_really_happened_replaces_lost_and_lost_replaces_nothing(store: Store) -> None:
    opened = Opened(id="a", at=AT, key="app", model="m", est_prompt=40)
    store.apply(batch(opened={"a": encode(opened)}))
    assert store.lose("w0-000000000000") == 1
    assert query(store, "SELECT outcome, prompt_tokens, usage_source FROM usage") == [("lost", 40, "estimated")]
    assert sums(store)["m"] == (1, 0, 40, 0.0, 1, 1)
    store.apply(batch(done("a", prompt_tokens=30, cost_usd=0.25)))
    assert query(store, "SELECT outcome, prompt_tokens FROM usage") == [("ok", 30)]
    assert sums(store)["m"] == (1, 1, 30, 0.25, 0, 0)
    store.apply(batch(lost(opened)))
    assert query(store, "SELECT outcome FROM usage") == [("ok",)]


def test_an_exchange_is_open_until_it_is_done(store: Store) -> None:
    line = encode(Opened(id="a", at=AT))
    store.apply(batch(opened={"a": line, "b": line}))
    store.apply(batch(done("a"), closed=["a", "never opened"]))
    assert store.open_spools() == {"w0-000000000000"}
    assert query(store, "SELECT id FROM open_exchanges") == [("b",)]


def test_a_lost_exchange_without_an_estimate_used_nothing_known(store: Store) -> None:
    labels: dict[str, Any] = {
        "key": "k",
        "team": "t",
        "owner": "o",
        "endpoint": "chat",
        "client_request_id": "c",
        "worker": "w",
    }
    row = lost(Opened(id="a", at=AT, **labels))
    assert (row.outcome, row.usage_source, row.prompt_tokens, row.cost_usd) == ("lost", "none", 0, None)
    assert {name: getattr(row, name) for name in labels} == labels


def test_one_row_that_does_not_fit_costs_only_itself(store: Store) -> None:
    rows = [done(f"r{number}", cost_usd=0.01) for number in range(500)]
    rows[250] = done("poison", prompt_tokens=2**70)
    assert store.apply(batch(*rows)) == 1
    assert query(store, "SELECT COUNT(*) FROM usage") == [(499,)]
    ((reason, line),) = query(store, "SELECT reason, line FROM dead_letters")
    assert "too large" in reason
    assert b"poison" in line
    assert sums(store)["m"][0] == 499
    assert store.apply(batch(done("next"))) == 0


def test_a_poisoned_open_exchange_is_buried_when_it_is_lost(store: Store) -> None:
    lines = {id: encode(Opened(id=id, at=AT, est_prompt=count)) for id, count in (("a", 2**70), ("b", 1))}
    store.apply(batch(opened=lines))
    assert store.lose("w0-000000000000") == 2
    assert store.lose("w0-000000000000") == 0
    assert query(store, "SELECT id FROM usage") == [("b",)]
    assert query(store, "SELECT COUNT(*) FROM dead_letters") == [(1,)]


def test_dead_letters_are_cut_and_dated(store: Store) -> None:
    store.apply(batch(dead=[("why", b"x" * 10_000)]))
    assert query(store, "SELECT at, spool, reason, LENGTH(line) FROM dead_letters") == [
        (AT, "w0-000000000000", "why", DEAD_LETTER_BYTES)
    ]


def test_a_batch_is_in_the_store_whole_or_not_at_all(store: Store) -> None:
    store.apply(batch(done("a"), position=1))
    for steps in (1, 7, 40, 200, 1000):
        store._db.set_progress_handler(lambda: 1, steps)
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            store.apply(batch(*(done(f"{steps}-{number}") for number in range(300)), position=2))
        store._db.set_progress_handler(None, 0)
        assert store.position("w0.seg") == 1
        assert query(store, "SELECT COUNT(*) FROM usage") == [(1,)]
    assert store.apply(batch(done("b"), position=2)) == 0
    assert sums(store)["m"][0] == 2


def test_a_store_that_is_locked_raises_and_works_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store._db.execute("PRAGMA busy_timeout = 10")
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            store.apply(batch(done("a")))
        other.execute("ROLLBACK")
    assert store.apply(batch(done("a"))) == 0


def test_a_full_disk_raises_and_leaves_nothing(store: Store) -> None:
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.apply(batch(*(done(f"r{number}", error_code="e" * 2000) for number in range(500))))
    assert store.position("w0.seg") == 0
    store._db.execute("PRAGMA max_page_count = 1000000")
    assert store.apply(batch(done("a"))) == 0
    assert query(store, "SELECT id FROM usage") == [("a",)]


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path, clock: FakeClock) -> None:
    place = tmp_path / "events.db"
    place.write_bytes(b"these are not the rows you are looking for" * 100)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        Store(place, wall=clock.wall)


def test_the_sums_are_those_of_the_rows(store: Store) -> None:
    rng = random.Random(5)
    for number in range(20):
        rows = [
            done(
                f"{number}-{each}",
                at=AT + rng.randrange(3) * DAY,
                model=rng.choice("abc"),
                outcome=rng.choice(["ok", "refused", "lost", "truncated"]),
                usage_source=rng.choice(["reported", "estimated", "none"]),
                prompt_tokens=rng.randrange(1000),
                cost_usd=rng.choice([None, 0.0, rng.random()]),
            )
            for each in range(rng.randrange(1, 30))
        ]
        store.apply(batch(*rows))
    from_rows = query(
        store,
        """SELECT model, COUNT(*), SUM(outcome = 'ok'), SUM(prompt_tokens), ROUND(SUM(COALESCE(cost_usd, 0)), 9),
        SUM(cost_usd IS NULL AND (usage_source != 'none' OR outcome = 'lost')), SUM(usage_source = 'estimated')
        FROM usage GROUP BY 1 ORDER BY 1""",
    )
    from_totals = query(
        store,
        """SELECT model, SUM(requests), SUM(ok), SUM(prompt_tokens), ROUND(SUM(cost_usd), 9), SUM(unknown_cost),
        SUM(estimated) FROM totals GROUP BY 1 ORDER BY 1""",
    )
    assert from_totals == from_rows
    assert len(query(store, "SELECT DISTINCT day FROM totals")) == 3


def test_names_invented_by_clients_do_not_fill_the_sums(store: Store) -> None:
    for start in range(0, MOST_GROUPS + 500, 500):
        store.apply(batch(*(done(f"r{number}", model=f"m{number}") for number in range(start, start + 500))))
    found = sums(store)
    assert len(found) == MOST_GROUPS + 1
    assert found[OTHER][0] == 500
    # the bound is of the day and not of the process, and a known name is still counted under its name
    again = Store(store.path, wall=lambda: AT)
    again.apply(batch(done("x", model="brand new"), done("y", model="m7"), done("z", model="new", at=AT + DAY)))
    again.close()
    found = sums(store)
    assert (found[OTHER][0], found["m7"][0], found["new"][0]) == (501, 2, 1)


def test_rows_go_with_their_age_and_their_sums_stay(store: Store, clock: FakeClock) -> None:
    store.apply(batch(*(done(f"old{number}", at=AT - 31 * DAY) for number in range(5000)), dead=[("why", b"x")]))
    store.apply(batch(done("new")))
    assert store.trim(30 * DAY, 1 << 30) == 5000
    assert query(store, "SELECT id FROM usage") == [("new",)]
    assert query(store, "SELECT SUM(requests) FROM totals") == [(5001,)]
    assert query(store, "SELECT COUNT(*) FROM dead_letters") == [(1,)]
    clock.advance(31 * DAY)
    store.trim(30 * DAY, 1 << 30)
    assert query(store, "SELECT COUNT(*) FROM dead_letters") == [(0,)]


def test_the_oldest_rows_go_when_the_file_is_too_large(store: Store) -> None:
    for number in range(10):
        store.apply(batch(*(done(f"{number}-{each}", at=AT + number, error_code="e" * 400) for each in range(500))))
    bound = store._size() // 2
    gone = store.trim(30 * DAY, bound)
    assert 0 < gone < 5000
    assert store._size() <= bound
    assert query(store, "SELECT MIN(at) FROM usage")[0][0] > AT
    assert query(store, "SELECT MAX(at) FROM usage") == [(AT + 9,)]
    assert store.trim(30 * DAY, bound) == 0
    store.close()
    assert store.path.stat().st_size <= bound * 1.1


def test_a_bound_that_nothing_can_meet_ends(store: Store) -> None:
    store.apply(batch(done("a")))
    assert store.trim(30 * DAY, 1) == 1
    assert store.trim(30 * DAY, 1) == 0


def test_dead_letters_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headgate.control.events.store.MOST_DEAD_LETTERS", 3)
    store.apply(batch(dead=[(f"why {number}", b"x") for number in range(10)]))
    store.trim(30 * DAY, 1 << 30)
    assert query(store, "SELECT reason FROM dead_letters") == [("why 7",), ("why 8",), ("why 9",)]


def test_offsets_of_segments_that_are_gone_are_forgotten(store: Store) -> None:
    store.apply(batch(position=9))
    store.apply(Batch("w1-000000000000", "w1.seg", 5))
    assert store.segments() == {"w0.seg", "w1.seg"}
    store.forget_segments({"w0.seg", "w7.seg"})
    assert (store.position("w0.seg"), store.position("w1.seg")) == (0, 5)
