"""budget in Redis: one sum for all gateways; while it is away nobody spends, unless the limit says so; and what it has
forgotten the ledger tells it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from headgate.config import parse_config
from headgate.filters.budget_remote import RemoteBudget
from headgate.filters.stores.rules import Granted, Refused, Report
from headgate.proxy.accounting.prices import own_price
from headgate.proxy.accounting.record import Reserved, Spent, decode
from headgate.proxy.errors import BudgetExceededError, GatewayError, OverloadError
from headgate.proxy.websocket.frames import CLOSE
from tests_support.answers import chat_completion, json_response
from tests_support.downstream import FakeDownstream
from tests_support.gateway import CLIENT_KEY, bearer, config_for, running_gateway
from tests_support.process import gateway_process
from tests_support.raw import CHAT, RawClient, request
from tests_support.redis import RedisServer, until
from tests_support.relay import Relay
from tests_support.upstream import STALL, FakeUpstream, Pause
from tests_support.websocket import RawSocket, response_done, session, text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from headgate.config import BudgetConfig
    from headgate.filters.stores.rules import RemoteStore
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


class Answers:
    """What a server would say, one after the other; True grants, and a Refused or an error is itself."""

    crowded = 0

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[int] = []
        self.settled: list[int] = []
        self.go = asyncio.Event()
        self.go.set()

    def open(self, name: str, rules: Any) -> Answers:
        self.rules = rules
        return self

    async def take(self, keys: Any, tokens: int) -> tuple[Any, Any]:
        self.asked.append(tokens // 10**9)
        await self.go.wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer is not True:
            return Refused(self.rules[0], 1, Report(10, answer * 10**9, 0)), "counted"
        return Granted[Any](), "counted"

    def settle(self, granted: Any, tokens: int) -> None:
        self.settled.append(tokens // 10**9)


def remote(store: Answers, *prices: float) -> tuple[Relay, RemoteBudget]:
    """A budget of 10 USD that such a server counts, before providers at a dollar a token, or as `prices` say."""
    relay: Relay
    config = parse_config("filters: [{budget: {per: address, usd_per_month: 10, output_tokens: 3}}]", env={})
    budget = RemoteBudget(
        cast("BudgetConfig", config.filters[0].config),
        place="budget",
        store=cast("RemoteStore", store),
        monotonic=lambda: relay.clock.monotonic(),
        wall=lambda: relay.clock.wall(),
        foresee=lambda ex, target, output: relay.engine.ledger.foresee(ex, target, output),
        write=lambda record: None,
    )
    relay = Relay(providers=len(prices), before=[budget])
    for cluster, price in zip(relay.clusters, prices, strict=True):
        cluster.price = own_price({"input": 0.0, "output": price * 1e6})
    return relay, budget


async def test_what_is_left_is_asked_for_and_no_more_than_that() -> None:
    store = Answers(4, True)
    relay, budget = remote(store, 3.0, 2.0, 1.0)
    relay.ask(BODY)
    await until(lambda: relay.providers[1].calls)
    assert (store.asked, budget.admitted) == ([6, 4], 1)


async def test_what_is_free_or_no_call_is_not_asked_for() -> None:
    store = Answers()
    relay, budget = remote(store, 0.0)
    relay.ask(BODY)
    await until(lambda: relay.providers[0].calls)
    listed = relay.ask(b"", FakeDownstream(method="GET", path="/v1/models"))
    await until(lambda: listed.downstream.finished)
    assert (store.asked, budget.admitted, listed.downstream.status) == ([], 1, 200)


@pytest.mark.parametrize("answer", [OverloadError("away"), 1])
async def test_a_session_ends_at_the_answer_after_the_one_that_was_not_paid_for(answer: Any) -> None:
    store = Answers(True, answer)
    relay, budget = remote(store, 1.0)
    relay.ask(BODY)
    await until(lambda: relay.engine.live and relay.providers[0].calls)
    [run] = relay.engine.live
    run.ex.cost_usd = 1.0
    budget.on_usage(run.ex)
    budget.on_usage(run.ex)
    await until(lambda: not budget._asking)
    with pytest.raises(GatewayError) as caught:
        budget.on_usage(run.ex)
    assert type(caught.value) is (BudgetExceededError if answer == 1 else OverloadError)
    assert store.asked == [2, 1]


async def test_what_is_granted_to_a_session_that_is_over_is_given_back() -> None:
    store = Answers(True, True)
    relay, budget = remote(store, 1.0)
    asked = relay.ask(BODY)
    await until(lambda: relay.engine.live and relay.providers[0].calls)
    [run] = relay.engine.live
    ex = run.ex
    budget.on_usage(ex)
    assert store.asked == [2]
    ex.cost_usd = 1.0
    store.go.clear()
    budget.on_usage(ex)
    await until(lambda: store.asked == [2, 1])
    asked.downstream.leave()
    store.go.set()
    await until(lambda: not budget._asking)
    assert store.settled == [1, 0]


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


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_redis_that_loses_its_data_under_a_gateway_is_told_again(
    server: RedisServer, upstream: FakeUpstream, workers: int
) -> None:
    config = budgeted(upstream, server.url, usd_per_month=8)
    async with gateway_process(config, workers=workers) as gateway:
        assert [(await gateway.post(BODY)).status for _ in range(3)] == [200] * 3
        await gateway.rows(3)
        server.kill()
        await gateway.until(lambda: gateway.log.count('"redis_away"') == workers + 1, "all to miss Redis")
        await server.start()
        await until(lambda: any(key.endswith(b":mark") for key in server.all_keys()), 10)
        await gateway.until(lambda: gateway.log.count('"redis_back"') == workers + 1, "Redis to be found")
        # Three are spent, and a call may cost two: four more can be paid for, whatever is settled when.
        assert [(await gateway.post(BODY)).status for _ in range(9)].count(200) == 4
