"""The `openai` SDK with a token of an identity provider instead of a key, on one process and on two workers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from anyio import sleep

from tests_support.answers import chat_completion, error_response, json_response
from tests_support.asking import statuses, until_status
from tests_support.gateway import CLIENT_KEY, config_for
from tests_support.process import gateway_process
from tests_support.tokens import Issuer, public, rsa_key
from tests_support.upstream import FakeUpstream, Request, Step

if TYPE_CHECKING:
    from tests_support.process import GatewayProcess

WITHIN = 15.0
ROUNDS = 4


async def answers(gateway: GatewayProcess, key: str) -> set[int]:
    return await statuses(gateway, key, ROUNDS)


async def until(gateway: GatewayProcess, key: str, status: int) -> None:
    await until_status(gateway, key, status, rounds=ROUNDS, within=WITHIN, pause=0.2)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
async def test_a_token_is_as_good_as_a_key(workers: int) -> None:
    issuer = Issuer(time.time())
    asked: list[str] = []

    def identity(request: Request) -> list[Step]:
        asked.append(request.target)
        return [json_response({"keys": issuer.keys}) if request.target == "/keys" else error_response(404, "no")]

    async with FakeUpstream(json_response(chat_completion())) as up, FakeUpstream(identity) as provider:
        config = config_for(up)
        url = provider.base_url.removesuffix("/v1") + "/keys"
        config["filters"][0]["auth"]["jwt"] = issuer.config(url, roles_allowed=["viewer"])
        async with gateway_process(config, workers=workers) as gateway:
            token = issuer.token(team="red", roles=["viewer"])
            await until(gateway, token, 200)
            assert await answers(gateway, CLIENT_KEY) == {200}
            assert await answers(gateway, issuer.token(models=["other"])) == {403}
            assert await answers(gateway, issuer.token(exp=issuer.now - 60)) == {401}
            assert await answers(gateway, issuer.token(key=rsa_key("other"))) == {401}
            for number in range(20):
                assert await answers_once(gateway, issuer.token(headers={"kid": f"k{number}"})) == 401
            assert (await gateway.admin.send("GET", "/config_dump", key=token)).status == 200
            assert (await gateway.admin.send("GET", "/config_dump", key=issuer.token())).status == 403
            assert asked == ["/keys"], "unknown keys made it ask again within 30 s"
            assert token not in gateway.log
            assert all("authorization" in dict(one.headers) for one in up.requests)
            assert not any(token in value for one in up.requests for _, value in one.headers)


async def answers_once(gateway: GatewayProcess, token: str) -> int:
    return (await gateway.post(key=token)).status


@pytest.mark.slow
async def test_a_new_key_of_the_issuer_is_known_half_a_minute_after_it_is_first_used() -> None:
    issuer = Issuer(time.time())

    def identity(_: Request) -> list[Step]:
        return [json_response({"keys": issuer.keys})]

    async with FakeUpstream(json_response(chat_completion())) as up, FakeUpstream(identity) as provider:
        config = config_for(up)
        config["filters"][0]["auth"]["jwt"] = issuer.config(provider.base_url + "/keys")
        async with gateway_process(config, workers=2) as gateway:
            await until(gateway, issuer.token(), 200)
            issuer.keys.append(public(rsa_key("new"), kid="r2"))
            token = issuer.token(key=rsa_key("new"), headers={"kid": "r2"})
            deadline = time.monotonic() + 50
            while await answers(gateway, token) != {200}:
                assert time.monotonic() < deadline, gateway.log
                await sleep(2)
