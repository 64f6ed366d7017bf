"""The `openai` SDK through a gateway whose provider speaks HTTP/2: nobody sees a difference."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import openai
import pytest
from hyperframe.frame import GoAwayFrame
from openai import AsyncOpenAI

from tests_support.answers import USAGE, chat_chunks, chat_completion, event
from tests_support.gateway import CLIENT_KEY, PROVIDER_KEY, bearer, config_for, running_gateway
from tests_support.h2_upstream import H2Upstream
from tests_support.raw import CHAT, RawClient, request

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
    await provider_of(stream, json.loads(await stream.body()))


async def provider_of(stream: PeerStream, asked: Any) -> None:
    """The answer to what was asked."""
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


async def test_streams_under_way_at_a_goodbye_end_whole_and_new_ones_go_elsewhere() -> None:
    halfway = asyncio.Event()

    async def slowly(stream: PeerStream) -> None:
        await stream.body()
        stream.head(200, [("content-type", "text/event-stream")])
        events = chat_chunks(usage=USAGE)
        for number, one in enumerate(events):
            if number == 2 and stream.peer is upstream.peers[0]:
                await halfway.wait()
            await stream.data(event(one))
        await stream.data(b"", end=True)

    async with (
        H2Upstream(slowly) as upstream,
        running_gateway(over(upstream)) as gateway,
        client_for(gateway) as client,
    ):

        async def text() -> str:
            chunks = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
            return "".join([one.choices[0].delta.content or "" async for one in chunks if one.choices])

        first = [asyncio.create_task(text()) for _ in range(8)]
        await upstream.until(lambda: len(upstream.requests) == 8)
        upstream.peers[0].raw(GoAwayFrame(0, last_stream_id=15))
        assert await asyncio.gather(*[text() for _ in range(8)]) == ["Hello there."] * 8
        halfway.set()
        assert await asyncio.gather(*first) == ["Hello there."] * 8
        assert [len(peer.streams) for peer in upstream.peers] == [8, 8]
        assert {row.outcome for row in await gateway.rows(16)} == {"ok"}


@pytest.mark.parametrize("upload", [False, True])
async def test_a_provider_that_gives_no_room_for_a_request_fails_it_after_its_idle_time(upload: bool) -> None:
    async with H2Upstream(provider, gives_back=False) as upstream:
        config = over(upstream)
        config["providers"]["up"]["timeouts"] = {"idle": "300ms", "total": "60s"}
        async with running_gateway(config) as gateway, client_for(gateway) as client:
            large = "x" * 500_000
            asked: Any = [{"role": "user", "content": large}]
            asking = (
                client.files.create(file=("a.jsonl", large.encode()), purpose="batch")
                if upload
                else client.chat.completions.create(model=MODEL, messages=asked)
            )
            began = asyncio.get_running_loop().time()
            with pytest.raises(openai.APIStatusError) as caught:
                await asking
            assert caught.value.status_code == 504
            assert asyncio.get_running_loop().time() - began < 10
            [row] = await gateway.rows(1)
            assert row.outcome == "failed"
            small = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
            assert small.choices[0].message.content == "Hello there."


async def test_a_client_that_reads_nothing_holds_up_its_own_stream_and_no_other() -> None:
    async def endless(stream: PeerStream) -> None:
        asked = json.loads(await stream.body())
        if asked["model"] != "endless":
            await provider_of(stream, asked)
            return
        stream.head(200, [("content-type", "text/event-stream")])
        one = event(chat_chunks()[1])
        while True:
            await stream.data(one * 200)

    async with (
        H2Upstream(endless) as upstream,
        running_gateway(over(upstream)) as gateway,
        client_for(gateway) as client,
    ):
        body = json.dumps({"model": "endless", "stream": True, "messages": MESSAGES}).encode()
        async with RawClient(gateway.port) as slow:
            await slow.send(request("POST", CHAT, body, bearer(CLIENT_KEY)))
            await slow.head()
            first = upstream.requests[0]
            sent = -1
            while sent != first.peer.h2.streams[1].outbound_flow_control_window:
                sent = first.peer.h2.streams[1].outbound_flow_control_window
                await asyncio.sleep(0.1)
            for _ in range(10):
                answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
                assert answer.choices[0].message.content == "Hello there."
            assert first.peer.h2.streams[1].outbound_flow_control_window == sent
        await upstream.until(lambda: upstream.peers[0].resets)
        assert len(upstream.peers) == 1
