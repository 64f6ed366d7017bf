"""HTTP/1.1 towards the client: connections are kept, bodies come in any framing, expectations are answered."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests_support.answers import chat_chunks, chat_completion, json_response, sse
from tests_support.gateway import CHAT_BODY, CLIENT_KEY, bearer, config_for, gateway_over, running_gateway
from tests_support.raw import CHAT, RawClient, request

if TYPE_CHECKING:
    from tests_support.upstream import Request

KEY = bearer(CLIENT_KEY)
POST = request("POST", CHAT, CHAT_BODY, KEY)
WHOLE = json_response(chat_completion())


async def test_one_connection_serves_any_number_of_requests(no_leaks: None) -> None:
    """Wire 19, 40."""
    async with gateway_over(WHOLE) as (gateway, upstream), RawClient(gateway.port) as client:
        for _ in range(20):
            await client.send(POST)
            assert (await client.answer()).status == 200
        assert len(upstream.connections) == 1


async def test_pipelined_requests_are_answered_in_order(no_leaks: None) -> None:
    """Wire 40."""

    def script(asked: Request) -> bytes:
        return json_response(chat_completion(asked.header("x-n")))

    async with gateway_over(script) as (gateway, _), RawClient(gateway.port) as client:
        await client.send(b"".join(request("POST", CHAT, CHAT_BODY, [*KEY, ("x-n", str(n))]) for n in range(5)))
        for n in range(5):
            answer = await client.answer()
            assert answer.json()["choices"][0]["message"]["content"] == str(n)


@pytest.mark.parametrize("extension", ["", ";name=value"])
async def test_a_chunked_upload_goes_up_whole(extension: str) -> None:
    """Wire 9."""
    async with gateway_over(WHOLE) as (gateway, upstream), RawClient(gateway.port) as client:
        await client.send(request("POST", CHAT, headers=[*KEY, ("Transfer-Encoding", "chunked")]))
        for at in range(0, len(CHAT_BODY), 9):
            piece = CHAT_BODY[at : at + 9]
            await client.send(b"%x%b\r\n%b\r\n" % (len(piece), extension.encode(), piece))
        await client.send(b"0\r\nx-trailer: dropped\r\n\r\n" + POST)
        assert ((await client.answer()).status, (await client.answer()).status) == (200, 200)
    assert [one.body for one in upstream.requests] == [CHAT_BODY, CHAT_BODY]
    assert upstream.requests[0].header("x-trailer") is None


async def test_an_expectation_is_answered_before_the_body_comes() -> None:
    """Wire 9."""
    async with gateway_over(WHOLE) as (gateway, upstream), RawClient(gateway.port) as client:
        fields = [*KEY, ("Expect", "100-continue"), ("Content-Length", str(len(CHAT_BODY)))]
        await client.send(request("POST", CHAT, headers=fields))
        assert (await client.continue_head()).status == 100
        await client.send(CHAT_BODY)
        assert (await client.answer()).status == 200
    assert upstream.requests[0].header("expect") is None


async def test_an_expectation_with_a_wrong_key_is_refused_without_the_body() -> None:
    """Wire 9: the prefix of the chain runs before the body is read."""
    async with gateway_over(WHOLE) as (gateway, upstream), RawClient(gateway.port) as client:
        fields = [*bearer("wrong-key-000000000"), ("Expect", "100-continue"), ("Content-Length", "100")]
        await client.send(request("POST", CHAT, headers=fields))
        assert (await client.continue_head()).status == 401
    assert upstream.connections == []


async def test_a_body_cut_anywhere_arrives_whole() -> None:
    """Wire 30, for the way up."""
    async with gateway_over(WHOLE) as (gateway, upstream), RawClient(gateway.port) as client:
        for byte in POST:
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.answer()).status == 200
    assert upstream.requests[0].body == CHAT_BODY


async def test_http_1_0_gets_an_answer_that_the_close_ends() -> None:
    """RFC 9112 §6.3: no chunks for a client of 1.0."""
    steps = sse(chat_chunks("hello"))
    raw = POST.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1).replace(b'"messages"', b'"stream" :true,"messages"')
    raw = raw.replace(b"Content-Length: %d" % len(CHAT_BODY), b"Content-Length: %d" % (len(CHAT_BODY) + 15))
    async with gateway_over(steps) as (gateway, _), RawClient(gateway.port) as client:
        await client.send(raw)
        answer = await client.answer()
        assert await client.closed()
    assert answer.header("transfer-encoding") is None
    assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_connection_close_is_honoured() -> None:
    """RFC 9112 §9.6."""
    async with gateway_over(WHOLE) as (gateway, _), RawClient(gateway.port) as client:
        await client.send(request("POST", CHAT, CHAT_BODY, [*KEY, ("Connection", "close")]))
        answer = await client.answer()
        assert answer.header("connection") == "close"
        assert await client.closed()


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/health"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_health_needs_no_key(method: str, path: str) -> None:
    """Design §5."""
    async with running_gateway(config_for()) as gateway, RawClient(gateway.port) as client:
        await client.send(request(method, path))
        answer = await client.answer(bodiless=method == "HEAD")
        await client.send(request("GET", path))
        assert (await client.answer()).status == 200
    assert answer.status == 200
    assert (answer.header("content-type") or "").startswith(("application/json", "text/plain"))


async def test_health_says_who_we_are() -> None:
    """Design §5."""
    async with running_gateway(config_for()) as gateway:
        health = (await gateway.send("GET", "/v1/health", key=None)).json()
    assert health["status"] == "healthy"
    assert health["version"]


AMBIGUOUS = {
    "both framings": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n",
    "a list of lengths": b"Content-Length: 5, 6\r\n",
    "a signed length": b"Content-Length: +5\r\n",
    "an unknown coding": b"Transfer-Encoding: gzip, chunked\r\n",
    "chunked twice": b"Transfer-Encoding: chunked, chunked\r\n",
    "space before the colon": b"Content-Length : 5\r\n",
    "a folded line": b"Content-Length: 5\r\nX-A: b\r\n c\r\n",
    "a bare LF": b"Content-Length: 5\r\nX-A: b\nX-C: d\r\n",
    "a bare CR": b"Content-Length: 5\r\nX-A: b\rX-C: d\r\n",
    "a NUL": b"Content-Length: 5\r\nX-A: b\x00c\r\n",
    "two hosts": b"Content-Length: 5\r\nHost: other\r\n",
}


@pytest.mark.parametrize("how", AMBIGUOUS)
async def test_ambiguous_framing_is_400_and_close_and_nothing_goes_up(how: str) -> None:
    """Wire 41, faults A1-A2."""
    async with gateway_over(WHOLE) as (gateway, upstream), RawClient(gateway.port) as client:
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n"
            % CLIENT_KEY.encode()
        )
        await client.send(head + AMBIGUOUS[how] + b"\r\n" + b"0\r\n\r\n" + POST)
        answer = await client.answer()
        assert answer.status == 400
        assert {"message", "type", "param", "code"} <= set(answer.error)
        assert await client.closed()
    assert upstream.connections == []


async def test_no_host_is_400() -> None:
    """Faults A2."""
    async with gateway_over(WHOLE) as (gateway, upstream):
        assert (await gateway.raw(request("POST", CHAT, CHAT_BODY, KEY, host=None))).status == 400
    assert upstream.connections == []
