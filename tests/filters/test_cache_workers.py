"""cache over several workers: each makes one call, and with Redis one in all; what the ledger says adds up."""

from __future__ import annotations

import asyncio
from typing import Any

from tests_support.answers import chat_completion, json_response
from tests_support.gateway import config_for
from tests_support.process import GatewayProcess, gateway_process
from tests_support.redis import RedisServer
from tests_support.upstream import FakeUpstream, Pause, in_turn

CLIENTS = 500
ANSWER = json_response(chat_completion())


async def calls_at_expiry(upstream: FakeUpstream, pause: Pause, config: dict[str, Any]) -> tuple[int, list[Any]]:
    """How many calls so many requests make, and their rows."""
    async with gateway_process(config, workers=2) as gateway:
        clients = [asyncio.create_task(gateway.post(key=None)) for _ in range(CLIENTS)]
        await pause.reached()
        await _all_here(gateway)
        pause.go()
        answers = await asyncio.gather(*clients)
        rows = await gateway.rows(CLIENTS)
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert sum(row["cache"] == "miss" for row in rows) == len(upstream.requests)
    assert sum(row["attempts"] for row in rows) == len(upstream.requests)
    assert {row["cost_usd"] for row in rows if row["cache"] != "miss"} == {0.0}
    return len(upstream.requests), rows


async def _all_here(gateway: GatewayProcess) -> None:
    """Every request waits in a worker; how many there are is told a little later."""
    for _ in range(400):
        metrics = (await gateway.admin.send("GET", "/metrics", key=None)).body.decode()
        if f"headgate_exchanges_active {CLIENTS}" in metrics:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"not all of the {CLIENTS} clients have come")


async def test_each_worker_makes_one_call() -> None:
    pause = Pause()
    async with FakeUpstream([pause, ANSWER]) as upstream:
        config = {**config_for(upstream), "filters": ["cache", "retry"]}
        calls, _ = await calls_at_expiry(upstream, pause, config)
    assert 1 <= calls <= 2


async def test_with_redis_one_call_is_made_in_all() -> None:
    pause = Pause()
    async with FakeUpstream(in_turn([pause, ANSWER], ANSWER)) as upstream, RedisServer() as server:
        stores = {"redis": {"url": server.url, "timeout": "500ms"}}
        config = {**config_for(upstream), "filters": [{"cache": {"wait": "60s"}}, "retry"], "stores": stores}
        calls, rows = await calls_at_expiry(upstream, pause, config)
    assert calls == 1
    assert {row["cache"] for row in rows} <= {"miss", "joined", "hit"}
