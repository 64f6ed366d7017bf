"""lookups: what a worker wrote before it relayed is found, an id that is nowhere is unknown, and a store that is away
is said to be, not guessed at."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from headgate.control.events.lookups import MOST_WAITING, Lookups
from headgate.control.events.tailer import Tailer
from headgate.proxy.accounting.record import Issued, Opened, encode
from headgate.proxy.accounting.spool import Spool
from headgate.proxy.clock import LoopClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

AT = 1_700_000_000.0
WITHIN = 10.0


def issued(id: str, team: str = "") -> Issued:
    return Issued(id=id, at=AT, provider="up", team=team, kind="files")


def make_tailer(root: Path) -> Tailer:
    return Tailer(root / "events.db", root / "spool", retention=86400.0, max_size=1 << 30, clock=LoopClock())


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool", "w0", max_size=8 << 20, monotonic=lambda: 0.0)
    yield spool
    spool.close()


@asynccontextmanager
async def running(root: Path, tailer: Tailer) -> AsyncIterator[Lookups]:
    lookups = Lookups(root / "events.db", root / "spool", tailer, LoopClock())
    task = asyncio.get_running_loop().create_task(lookups.run())
    try:
        yield lookups
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        lookups.close()
        tailer.close()


async def found(lookups: Lookups, *ids: str) -> list[Issued] | None:
    answer: asyncio.Future[list[Issued] | None] = asyncio.get_running_loop().create_future()
    lookups.ask(ids, answer.set_result)
    async with asyncio.timeout(WITHIN):
        return await answer


async def test_what_only_stands_in_the_spool_is_found(tmp_path: Path, spool: Spool) -> None:
    """The tailer does not run: the question itself has the spool taken over."""
    async with running(tmp_path, make_tailer(tmp_path)) as lookups:
        spool.append(encode(issued("file-a", "red")))
        assert await found(lookups, "file-a", "file-b") == [issued("file-a", "red")]
        spool.append(encode(issued("file-b")))
        assert await found(lookups, "file-b", "file-a") == [issued("file-b"), issued("file-a", "red")]
        assert await found(lookups, "file-c") == []
    assert lookups.failed == 0


async def test_nothing_at_all_is_an_answer(tmp_path: Path) -> None:
    async with running(tmp_path, make_tailer(tmp_path)) as lookups:
        assert await found(lookups, "file-a") == []


async def test_questions_that_wait_are_answered_together(tmp_path: Path, spool: Spool) -> None:
    async with running(tmp_path, make_tailer(tmp_path)) as lookups:
        spool.append(encode(issued("file-3")))
        answers = await asyncio.gather(*(found(lookups, f"file-{n}") for n in range(20)))
    assert [answer for answer in answers if answer] == [[issued("file-3")]]


async def test_where_another_gateway_keeps_the_store_it_waits_for_that_one(tmp_path: Path, spool: Spool) -> None:
    holder = make_tailer(tmp_path)
    tailing = asyncio.get_running_loop().create_task(holder.run())
    await holder.flush()
    async with running(tmp_path, make_tailer(tmp_path)) as lookups:
        spool.append(encode(issued("file-a")))
        assert await found(lookups, "file-a") == [issued("file-a")]
        assert await found(lookups, "file-b") == []
    tailing.cancel()
    await asyncio.wait([tailing])
    holder.close()


async def test_a_store_that_is_away_is_said_to_be(tmp_path: Path, spool: Spool) -> None:
    (tmp_path / "events.db").mkdir()
    async with running(tmp_path, make_tailer(tmp_path)) as lookups:
        with capture_logs() as logs:
            assert await found(lookups, "file-a") is None
        assert [line["event"] for line in logs] == ["issuers_away"]
        assert lookups.failed == 1
        (tmp_path / "events.db").rmdir()
        spool.append(encode(issued("file-a")))
        assert await found(lookups, "file-a") == [issued("file-a")]


async def test_a_store_that_does_not_catch_up_is_not_waited_for_without_end(
    tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headgate.control.events.lookups.CATCH_UP_SECONDS", 0.1)
    holder = make_tailer(tmp_path)  # holds the locks, and does not tail
    await holder.flush()
    async with running(tmp_path, make_tailer(tmp_path)) as lookups:
        spool.append(encode(Opened(id="hg_1", at=AT)))
        assert await found(lookups, "file-a") is None
    holder.close()


async def test_a_bug_costs_one_turn_and_not_the_lookups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, make_tailer(tmp_path)) as lookups:

        def broken(ids: Sequence[str]) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patch, capture_logs() as logs:
            patch.setattr(lookups._table, "find", broken)
            assert await found(lookups, "file-a") is None
        assert [line["event"] for line in logs] == ["lookup_failed"]
        assert await found(lookups, "file-a") == []


async def test_too_many_questions_are_refused_and_the_end_answers_the_others(tmp_path: Path) -> None:
    answers: list[list[Issued] | None] = []
    lookups = Lookups(tmp_path / "events.db", tmp_path / "spool", make_tailer(tmp_path), LoopClock())
    for _ in range(MOST_WAITING):
        lookups.ask(["file-a"], answers.append)
    assert answers == []
    lookups.ask(["file-a"], answers.append)
    assert answers == [None]
    task = asyncio.get_running_loop().create_task(lookups.run())
    await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    lookups.close()
    assert answers == [None] * (MOST_WAITING + 1)
