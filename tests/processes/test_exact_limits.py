"""A limit over several workers admits exactly its number, whatever store counts it and however much comes at once.

The real command, real sockets: so many connections at once, each with its next request as soon as the last is answered.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from tests_support.answers import chat_chunks, sse
from tests_support.caller import eventually
from tests_support.gateway import CHAT_BODY, CLIENT_KEY, bearer, config_for
from tests_support.process import GatewayProcess, gateway_process
from tests_support.raw import CHAT, RawClient, request
from tests_support.redis import RedisServer
from tests_support.upstream import FakeUpstream, Pause, Step

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

ASKING = request("POST", CHAT, CHAT_BODY, bearer(CLIENT_KEY))
WORKERS = 4


@asynccontextmanager
async def shared() -> AsyncIterator[dict[str, Any]]:
    """In memory that the workers share."""
    yield {"default": "shared"}


@asynccontextmanager
async def redis() -> AsyncIterator[dict[str, Any]]:
    """In a real server. Exactness is asked for here, not speed: no decision is given up on a busy machine."""
    async with RedisServer() as server:
        yield {"redis": {"url": server.url, "timeout": "1s"}}


STORES: dict[str, Callable[[], AbstractAsyncContextManager[dict[str, Any]]]] = {"shared": shared, "redis": redis}
"""Each is opened around a run, and gives the `stores` of its config."""
stores = pytest.mark.parametrize("store", STORES)


@asynccontextmanager
async def limited(store: str, providers: dict[str, Any] | None = None, **numbers: int) -> AsyncIterator[GatewayProcess]:
    """A gateway of four workers whose limits are counted there."""
    async with STORES[store]() as section:
        config = {
            "providers": providers or {"mock": {"base_url": "mock:"}},
            "filters": [{"auth": {"keys": [{"name": "app", "key": CLIENT_KEY}]}}, {"rate_limit": numbers}],
            "stores": section,
        }
        async with gateway_process(config, workers=WORKERS) as gateway:
            yield gateway


async def asked(
    gateway: GatewayProcess,
    requests: int,
    at_once: int,
    over: asyncio.Event | None = None,
    statuses: Counter[int] | None = None,
) -> Counter[int]:
    """How many answers of each status, counted in `statuses` as they come; 0: the connection was cut under it. Ends
    early when it is `over`."""
    statuses = Counter() if statuses is None else statuses
    left = requests

    def goes_on() -> bool:
        return left > 0 and not (over is not None and over.is_set())

    async def client() -> None:
        nonlocal left
        while goes_on():
            try:
                async with RawClient(gateway.port, within=120) as raw:
                    while goes_on():
                        left -= 1
                        status = 0
                        try:
                            await raw.send(ASKING)
                            status = (await raw.answer()).status
                        finally:
                            statuses[status] += 1
            except (OSError, AssertionError, EOFError):
                await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(client())
    return statuses


async def kill_one(gateway: GatewayProcess, rng: Random) -> None:
    """One that was killed a moment ago may still be said to be ready."""
    killed = False
    while not killed:
        with suppress(ProcessLookupError):
            os.kill(rng.choice(await gateway.ready_workers(WORKERS)), signal.SIGKILL)
            killed = True


@stores
async def test_four_workers_together_admit_exactly_the_limit(store: str) -> None:
    async with limited(store, requests_per_day=60) as gateway:
        assert await asked(gateway, 240, 40) == {200: 60, 429: 180}


@pytest.mark.slow
@stores
@pytest.mark.parametrize("run", range(20))
async def test_a_thousand_of_ten_thousand_are_admitted(store: str, run: int) -> None:
    async with limited(store, requests_per_day=1000) as gateway:
        begun = time.perf_counter()
        statuses = await asked(gateway, 10_000, 200)
        seconds = time.perf_counter() - begun
    print(f"run {run}: {dict(statuses)} in {seconds:.1f} s")
    assert statuses == {200: 1000, 429: 9000}


@pytest.mark.slow
@stores
@pytest.mark.parametrize("seed", range(3))
async def test_killed_workers_let_nobody_in_above_the_limit(store: str, seed: int) -> None:
    """What was under way when its worker was killed is counted, though nobody was told. Its slots may be as many as
    there are; they come back within a minute, and then the rest of the limit is let in."""
    limit, at_once, kills = 4000, 40, 8
    rng = Random(seed)
    statuses: Counter[int] = Counter()
    async with limited(store, requests_per_day=limit, concurrent=at_once) as gateway, asyncio.TaskGroup() as group:
        over = asyncio.Event()
        group.create_task(asked(gateway, 10**9, at_once, over, statuses))
        for _ in range(kills):
            await kill_one(gateway, rng)
            await asyncio.sleep(rng.random() * 0.1)
        await eventually(lambda: statuses[200] >= limit - statuses[0], within=60)
        await asyncio.sleep(0.5)  # and no more of them
        over.set()
    print(f"seed {seed}: {dict(statuses)} over {kills} kills")
    assert limit - statuses[0] <= statuses[200] <= limit
    assert statuses[429] > 0


@pytest.mark.slow
@stores
async def test_slots_of_killed_workers_are_free_within_a_minute(store: str) -> None:
    most = 40
    begun: list[Step] = [*sse(chat_chunks("Hello there."))[:3], Pause()]
    async with (
        FakeUpstream(lambda _: begun) as upstream,
        limited(store, config_for(upstream)["providers"], concurrent=most) as gateway,
        AsyncExitStack() as open_calls,
    ):
        before = await streams(gateway, most + 1, open_calls)
        assert len(before) == most
        for pid in (await gateway.ready_workers(WORKERS))[1:]:
            os.kill(pid, signal.SIGKILL)
        killed_at = time.perf_counter()
        ends = [asyncio.create_task(client.closed()) for client in before]
        done, others = await asyncio.wait(ends, timeout=1)
        free = 0
        while free < len(done):
            assert time.perf_counter() - killed_at < 60
            free += len(await streams(gateway, 1, open_calls))
        seconds = time.perf_counter() - killed_at
        assert not await streams(gateway, 1, open_calls)
        for end in others:
            end.cancel()
        await asyncio.wait(ends)
    print(f"{len(done)} slots of three killed workers were free after {seconds:.1f} s")
    assert len(done) > most // 4


async def streams(gateway: GatewayProcess, n: int, open_calls: AsyncExitStack) -> list[RawClient]:
    """Begin so many; those that were let in stay open, as long as `open_calls`."""
    admitted = []
    for _ in range(n):
        async with AsyncExitStack() as call:
            client = await call.enter_async_context(RawClient(gateway.port))
            await client.send(request("POST", CHAT, CHAT_BODY.replace(b"{", b'{"stream":true,', 1), bearer(CLIENT_KEY)))
            if (await client.head()).status == 200:
                await client.piece()
                admitted.append(client)
                open_calls.push_async_exit(call.pop_all())
    return admitted
