"""OwnTime: what is computed takes time, what is waited for does not, and what the sockets still have comes first."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import cast

from tests_support.own_time import OwnTime


async def test_what_falls_due_runs_in_order_and_nobody_waits_for_it() -> None:
    clock = OwnTime()
    began, really = clock.monotonic(), time.monotonic()
    seen: list[str] = []
    last = asyncio.Event()
    clock.call_at(began + 7200, last.set)
    clock.call_at(began + 3600, seen.append, "late")
    clock.call_at(began + 60, seen.append, "early")
    clock.call_at(began + 120, seen.append, "never").cancel()
    await last.wait()
    assert seen == ["early", "late"]
    assert clock.monotonic() - began >= 7200
    assert time.monotonic() - really < 60


async def test_whoever_keeps_the_loop_busy_makes_others_late() -> None:
    clock = OwnTime()
    began = clock.monotonic()

    def compute() -> None:
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass

    clock.call_at(began + 1, compute)
    await clock.sleep(1.01)
    assert clock.monotonic() - began >= 1.05


async def test_what_is_on_its_way_through_sockets_arrives_before_time_moves_on() -> None:
    """There and back a thousand times, and not a moment was skipped."""
    clock = OwnTime()
    over = asyncio.Event()
    rounds = 0

    class Echo(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast("asyncio.Transport", transport)

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)

    class Asking(Echo):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.write(b"x")

        def data_received(self, data: bytes) -> None:
            nonlocal rounds
            rounds += 1
            if rounds < 1000:
                self.transport.write(data)
            else:
                over.set()

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    patience = clock.call_at(clock.monotonic() + 10, over.set)
    transport, _ = await loop.create_connection(Asking, *server.sockets[0].getsockname()[:2])
    await over.wait()
    assert rounds == 1000
    assert clock.skipped == 0
    patience.cancel()
    transport.close()
    server.close()
    await server.wait_closed()


async def test_a_sleeper_that_is_cancelled_leaves_nothing_that_holds_time_up() -> None:
    clock = OwnTime()
    sleeper = asyncio.ensure_future(clock.sleep(1e9))
    await clock.sleep(1)
    sleeper.cancel()
    await asyncio.wait([sleeper])
    began = clock.monotonic()
    await clock.sleep(5)
    assert 5 <= clock.monotonic() - began < 60


async def test_time_is_not_skipped_while_work_is_done_elsewhere() -> None:
    working = threading.Event()
    clock = OwnTime(elsewhere=working.is_set)
    patience = clock.sleep(3600)
    working.set()
    done = asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.05)
    skipped: list[float] = []

    def is_done(_: object) -> None:
        skipped.append(clock.skipped)
        working.clear()

    done.add_done_callback(is_done)
    await patience
    assert skipped == [0]
