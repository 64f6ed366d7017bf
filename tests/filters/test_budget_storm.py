"""budget in real processes under everything at once: clients that leave, providers that fail, answer twice, cut their
answers or say nothing of what they used, workers that are killed, and a whole gateway that is."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
from collections import Counter
from contextlib import closing, suppress
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from headgate.proxy.accounting.money import NANOS, nanos
from tests_support.answers import (
    DONE,
    LAST_CHUNK,
    chat_chunk,
    chat_completion,
    chunk,
    error_response,
    event,
    json_response,
    sse,
)
from tests_support.gateway import CLIENT_KEY, bearer, config_for
from tests_support.process import gateway_process
from tests_support.raw import CHAT, RawClient, request
from tests_support.upstream import RST, FakeUpstream, Request, Sleep, Step

if TYPE_CHECKING:
    from pathlib import Path

    from tests_support.process import GatewayProcess

LIMIT = 700
"""Dollars; a token of an answer is one, a prompt is a hundredth a token."""
MOST = 6
"""Tokens that each request allows."""


def provider(rng: Random) -> Any:
    """Answers as it likes, and never uses more than it may."""

    def script(asked: Request) -> list[Step] | bytes:
        used = rng.randrange(MOST + 1)
        usage = {"prompt_tokens": 1, "completion_tokens": used, "total_tokens": used + 1}
        what = rng.random()
        if what < 0.15:
            return error_response(rng.choice((429, 500, 503)), "no")
        if what < 0.2:
            return [RST]
        if b'"stream": true' not in asked.body:
            return json_response(
                chat_completion(text=None if what < 0.3 else "x", usage=None if what < 0.35 else usage)
            )
        events: list[Step] = [*sse([chat_chunk({"content": "x"})] * min(used, 3))[:-1]]
        if what < 0.3:
            return [events[0], Sleep(0.5), *events[1:], RST]
        end: list[dict[str, Any] | bytes] = [chat_chunk({}, finish_reason="stop"), DONE]
        if what >= 0.4:
            end.insert(0, chat_chunk(None, usage=usage))
        ended = b"".join(chunk(event(one)) for one in end)
        late = Sleep(0.4 if rng.random() < 0.1 else 0.005)
        return [events[0], late, *events[1:], ended + LAST_CHUNK]

    return script


class Storm:
    """Clients of one gateway, until its money is gone."""

    def __init__(self, gateway: GatewayProcess, rng: Random, stop: asyncio.Event) -> None:
        self.gateway = gateway
        self.rng = rng
        self.stop = stop
        self.statuses: Counter[int] = Counter()

    async def client(self) -> None:
        while not self.stop.is_set():
            with suppress(OSError, EOFError, AssertionError, TimeoutError):
                await self._connected()

    async def _connected(self) -> None:
        async with RawClient(self.gateway.port, within=10) as raw:
            while not self.stop.is_set():
                fields = {"model": "m", "max_tokens": MOST, "messages": [], "stream": self.rng.random() < 0.6}
                await raw.send(request("POST", CHAT, json.dumps(fields).encode(), bearer(CLIENT_KEY)))
                if self.rng.random() < 0.15:
                    await asyncio.sleep(self.rng.random() * 0.02)
                    return
                status = (await raw.answer()).status
                self.statuses[status] += 1
                if status == 402:
                    if self.statuses[402] > 200:
                        self.stop.set()
                    await asyncio.sleep(0.01)


async def kill_workers(gateway: GatewayProcess, stop: asyncio.Event, rng: Random, times: int) -> int:
    """One after the other; how many it were."""
    killed = 0
    while killed < times and not stop.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.7)
        pids = await gateway.ready_workers(3)
        os.kill(rng.choice(pids), signal.SIGKILL)
        killed += 1
    return killed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_the_ledger_comes_to_no_more_than_the_budget_whatever_dies(seed: int, tmp_path: Path) -> None:
    rng = Random(seed)
    async with FakeUpstream(provider(rng)) as one, FakeUpstream(provider(rng)) as two:
        keys = [{"name": "app", "key": CLIENT_KEY, "team": "web"}]
        prices = [{"input": 10_000, "output": 1_000_000}, {"input": 5_000, "output": 500_000}]
        targets = [{"provider": name, "price": price} for name, price in zip(("up", "up2"), prices, strict=True)]
        config = {
            **config_for(one, two),
            "models": {"*": {"targets": targets}},
            "events": {"path": str(tmp_path / "events.db"), "spool": {"path": str(tmp_path / "spool")}},
            "filters": [
                {"auth": {"keys": keys}},
                {"budget": {"per": "team", "usd_per_month": LIMIT}},
                {"retry": {"hedge": {"percent": 50, "spend_percent": 50}}},
            ],
        }
        statuses: Counter[int] = Counter()
        killed = 0
        for last in (False, True):  # the first gateway is killed as a whole
            async with gateway_process(config, workers=3) as gateway:
                stop = asyncio.Event()
                storm = Storm(gateway, rng, stop)
                clients = [asyncio.create_task(storm.client()) for _ in range(12)]
                try:
                    async with asyncio.timeout(60):
                        killed += await kill_workers(gateway, stop, rng, 3)
                        if last:
                            await stop.wait()
                finally:
                    stop.set()
                    await asyncio.gather(*clients)
                statuses += storm.statuses
                if not last:
                    os.kill(gateway.pid, signal.SIGKILL)
                    await gateway.ended()
    with closing(sqlite3.connect(tmp_path / "events.db")) as db:
        costs = [cost for (cost,) in db.execute("SELECT cost_usd FROM usage WHERE cost_usd IS NOT NULL")]
        [(charged,)] = db.execute("SELECT nanos FROM spending").fetchall()
        outcomes = Counter(outcome for (outcome,) in db.execute("SELECT outcome FROM usage"))
        hedged = db.execute("SELECT count(*) FROM usage WHERE attempts > 1").fetchone()[0]
        left = db.execute("SELECT count(*) FROM reserved").fetchone()[0]
    ledger = sum(nanos(cost) for cost in costs)
    assert ledger <= charged <= LIMIT * NANOS
    assert LIMIT * NANOS - charged < 2 * (MOST + 1) * NANOS, "and it could be spent"
    assert (left, killed >= 3, hedged > 0) == (0, True, True)
    assert {"ok", "cancelled", "lost", "refused", "truncated"} <= outcomes.keys()
    assert statuses[402] > 200
