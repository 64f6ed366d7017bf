"""A client that leaves: the provider's work stops at once, and one row says what was delivered (wire 34, G14)."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests_support.answers import (
    USAGE,
    chat_chunk,
    chat_chunks,
    chat_completion,
    chunk,
    event,
    json_response,
    response_head,
)
from tests_support.gateway import CHAT_BODY, CLIENT_KEY, bearer, gateway_over, gateway_over_two
from tests_support.raw import CHAT, RawClient, request
from tests_support.upstream import FIN, STALL, Request, Step

STREAM = b'{"model":"gpt-4o-mini","stream":true,"messages":[{"role":"user","content":"hello"}]}'
EVENTS = [event(one) for one in chat_chunks(done=False)]
SSE = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
PROMPT = 0.1
"""Seconds in which the provider's connection must be closed."""

WHERE: dict[str, tuple[bytes, list[Step]]] = {
    "before the head": (CHAT_BODY, [STALL]),
    "before the head of a stream": (STREAM, [STALL]),
    "in a JSON answer": (CHAT_BODY, [json_response(chat_completion())[:-5], STALL]),
    "while events are held": (STREAM, [SSE, chunk(EVENTS[0]), STALL]),
    "in mid-stream": (STREAM, [SSE, *map(chunk, EVENTS[:3]), STALL]),
    "in mid-event": (STREAM, [SSE, *map(chunk, EVENTS[:3]), b"ff\r\ndata: {", STALL]),
    "just before usage": (STREAM, [SSE, *map(chunk, EVENTS), STALL]),
    "just before [DONE]": (STREAM, [SSE, *map(chunk, EVENTS), chunk(event(chat_chunk(None, usage=USAGE))), STALL]),
}


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("where", WHERE)
async def test_the_providers_connection_is_closed_at_once(where: str, reset: bool, no_leaks: None) -> None:
    """Wire 34."""
    body, script = WHERE[where]
    async with gateway_over(script) as (gateway, upstream), RawClient(gateway.port) as client:
        await client.send(request("POST", CHAT, body, [*bearer(CLIENT_KEY), ("x-request-id", "r-1")]))
        await upstream.wait_request()
        delivered = len(EVENTS) if where.startswith("just") else 3 if where.startswith("in mid") else 0
        if delivered:
            await client.head()
            got = b""
            while len(got) < len(b"".join(EVENTS[:delivered])):
                got += await client.piece()
        else:
            await asyncio.sleep(0.05)
        left = time.monotonic()
        client.leave(reset=reset)
        connection = await upstream.wait_closed()
        [row] = await gateway.rows(1)
    assert connection.closed_at is not None
    assert connection.closed_at - left < PROMPT
    assert (row.outcome, row.client_request_id, row.attempts) == ("cancelled", "r-1", 1)
    assert row.status == (200 if delivered else 499)
    if where == "just before [DONE]":
        assert (row.usage_source, row.completion_tokens) == ("reported", USAGE["completion_tokens"])
    elif delivered:
        assert row.usage_source == "estimated"
        assert row.completion_tokens >= 1
        assert row.prompt_tokens >= 1
    else:
        assert (row.usage_source, row.completion_tokens) == ("none", 0)


async def test_leaving_while_another_try_waits_ends_the_tries(no_leaks: None) -> None:
    """Wire 34: also between two attempts."""
    async with gateway_over_two([FIN], [STALL]) as (gateway, _, second), RawClient(gateway.port) as client:
        await client.send(request("POST", CHAT, CHAT_BODY, bearer(CLIENT_KEY)))
        await second.wait_request()
        client.leave()
        await second.wait_closed()
        [row] = await gateway.rows(1)
    assert (row.outcome, row.attempts) == ("cancelled", 2)


async def test_leaving_in_mid_upload_sends_nothing_up(no_leaks: None) -> None:
    async with gateway_over(json_response(chat_completion())) as (gateway, upstream), RawClient(gateway.port) as client:
        await client.send(request("POST", CHAT, CHAT_BODY, bearer(CLIENT_KEY))[:-10])
        await asyncio.sleep(0.05)
        client.leave()
        [row] = await gateway.rows(1)
        assert upstream.connections == []
    assert (row.outcome, row.status, row.attempts) == ("cancelled", 499, 0)


async def test_a_broken_connection_is_not_used_again(no_leaks: None) -> None:
    """Faults §3.3: a dirty connection is never reused."""
    partial: list[Step] = [SSE, *map(chunk, EVENTS[:3]), STALL]

    def script(asked: Request) -> list[Step]:
        return partial if asked.json().get("stream") else [json_response(chat_completion())]

    async with gateway_over(script) as (gateway, upstream):
        for n in range(1, 4):
            async with RawClient(gateway.port) as client:
                await client.send(request("POST", CHAT, STREAM, bearer(CLIENT_KEY)))
                await client.head()
                client.leave()
            await upstream.wait_closed(n)
            assert (await gateway.post()).json() == chat_completion()
        for one in upstream.connections:
            assert not any(asked.json().get("stream") for asked in one.requests[:-1])
