"""Whether something was left behind: tasks of this loop and descriptors of this process, before and after."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FDS = Path("/proc/self/fd")


def open_fds() -> dict[str, str]:
    """Every open descriptor of this process and what it points at."""
    found = {}
    for entry in FDS.iterdir():
        try:
            found[entry.name] = os.readlink(entry)
        except FileNotFoundError:  # the descriptor of this very listing
            continue
    return found


def _of_the_runner(task: asyncio.Task[object]) -> bool:
    """The task that runs this check, and the one with which anyio's test runner waits for it."""
    return task is asyncio.current_task() or "TestRunner." in repr(task.get_coro())


async def _warm_up(loop: asyncio.AbstractEventLoop) -> None:
    """libuv keeps one descriptor in reserve from a loop's first accepted connection on."""
    lost = asyncio.Event()

    class Accepting(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            lost.set()

    server = await loop.create_server(Accepting, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    writer.close()
    await lost.wait()
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0.01)  # libuv closes descriptors at the end of a turn


@asynccontextmanager
async def leak_check(within: float = 2.0) -> AsyncIterator[None]:
    """What the body opened must be closed again; stragglers have `within` seconds to go."""
    loop = asyncio.get_running_loop()
    await _warm_up(loop)
    tasks = asyncio.all_tasks()
    fds = open_fds()
    yield
    deadline = loop.time() + within
    while True:
        new_tasks = [task for task in asyncio.all_tasks() - tasks if not _of_the_runner(task)]
        now = open_fds()
        new_fds = {name: target for name, target in now.items() if fds.get(name) != target}
        if not new_tasks and len(now) <= len(fds):
            return
        if loop.time() > deadline:
            raise AssertionError(f"left behind: tasks {new_tasks}, descriptors {new_fds}")
        await asyncio.sleep(0.01)
