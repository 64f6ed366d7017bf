"""HTTP/2 against other people's servers: load over one connection, calls that leave by the thousand, goodbyes."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from headgate.proxy.upstream.pool import PoolLimits
from tests_support.caller import Caller, Recorder, eventually
from tests_support.h2_servers import nghttpd, nginx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from headgate.proxy.upstream.call import Call

SMALL, LARGE = b"s" * 700, b"l" * 60_000
FOREVER = 1_000_000
AT_ONCE = 64
ONE = PoolLimits(max_connections=1, max_pending=10_000, connect_timeout=60)
MANY = PoolLimits(max_pending=10_000, connect_timeout=60)


@asynccontextmanager
async def served(name: str, folder: Path, requests: int = FOREVER) -> AsyncIterator[str]:
    files = folder / "files"
    files.mkdir()
    (files / "small").write_bytes(SMALL)
    (files / "large").write_bytes(LARGE)
    server = nginx(files, folder, requests=requests) if name == "nginx" else nghttpd(files)
    async with server as url:
        yield url


def get(caller: Caller, name: bytes, recorder: Recorder | None = None) -> Recorder:
    return caller.ask(recorder, method=b"GET", target=b"/" + name, body=b"")


async def one_after_the_other(caller: Caller, number: int, failed: list[str]) -> None:
    for _ in range(number):
        heard = get(caller, b"small")
        end = await heard.over(30)
        if end != "clean" or heard.body != SMALL:
            failed.append(f"{end} {heard.error and heard.error.detail}")


async def keep_asking(caller: Caller, number: int) -> list[str]:
    """So many requests, `AT_ONCE` at a time; returns what went wrong."""
    failed: list[str] = []
    await asyncio.gather(*[one_after_the_other(caller, number // AT_ONCE, failed) for _ in range(AT_ONCE)])
    return failed


async def leave(caller: Caller, number: int, seed: int, left: list[int]) -> None:
    """Calls that are given up somewhere between their start and their end."""
    rng = random.Random(seed)

    def cancel(call: Call) -> None:
        left[0] += 1
        call.cancel()

    habits: list[Callable[[], Recorder]] = [
        lambda: Recorder({"head": cancel}),
        lambda: Recorder({"data": cancel}),
        lambda: Recorder({"sent": cancel}),
    ]
    for _ in range(number):
        chance = rng.random()
        if chance < 0.25:
            heard = get(caller, b"large")
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            cancel(heard.call)
        elif chance < 0.95:
            heard = get(caller, b"large", rng.choice(habits)())
            await heard.until(partial(bool, heard.events))
        else:
            heard = get(caller, b"large")
            await asyncio.sleep(rng.random() * 0.01)
            if heard.outcome is None:
                cancel(heard.call)
        await asyncio.sleep(rng.random() * 0.002)


async def nothing_is_left(caller: Caller, at_once: int) -> None:
    """Neither side holds a stream: as many calls as the server takes at once run without one refusal."""
    await eventually(lambda: caller.stats.rq_active == caller.stats.rq_pending_active == 0)
    connections = list(caller.endpoint._pool._shared)
    assert [len(one.session.streams) for one in connections] == [0] * len(connections)
    refused, opened = caller.stats.rq_retry, caller.stats.cx_total
    heard = [get(caller, b"small") for _ in range(at_once)]
    assert {await one.over(30) for one in heard} == {"clean"}
    assert (caller.stats.rq_retry, caller.stats.cx_total) == (refused, opened)


@pytest.mark.parametrize("name", ["nginx", "nghttpd"])
async def test_calls_at_once_over_one_connection(name: str, tmp_path: Path) -> None:
    async with served(name, tmp_path) as url, Caller(url, http2=True, limits=ONE) as caller:
        assert await keep_asking(caller, 1280) == []
        assert caller.stats.cx_total == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nginx", "nghttpd"])
async def test_fifty_thousand_requests_64_at_once_over_one_connection(name: str, tmp_path: Path) -> None:
    async with served(name, tmp_path) as url, Caller(url, http2=True, limits=ONE) as caller:
        assert await keep_asking(caller, 50_048) == []
        assert (caller.stats.cx_total, caller.stats.rq_total) == (1, 50_048)
        assert (caller.stats.rq_retry, caller.stats.rq_rx_reset) == (0, 0)


@pytest.mark.parametrize(
    ("name", "number", "streams"),
    [
        ("nginx", 300, 128),
        pytest.param("nginx", 10_000, 128, marks=pytest.mark.slow),
        pytest.param("nghttpd", 900, 100, marks=pytest.mark.slow),
    ],
)
async def test_calls_that_leave_leave_nothing_on_either_side(
    name: str, number: int, streams: int, tmp_path: Path
) -> None:
    left = [0]
    async with served(name, tmp_path) as url, Caller(url, http2=True, limits=ONE) as caller:
        assert await get(caller, b"small").over() == "clean"
        await asyncio.gather(*[leave(caller, number // 10, seed, left) for seed in range(10)])
        assert left[0] > 0.9 * number
        await nothing_is_left(caller, streams)
        assert (caller.stats.cx_total, caller.stats.cx_active) == (1, 1)
        assert caller.stats.cx_close_notify == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nginx", "nghttpd"])
async def test_a_server_that_says_goodbye_to_who_leaves_often_costs_no_other_request(name: str, tmp_path: Path) -> None:
    left, failed = [0], list[str]()
    async with served(name, tmp_path, requests=1000) as url, Caller(url, http2=True, limits=MANY) as caller:
        await asyncio.gather(
            *[leave(caller, 1000, seed, left) for seed in range(10)],
            *[one_after_the_other(caller, 300, failed) for _ in range(16)],
        )
        assert left[0] > 9000
        assert failed == []
        assert caller.stats.cx_close_notify > 0
        assert caller.stats.cx_total > 1
        await nothing_is_left(caller, 64)
