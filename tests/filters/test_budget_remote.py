"""budget in Redis: one sum for all gateways; while it is away nobody spends, unless the limit says so; and what it has
forgotten the ledger tells it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from headgate.filters.budget_remote import RemoteBudget
from headgate.proxy.accounting.record import Reserved, Spent, decode
from headgate.proxy.websocket.frames import CLOSE
from tests_support.answers import chat_completion, json_response
from tests_support.gateway import CLIENT_KEY, bearer, config_for, running_gateway
from tests_support.process import gateway_process
from tests_support.raw import CHAT, RawClient, request
from tests_support.redis import RedisServer, until
from tests_support.upstream import STALL, FakeUpstream, Pause
from tests_support.websocket import RawSocket, response_done, session, text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests_support.gateway import RunningGateway
    from tests_support.upstream import Step

PRICED = {"models": {"*": {"targets": [{"provider": "up", "price": {"input": 0, "output": 1_000_000}}]}}}
WHOLE = json_response(chat_completion(usage={"prompt_tokens": 0, "completion_tokens": 1, "total_tokens": 1}))
BODY = b'{"model":"m","max_tokens":2,"messages":[]}'


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with RedisServer() as made:
        yield made


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream(lambda asked: WHOLE) as made:
        yield made


def budgeted(upstream: FakeUpstream, url: str, **budget: Any) -> dict[str, Any]:
    keys = [{"name": "app", "key": CLIENT_KEY, "team": "web"}]
    filters = [{"auth": {"keys": keys}}, {"budget": {"per": "team", **budget}}, "retry"]
    stores = {"redis": {"url": url, "timeout": "1s"}}
    return {**config_for(upstream), **PRICED, "filters": filters, "stores": stores}


def money(gateway: RunningGateway) -> list[tuple[str, int]]:
    lines = (line for file in gateway.folder.glob("spool/*.seg") for line in file.read_bytes().splitlines())
    records = [record for line in lines if isinstance(record := decode(line), Reserved | Spent)]
    return [(type(record).__name__, record.nanos // 10**9) for record in records]


async def test_two_gateways_spend_one_budget_to_its_last_dollar(server: RedisServer, upstream: FakeUpstream) -> None:
    config = budgeted(upstream, server.url, usd_per_month=9)
    async with running_gateway(config) as one, running_gateway(config) as two:
        answers = [await gateway.post(BODY) for _ in range(5) for gateway in (one, two)]
    assert [answer.status for answer in answers] == [200] * 8 + [402] * 2
    assert "of the budget of 9 USD per month for each team 1 USD is left until" in answers[-1].error["message"]


async def test_gateways_that_ask_at_the_same_time_never_spend_the_same_money(
    server: RedisServer, upstream: FakeUpstream
) -> None:
    config = budgeted(upstream, server.url, usd_per_month=9)
    async with running_gateway(config) as one, running_gateway(config) as two:
        answers = await asyncio.gather(*[gateway.post(BODY) for _ in range(20) for gateway in (one, two)])
    assert 4 <= sum(answer.status == 200 for answer in answers) <= 8
    assert {answer.status for answer in answers} == {200, 402}


async def test_while_redis_is_away_nobody_spends(server: RedisServer, upstream: FakeUpstream) -> None:
    async with running_gateway(budgeted(upstream, server.url, usd_per_month=9)) as gateway:
        assert (await gateway.post(BODY)).status == 200
        server.kill()
        store = gateway.half._redis
        assert store is not None
        await until(lambda: not store.client.up)
        refused = await gateway.post(BODY)
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        await server.start()
        await until(lambda: store.client.up, 10)
        assert (await gateway.post(BODY)).status == 200
        assert money(gateway) == [("Reserved", 2), ("Spent", 1)] * 2


async def test_what_is_let_in_uncounted_is_in_the_ledger(server: RedisServer, upstream: FakeUpstream) -> None:
    config = budgeted(upstream, server.url, usd_per_month=2, on_store_failure="open")
    async with running_gateway(config) as gateway:
        server.kill()
        store = gateway.half._redis
        assert store is not None
        await until(lambda: not store.client.up)
        assert [(await gateway.post(BODY)).status for _ in range(3)] == [200, 200, 200]
        assert money(gateway) == [("Reserved", 2), ("Spent", 1)] * 3


async def test_a_client_that_leaves_while_redis_is_asked_has_spent_nothing(
    server: RedisServer, upstream: FakeUpstream
) -> None:
    async with running_gateway(budgeted(upstream, server.url, usd_per_month=2)) as gateway:
        assert (await gateway.post(BODY)).status == 200
        server.freeze()
        async with RawClient(gateway.port) as client:
            await client.send(request("POST", CHAT, BODY, bearer(CLIENT_KEY)))
            await until(lambda: gateway.half.engine.live)
        await until(lambda: not gateway.half.engine.live)
        server.thaw()
        assert (await gateway.post(b'{"model":"m","max_tokens":1,"messages":[]}')).status == 200
        assert len(upstream.requests) == 2


async def test_a_session_is_closed_an_answer_after_redis_has_said_no(server: RedisServer) -> None:
    answer = text(response_done({"total_tokens": 2, "input_tokens": 0, "output_tokens": 2}))
    pauses = [Pause() for _ in range(5)]
    answers: list[Step] = [step for pause in pauses for step in (answer, pause)]
    async with FakeUpstream(session(*answers, answer, STALL)) as upstream:
        config = budgeted(upstream, server.url, usd_per_month=10, output_tokens=3)
        async with running_gateway(config) as gateway, RawSocket(gateway.port, "/v1/realtime?model=m") as client:
            links = gateway.half.engine.graph.default.chain.filters
            [budget] = [link for link in links if isinstance(link, RemoteBudget)]
            for n, pause in enumerate(pauses, 1):
                await client.frames(n)
                await until(lambda: not budget._asking)
                pause.go()
            frames, _ = await client.heard_all()
            [row] = await gateway.rows(1)
            spent = money(gateway)
    assert (frames[-1].opcode, frames[-1].code) == (CLOSE, 1008)
    assert (len(frames), row.cost_usd, row.error_code) == (6, 10, "budget_exceeded")
    assert [kind for kind, _ in spent] == ["Reserved"] * 4 + ["Spent"] * 2
    assert spent[-1] == ("Spent", 10)


async def test_what_redis_has_forgotten_the_ledger_tells_it(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with RedisServer() as server:
        config = {
            **budgeted(upstream, server.url, usd_per_month=4),
            "events": {"path": str(tmp_path / "events.db"), "spool": {"path": str(tmp_path / "spool")}},
        }
        async with gateway_process(config) as gateway:
            assert [(await gateway.post(BODY)).status for _ in range(2)] == [200, 200]
        server.kill()
        await server.start()
        async with gateway_process(config, workers=2) as gateway:
            assert [(await gateway.post(BODY)).status for _ in range(2)] == [200, 402]
