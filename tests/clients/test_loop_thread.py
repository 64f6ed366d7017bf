"""loop_thread: a loop for callers that have none; it ends when told, and takes nothing with it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from headgate.clients.loop_thread import LoopEndedError, LoopThread


async def name() -> str:
    return threading.current_thread().name


def test_work_runs_there_and_its_result_comes_back() -> None:
    thread = LoopThread()
    assert thread.call(name()) == "headgate"
    thread.stop()


def test_an_exception_comes_back_too() -> None:
    async def fail() -> None:
        raise ValueError("no")

    thread = LoopThread()
    with pytest.raises(ValueError, match="no"):
        thread.call(fail())
    thread.stop()


def test_posted_work_runs_some_time_soon() -> None:
    thread = LoopThread()
    ran = threading.Event()
    thread.post(ran.set)
    assert ran.wait(5)
    thread.stop()


def test_what_still_runs_at_the_end_is_cancelled() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def begin() -> None:
        tasks.append(asyncio.get_running_loop().create_task(forever()))
        await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    thread = LoopThread()
    thread.call(begin())
    thread.stop()
    assert ended == ["cancelled"]


def test_after_the_end_nothing_runs_and_nothing_hangs() -> None:
    thread = LoopThread()
    thread.stop()
    with pytest.raises(LoopEndedError):
        thread.call(name())
    thread.post(lambda: None)
    thread.stop()
