"""Ten thousand requests, half of whose clients leave at random; twenty workers killed under load: nothing is left.

The books are held against both ends: every `x-request-id` that the provider saw or an answered client sent has exactly
one row, and no row has an id that nobody sent. (Faults G14, A6, L4, R7.)
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

import pytest

from headgate.proxy.accounting.record import Done, Opened
from tests_support.answers import (
    DONE,
    LAST_CHUNK,
    USAGE,
    chat_chunk,
    chat_chunks,
    chat_completion,
    chunk,
    event,
    json_response,
    response_head,
)
from tests_support.gateway import CLIENT_KEY, bearer, config_for, running_gateway, spooled
from tests_support.leaks import leak_check
from tests_support.process import gateway_process
from tests_support.raw import CHAT, RawClient, request
from tests_support.upstream import FakeUpstream, Request, Sleep, Step

if TYPE_CHECKING:
    from collections.abc import Callable

CONCURRENT = 40
SSE = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
EVENTS = [event(one) for one in chat_chunks(["one ", "two ", "three"], done=False)]
USAGE_EVENT = event(chat_chunk(None, usage=USAGE))
BODY = b'{"model":"m","stream":%b,"messages":[{"role":"user","content":"hello"}]}'


def provider(asked: Request) -> list[Step]:
    """Takes a few milliseconds, so that there is a middle to leave in."""
    if not asked.json()["stream"]:
        return [Sleep(0.003), json_response(chat_completion())]
    steps: list[Step] = [SSE]
    for one in (*EVENTS, USAGE_EVENT, DONE):
        steps += [chunk(one), Sleep(0.001)]
    return [*steps, LAST_CHUNK]


class Load:
    """Clients that send numbered requests; `answered` are the ids whose answer came back whole."""

    def __init__(self, port: int, *, seed: int, leaving: float) -> None:
        self.port = port
        self.leaving = leaving
        self.rng = Random(seed)
        self.sent: set[str] = set()
        self.answered: set[str] = set()
        self.delivered: dict[str, int] = {}
        """Pieces of text that reached clients which then left."""
        self.broken = 0

    async def run(self, total: int, until: Callable[[], bool] = lambda: False) -> None:
        """Send `total` requests, `CONCURRENT` at a time, or until told to stop."""
        numbers = iter(range(total))

        async def client() -> None:
            for n in numbers:
                if until():
                    return
                await self._one(f"r-{total}-{n}")

        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENT):
                group.create_task(client())

    async def _one(self, id_: str) -> None:
        stream = self.rng.choice((b"true", b"false"))
        raw = request("POST", CHAT, BODY % stream, [*bearer(CLIENT_KEY), ("x-request-id", id_)])
        leaves = self.rng.random() < self.leaving
        cut = leaves and self.rng.random() < 0.1
        self.sent.add(id_)
        try:
            async with RawClient(self.port) as client:
                await client.send(raw[: self.rng.randrange(1, len(raw))] if cut else raw)
                if leaves:
                    if not cut:
                        await self._read_a_while(client)
                    self.delivered[id_] = client.heard.count(b'"delta":{"content":"')
                    client.leave(reset=self.rng.random() < 0.5)
                elif (await client.answer()).whole:
                    self.answered.add(id_)
        except (OSError, AssertionError):  # its worker was killed
            self.broken += 1

    async def _read_a_while(self, client: RawClient) -> None:
        """For some time, or for some pieces of the answer."""
        patience = self.rng.choice((0.002, 0.01, 10.0))
        with suppress(TimeoutError):
            async with asyncio.timeout(self.rng.random() * patience):
                await client.head()
                for _ in range(self.rng.randrange(6)):
                    await client.piece()


def assert_books(load: Load, upstream: FakeUpstream, ids: list[str]) -> None:
    """See the top."""
    rows = Counter(ids)
    seen = {one.request_id or "" for one in upstream.requests}
    assert [id_ for id_, times in rows.items() if times > 1] == []
    assert (seen | load.answered) - set(rows) == set()
    assert set(rows) - load.sent == set()


async def settled(ready: Callable[[], bool], what: str, within: float = 20.0) -> None:
    """Look again every 20 ms until `ready()`."""
    deadline = time.monotonic() + within
    while not ready():
        assert time.monotonic() < deadline, f"waited {within} s for {what}"
        await asyncio.sleep(0.02)


async def clients_that_leave(total: int) -> None:
    async with leak_check(), FakeUpstream(provider) as upstream, running_gateway(config_for(upstream)) as gateway:

        async def at_rest() -> int:
            """Waits until nothing is under way; the tasks then, those of the fake provider's connections aside."""
            await settled(lambda: not gateway.server.context.connections, "the clients' connections to close")
            await settled(lambda: not gateway.half.engine.live, "the exchanges to end")
            await settled(lambda: all(one.idle for one in upstream.open_connections), "the calls to end")
            return len(asyncio.all_tasks()) - len(upstream.open_connections)

        load = Load(gateway.port, seed=total, leaving=0.5)
        await load.run(50)
        tasks = await at_rest()
        await load.run(total)
        assert await at_rest() == tasks
        assert load.broken == 0
        assert total * 0.4 < len(load.answered) < total * 0.7
        assert len(upstream.open_connections) <= CONCURRENT
        assert len(gateway.half.deadlines) <= len(upstream.open_connections) + 1
        records = spooled(gateway.folder)
    done = [record for record in records if isinstance(record, Done)]
    assert sorted(one.id for one in records if isinstance(one, Opened)) == sorted(one.id for one in done)
    assert {one.outcome for one in done} == {"ok", "cancelled"}
    assert_books(load, upstream, [one.client_request_id for one in done])
    for one in done:
        assert one.outcome == "cancelled" or one.usage_source == "reported"
        assert one.completion_tokens >= load.delivered.get(one.client_request_id, 0)
    assert sum(one.usage_source == "estimated" for one in done) > total * 0.02


async def test_clients_that_leave_at_random_leave_nothing_behind() -> None:
    await clients_that_leave(400)


@pytest.mark.slow
async def test_nor_do_ten_thousand() -> None:
    await clients_that_leave(10_000)


async def killed_workers(kills: int, pause: float) -> None:
    async with FakeUpstream(provider) as upstream, gateway_process(config_for(upstream), workers=2) as gateway:
        load = Load(gateway.port, seed=kills, leaving=0.2)
        over = asyncio.Event()
        killed: set[int] = set()

        async def kill() -> None:
            for _ in range(kills):
                await asyncio.sleep(pause)
                pid = load.rng.choice(await gateway.ready_workers(2, killed))
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            over.set()

        await gateway.ready_workers(2)
        fds = gateway.open_fds()
        async with asyncio.TaskGroup() as group:
            group.create_task(kill())
            group.create_task(load.run(1_000_000, over.is_set))
        await gateway.ready_workers(2, killed)
        await gateway.until(lambda: gateway.open_fds() <= fds, f"no more than {fds} descriptors")
        assert await gateway.terminate(40.0) == 0
        await settled(lambda: not upstream.open_connections, "the workers' connections to close")
        rows = gateway.ledger()
        log = gateway.log
    assert log.count("worker_died") == kills
    assert len(load.answered) > kills * 10
    outcomes = Counter(row["outcome"] for row in rows)
    assert set(outcomes) <= {"ok", "cancelled", "lost"}
    assert 1 <= outcomes["lost"] <= kills * CONCURRENT
    assert_books(load, upstream, [row["client_request_id"] for row in rows])


async def test_killed_workers_lose_no_row() -> None:
    await killed_workers(2, 0.5)


@pytest.mark.slow
async def test_nor_do_twenty() -> None:
    await killed_workers(20, 1.0)
