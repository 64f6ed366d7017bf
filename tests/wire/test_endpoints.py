"""Several endpoints and keys of one provider, over sockets: failures stay with the endpoint that fails, limits with the
key that has them, sessions where they were."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests_support.answers import chat_completion, error_response, json_response, response
from tests_support.gateway import CLIENT_KEY, running_gateway
from tests_support.upstream import FakeUpstream, Pause

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from tests_support.gateway import RunningGateway
    from tests_support.upstream import Request, Source

GOOD = json_response(chat_completion())
BUSY = response(429, b'{"error":{"message":"busy"}}', [("retry-after", "30"), ("content-type", "application/json")])
IMPATIENT = [("x-headgate-timeout-ms", "9000")]
"""Else a lone 429 is waited for."""


@asynccontextmanager
async def gateway_over(
    *scripts: Source, provider: dict[str, Any] | None = None, changes: dict[str, Any] | None = None
) -> AsyncIterator[tuple[RunningGateway, Sequence[FakeUpstream]]]:
    """One provider with an endpoint for each script."""
    async with AsyncExitStack() as stack:
        ups = [await stack.enter_async_context(FakeUpstream(script)) for script in scripts]
        config = {
            "providers": {"up": {"endpoints": [{"url": up.base_url} for up in ups], **(provider or {})}},
            "filters": [{"auth": {"keys": [{"name": "app", "key": CLIENT_KEY}]}}, "retry"],
            **(changes or {}),
        }
        gateway = await stack.enter_async_context(running_gateway(config))
        yield gateway, ups


def by_key(answers: dict[str, bytes]) -> Callable[[Request], bytes]:
    """The answer that belongs to the bearer token of a request."""

    def answer(request: Request) -> bytes:
        bearer = next(value for name, value in request.headers if name.lower() == "authorization")
        return answers[bearer.removeprefix("Bearer ")]

    return answer


KEYS = {"api_keys": [{"name": "a", "key": "key-a-of-the-provider"}, {"name": "b", "key": "key-b-of-the-provider"}]}


async def test_calls_are_shared_out_over_the_endpoints() -> None:
    async with gateway_over(GOOD, GOOD, provider={"load_balancing": "round_robin"}) as (gateway, ups):
        for _ in range(6):
            assert (await gateway.post()).status == 200
        assert [len(up.requests) for up in ups] == [3, 3]


async def test_one_endpoint_of_four_that_fails_is_ejected_and_no_client_notices() -> None:
    sick = error_response(500, "I am sick")
    async with gateway_over(sick, GOOD, GOOD, GOOD, provider={"load_balancing": "round_robin"}) as (gateway, ups):
        statuses = [(await gateway.post()).status for _ in range(60)]
        assert set(statuses) == {200}
        assert len(ups[0].requests) == 5, "five failures in a row, and it is out"
        counters = gateway.server.snapshot().counters.clusters["up"]
        assert (counters["ejections"], counters["rq_retry"]) == (1, 5)


async def test_an_endpoint_that_is_down_costs_another_attempt_and_no_error() -> None:
    async with FakeUpstream(GOOD) as gone:
        url = gone.base_url
    async with FakeUpstream(GOOD) as up:
        both = {"endpoints": [{"url": up.base_url}, {"url": url}], "load_balancing": "round_robin"}
        async with running_gateway({"providers": {"up": both}, "filters": ["retry"]}) as gateway:
            assert {(await gateway.post(key=None)).status for _ in range(4)} == {200}
        assert len(up.requests) == 4


async def test_a_limited_key_makes_room_for_another() -> None:
    script = by_key({"key-a-of-the-provider": BUSY, "key-b-of-the-provider": GOOD})
    async with gateway_over(script, provider=KEYS) as (gateway, [up]):
        answers = [await gateway.post() for _ in range(5)]
        assert {answer.status for answer in answers} == {200}
        assert len(up.requests) <= 6, "the limited key is asked once"


async def test_a_refused_key_makes_room_for_another() -> None:
    script = by_key({"key-a-of-the-provider": error_response(401, "bad key"), "key-b-of-the-provider": GOOD})
    async with gateway_over(script, provider=KEYS) as (gateway, [up]):
        answers = [await gateway.post() for _ in range(5)]
        assert {answer.status for answer in answers} == {200}
        assert len(up.requests) <= 6


async def test_when_all_keys_are_limited_the_client_hears_when_to_come_back() -> None:
    async with gateway_over(BUSY, provider=KEYS) as (gateway, [up]):
        first = await gateway.post(headers=IMPATIENT)
        assert first.status == 429
        asked = len(up.requests)
        second = await gateway.post()
        assert (second.status, json.loads(second.body)["error"]["code"]) == (429, "upstream_rate_limited")
        assert 25 <= int(second.header("retry-after") or 0) <= 30
        assert len(up.requests) == asked == 2, "each key once"


async def test_a_session_stays_with_its_endpoint() -> None:
    async with gateway_over(GOOD, GOOD, GOOD, provider={"load_balancing": "ring_hash"}) as (gateway, ups):
        seen: dict[str, set[int]] = {}
        for turn in range(4):
            for session in "abcdefgh":
                before = [len(up.requests) for up in ups]
                await gateway.post(headers=[("x-session-id", session)])
                [at] = [n for n, up in enumerate(ups) if len(up.requests) > before[n]]
                seen.setdefault(session, set()).add(at)
            assert turn >= 0
        assert all(len(places) == 1 for places in seen.values())
        assert len(set.union(*seen.values())) > 1


async def test_a_region_is_preferred() -> None:
    async with FakeUpstream(GOOD) as eu, FakeUpstream(GOOD) as us:
        places = [{"url": eu.base_url, "region": "eu"}, {"url": us.base_url, "region": "us"}]
        async with running_gateway({"providers": {"up": {"endpoints": places}}}) as gateway:
            for _ in range(6):
                await gateway.post(key=None, headers=[("x-headgate-region", "us")])
        assert [len(eu.requests), len(us.requests)] == [0, 6]


async def test_above_its_limit_a_provider_is_overloaded_at_once() -> None:
    pause = Pause()
    async with gateway_over([pause, GOOD], provider={"limits": {"requests": 1}}) as (gateway, _):
        running = asyncio.create_task(gateway.post())
        await pause.reached()
        answer = await gateway.post()
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "overloaded")
        assert answer.header("retry-after") == "1"
        pause.go()
        assert (await running).status == 200
        assert (await gateway.post()).status == 200


async def test_or_calls_wait_for_their_turn() -> None:
    limits = {"requests": 1, "on_overflow": "queue", "queue_timeout": "20s"}
    async with gateway_over(GOOD, provider={"limits": limits}) as (gateway, [up]):
        answers = await asyncio.gather(*(gateway.post() for _ in range(8)))
        assert Counter(answer.status for answer in answers) == {200: 8}
        assert len(up.connections) == 1, "one at a time needs one connection"


@pytest.mark.parametrize(("policy", "status", "asked"), [("reject", 429, 2), ("least_bad", 429, 4), ("queue", 200, 3)])
async def test_an_exhausted_model_does_as_its_entry_says(policy: str, status: int, asked: int) -> None:
    busy = response(429, b"{}", [("retry-after-ms", "300"), ("content-type", "application/json")])
    answers = iter([busy, busy])
    provider: dict[str, Any] = {**KEYS, "limits": {"requests": 9}}
    models = {"*": {"targets": [{"provider": "up"}], "on_exhausted": policy, "queue_timeout": "5s"}}
    changes = {"models": models, "filters": [{"retry": {"attempts": 2}}]}
    async with gateway_over(
        lambda _: next(answers, GOOD if policy == "queue" else busy), provider=provider, changes=changes
    ) as (gateway, [up]):
        assert (await gateway.post(key=None)).status == 429
        answer = await gateway.post(key=None)
        assert (answer.status, len(up.requests)) == (status, asked)
