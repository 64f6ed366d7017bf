"""The `openai` SDK with keys that may do less than everything: models, tags, and an end."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests_support.answers import chat_completion, json_response
from tests_support.gateway import CLIENT_KEY, RunningGateway, config_for, running_gateway
from tests_support.upstream import FakeUpstream, Request, Step

SCOPED_KEY = "hg-Nf7Qz2Lw9xTb4Kd6Vm1R"
OLD_KEY = "hg-Pc8Ys3Ju5gHa0We7Xk2M"
MESSAGES: Any = [{"role": "user", "content": "hello"}]


def provider(asked: Request) -> list[Step]:
    if asked.target.endswith("/chat/completions"):
        return [json_response(chat_completion())]
    return [json_response({"object": "list", "data": []})]


def config(up: FakeUpstream) -> dict[str, Any]:
    made = config_for(up)
    made["models"] = {
        name: {"targets": [{"provider": "up"}]} for name in ("gpt-4o", "gpt-4o-mini", "o9", "text-moderation")
    }
    made["filters"][0]["auth"]["keys"] += [
        {"name": "scoped", "key": SCOPED_KEY, "models": ["gpt-*"], "tags": ["day"], "allow_tags": ["night"]},
        {"name": "old", "key": OLD_KEY, "expires": "2020-12-31"},
    ]
    made["routes"] = [{"name": "nightly", "match": {"tags": ["night", "day"]}, "filters": {"retry": "off"}}]
    return made


def client(gateway: RunningGateway, key: str = SCOPED_KEY) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=gateway.base_url, api_key=key, max_retries=0)


async def test_a_key_asks_for_its_models_and_for_no_other() -> None:
    async with (
        FakeUpstream(provider) as up,
        running_gateway(config(up)) as gateway,
        client(gateway) as sdk,
        client(gateway, CLIENT_KEY) as free,
    ):
        assert (await sdk.chat.completions.create(model="gpt-4o", messages=MESSAGES)).choices
        with pytest.raises(openai.PermissionDeniedError) as refused:
            await sdk.chat.completions.create(model="o9", messages=MESSAGES)
        assert refused.value.code == "model_not_allowed"
        assert "'o9'" in str(refused.value)
        with pytest.raises(openai.PermissionDeniedError, match="names no model"):
            await sdk.files.create(file=b"{}", purpose="batch")
        assert (await free.chat.completions.create(model="o9", messages=MESSAGES)).choices
        assert len(up.requests) == 2, "what was refused went to a provider"
        assert [row.status for row in await gateway.rows(4)] == [200, 403, 403, 200]


async def test_it_is_shown_its_models_and_no_other() -> None:
    async with (
        FakeUpstream(provider) as up,
        running_gateway(config(up)) as gateway,
        client(gateway) as sdk,
        client(gateway, CLIENT_KEY) as free,
    ):
        assert [model.id async for model in sdk.models.list()] == ["gpt-4o", "gpt-4o-mini"]
        assert (await sdk.models.retrieve("gpt-4o")).id == "gpt-4o"
        with pytest.raises(openai.NotFoundError):
            await sdk.models.retrieve("o9")
        assert len([model async for model in free.models.list()]) == 4


async def test_tags_choose_the_route() -> None:
    async with (
        FakeUpstream(provider) as up,
        running_gateway(config(up)) as gateway,
        client(gateway) as sdk,
        client(gateway, CLIENT_KEY) as other,
    ):
        for asker, tags, route in (
            (sdk, "night", "nightly"),
            (sdk, "other", "default"),
            (other, "night,day", "default"),
        ):
            answer = await asker.chat.completions.with_raw_response.create(
                model="gpt-4o", messages=MESSAGES, extra_headers={"x-headgate-tags": tags}
            )
            assert answer.headers["x-headgate-route"] == route
        assert all("x-headgate-tags" not in dict(asked.headers) for asked in up.requests)


async def test_an_expired_key_is_told_that_it_expired() -> None:
    async with (
        FakeUpstream(provider) as up,
        running_gateway(config(up)) as gateway,
        client(gateway, OLD_KEY) as sdk,
    ):
        with pytest.raises(openai.AuthenticationError, match="expired") as refused:
            await sdk.chat.completions.create(model="gpt-4o", messages=MESSAGES)
        assert refused.value.code == "expired_api_key"
