"""ingest: whoever dies, and wherever, every exchange that reached the spool has exactly one row."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.control.events.ingest import TAILER_LOCK, Ingest
from headgate.control.events.spools import take_lock
from headgate.proxy.accounting.record import Done, Opened, encode
from headgate.proxy.accounting.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterator

AT = 1_700_000_000.0


def opened(id: str) -> bytes:
    return encode(Opened(id=id, at=AT, key="app", model="m", worker="w0"))


def done(id: str) -> bytes:
    return encode(Done(id=id, at=AT, key="app", model="m", worker="w0", usage_source="reported", prompt_tokens=1))


def make_spool(root: Path, worker: str = "w0", **options: Any) -> Spool:
    return Spool(root / "spool", worker, **{"max_size": 1 << 30, "monotonic": lambda: 0.0, **options})


def make_ingest(root: Path) -> Ingest:
    return Ingest(root / "events.db", root / "spool", wall=lambda: AT)


def drain(ingest: Ingest) -> None:
    while ingest.step():
        pass


def rows(root: Path) -> dict[str, str]:
    """Outcome by id; the ledger's own rules must hold whenever anybody looks."""
    with closing(sqlite3.connect(root / "events.db")) as db:
        found = db.execute("SELECT id, outcome FROM usage").fetchall()
        ((requests, prompt),) = db.execute("SELECT SUM(requests), SUM(prompt_tokens) FROM totals")
    assert len(found) == len(dict(found))
    assert (requests or 0) == len(found)
    assert (prompt or 0) == [outcome for _, outcome in found].count("ok")
    return dict(found)


def spool_files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "spool").iterdir() if path.name != TAILER_LOCK)


@pytest.fixture
def ingest(tmp_path: Path) -> Iterator[Ingest]:
    ingest = make_ingest(tmp_path)
    yield ingest
    ingest.close()


def test_a_living_workers_records_are_taken_over_and_its_files_stay(tmp_path: Path, ingest: Ingest) -> None:
    spool = make_spool(tmp_path)
    for line in (opened("a"), done("a"), opened("b")):
        spool.append(line)
    drain(ingest)
    assert rows(tmp_path) == {"a": "ok"}
    assert len(spool_files(tmp_path)) == 2
    spool.append(done("b"))
    drain(ingest)
    assert rows(tmp_path) == {"a": "ok", "b": "ok"}
    assert (ingest.rows, ingest.lost, ingest.dead_letters) == (2, 0, 0)
    spool.close()


def test_what_a_dead_worker_left_open_is_lost_and_its_spool_goes(tmp_path: Path, ingest: Ingest) -> None:
    spool = make_spool(tmp_path)
    spool.append(opened("taken over while it lived"))
    drain(ingest)
    for line in (opened("a"), done("a"), opened("b")):
        spool.append(line)
    spool.close()
    drain(ingest)
    assert rows(tmp_path) == {"taken over while it lived": "lost", "a": "ok", "b": "lost"}
    assert spool_files(tmp_path) == []
    assert ingest.lost == 2
    with closing(sqlite3.connect(tmp_path / "events.db")) as db:
        assert db.execute("SELECT * FROM offsets UNION ALL SELECT id, 0 FROM open_exchanges").fetchall() == []


def test_sealed_segments_go_as_soon_as_they_are_taken_over(tmp_path: Path, ingest: Ingest) -> None:
    spool = make_spool(tmp_path, segment_size=5 * len(done("0000")))
    for number in range(52):
        spool.append(done(f"{number:04}"))
    drain(ingest)
    assert len(rows(tmp_path)) == 52
    assert len(spool_files(tmp_path)) == 2  # the lock and the active segment
    spool.close()


def test_no_segment_is_read_again_because_another_one_went(tmp_path: Path, ingest: Ingest) -> None:
    """The done of `a` is long gone from its spool when the second worker's spool goes."""
    first = make_spool(tmp_path, "w0")
    second = make_spool(tmp_path, "w1", segment_size=1)
    for line in (opened("a"), done("a"), opened("b")):
        first.append(line)
    second.append(opened("c"))
    second.append(done("c"))
    drain(ingest)
    second.close()
    drain(ingest)
    assert ingest.rows == 2
    assert rows(tmp_path) == {"a": "ok", "c": "ok"}
    first.close()


def test_a_full_spool_has_room_again_once_it_is_taken_over(tmp_path: Path, ingest: Ingest) -> None:
    now = 0.0
    spool = make_spool(tmp_path, max_size=20 * len(done("0000")), on_full="refuse", monotonic=lambda: now)
    number = 0
    while not spool.full:
        number += 1
        spool.append(done(f"{number:04}"))
    drain(ingest)
    now += 1
    assert spool.append(opened("0000"))
    assert not spool.full
    spool.close()


def test_a_segment_begun_after_the_listing_is_not_forgotten(
    tmp_path: Path, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker rotates, writes and dies between the tailer's look at the directory and its look at the lock."""
    spool = make_spool(tmp_path, segment_size=1)
    spool.append(opened("a"))
    drain(ingest)

    def dies_now(path: Path) -> int | None:
        if path.name.startswith("w0"):
            spool.append(done("a"))
            spool.append(opened("b"))
            spool.close()
        return take_lock(path)

    monkeypatch.setattr("headgate.control.events.ingest.take_lock", dies_now)
    ingest.step()
    monkeypatch.undo()
    drain(ingest)
    assert rows(tmp_path) == {"a": "ok", "b": "lost"}
    assert spool_files(tmp_path) == []


def test_only_the_holder_of_the_lock_tails(tmp_path: Path, ingest: Ingest) -> None:
    spool = make_spool(tmp_path)
    spool.append(done("a"))
    drain(ingest)
    second = make_ingest(tmp_path)
    spool.append(done("b"))
    assert not second.step()
    assert (ingest.holder, second.holder) == (True, False)
    assert second.trim(0, 0) == 0
    assert rows(tmp_path) == {"a": "ok"}
    ingest.close()
    drain(second)
    assert second.holder
    assert rows(tmp_path) == {"a": "ok", "b": "ok"}
    second.close()
    spool.close()


def test_two_stores_never_share_out_one_spool_directory(tmp_path: Path, ingest: Ingest) -> None:
    spool = make_spool(tmp_path)
    spool.append(done("a"))
    drain(ingest)
    other = Ingest(tmp_path / "other.db", tmp_path / "spool", wall=lambda: AT)
    spool.append(done("b"))
    assert not other.step()
    assert not other.holder
    ingest.close()
    third = make_ingest(tmp_path)  # the lock of the first store was not kept by the one that failed
    drain(third)
    assert rows(tmp_path) == {"a": "ok", "b": "ok"}
    third.close()
    spool.close()


def test_a_lock_that_cannot_be_made_is_an_error_and_holds_nothing(tmp_path: Path, ingest: Ingest) -> None:
    (tmp_path / "spool" / TAILER_LOCK).mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        ingest.step()
    assert not ingest.holder
    (tmp_path / "spool" / TAILER_LOCK).rmdir()
    assert not ingest.step()
    assert ingest.holder


def test_a_store_that_was_deleted_is_made_again(tmp_path: Path, ingest: Ingest) -> None:
    spool = make_spool(tmp_path)
    spool.append(done("a"))
    drain(ingest)
    for path in tmp_path.glob("events.db*"):
        if path.suffix != ".lock":
            path.unlink()
    spool.append(done("b"))
    drain(ingest)
    assert rows(tmp_path) == {"a": "ok", "b": "ok"}  # `a` was still in the active segment
    spool.close()


def test_a_spool_that_somebody_deleted_leaves_its_open_exchanges_lost(tmp_path: Path, ingest: Ingest) -> None:
    spool = make_spool(tmp_path)
    spool.append(opened("a"))
    drain(ingest)
    ingest.close()
    spool.close()
    shutil.rmtree(tmp_path / "spool")
    again = make_ingest(tmp_path)
    drain(again)
    assert rows(tmp_path) == {"a": "lost"}
    again.close()


def test_a_store_that_cannot_be_used_is_let_go_and_opened_again(tmp_path: Path, ingest: Ingest) -> None:
    spool = make_spool(tmp_path)
    spool.append(done("a"))
    (tmp_path / "events.db").mkdir()
    for _ in range(3):
        with pytest.raises((sqlite3.Error, OSError), match=r".+"):
            ingest.step()
    (tmp_path / "events.db").rmdir()
    drain(ingest)
    assert rows(tmp_path) == {"a": "ok"}
    spool.close()


class World:
    """Workers that write and die, a tailer that dies too, and what must come of it.

    `written` holds, per worker, the lines in its files; a cut shortens the last file at any byte, as a machine that
    loses power does. What was taken over before the cut stays taken over.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.rng = random.Random(seed)
        self.ingest = make_ingest(root)
        self.workers: dict[Spool, list[str]] = {}
        self.count = 0
        self.opened: set[str] = set()
        self.done: set[str] = set()

    def start(self) -> None:
        if len(self.workers) < 3:
            size = self.rng.choice([1, 200, 1000, 1 << 20])
            self.workers[make_spool(self.root, f"w{self.count}", segment_size=size)] = []

    def write(self) -> None:
        for spool, open_ids in self.workers.items():
            for _ in range(self.rng.randrange(6)):
                if open_ids and self.rng.random() < 0.5:
                    id = open_ids.pop(self.rng.randrange(len(open_ids)))
                    assert spool.append(done(id))
                    self.done.add(id)
                else:
                    self.count += 1
                    id = f"{self.count:05}"
                    assert spool.append(opened(id))
                    self.opened.add(id)
                    open_ids.append(id)

    def die(self) -> None:
        """A worker dies; its last segment loses some bytes that nobody had taken over."""
        if not self.workers:
            return
        spool = self.rng.choice(list(self.workers))
        del self.workers[spool]
        last = max((self.root / "spool").glob(f"{spool.name}.*.seg"))
        data = last.read_bytes()
        with suppress(sqlite3.Error), closing(sqlite3.connect(self.root / "events.db")) as db:
            taken = db.execute("SELECT position FROM offsets WHERE segment = ?", (last.name,)).fetchone()
            at = self.rng.randrange(taken[0] if taken else 0, len(data) + 1)
            os.truncate(last, at)
            kept = data[:at].split(b"\n")
            for line in data.split(b"\n"):
                if line and line not in kept:
                    record = line.decode()
                    id = record.split('"id":"')[1][:5]
                    (self.opened if '"opened"' in record else self.done).discard(id)
        spool.close()

    def take(self) -> None:
        for _ in range(self.rng.randrange(1, 6)):
            self.ingest.step()

    def crash(self) -> None:
        """The tailer dies in the middle of whatever SQLite does at that moment."""
        store = self.ingest._store
        if store is not None:
            store._db.set_progress_handler(lambda: 1, self.rng.randrange(1, 400))
            with suppress(sqlite3.OperationalError):
                self.ingest.step()
        self.ingest.close()
        self.ingest = make_ingest(self.root)

    def end(self) -> dict[str, str]:
        for spool in self.workers:
            spool.close()
        drain(self.ingest)
        self.ingest.close()
        return rows(self.root)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(st.sampled_from(["start", "write", "write", "die", "take", "take", "crash"]), min_size=5, max_size=40),
)
def test_no_row_is_lost_or_doubled_whoever_dies_where(seed: int, actions: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        world = World(root, seed)
        world.start()
        for action in actions:
            getattr(world, action)()
            if (root / "events.db").exists() and world.ingest._store is not None:
                rows(root)
        found = world.end()
        assert {id for id, outcome in found.items() if outcome == "ok"} == world.done
        assert {id for id, outcome in found.items() if outcome == "lost"} == world.opened - world.done
        assert spool_files(root) == []


WRITER = """
import os, sys, time
from headgate.proxy.accounting.record import Done, Opened, encode
from headgate.proxy.accounting.spool import Spool
root, worker = sys.argv[1:]
spool = Spool(root + "/spool", worker, max_size=1 << 30, segment_size=4096, monotonic=time.monotonic)
for number in range(10**9):
    id = f"{worker}-{number}"
    assert spool.append(encode(Opened(id=id, at=1700000000.0)))
    os.write(1, f"opened {id}\\n".encode())
    if number % 7:
        assert spool.append(encode(Done(id=id, at=1700000000.0)))
        os.write(1, f"done {id}\\n".encode())
"""
TAILER = """
import sys, time
from headgate.control.events.ingest import Ingest
from headgate.control.events.spools import take_lock
ingest = Ingest(sys.argv[1] + "/events.db", sys.argv[1] + "/spool", wall=time.time)
while True:
    ingest.step()
"""


def test_kill_9_of_workers_and_tailers_leaves_one_row_each(tmp_path: Path) -> None:
    """Real processes, ended by the kernel at moments nobody chose."""
    rng = random.Random(3)
    promised: set[tuple[str, str]] = set()
    for round in range(6):
        with (tmp_path / "promised").open("wb") as out:
            writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), f"w{round}"], stdout=out)
        tailer = subprocess.Popen([sys.executable, "-c", TAILER, str(tmp_path)])
        try:
            deadline = time.monotonic() + 20
            while (tmp_path / "promised").stat().st_size < 5000 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(rng.random() / 10)
        finally:
            for process in rng.sample([writer, tailer], 2):
                process.send_signal(signal.SIGKILL)
            writer.wait(10)
            tailer.wait(10)
        text = (tmp_path / "promised").read_text()
        promised |= {
            (what, id) for what, _, id in (line.partition(" ") for line in text[: text.rfind("\n")].split("\n"))
        }
    ingest = make_ingest(tmp_path)
    drain(ingest)
    ingest.close()
    with closing(sqlite3.connect(tmp_path / "events.db")) as db:
        found = dict(db.execute("SELECT id, outcome FROM usage"))
        assert db.execute("SELECT COUNT(*) FROM usage").fetchone() == (len(found),)
        assert db.execute("SELECT COUNT(*) FROM dead_letters").fetchone() == (0,)
    assert len(promised) > 500
    assert {id for what, id in promised if what == "opened"} <= found.keys()
    assert all(found[id] == "ok" for what, id in promised if what == "done")
    assert spool_files(tmp_path) == []
    # One record may have been written whose promise was not: it is a row as well, and no other is.
    assert len(found) <= len({id for _, id in promised}) + 6
