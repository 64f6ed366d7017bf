"""decision_inputs: of a share of exchanges, drawn at random, the state of every candidate is kept."""

from __future__ import annotations

import asyncio
import sys
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis.strategies import floats, integers

from headgate.proxy.decision_inputs import SHOWN, Sampling
from headgate.proxy.decisions import Decisions
from tests_support.answers import chat_completion, error_response, json_response
from tests_support.gateway import CHAT_BODY, CLIENT_KEY, PROVIDER_KEY, RunningGateway, config_for, running_gateway
from tests_support.upstream import FakeUpstream, Pause

if TYPE_CHECKING:
    from tests_support.raw import Answer

WHOLE = json_response(chat_completion())


def taken(sampling: Sampling, asked: int) -> list[int]:
    """Which of so many exchanges are sampled, as dispatch does it."""
    found = []
    for n in range(asked):
        sampling.left -= 1
        if sampling.left < 0:
            sampling.draw()
            found.append(n)
    return found


def test_about_the_share_is_taken_and_at_random() -> None:
    found = taken(Sampling(0.01, Random(7)), 200_000)
    assert 1850 < len(found) < 2150
    gaps = [later - earlier for earlier, later in pairwise(found)]
    assert min(gaps) < 5
    assert max(gaps) > 400


@given(share=floats(0.05, 0.95), seed=integers())
def test_each_is_taken_with_the_same_chance_whatever_was_before(share: float, seed: int) -> None:
    asked = 4000
    deviation = 6 * (asked * share * (1 - share)) ** 0.5
    assert abs(len(taken(Sampling(share, Random(seed)), asked)) - asked * share) < deviation


def test_all_or_none_can_be_taken() -> None:
    assert taken(Sampling(1.0, Random(1)), 50) == list(range(50))
    assert Sampling(0.0, Random(1)).left == sys.maxsize


def config(*upstreams: FakeUpstream, percent: float, **changes: Any) -> dict[str, Any]:
    return config_for(*upstreams) | {"events": {"decisions": {"inputs_percent": percent}}} | changes


def decision(gateway: RunningGateway, answer: Answer) -> dict[str, Any]:
    id_ = answer.header("x-headgate-decision-id")
    assert id_ is not None
    found = gateway.half.engine.decisions.find(id_)
    assert found is not None
    return found


async def test_a_sampled_exchange_keeps_what_its_plan_was_made_from() -> None:
    async with FakeUpstream(WHOLE) as up, FakeUpstream(WHOLE) as up2:
        async with running_gateway(config(up, up2, percent=100)) as gateway:
            found = decision(gateway, await gateway.post(CHAT_BODY[:-1] + b',"max_tokens":9}'))
        place = up.base_url.removesuffix("/v1")
    inputs = found["inputs"]
    assert inputs["request"] == {
        "bytes": len(CHAT_BODY) + 15,
        "stream": False,
        "max_tokens": 9,
        "prompt_tokens": None,
        "tags": [],
        "region": None,
        "provider": None,
        "seconds_left": None,
    }
    assert (inputs["attempts_allowed"], inputs["candidates_in_all"]) == (3, 2)
    first, second = inputs["candidates"]
    assert (first["provider"], second["provider"]) == ("up", "up2")
    assert first | {"endpoints": []} == {
        "provider": "up",
        "model": "gpt-4o-mini",
        "priority": 0,
        "unconfigured": False,
        "stand_in": False,
        "objection": None,
        "rests_seconds": 0.0,
        "active": 0,
        "waiting": 0,
        "retries_waiting": 0,
        "endpoints_in_all": 1,
        "endpoints": [],
    }
    assert first["endpoints"] == [
        {
            "endpoint": place,
            "priority": 0,
            "weight": 1,
            "region": None,
            "healthy": True,
            "ejected": False,
            "active": 0,
            "tokens": 0,
        }
    ]


async def test_it_is_the_state_before_this_one_was_sent() -> None:
    pause = Pause()
    async with FakeUpstream([pause, WHOLE]) as up, running_gateway(config(up, percent=100)) as gateway:
        first = asyncio.create_task(gateway.post())
        await pause.reached()
        second = asyncio.create_task(gateway.post())
        await up.wait_request(2)
        pause.go()
        states = [decision(gateway, await one)["inputs"]["candidates"][0] for one in (first, second)]
    assert [state["active"] for state in states] == [0, 1]
    assert [state["endpoints"][0]["active"] for state in states] == [0, 1]


async def test_a_rest_is_seen_and_each_reason_is_counted() -> None:
    limited = error_response(429, "slow down", headers=[("retry-after", "30")])
    async with FakeUpstream([limited]) as up, FakeUpstream(WHOLE) as up2, FakeUpstream(WHOLE) as up3:
        settings = config(up, up2, up3, percent=100)
        targets = [{"provider": "up"}, {"provider": "up", "model": "m"}, {"provider": "up2"}]
        settings["models"] = {"m": {"targets": targets}}

        async with running_gateway(settings) as gateway:
            await gateway.post(b'{"model":"m"}')
            await gateway.post(b'{"model":"m"}', [("x-headgate-provider", "up")])
            found = decision(gateway, await gateway.post(b'{"model":"m"}'))
    assert found["vetoes"] == {"cooling after a 429": 2}
    state = found["inputs"]["candidates"][0]
    assert state["objection"] == "cooling after a 429"
    assert 0 < state["rests_seconds"] <= 30


async def test_who_asks_for_an_explanation_gets_the_inputs_and_others_do_not() -> None:
    async with FakeUpstream(WHOLE) as up, running_gateway(config(up, percent=0)) as gateway:
        plain = decision(gateway, await gateway.post())
        explained = decision(gateway, await gateway.post(headers=[("x-headgate-explain", "1")]))
    assert plain["inputs"] is None
    assert plain["vetoes"] == {}
    assert explained["inputs"]["candidates_in_all"] == 1


async def test_of_many_candidates_some_are_shown_and_all_are_counted() -> None:
    async with FakeUpstream(WHOLE) as up:
        targets = [{"provider": "up", "model": f"m{n}"} for n in range(SHOWN + 3)]
        async with running_gateway(config(up, percent=100, models={"m": {"targets": targets}})) as gateway:
            inputs = decision(gateway, await gateway.post(b'{"model":"m"}'))["inputs"]
    assert inputs["candidates_in_all"] == SHOWN + 3
    assert len(inputs["candidates"]) == SHOWN


async def test_a_sampled_one_is_remembered_longer_than_the_others() -> None:
    async with FakeUpstream(WHOLE) as up, running_gateway(config(up, percent=0)) as gateway:
        engine = gateway.half.engine
        engine.decisions, engine.sampling.left = Decisions(kept=2), 0
        answers = [await gateway.post() for _ in range(4)]
        found = [engine.decisions.find(answer.header("x-headgate-decision-id") or "") for answer in answers]
    assert [one is not None for one in found] == [True, False, True, True]


async def test_no_secret_and_no_text_is_among_them() -> None:
    async with FakeUpstream(WHOLE) as up, running_gateway(config(up, percent=100)) as gateway:
        body = CHAT_BODY.replace(b"hello", b"a-prompt-nobody-else-reads")
        said = str(decision(gateway, await gateway.post(body)))
    assert not [secret for secret in (CLIENT_KEY, PROVIDER_KEY, "a-prompt-nobody-else-reads") if secret in said]
