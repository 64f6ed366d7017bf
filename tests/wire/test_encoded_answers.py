"""Answers that come encoded although identity was asked for, and answers too large to be collected: they pass byte for
byte, and what they used is known all the same."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from tests_support.answers import LAST_CHUNK, chat_chunks, chat_completion, chunk, event, response, response_head
from tests_support.gateway import CHAT_BODY, gateway_over
from tests_support.upstream import FIN, STALL

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests_support.upstream import Step

MIB = 1 << 20
JSON = ("content-type", "application/json")
STREAM_BODY = CHAT_BODY[:-1] + b',"stream":true}'
EVENTS = b"".join(map(event, chat_chunks()))
COMPLETION = json.dumps(chat_completion()).encode()
EMBED = b'{"model":"text-embedding-3-small","input":"hello"}'


def encoded(encoding: str) -> bytes:
    return response_head(
        200, [("content-type", "text/event-stream"), ("content-encoding", encoding), ("transfer-encoding", "chunked")]
    )


@pytest.mark.parametrize(("encoding", "encode"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_whole_answer_passes_encoded_and_is_metered(encoding: str, encode: Callable[[bytes], bytes]) -> None:
    body = encode(COMPLETION)
    async with gateway_over(response(200, body, [JSON, ("content-encoding", encoding)])) as (gateway, upstream):
        answer = await gateway.post()
        [row] = await gateway.rows(1)
    assert upstream.requests[0].header("accept-encoding") == "identity"
    assert (answer.status, answer.body, answer.header("content-encoding")) == (200, body, encoding)
    assert (row.outcome, row.prompt_tokens, row.completion_tokens, row.usage_source) == ("ok", 9, 12, "reported")
    assert row.cost_usd
    assert answer.header("x-headgate-tokens-prompt") == "9"


async def test_an_encoding_that_is_not_read_passes_unread() -> None:
    async with gateway_over(response(200, b"(\xb5/\xfd", [JSON, ("content-encoding", "zstd")])) as (gateway, _):
        answer = await gateway.post()
        [row] = await gateway.rows(1)
    assert (answer.status, answer.body) == (200, b"(\xb5/\xfd")
    assert (row.outcome, row.usage_source, row.cost_usd) == ("ok", "none", None)


async def test_an_encoded_stream_passes_as_it_is_and_is_metered() -> None:
    usage = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}})
    data = gzip.compress(EVENTS.replace(b"data: [DONE]\n\n", usage + b"data: [DONE]\n\n"))
    script = [encoded("gzip"), *(chunk(data[at : at + 20]) for at in range(0, len(data), 20)), LAST_CHUNK]
    async with gateway_over(script) as (gateway, _):
        answer = await gateway.post(STREAM_BODY)
        [row] = await gateway.rows(1)
    assert (answer.status, answer.body) == (200, data)
    assert (row.outcome, row.prompt_tokens, row.completion_tokens, row.usage_source) == ("ok", 3, 4, "reported")


@pytest.mark.parametrize("end", [FIN, STALL])
async def test_an_encoded_stream_that_is_cut_is_charged_for_what_came(end: Step) -> None:
    compress = zlib.compressobj(wbits=31)
    half = compress.compress(EVENTS[: EVENTS.index(b"data: [DONE]")]) + compress.flush(zlib.Z_SYNC_FLUSH)
    script = [encoded("gzip"), chunk(half), end]
    async with gateway_over(script, retry=False, timeouts={"total": "1s"}) as (gateway, _):
        answer = await gateway.post(STREAM_BODY)
        assert (answer.body, answer.whole) == (half, False)
        [row] = await gateway.rows(1)
    assert (row.outcome, row.usage_source) == ("truncated", "estimated")
    assert row.completion_tokens > 0


def embeddings(size: int, **more: Any) -> bytes:
    data = [{"object": "embedding", "index": 0, "embedding": "A" * size}]
    return json.dumps({"object": "list", "data": data, "model": "text-embedding-3-small", **more}).encode()


@pytest.mark.parametrize("encoding", [None, "gzip"])
async def test_an_answer_too_large_to_be_collected_is_metered_by_its_end(encoding: str | None) -> None:
    body = embeddings(9 * MIB, usage={"prompt_tokens": 8, "total_tokens": 8})
    headers = [JSON]
    if encoding is not None:
        body = gzip.compress(body, 1)
        headers.append(("content-encoding", encoding))
    async with gateway_over(response(200, body, headers)) as (gateway, _):
        answer = await gateway.post(EMBED, target="/v1/embeddings")
        [row] = await gateway.rows(1)
    assert (answer.status, answer.body == body) == (200, True)
    assert (row.endpoint, row.prompt_tokens, row.completion_tokens, row.usage_source) == (
        "embeddings",
        8,
        0,
        "reported",
    )
    assert row.cost_usd


async def test_a_large_answer_without_usage_has_none() -> None:
    async with gateway_over(response(200, embeddings(9 * MIB), [JSON])) as (gateway, _):
        await gateway.post(EMBED, target="/v1/embeddings")
        [row] = await gateway.rows(1)
    assert (row.outcome, row.usage_source, row.cost_usd) == ("ok", "none", None)


async def test_a_body_that_blows_up_costs_nothing_but_its_own_bytes() -> None:
    bomb = gzip.compress(bytes(256 * MIB), 9)
    async with gateway_over(response(200, bomb, [JSON, ("content-encoding", "gzip")])) as (gateway, _):
        answer = await gateway.post()
        [row] = await gateway.rows(1)
    assert (answer.body == bomb, row.outcome, row.usage_source) == (True, "ok", "none")
