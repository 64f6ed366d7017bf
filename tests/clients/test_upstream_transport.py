"""UpstreamTransport: the upstream engine behind `httpx` and `httpx2` behaves as their own transports do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import httpx2
import pytest

from headgate.clients import upstream_transport
from headgate.clients.upstream_transport import UNREAD_BYTES, UpstreamTransport
from tests_support.answers import LAST_CHUNK, chunk, json_response, response, response_head
from tests_support.upstream import FIN, RST, STALL, FakeUpstream, Repeat, Request, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

each_package = pytest.mark.parametrize("package", [httpx, httpx2], ids=lambda package: package.__name__)
CHUNKED = response_head(200, [("content-type", "text/plain"), ("transfer-encoding", "chunked")])


def client_of(package: Any, **settings: Any) -> Any:
    return package.AsyncClient(transport=UpstreamTransport(), **settings)


@each_package
async def test_a_request_goes_out_as_it_was_made(package: Any, no_leaks: None) -> None:
    async with FakeUpstream(json_response({"a": 1}, 201, [("x-b", "c")])) as upstream, client_of(package) as client:
        answer = await client.put(f"{upstream.url}/p%20q?r=1&r=2", headers={"X-Own": "v"}, content=b"body")
    [request] = upstream.requests
    assert (request.method, request.target, request.body) == ("PUT", "/p%20q?r=1&r=2", b"body")
    assert (request.header("x-own"), request.header("content-length")) == ("v", "4")
    assert request.header("host") == f"127.0.0.1:{upstream.port}"
    assert [name for name, _ in request.headers].count("content-length") == 1
    assert isinstance(answer, package.Response)
    assert (answer.status_code, answer.headers["x-b"], answer.json()) == (201, "c", {"a": 1})


@each_package
async def test_a_streamed_body_goes_out_whole(package: Any) -> None:
    async def pieces() -> Any:
        yield b"a"
        yield b"b"

    async with FakeUpstream(json_response({})) as upstream, client_of(package) as client:
        await client.post(upstream.url, content=pieces())
    assert upstream.requests[0].body == b"ab"


@each_package
async def test_connections_are_kept_and_used_again(package: Any) -> None:
    async with FakeUpstream(json_response({})) as upstream, client_of(package) as client:
        for _ in range(3):
            await client.get(upstream.url)
    assert len(upstream.connections) == 1


@each_package
async def test_an_answer_streams_as_it_comes(package: Any) -> None:
    def script(asked: Request) -> Sequence[Step]:
        return [CHUNKED, chunk(b"one"), chunk(b"two"), LAST_CHUNK]

    async with (
        FakeUpstream(script) as upstream,
        client_of(package) as client,
        client.stream("GET", upstream.url) as answer,
    ):
        assert b"".join([piece async for piece in answer.aiter_bytes()]) == b"onetwo"


@each_package
async def test_a_body_that_ends_with_the_connection_is_whole(package: Any) -> None:
    """As RFC 9112, 6.3 has it; the gateway's own chain is stricter."""
    script: list[Step] = [response_head(200, [("connection", "close")]), b"text", FIN]
    async with FakeUpstream(script) as upstream, client_of(package) as client:
        assert (await client.get(upstream.url)).content == b"text"


@each_package
async def test_nobody_there_is_a_connect_error(package: Any) -> None:
    async with FakeUpstream() as gone:
        url = gone.url
    async with client_of(package) as client:
        with pytest.raises(package.ConnectError):
            await client.get(url)


@each_package
@pytest.mark.parametrize("end", [FIN, RST], ids=["fin", "rst"])
async def test_no_answer_and_half_an_answer_are_protocol_errors(package: Any, end: Step) -> None:
    for script in ([end], [CHUNKED, chunk(b"half"), end], [b"nonsense\r\n\r\n", end]):
        async with FakeUpstream(script) as upstream, client_of(package) as client:
            with pytest.raises(package.RemoteProtocolError):
                await client.get(upstream.url)


@each_package
@pytest.mark.parametrize("script", [[STALL], [CHUNKED, chunk(b"half"), STALL]], ids=["head", "body"])
async def test_patience_that_ends_is_a_read_timeout_and_closes(package: Any, script: list[Step]) -> None:
    async with FakeUpstream(script) as upstream, client_of(package, timeout=0.2) as client:
        with pytest.raises(package.ReadTimeout):
            await client.get(upstream.url)
        await upstream.wait_closed()


@each_package
async def test_a_task_that_is_cancelled_closes_its_connection(package: Any) -> None:
    async with FakeUpstream([STALL]) as upstream, client_of(package) as client:
        task = asyncio.create_task(client.get(upstream.url))
        await upstream.wait_request()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await upstream.wait_closed()


@each_package
async def test_leaving_an_answer_closes_its_connection(package: Any) -> None:
    async with FakeUpstream([CHUNKED, chunk(b"one"), STALL]) as upstream, client_of(package) as client:
        async with client.stream("GET", upstream.url) as answer:
            assert await anext(answer.aiter_bytes()) == b"one"
        await upstream.wait_closed()


async def test_a_slow_reader_pauses_the_provider() -> None:
    script: list[Step] = [CHUNKED, Repeat(chunk(b"x" * 8000), 1000), LAST_CHUNK]
    async with (
        FakeUpstream(script) as upstream,
        client_of(httpx2) as client,
        client.stream("GET", upstream.url) as answer,
    ):
        pieces = answer.aiter_raw()
        size = len(await anext(pieces))
        await asyncio.sleep(0.2)
        waiting = len(await anext(pieces))
        size += waiting
        async for piece in pieces:
            size += len(piece)
    assert size == 8_000_000
    assert waiting < UNREAD_BYTES + 1024 * 1024


@each_package
async def test_what_cannot_be_sent_is_the_callers_error(package: Any) -> None:
    async with FakeUpstream(json_response({})) as upstream, client_of(package) as client:
        with pytest.raises(package.LocalProtocolError):
            await client.get(upstream.url, headers={"x-a": "b\r\nc: d"})
        with pytest.raises(package.UnsupportedProtocol):
            await client.get("ftp://127.0.0.1/")
    assert upstream.requests == []


async def test_origins_are_bounded_and_the_longest_unused_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_transport, "MAX_ORIGINS", 2)
    async with (
        FakeUpstream(json_response({})) as one,
        FakeUpstream(json_response({})) as two,
        FakeUpstream(json_response({})) as three,
        client_of(httpx2) as client,
    ):
        for upstream in (one, two, one, three, one):
            await client.get(upstream.url)
        await two.wait_closed()
        assert [len(upstream.connections) for upstream in (one, two, three)] == [1, 1, 1]


@each_package
async def test_many_at_once_get_their_own_answers(package: Any) -> None:
    async with (
        FakeUpstream(lambda asked: response(200, asked.target.encode())) as upstream,
        client_of(package) as client,
    ):
        answers = await asyncio.gather(*(client.get(f"{upstream.url}/{n}") for n in range(40)))
    assert [answer.text for answer in answers] == [f"/{n}" for n in range(40)]
