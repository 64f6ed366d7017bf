"""The downstream seam: what an engine may rely on, the same over both edges."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from headgate.proxy.edge.context import EdgeLimits
from tests_support.edge import JSON, EchoAcceptor, Recorder, post, running_asgi, running_edge
from tests_support.raw import CHAT, RawClient, request

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from tests_support.edge import Edge

    Running = Callable[..., AbstractAsyncContextManager[Edge]]

SSE = (b"content-type", b"text/event-stream")
MIB = 1 << 20


@pytest.fixture(params=["raw", "asgi"])
def running(request: pytest.FixtureRequest) -> Running:
    """Either edge."""
    return running_edge if request.param == "raw" else running_asgi


def nothing(recorder: Recorder) -> None:
    """An engine that takes its time."""


async def test_a_whole_reply_has_its_length_and_its_bytes(running: Running) -> None:
    async with running(EchoAcceptor()) as edge:
        answer = await edge.ask(post(b'{"a": 1}'))
    assert (answer.status, answer.body, answer.whole) == (200, b'{"a": 1}', True)
    assert answer.header("content-length") == "8"
    assert answer.header("content-type") == "application/json"


async def test_the_request_head_is_known_when_it_arrives(running: Running) -> None:
    acceptor = EchoAcceptor()
    async with running(acceptor) as edge:
        await edge.ask(request("POST", f"{CHAT}?a=%20b", b"{}", [("X-Thing", "one"), ("x-thing", "two")]))
    head = acceptor.seen[0].downstream.head
    assert (head.method, head.path, head.target, head.query) == ("POST", CHAT, CHAT.encode(), b"a=%20b")
    assert (head.http_version, head.client, head.scheme) == ("1.1", "127.0.0.1", "http")
    assert head.header(b"x-thing") == b"one"
    assert (b"x-thing", b"two") in head.headers
    assert head.header(b"not-there") is None


async def test_every_event_arrives_before_the_next_is_written(running: Running) -> None:
    acceptor = EchoAcceptor(nothing)
    async with running(acceptor) as edge, RawClient(edge.port) as client:
        await client.send(post())
        downstream = (await acceptor.next()).downstream
        downstream.start(200, [SSE], None)
        assert downstream.write(b"data: first\n\n")
        answer = await client.head()
        assert await client.piece() == b"data: first\n\n"
        for number in range(5):
            assert downstream.write(b"data: %d\n\n" % number)
            assert await client.piece() == b"data: %d\n\n" % number
        downstream.end()
        assert await client.piece() == b""
        assert answer.whole


async def test_a_reply_without_a_body_is_whole(running: Running) -> None:
    async with running(EchoAcceptor(lambda r: r.downstream.reply(200, [JSON], b""))) as edge:
        answer = await edge.ask(post())
    assert (answer.status, answer.body, answer.whole) == (200, b"", True)


async def test_a_stream_may_be_empty(running: Running) -> None:
    def act(recorder: Recorder) -> None:
        recorder.downstream.start(200, [SSE], None)
        recorder.downstream.write(b"")
        recorder.downstream.end()

    async with running(EchoAcceptor(act)) as edge:
        answer = await edge.ask(post())
    assert (answer.body, answer.whole) == (b"", True)


@pytest.mark.parametrize("length", [5, None])
async def test_head_is_answered_without_the_body(running: Running, length: int | None) -> None:
    def act(recorder: Recorder) -> None:
        recorder.downstream.start(200, [JSON], length)
        recorder.downstream.write(b"12345")
        recorder.downstream.end()

    async with running(EchoAcceptor(act)) as edge, RawClient(edge.port) as client:
        for _ in range(2):
            await client.send(request("HEAD", CHAT))
            answer = await client.answer(bodiless=True)
            assert answer.status == 200
            assert answer.header("content-length") == (None if length is None else "5")


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_a_body_has_no_framing(running: Running, status: int) -> None:
    async with (
        running(EchoAcceptor(lambda r: r.downstream.reply(status, [], b""))) as edge,
        RawClient(edge.port) as client,
    ):
        for _ in range(2):
            await client.send(post())
            answer = await client.answer()
            assert answer.status == status
            assert answer.header("content-length") is None
            assert answer.header("transfer-encoding") is None


@pytest.mark.parametrize("size", [0, 1, 65536, 3 * MIB])
async def test_a_body_arrives_as_it_was_sent(running: Running, size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    acceptor = EchoAcceptor(limit=4 * MIB)
    async with running(acceptor) as edge:
        answer = await edge.ask(post(body[:size]))
    assert acceptor.seen[0].bodies == [body[:size]]
    assert answer.body == body[:size]


async def test_a_chunked_body_arrives_without_its_chunks(running: Running) -> None:
    async with running(EchoAcceptor()) as edge, RawClient(edge.port) as client:
        await client.send(request("POST", CHAT, None, [("transfer-encoding", "chunked")]))
        for piece in (b"5\r\nhello\r\n", b"6;x=y\r\n wor", b"ld\r\n0\r", b"\nx-trailer: 1\r\n\r\n"):
            await client.send(piece)
        assert (await client.answer()).body == b"hello world"
        await client.send(post(b"next"))
        assert (await client.answer()).body == b"next"


async def test_a_request_without_a_body_has_an_empty_one(running: Running) -> None:
    acceptor = EchoAcceptor()
    async with running(acceptor) as edge:
        assert (await edge.ask(request("GET", CHAT))).status == 200
    assert acceptor.seen[0].bodies == [b""]


async def test_the_body_never_comes_from_inside_read_body(running: Running) -> None:
    inside: list[bool] = []

    def act(recorder: Recorder) -> None:
        recorder.downstream.read_body(100)
        inside.append(bool(recorder.bodies))

    async with running(EchoAcceptor(act)) as edge:
        assert (await edge.ask(post())).status == 200
    assert inside == [False]


async def test_the_body_may_be_asked_for_later(running: Running) -> None:
    acceptor = EchoAcceptor(nothing)
    async with running(acceptor) as edge, RawClient(edge.port) as client:
        await client.send(post(b"late"))
        recorder = await acceptor.next()
        await asyncio.sleep(0.02)
        recorder.downstream.read_body(100)
        assert recorder.bodies == []
        assert (await client.answer()).body == b"late"


async def test_a_body_announced_too_large_is_refused_unread(running: Running) -> None:
    acceptor = EchoAcceptor(limit=1000)
    async with running(acceptor) as edge, RawClient(edge.port) as client:
        await client.send(request("POST", CHAT, None, [("content-length", str(10 * MIB))]))
        answer = await client.answer()
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    assert acceptor.seen[0].bodies == []


async def test_a_chunked_body_is_refused_where_it_grows_too_large(running: Running) -> None:
    acceptor = EchoAcceptor(limit=1000)
    async with running(acceptor) as edge, RawClient(edge.port) as client:
        await client.send(request("POST", CHAT, None, [("transfer-encoding", "chunked")]))
        await client.send(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        await client.send(b"1\r\nx\r\n")
        answer = await client.answer()
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")


async def test_bodies_share_one_bound_and_give_their_bytes_back(running: Running) -> None:
    acceptor = EchoAcceptor(echo=False)
    async with running(acceptor, budget=1500) as edge:
        async with RawClient(edge.port) as first, RawClient(edge.port) as second:
            await first.send(post(b"x" * 1000))
            holder = await acceptor.next()
            await holder.until(lambda r: r.bodies)
            assert edge.context.budget.used == 1000
            await second.send(post(b"y" * 1000))
            refused = await acceptor.next()
            await refused.until(lambda r: r.errors)
            assert refused.errors[0].status == 503
            assert edge.context.budget.used == 1000
            refused.downstream.reply(503, [JSON], b"{}")
            holder.downstream.reply(200, [JSON], b"{}")
            assert (await first.answer()).status == 200
            assert edge.context.budget.used == 0
        acceptor.echo = True
        assert (await edge.ask(post(b"z" * 1000))).status == 200


async def test_write_says_when_the_client_is_behind_and_resume_when_it_reads_again(running: Running) -> None:
    acceptor = EchoAcceptor(nothing)
    async with running(acceptor) as edge, RawClient(edge.port) as client:
        await client.send(post())
        recorder = await acceptor.next()
        downstream = recorder.downstream
        downstream.start(200, [SSE], None)
        assert downstream.write(b"first")
        await client.head()
        written = 5
        block = b"x" * 65536
        for _ in range(1000):
            written += len(block)
            if not downstream.write(block):
                await asyncio.sleep(0.02)
                if not recorder.resumed:
                    break
                recorder.forget_resumes()
        else:
            pytest.fail("write never said that the client is behind")
        pieces = 0
        while pieces < written:
            pieces += len(await client.piece())
        await recorder.until(lambda r: r.resumed == 1)
        downstream.end()
        assert await client.piece() == b""


@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_leaves_before_the_answer_is_reported_once(running: Running, reset: bool) -> None:
    acceptor = EchoAcceptor(echo=False)
    async with running(acceptor) as edge, RawClient(edge.port) as client:
        await client.send(post())
        recorder = await acceptor.next()
        await recorder.until(lambda r: r.bodies)
        client.leave(reset=reset)
        await recorder.until(lambda r: r.gone)
        downstream = recorder.downstream
        downstream.start(200, [SSE], None)
        assert downstream.write(b"nobody")
        downstream.end()
        downstream.abort()
        assert recorder.gone == 1


async def test_a_client_that_leaves_before_anybody_asked_for_the_body_is_reported(running: Running) -> None:
    acceptor = EchoAcceptor(nothing)
    async with running(acceptor) as edge, RawClient(edge.port) as client:
        await client.send(post())
        recorder = await acceptor.next()
        client.leave()
        await recorder.until(lambda r: r.gone)
        recorder.downstream.read_body(100)
        await asyncio.sleep(0.02)
        assert recorder.bodies == []


async def test_a_client_that_leaves_in_mid_stream_is_reported(running: Running) -> None:
    acceptor = EchoAcceptor(nothing)
    async with running(acceptor) as edge, RawClient(edge.port) as client:
        await client.send(post())
        recorder = await acceptor.next()
        recorder.downstream.start(200, [SSE], None)
        recorder.downstream.write(b"data: 1\n\n")
        await client.head()
        client.leave()
        await recorder.until(lambda r: r.gone)


async def test_a_client_that_leaves_in_mid_body_is_reported(running: Running) -> None:
    acceptor = EchoAcceptor()
    async with running(acceptor) as edge, RawClient(edge.port) as client:
        await client.send(post(b"x" * 5000)[:-100])
        recorder = await acceptor.next()
        client.leave()
        await recorder.until(lambda r: r.gone)
        assert recorder.bodies == []


async def test_nobody_is_reported_gone_after_the_end(running: Running) -> None:
    acceptor = EchoAcceptor()
    async with running(acceptor) as edge:
        await edge.ask(post())
        await asyncio.sleep(0.02)
    assert acceptor.seen[0].gone == 0


@pytest.mark.parametrize("length", [100, None])
async def test_an_aborted_answer_cannot_be_taken_for_whole(running: Running, length: int | None) -> None:
    acceptor = EchoAcceptor(nothing)
    async with running(acceptor) as edge, RawClient(edge.port) as client:
        await client.send(post())
        recorder = await acceptor.next()
        recorder.downstream.start(200, [SSE], length)
        recorder.downstream.write(b"data: 1\n\n")
        answer = await client.head()
        assert await client.piece() == b"data: 1\n\n"
        recorder.downstream.abort()
        assert await client.piece() == b""
        assert not answer.whole
        recorder.downstream.abort()
        assert recorder.gone == 0


@pytest.mark.parametrize("written", [b"", b"1234", b"123456"])
async def test_an_answer_of_another_length_than_announced_is_not_whole(running: Running, written: bytes) -> None:
    def act(recorder: Recorder) -> None:
        recorder.downstream.start(200, [JSON], 5)
        recorder.downstream.write(written)
        recorder.downstream.end()

    async with running(EchoAcceptor(act)) as edge, RawClient(edge.port) as client:
        await client.send(post())
        with contextlib.suppress(AssertionError):  # no answer at all is as good
            answer = await client.answer()
            assert not answer.whole or answer.status == 500
        assert await client.closed()


async def test_late_calls_do_not_reach_the_next_request(running: Running) -> None:
    acceptor = EchoAcceptor()
    async with running(acceptor) as edge, RawClient(edge.port) as client:
        await client.send(post(b"one"))
        assert (await client.answer()).body == b"one"
        late = (await acceptor.next()).downstream
        acceptor.act = nothing
        await client.send(post(b"two"))
        recorder = await acceptor.next()
        late.start(200, [JSON], 3)
        late.write(b"bad")
        late.end()
        late.abort()
        recorder.downstream.read_body(100)
        assert (await client.answer()).body == b"two"


async def test_a_body_that_stops_arriving_is_a_408(running: Running) -> None:
    async with (
        running(EchoAcceptor(), limits=EdgeLimits(body_idle=0.1)) as edge,
        RawClient(edge.port) as client,
    ):
        await client.send(post(b"x" * 100)[:-1])
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (408, "body_timeout")
        assert edge.context.stats.body_timeouts == 1


async def test_a_byte_now_and_then_does_not_keep_a_body_alive(running: Running) -> None:
    async with (
        running(EchoAcceptor(), limits=EdgeLimits(body_idle=0.2)) as edge,
        RawClient(edge.port) as client,
    ):
        await client.send(post(b"x" * 5000)[:-4000])
        for _ in range(20):
            if edge.context.stats.body_timeouts:
                break
            await client.send(b"x")
            await asyncio.sleep(0.05)
        assert (await client.answer()).status == 408


async def test_a_body_that_makes_progress_may_take_its_time(running: Running) -> None:
    async with (
        running(EchoAcceptor(), limits=EdgeLimits(body_idle=0.3, body_progress=10)) as edge,
        RawClient(edge.port) as client,
    ):
        body = b"x" * 100
        await client.send(post(body)[:-100])
        for at in range(0, 100, 10):
            await client.send(body[at : at + 10])
            await asyncio.sleep(0.05)
        assert (await client.answer()).body == body


async def test_a_client_that_reads_nothing_is_cut(running: Running) -> None:
    acceptor = EchoAcceptor(nothing)
    async with (
        running(acceptor, limits=EdgeLimits(write_stall=0.3)) as edge,
        RawClient(edge.port) as client,
    ):
        await client.send(post())
        recorder = await acceptor.next()
        recorder.downstream.start(200, [SSE], None)
        while not recorder.gone:
            if recorder.downstream.write(b"x" * 65536):
                continue
            recorder.forget_resumes()
            await recorder.until(lambda r: r.gone or r.resumed)
        assert edge.context.stats.write_stalls == 1
