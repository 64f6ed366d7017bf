"""rate_limit in Redis: one limit for all gateways; while it is away, what the limit says; and each decision says who
made it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import openai
import pytest

from headgate.config import parse_config
from headgate.control.filter_factory import make_filter
from headgate.filters.rate_limit import RateLimit
from headgate.gateway import check_reload
from tests_support.admin import AUTH, config_with, running_admin
from tests_support.answers import chat_completion, json_response
from tests_support.gateway import CLIENT_KEY, config_for, running_gateway
from tests_support.leaks import leak_check
from tests_support.redis import PASSWORD, RedisProxy, RedisServer, until
from tests_support.upstream import FakeUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from headgate.filters.stores.redis_limits import RedisStore
    from tests_support.gateway import RunningGateway

WHOLE = json_response(chat_completion())


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with RedisServer() as made:
        yield made


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream(lambda asked: WHOLE) as made:
        yield made


def limited(upstream: FakeUpstream, url: str, **limit: Any) -> dict[str, Any]:
    config = config_for(upstream)
    config["filters"].append({"rate_limit": limit})
    return {**config, "stores": {"redis": {"url": url, "timeout": "1s"}}}


async def statuses(gateway: RunningGateway, calls: int) -> list[int]:
    return [(await gateway.post()).status for _ in range(calls)]


def store_of(gateway: RunningGateway) -> RedisStore:
    store = gateway.half._redis
    assert store is not None
    return store


async def until_away(gateway: RunningGateway) -> None:
    client = store_of(gateway).client
    await until(lambda: not client.up)


async def test_two_gateways_count_together_and_say_how_it_stands(server: RedisServer, upstream: FakeUpstream) -> None:
    config = limited(upstream, server.url, requests_per_day=3, concurrent=2)
    async with running_gateway(config) as one, running_gateway(config) as two:
        answers = [await one.post(), await two.post(), await one.post()]
        assert [answer.header("x-ratelimit-remaining-requests") for answer in answers] == ["2", "1", "0"]
        refused = await two.post()
    assert refused.status == 429
    assert 86_000 < int(refused.header("retry-after") or 0) <= 86_400
    error = json.loads(refused.body)["error"]
    assert error["code"] == "rate_limit_exceeded"
    assert "3 requests per day for each user, 0 left" in error["message"]


async def test_the_sdk_meets_a_limit_that_another_gateway_has_used_up(
    server: RedisServer, upstream: FakeUpstream
) -> None:
    config = limited(upstream, server.url, requests_per_day=1)
    async with running_gateway(config) as one, running_gateway(config) as two:
        await one.post()
        client = openai.AsyncOpenAI(base_url=two.base_url, api_key=CLIENT_KEY, max_retries=0)
        with pytest.raises(openai.RateLimitError) as refusal:
            await client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "hi"}])
        await client.close()
    assert refusal.value.response.headers["x-ratelimit-remaining-requests"] == "0"


async def test_tokens_are_settled_with_what_was_used(server: RedisServer, upstream: FakeUpstream) -> None:
    config = limited(upstream, server.url, tokens_per_day=100_000)
    used = chat_completion()["usage"]["total_tokens"]
    async with running_gateway(config) as one:
        await one.post()
        await one.rows(1)
        left = int((await one.post()).header("x-ratelimit-remaining-tokens") or 0)
        first = int((await one.post()).header("x-ratelimit-remaining-tokens") or 0)
    assert left - first == used


async def test_a_decision_says_who_made_it(server: RedisServer, upstream: FakeUpstream) -> None:
    config = limited(upstream, server.url, requests_per_day=100)
    config["filters"][0]["auth"]["keys"][0]["roles"] = ["viewer"]
    async with running_gateway(config) as gateway:
        counted = await gateway.post(headers=[("x-headgate-explain", "1")])
        server.kill()
        await until_away(gateway)
        local = await gateway.post(headers=[("x-headgate-explain", "1")])
    notes = [
        next(one["note"] for one in json.loads(answer.header("x-headgate-explain") or "")["filters"] if "note" in one)
        for answer in (counted, local)
    ]
    assert notes == ["counted in Redis", "Redis is away: counted under this worker's share"]


@pytest.mark.parametrize(
    ("policy", "expected", "counter"),
    [
        ("open", [200] * 5, "uncounted"),
        ("closed", [503] * 5, "closed"),
        ("local_share", [200, 200, 200, 429, 429], "local"),
    ],
)
async def test_while_redis_is_away_the_limit_says_what_is_done(
    server: RedisServer, upstream: FakeUpstream, policy: str, expected: list[int], counter: str
) -> None:
    config = limited(upstream, server.url, requests_per_day=3, on_store_failure=policy)
    async with running_gateway(config) as gateway:
        assert await statuses(gateway, 1) == [200]
        server.kill()
        await until_away(gateway)
        assert await statuses(gateway, 5) == expected
        link = gateway.half.engine.graph.default.chain.filters[-1]
        assert getattr(link, counter) == 5
        if policy == "closed":
            answer = await gateway.post()
            assert answer.header("retry-after") == "1"
            assert json.loads(answer.body)["error"]["code"] == "overloaded"


async def test_a_gateway_starts_without_redis_and_counts_there_as_soon_as_it_can(upstream: FakeUpstream) -> None:
    server = RedisServer()
    config = limited(upstream, server.url, requests_per_day=2)
    async with running_gateway(config) as gateway:
        assert await statuses(gateway, 3) == [200, 200, 429]
        async with server:
            await until(lambda: store_of(gateway).client.up)
            assert await statuses(gateway, 3) == [200, 200, 429]


async def test_clients_that_leave_while_redis_thinks_leave_nothing_behind(
    server: RedisServer, upstream: FakeUpstream
) -> None:
    async with RedisProxy(server.port) as proxy:
        config = limited(upstream, f"redis://127.0.0.1:{proxy.port}", concurrent=2)
        async with running_gateway(config) as gateway:
            await gateway.post()
            proxy.delay = 0.1
            asked = [asyncio.create_task(gateway.post()) for _ in range(2)]
            await asyncio.sleep(0.05)
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            proxy.delay = 0.0
            store = store_of(gateway)
            await until(lambda: not store.lease.held and not len(store.client._link or ()))
            assert await statuses(gateway, 2) == [200, 200]


async def test_nothing_is_left_of_a_gateway_that_has_ended(upstream: FakeUpstream) -> None:
    async with RedisServer(PASSWORD) as server:
        config = limited(upstream, server.url, requests_per_day=9)
        async with leak_check(), running_gateway(config) as gateway:
            assert await statuses(gateway, 2) == [200, 200]
        assert server.ask("HLEN", "headgate:workers") == 0


def test_where_redis_is_written_and_not_used_the_filter_stays_sync() -> None:
    config = parse_config("filters: [rate_limit]\nstores: {default: shared, redis: {url: 'redis://cache'}}", env={})
    assert isinstance(make_filter(config.filters[0].config, "rate_limit"), RateLimit)


def test_another_redis_needs_a_restart() -> None:
    one, two = (parse_config(f"stores: {{redis: {{url: 'redis://:pw@cache/{n}'}}}}", env={}) for n in (1, 2))
    check_reload(one, one)
    with pytest.raises(Exception, match="stores: a change needs a restart"):
        check_reload(one, two)


async def test_admin_says_whether_redis_is_there_and_how_fast(server: RedisServer) -> None:
    config = config_with(
        auth=True, filters=[AUTH, {"rate_limit": {"requests_per_day": 9}}], stores={"redis": {"url": server.url}}
    )
    async with running_admin(config) as admin:
        await admin.gateway.post()
        there = (await admin.get("/metrics")).body.decode()
        calm = json.loads((await admin.get("/ready", key="viewer")).body)
        server.kill()
        await until_away(admin.gateway)
        away = (await admin.get("/metrics")).body.decode()
        worried = json.loads((await admin.get("/ready", key="viewer")).body)
        shown = (await admin.get("/config_dump", key="viewer")).body.decode()
    assert 'headgate_store_up{store="redis"} 1.0' in there
    assert 'headgate_store_seconds_bucket{le="0.005",store="redis"}' in there
    assert 'headgate_store_up{store="redis"} 0.0' in away
    assert (calm["state"], worried["state"]) == ("LIVE", "LIVE")
    assert not any("redis" in one for one in calm["warnings"])
    assert any("redis is away" in one for one in worried["warnings"])
    assert "redis://" not in shown
