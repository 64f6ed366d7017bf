"""tailer: what is written is in the store within the interval; a store that is away is waited for and said once."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from structlog.testing import capture_logs

from headgate.control.events.ingest import TAILER_LOCK
from headgate.control.events.tailer import ELSEWHERE, INTERVAL, LONGEST_WAIT, TRIM_ROWS, TRIM_SECONDS, Tailer
from headgate.proxy.accounting.record import Done, Opened, encode
from headgate.proxy.accounting.spool import Spool
from tests_support.clock import WALL_START, FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

DAY = 86400.0


class NapClock(FakeClock):
    """Says when somebody goes to sleep; the tailer's work takes real time, in a thread."""

    def __init__(self) -> None:
        super().__init__()
        self.nap = anyio.Event()

    async def sleep(self, seconds: float) -> None:
        self.nap.set()
        self.nap = anyio.Event()
        await super().sleep(seconds)


@pytest.fixture
def clock() -> NapClock:
    return NapClock()


@pytest.fixture
def spool(tmp_path: Path, clock: NapClock) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool", "w0", max_size=8 << 20, monotonic=clock.monotonic)
    yield spool
    spool.close()


def make(tmp_path: Path, clock: NapClock, **options: Any) -> Tailer:
    options = {"retention": 30 * DAY, "max_size": 1 << 30, **options}
    return Tailer(tmp_path / "events.db", tmp_path / "spool", clock=clock, **options)


@pytest.fixture
async def tailer(tmp_path: Path, clock: NapClock) -> AsyncIterator[Tailer]:
    tailer = make(tmp_path, clock)
    yield tailer
    tailer.close()


def record(id: str, at: float = WALL_START) -> bytes:
    return encode(Done(id=id, at=at, key="app"))


def stored(tmp_path: Path) -> list[str]:
    with closing(sqlite3.connect(tmp_path / "events.db")) as db:
        return [id for (id,) in db.execute("SELECT id FROM usage ORDER BY rowid")]


async def test_a_spool_that_another_ledger_takes_is_told_once_and_only_while_it_is_so(
    tmp_path: Path, clock: NapClock, tailer: Tailer
) -> None:
    await tailer.turn()
    other = Tailer(tmp_path / "other.db", tmp_path / "spool", clock=clock, retention=DAY, max_size=1 << 30)
    same = make(tmp_path, clock)
    with capture_logs() as logs:
        for one in (other, other, same):
            await one.turn()
    assert [(log["event"], log["reason"]) for log in logs] == [("ledger_elsewhere", ELSEWHERE)]
    assert (tailer.elsewhere, other.elsewhere, same.elsewhere) == (False, True, False)
    tailer.close()
    await other.turn()
    assert not other.elsewhere
    other.close()


async def asleep(clock: NapClock) -> float:
    """Wait, in real time, until the tailer waits for the clock; how long it means to sleep."""
    with anyio.fail_after(5):
        while not clock.pending:
            await clock.nap.wait()
    return clock.pending[0] - clock.monotonic()


async def test_records_are_in_the_store_within_the_interval(
    tmp_path: Path, clock: NapClock, spool: Spool, tailer: Tailer
) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tailer.run)
        assert await asleep(clock) == INTERVAL
        for round in range(3):
            spool.append(record(f"r{round}"))
            await clock.run(INTERVAL)
            await asleep(clock)
            assert stored(tmp_path)[-1] == f"r{round}"
        tasks.cancel_scope.cancel()
    assert (tailer.rows, tailer.lost, tailer.dead_letters, tailer.errors, tailer.last_error) == (3, 0, 0, 0, None)


async def test_many_records_are_taken_over_in_one_go(
    tmp_path: Path, clock: NapClock, spool: Spool, tailer: Tailer
) -> None:
    for number in range(5000):
        spool.append(record(f"r{number}"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tailer.run)
        await asleep(clock)
        tasks.cancel_scope.cancel()
    assert tailer.rows == 5000


async def test_flush_takes_over_what_is_written_so_far(
    tmp_path: Path, clock: NapClock, spool: Spool, tailer: Tailer
) -> None:
    spool.append(encode(Opened(id="a", at=WALL_START)))
    spool.append(record("b"))
    assert await tailer.flush()
    assert stored(tmp_path) == ["b"]
    spool.close()
    assert await tailer.flush()
    assert stored(tmp_path) == ["b", "a"]
    assert tailer.lost == 1
    assert [path.name for path in (tmp_path / "spool").iterdir()] == [TAILER_LOCK]


async def test_flush_ends_at_its_deadline(clock: NapClock, spool: Spool, tailer: Tailer) -> None:
    for number in range(2000):
        spool.append(record(f"r{number}"))
    assert not await tailer.flush(within=0)
    assert 0 < tailer.rows <= 2000


async def test_flush_says_when_it_is_not_its_store(
    tmp_path: Path, clock: NapClock, spool: Spool, tailer: Tailer
) -> None:
    spool.append(record("a"))
    assert await tailer.flush()
    second = make(tmp_path, clock)
    assert not await second.flush()
    assert (tailer.holder, second.holder) == (True, False)
    second.close()


async def test_a_store_that_is_away_is_waited_for_and_said_once(
    tmp_path: Path, clock: NapClock, spool: Spool, tailer: Tailer
) -> None:
    (tmp_path / "events.db").mkdir()
    spool.append(record("a"))
    with capture_logs() as logs:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tailer.run)
            waits = []
            for _ in range(7):
                waits.append(await asleep(clock))
                await clock.run(waits[-1])
            assert waits == [1, 2, 4, 8, LONGEST_WAIT, LONGEST_WAIT, LONGEST_WAIT]
            assert tailer.last_error is not None
            assert not await tailer.flush()
            (tmp_path / "events.db").rmdir()
            await asleep(clock)
            await clock.run(LONGEST_WAIT)
            assert await asleep(clock) == INTERVAL
            tasks.cancel_scope.cancel()
    assert stored(tmp_path) == ["a"]
    assert tailer.last_error is None
    assert tailer.errors >= 8
    assert [entry["event"] for entry in logs] == ["ledger_away", "ledger_back"]


async def test_old_rows_go_every_minute_or_after_many_new_ones(
    tmp_path: Path, clock: NapClock, spool: Spool, tailer: Tailer
) -> None:
    old = WALL_START - 31 * DAY
    async with anyio.create_task_group() as tasks:
        spool.append(record("old", old))
        tasks.start_soon(tailer.run)
        await asleep(clock)
        assert (tailer.trimmed, stored(tmp_path)) == (1, [])
        spool.append(record("old too", old))
        await clock.run(INTERVAL)
        await asleep(clock)
        assert stored(tmp_path) == ["old too"]
        await clock.run(TRIM_SECONDS)
        await asleep(clock)
        assert (tailer.trimmed, stored(tmp_path)) == (2, [])
        for number in range(TRIM_ROWS):
            spool.append(record(f"r{number}", old))
        await clock.run(INTERVAL)
        await asleep(clock)
        assert tailer.trimmed >= TRIM_ROWS
        tasks.cancel_scope.cancel()


async def test_nothing_is_left_behind(tmp_path: Path, no_leaks: None, clock: NapClock) -> None:
    tailer = make(tmp_path, clock)
    spool = Spool(tmp_path / "spool", "w0", max_size=1 << 20, monotonic=clock.monotonic)
    spool.append(record("a"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tailer.run)
        await asleep(clock)
        tasks.cancel_scope.cancel()
    spool.close()
    assert await tailer.flush()
    tailer.close()
    assert not tailer.holder


async def test_cancelled_in_a_turn_it_leaves_no_thread_at_work(tmp_path: Path) -> None:
    """A native cancel does not stop a thread: the store would be closed under it."""
    tailer = Tailer(tmp_path / "events.db", tmp_path / "spool", retention=DAY, max_size=10**9, clock=NapClock())
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def turn() -> bool:
        begun.set()
        go_on.wait(5)
        ended.set()
        return False

    tailer._ingest.step = turn  # type: ignore[method-assign]
    task = asyncio.ensure_future(tailer.run())
    await anyio.to_thread.run_sync(begun.wait, 5)
    task.cancel()
    await anyio.lowlevel.checkpoint()
    go_on.set()
    await asyncio.gather(task, return_exceptions=True)
    assert ended.is_set()
    assert task.cancelled()
