"""The `openai` SDK through a gateway whose provider speaks HTTP/2: nobody sees a difference."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI

from tests_support.answers import USAGE, chat_chunks, chat_completion, event
from tests_support.gateway import CLIENT_KEY, PROVIDER_KEY, config_for, running_gateway
from tests_support.h2_upstream import H2Upstream

if TYPE_CHECKING:
    from tests_support.gateway import RunningGateway
    from tests_support.h2_upstream import PeerStream

MESSAGES: Any = [{"role": "user", "content": "hello"}]
MODEL = "gpt-4o-mini"


def over(upstream: H2Upstream) -> dict[str, Any]:
    """A config whose only provider is `upstream`, by prior knowledge."""
    config = config_for()
    provider = {"base_url": upstream.base_url, "api_key": PROVIDER_KEY, "http2": True}
    return {**config, "providers": {"up": provider}}


def client_for(gateway: RunningGateway) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY, max_retries=0)


async def provider(stream: PeerStream) -> None:
    """A completion, or a stream of one."""
    asked = json.loads(await stream.body())
    if not asked.get("stream"):
        body = json.dumps(chat_completion()).encode()
        stream.head(200, [("content-type", "application/json"), ("x-request-id", "req_up")])
        await stream.data(body, end=True)
        return
    stream.head(200, [("content-type", "text/event-stream")])
    for one in chat_chunks(usage=USAGE):
        await stream.data(event(one))
    await stream.data(b"", end=True)


async def test_completions_and_streams_come_back_over_one_connection() -> None:
    async with (
        H2Upstream(provider) as upstream,
        running_gateway(over(upstream)) as gateway,
        client_for(gateway) as client,
    ):
        answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert answer.choices[0].message.content == "Hello there."
        assert answer._request_id == "req_up"

        async def stream() -> list[str | None]:
            chunks = await client.chat.completions.create(
                model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
            return [one.choices[0].delta.content if one.choices else "usage" async for one in chunks]

        assert (
            await asyncio.gather(*[stream() for _ in range(20)]) == [["", "Hel", "lo ", "there.", None, "usage"]] * 20
        )
        rows = await gateway.rows(21)
        assert {row.completion_tokens for row in rows} == {12}
        assert len(upstream.peers) == 1
        assert upstream.requests[0].header("authorization") == f"Bearer {PROVIDER_KEY}"
        assert upstream.peers[0].resets == []


async def test_a_client_that_leaves_costs_one_reset_and_a_cut_stream_is_never_whole() -> None:
    async def cut(stream: PeerStream) -> None:
        asked = json.loads(await stream.body())
        stream.head(200, [("content-type", "text/event-stream")])
        for one in chat_chunks()[:3]:
            await stream.data(event(one))
        if asked["model"] == "cut":
            stream.reset(0)

    async with H2Upstream(cut) as upstream, running_gateway(over(upstream)) as gateway, client_for(gateway) as client:
        left = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        await anext(aiter(left))
        await left.close()
        await upstream.until(lambda: upstream.peers[0].resets)
        broken = await client.chat.completions.create(model="cut", messages=MESSAGES, stream=True)
        seen = []
        with pytest.raises(openai.APIError):
            seen += [chunk.choices[0].finish_reason async for chunk in broken]
        assert set(seen) <= {None}
        assert len(upstream.peers[0].resets) == 1
        assert len(upstream.peers) == 1
        assert {row.outcome for row in await gateway.rows(2)} == {"cancelled", "truncated"}
