"""Redis killed, frozen or slow under 300 requests a second: every request is answered, soon nobody waits, the limit
holds, and Redis is found again.

Bars: added p99 250 ms in the first second and 50 ms after it, one log line for each change of state, back within 5 s.
What a busy machine adds is in the figures of the calm before, so these are differences.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests_support.gateway import CHAT_BODY, CLIENT_KEY, bearer
from tests_support.load import Pool
from tests_support.process import GatewayProcess, gateway_process
from tests_support.raw import CHAT, request
from tests_support.redis import RedisProxy, RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

ASKING = request("POST", CHAT, CHAT_BODY, bearer(CLIENT_KEY))
RATE = 300
LIMIT = 100
WORKERS = 2
CALM, OUTAGE, AFTER = 3.0, 5.0, 6.0


class Answered(NamedTuple):
    at: float
    seconds: float
    status: int


class Steady:
    """An open loop: a gateway that is late gets the next request all the same."""

    def __init__(self, port: int) -> None:
        self.answers: list[Answered] = []
        self.asked = 0
        self._port = port

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        pool = Pool(self._port)
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            work = group.create_task(self._ask_steadily(pool, over, group))
            try:
                yield
            finally:
                over.set()
                await work
        pool.close()

    async def _ask_steadily(self, pool: Pool, over: asyncio.Event, group: asyncio.TaskGroup) -> None:
        began = time.monotonic()
        while not over.is_set():
            due = int((time.monotonic() - began) * RATE)
            for _ in range(min(due - self.asked, 50)):
                self.asked += 1
                group.create_task(self._ask(pool))
            await asyncio.sleep(0.003)

    async def _ask(self, pool: Pool) -> None:
        began = time.monotonic()
        status = (await pool.ask(ASKING)).status
        self.answers.append(Answered(began, time.monotonic() - began, status))

    def between(self, begin: float, end: float) -> list[Answered]:
        return [one for one in self.answers if begin <= one.at < end]


def p99(answers: Sequence[Answered]) -> float:
    """Milliseconds."""
    times = sorted(one.seconds for one in answers)
    return times[int(len(times) * 0.99)] * 1000


def config(url: str) -> dict[str, Any]:
    return {
        "providers": {"mock": {"base_url": "mock:"}},
        "filters": [{"auth": {"keys": [{"name": "app", "key": CLIENT_KEY}]}},
                    {"rate_limit": {"requests_per_second": LIMIT, "on_store_failure": "local_share"}}],
        "stores": {"redis": {"url": url}},
    }  # fmt: skip


async def up(gateway: GatewayProcess) -> int:
    """How many workers reach Redis, by their own word."""
    metrics = (await gateway.admin.send("GET", "/metrics", key=None)).body.decode()
    return next(int(float(line.split()[-1])) for line in metrics.splitlines() if line.startswith("headgate_store_up"))


def lines(gateway: GatewayProcess) -> list[tuple[str, str]]:
    """What the workers have said of Redis, in order: who, and what."""
    logged = [json.loads(line) for line in gateway.log.splitlines() if '"redis_' in line]
    return [(one["worker"], one["event"]) for one in logged]


def states(gateway: GatewayProcess) -> dict[str, str]:
    """The last word of each worker that said anything."""
    return dict(lines(gateway))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["killed", "frozen", "slow"])
async def test_an_outage_of_redis_under_load(fault: str) -> None:
    async with (
        RedisServer() as server,
        RedisProxy(server.port) as proxy,
        gateway_process(config(f"redis://127.0.0.1:{proxy.port}"), workers=WORKERS) as gateway,
    ):
        load = Steady(gateway.port)
        async with load.running():
            await asyncio.sleep(1)
            calm_at = time.monotonic()
            await asyncio.sleep(CALM)
            begun = time.monotonic()
            if fault == "killed":
                server.kill()
            elif fault == "frozen":
                server.freeze()
            else:
                proxy.delay = 2.0
            await asyncio.sleep(OUTAGE)
            assert set(states(gateway).values()) == {"redis_away"}
            ended = time.monotonic()
            if fault == "killed":
                await server.start()
            elif fault == "frozen":
                server.thaw()
            else:
                proxy.delay = 0.0
            await gateway.until(lambda: set(states(gateway).values()) == {"redis_back"}, "Redis to be found", AFTER)
            recovery = time.monotonic() - ended
            await asyncio.sleep(2)
            assert await up(gateway) == WORKERS
            back_at = time.monotonic()
            await asyncio.sleep(2)
            over = time.monotonic()
        told = lines(gateway)
    calm, first = p99(load.between(calm_at, begun)), p99(load.between(begun, begun + 1))
    open_, back = p99(load.between(begun + 1, ended)), p99(load.between(back_at, over))
    admitted = sum(one.status == 200 for one in load.between(begun, ended))
    allowed = LIMIT * (ended - begun)
    print(
        f"\n{fault}: {len(load.answers)} of {load.asked} answered {dict(Counter(one.status for one in load.answers))}; "
        f"p99 {calm:.0f} ms calm, {first:.0f} in the first second, {open_:.0f} away, {back:.0f} back; "
        f"{admitted} admitted of {allowed:.0f}; back after {recovery:.1f} s"
    )
    assert len(load.answers) == load.asked
    assert {one.status for one in load.answers} <= {200, 429}
    assert first - calm <= 250
    assert open_ - calm <= 50
    assert admitted <= 1.1 * allowed
    assert recovery <= 5
    for worker in dict(told):  # one line for each change, and there was one each way at least
        events = [event for name, event in told if name == worker]
        assert len(events) >= 2
        assert events == ["redis_away", "redis_back"] * (len(events) // 2)
