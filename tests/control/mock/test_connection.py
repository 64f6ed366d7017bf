"""connection: requests in, scripts out, over real sockets; spoiled by a fault, or good for the next request."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from headgate.control.mock.catalogue import FAULTS
from headgate.control.mock.connection import MockConnection
from headgate.control.mock.provider import MockProvider
from headgate.control.mock.schedule import Schedule
from headgate.control.mock.server import MockServer, serve
from headgate.proxy.clock import LoopClock
from headgate.proxy.edge.listen import bind
from tests_support.caller import eventually
from tests_support.raw import CHAT, RawClient, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from headgate.control.mock.fault import Fault

pytestmark = pytest.mark.usefixtures("no_leaks")


def ask(
    model: str = "m", *, stream: bool = False, text: str = "hi", headers: tuple[tuple[str, str], ...] = ()
) -> bytes:
    body = json.dumps({"model": model, "stream": stream, "messages": [{"role": "user", "content": text}]})
    return request("POST", CHAT, body.encode(), headers)


@asynccontextmanager
async def mock(*faults: Fault, delay: float = 0.0, every: int = 1, speed: float = 1.0) -> AsyncIterator[MockServer]:
    provider = MockProvider(Schedule(faults, every=every), delay=delay)
    server = await serve(bind("127.0.0.1", 0), provider, LoopClock(), speed=speed)
    try:
        yield server
    finally:
        await server.aclose()


async def test_one_connection_carries_many_requests_even_sent_at_once() -> None:
    async with mock() as server, RawClient(server.port) as client:
        await client.send(ask(text="one") + ask(text="two", stream=True) + ask(text="three"))
        answers = [await client.answer() for _ in range(3)]
        assert [b"one" in answers[0].body, b"two" in answers[1].body, b"three" in answers[2].body] == [True] * 3
        assert answers[1].body.endswith(b"data: [DONE]\n\n")
        assert len(server.connections) == 1


async def test_a_request_may_come_byte_by_byte_and_in_chunks() -> None:
    async with mock() as server, RawClient(server.port) as client:
        for byte in ask():
            await client.send(bytes([byte]))
        assert (await client.answer()).status == 200
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        body = b'{"messages":[{"role":"user","content":"hi"}]}'
        await client.send(head)
        await client.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        assert (await client.answer()).status == 200


async def test_a_client_that_waits_for_it_is_told_to_go_on() -> None:
    async with mock() as server, RawClient(server.port) as client:
        head, _, body = ask(headers=(("expect", "100-continue"),)).partition(b"\r\n\r\n")
        await client.send(head + b"\r\n\r\n")
        assert (await client.continue_head()).status == 100
        await client.send(body)
        assert (await client.answer()).status == 200


async def test_connection_close_is_kept() -> None:
    async with mock() as server, RawClient(server.port) as client:
        await client.send(ask(headers=(("connection", "close"),)))
        assert (await client.answer()).whole
        assert await client.closed()


@pytest.mark.parametrize(
    "bad", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET /\x01 HTTP/1.1\r\nhost: x\r\n\r\n"]
)
async def test_what_is_no_request_is_refused_and_the_connection_closed(bad: bytes) -> None:
    async with mock() as server, RawClient(server.port) as client:
        await client.send(bad)
        assert (await client.answer()).status == 400
        assert await client.closed()


async def test_health_models_and_what_is_not_there() -> None:
    async with mock() as server, RawClient(server.port) as client:
        for method, path, status in (
            ("GET", "/healthz", 200),
            ("GET", "/health", 200),
            ("GET", "/v1/models", 200),
            ("POST", "/v1/models", 405),
            ("GET", "/v1/files", 404),
        ):
            await client.send(request(method, path, b"" if method == "POST" else None))
            assert (await client.answer()).status == status


async def test_a_model_names_its_fault_and_the_connection_lives_where_the_fault_lets_it() -> None:
    async with mock() as server, RawClient(server.port) as client:
        await client.send(ask("mock-fault-429"))
        assert (await client.answer()).status == 429
        await client.send(ask("mock-fault-no-such-thing"))
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert "there is no fault 'no-such-thing'" in answer.error["message"]
        await client.send(ask("mock-fault-close-in-body", stream=True))
        answer = await client.answer()
        assert answer.body
        assert not answer.whole
        assert server.strays == 0


async def test_a_model_that_is_not_text_meets_nothing() -> None:
    async with mock() as server, RawClient(server.port) as client:
        await client.send(request("POST", CHAT, b'{"model":7,"messages":[{"role":"user","content":"hi"}]}'))
        assert (await client.answer()).status == 200


async def test_a_bad_request_is_refused_whatever_is_due() -> None:
    async with mock(FAULTS["garbage"]) as server, RawClient(server.port) as client:
        await client.send(request("POST", CHAT, b"{}"))
        assert (await client.answer()).status == 400


async def test_every_second_fails() -> None:
    async with mock(FAULTS["500"], FAULTS["503"], every=2) as server, RawClient(server.port) as client:
        seen = []
        for _ in range(6):
            await client.send(ask())
            seen.append((await client.answer()).status)
        assert seen == [200, 500, 200, 503, 200, 500]


async def test_a_reset_is_one_and_a_close_is_none() -> None:
    async with mock() as server:
        for fault, kind in (("reset-before-head", ConnectionResetError), ("close-before-head", None)):
            async with RawClient(server.port) as client:
                await client.send(ask(f"mock-fault-{fault}"))
                if kind is None:
                    assert await client._reader.read() == b""
                else:
                    with pytest.raises(kind):
                        await client._reader.read()


async def test_what_comes_on_a_spoiled_connection_is_counted_and_not_answered() -> None:
    async with mock() as server, RawClient(server.port) as client:
        await client.send(ask("mock-fault-stall-in-body", stream=True))
        await client.head()
        await client.send(ask())
        await eventually(lambda: server.strays == 1)
        [connection] = server.connections
        assert repr(connection) == "<MockConnection spoiled>"


async def test_a_fault_at_accept_says_nothing_of_the_request() -> None:
    async with mock(FAULTS["accept-close"], FAULTS["deaf"]) as server:
        async with RawClient(server.port) as client:
            assert await client.closed()
        async with RawClient(server.port) as client:
            await client.send(ask())
            await eventually(lambda: any(one.deaf for one in server.connections))
            assert server.strays == 0


async def test_pauses_of_faults_are_played_faster_and_the_delay_of_good_answers_is_not() -> None:
    async with mock(delay=0.01, speed=1000.0) as server, RawClient(server.port) as client:
        await client.send(ask("mock-fault-late-head"))
        assert (await client.answer()).status == 200
        await client.send(ask(stream=True))
        assert (await client.answer()).body.endswith(b"data: [DONE]\n\n")


async def test_a_client_that_reads_nothing_is_not_written_to_for_ever() -> None:
    async with mock() as server, RawClient(server.port) as client:
        client.pause()
        await client.send(ask("mock-fault-huge-json") + ask() * 2)
        [connection] = server.connections
        assert isinstance(connection, MockConnection)
        await eventually(lambda: connection._full)
        client.unpause()
        assert len((await client.answer()).body) > 16 << 20
        assert [(await client.answer()).status for _ in range(2)] == [200, 200]


async def test_a_client_that_leaves_ends_what_is_played() -> None:
    async with mock() as server:
        async with RawClient(server.port) as client:
            await client.send(ask("mock-fault-endless", stream=True))
            await client.head()
            client.leave(reset=True)
        async with RawClient(server.port) as client:
            await client.send(ask()[:-5])
            client.leave()
        await eventually(lambda: not server.connections)
