"""http_protocol: every phase of a connection is bounded, timed and ended; no request harms the next."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headgate.proxy.clock import SWEEP_SECONDS, Deadlines
from headgate.proxy.edge.context import EdgeContext, EdgeLimits
from headgate.proxy.edge.guard import Guard
from headgate.proxy.edge.http_protocol import HttpProtocol
from tests_support.clock import FakeClock
from tests_support.edge import JSON, EchoAcceptor, FakeTransport, Recorder, post, running_edge
from tests_support.raw import CHAT, RawClient, request

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
EXPECT = ("expect", "100-continue")


def nothing(recorder: Recorder) -> None:
    """An engine that takes its time."""


def refuse(recorder: Recorder) -> None:
    """An engine that answers without reading the body."""
    recorder.downstream.reply(401, [JSON], b"{}")


class Bench:
    """A connection on a fake transport and a clock that moves when told."""

    def __init__(self, acceptor: EchoAcceptor, *, sweep: float = SWEEP_SECONDS, **limits: Any) -> None:
        self.clock = FakeClock()
        self.acceptor = acceptor
        self.context = EdgeContext(
            acceptor,
            clock=self.clock,
            deadlines=Deadlines(self.clock, sweep),
            guard=Guard(open_to_all=True),
            limits=EdgeLimits(**limits),
        )
        self.transport = FakeTransport()
        self.connection = HttpProtocol(self.context)
        self.connection.connection_made(self.transport)

    def feed(self, *pieces: bytes) -> None:
        """The client sends."""
        for piece in pieces:
            self.connection.data_received(piece)

    def end(self) -> None:
        """The connection is lost; nothing may be left of it."""
        self.connection.connection_lost(None)
        assert not self.context.connections
        assert len(self.context.deadlines) == 0
        assert self.context.budget.used == 0


# One request after the other


async def test_a_connection_is_kept_for_the_next_request() -> None:
    async with running_edge(EchoAcceptor()) as edge, RawClient(edge.port) as client:
        for number in range(5):
            await client.send(post(b"%d" % number))
            answer = await client.answer()
            assert answer.body == b"%d" % number
            assert answer.header("connection") is None
        assert edge.context.stats.accepted == 1
        assert edge.context.stats.requests == 5


async def test_other_paths_go_to_the_app() -> None:
    async with running_edge(EchoAcceptor()) as edge:
        assert (await edge.ask(post(b"x", path="/healthz"))).body == b"/healthz x"


async def test_a_whole_answer_is_one_write() -> None:
    bench = Bench(EchoAcceptor())
    bench.feed(post(b"hello"))
    assert bench.transport.writes == 1
    assert bench.transport.written.endswith(b"\r\n\r\nhello")
    bench.end()


async def test_an_event_is_one_write_and_the_head_leaves_with_the_first() -> None:
    bench = Bench(EchoAcceptor(nothing))
    bench.feed(post())
    downstream = bench.acceptor.seen[0].downstream
    downstream.start(200, [JSON], None)
    assert bench.transport.writes == 0
    for number in range(1, 4):
        downstream.write(b"data\n\n")
        assert bench.transport.writes == number
    bench.end()


@pytest.mark.parametrize("act", [None, nothing, refuse])
async def test_pipelined_requests_are_answered_one_by_one_in_order(act: Callable[[Recorder], None] | None) -> None:
    acceptor = EchoAcceptor(act)
    async with running_edge(acceptor) as edge, RawClient(edge.port) as client:
        await client.send(b"".join(post(b"%d" % number) for number in range(50)))
        for number in range(50):
            if act is nothing:
                recorder = await acceptor.next()
                assert len(acceptor.seen) == number + 1
                recorder.downstream.read_body(100)
            answer = await client.answer()
            assert answer.status == (401 if act is refuse else 200)
            assert act is refuse or answer.body == b"%d" % number


async def test_pipelined_requests_wait_in_bounded_memory() -> None:
    bench = Bench(EchoAcceptor(nothing), unread=1000)
    bench.feed(post(b"first"), *[post(b"later")] * 20)
    assert not bench.transport.reading
    assert len(bench.acceptor.seen) == 1
    bench.acceptor.act = refuse
    refuse(bench.acceptor.seen[0])
    await asyncio.sleep(0)
    assert bench.transport.reading
    assert len(bench.acceptor.seen) == 21
    bench.end()


async def test_pipelined_requests_wait_while_the_client_does_not_read() -> None:
    bench = Bench(EchoAcceptor())
    bench.connection.pause_writing()
    bench.feed(post(), post())
    assert bench.acceptor.seen == []
    bench.connection.resume_writing()
    assert len(bench.acceptor.seen) == 2
    bench.end()


async def test_connection_close_is_honoured() -> None:
    async with running_edge(EchoAcceptor()) as edge:
        answer = await edge.ask(post(b"x", ("connection", "close")) + post(b"never"))
        assert (answer.body, answer.header("connection")) == (b"x", "close")
        assert edge.context.stats.requests == 1


# HTTP/1.0


async def test_http_1_0_ends_the_answer_by_closing() -> None:
    acceptor = EchoAcceptor(nothing)
    async with running_edge(acceptor) as edge, RawClient(edge.port) as client:
        await client.send(f"POST {CHAT} HTTP/1.0\r\nconnection: keep-alive\r\n\r\n".encode())
        downstream = (await acceptor.next()).downstream
        downstream.start(200, [JSON], None)
        downstream.write(b"all of it")
        downstream.end()
        answer = await client.answer()
        assert answer.header("transfer-encoding") is None
        assert answer.header("connection") == "close"
        assert answer.body == b"all of it"


async def test_http_1_0_cut_answers_are_reset() -> None:
    bench = Bench(EchoAcceptor(nothing))
    bench.feed(f"GET {CHAT} HTTP/1.0\r\n\r\n".encode())
    downstream = bench.acceptor.seen[0].downstream
    downstream.start(200, [JSON], None)
    downstream.write(b"half of")
    downstream.abort()
    assert bench.transport.aborted
    bench.end()


async def test_http_1_0_keep_alive_is_said_back() -> None:
    async with running_edge(EchoAcceptor()) as edge, RawClient(edge.port) as client:
        for _ in range(2):
            await client.send(f"GET {CHAT} HTTP/1.0\r\nconnection: keep-alive\r\n\r\n".encode())
            answer = await client.answer()
            assert answer.header("connection") == "keep-alive"
        await client.send(f"GET {CHAT} HTTP/1.0\r\n\r\n".encode())
        assert (await client.answer()).header("connection") == "close"
        assert await client.closed()


# Bodies nobody reads


async def test_a_small_unread_body_is_skipped_and_the_connection_kept() -> None:
    async with running_edge(EchoAcceptor(refuse)) as edge, RawClient(edge.port) as client:
        for _ in range(3):
            data = post(b"x" * 60_000)
            await client.send(data[:200])
            answer = await client.answer()
            assert (answer.status, answer.header("connection")) == (401, None)
            await client.send(data[200:])
        assert edge.context.stats.accepted == 1


async def test_a_large_unread_body_costs_the_connection_but_not_the_answer() -> None:
    async with running_edge(EchoAcceptor(refuse)) as edge, RawClient(edge.port) as client:
        await client.send(post(b"x" * 8 * MIB))
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (401, "close")
        assert await client.closed()


async def test_a_refused_client_may_go_on_sending_what_nobody_took() -> None:
    bench = Bench(EchoAcceptor(nothing))
    bench.feed(post(b"x" * 500_000)[:100_000])
    assert not bench.transport.reading
    refuse(bench.acceptor.seen[0])
    await asyncio.sleep(0)
    assert bench.transport.ended
    assert bench.transport.reading
    bench.feed(b"x" * 100_000)
    assert not bench.transport.closed
    bench.connection.eof_received()
    assert bench.transport.closed
    bench.connection.eof_received()
    bench.end()


async def test_an_unread_chunked_body_that_is_here_is_skipped() -> None:
    head = request("POST", CHAT, None, [("transfer-encoding", "chunked")])
    async with running_edge(EchoAcceptor(refuse)) as edge, RawClient(edge.port) as client:
        await client.send(head + b"2\r\n{}\r\n0\r\n\r\n")
        assert (await client.answer()).header("connection") is None
        await client.send(head + b"2\r\n{}\r\n")
        assert (await client.answer()).header("connection") == "close"
        assert await client.closed()


async def test_an_unread_chunked_body_that_is_broken_costs_the_connection() -> None:
    head = request("POST", CHAT, None, [("transfer-encoding", "chunked")])
    async with running_edge(EchoAcceptor(refuse)) as edge:
        assert (await edge.ask(head + b"x\r\n{}\r\n0\r\n\r\n")).header("connection") == "close"


async def test_a_skipped_body_that_stops_arriving_ends_the_connection() -> None:
    bench = Bench(EchoAcceptor(refuse))
    bench.feed(post(b"x" * 100)[:-50])
    assert b"connection: close" not in bench.transport.written
    bench.clock.advance(29)
    assert not bench.transport.closed
    bench.clock.advance(2)
    assert bench.transport.aborted
    bench.end()


async def test_broken_chunks_are_a_400_and_the_end() -> None:
    acceptor = EchoAcceptor()
    async with running_edge(acceptor) as edge:
        head = request("POST", CHAT, None, [("transfer-encoding", "chunked")])
        answer = await edge.ask(head + b"2\r\n{}x\r\n0\r\n\r\n")
        assert (answer.status, answer.header("connection")) == (400, "close")
    assert acceptor.seen[0].bodies == []


async def test_an_unasked_body_waits_in_bounded_memory() -> None:
    bench = Bench(EchoAcceptor(nothing, limit=MIB))
    data = post(b"x" * 500_000)
    bench.feed(data[:100_000])
    assert not bench.transport.reading
    bench.acceptor.seen[0].downstream.read_body(MIB)
    await asyncio.sleep(0)
    assert bench.transport.reading
    bench.feed(data[100_000:])
    assert bench.acceptor.seen[0].bodies == [b"x" * 500_000]
    bench.end()


async def test_a_body_in_a_segment_of_its_own_is_passed_on_uncopied() -> None:
    bench = Bench(EchoAcceptor(echo=False))
    body = b"x" * 1000
    data = post(body)
    bench.feed(data[:-1000], body)
    assert bench.acceptor.seen[0].bodies[0] is body
    bench.end()


async def test_a_body_that_failed_is_reported_once_however_late_the_answer() -> None:
    bench = Bench(EchoAcceptor(limit=1000, echo=False))
    bench.feed(
        request("POST", CHAT, None, [("transfer-encoding", "chunked")]), b"5\r\nhello\r\n", b"fff\r\n" + b"x" * 2000
    )
    recorder = bench.acceptor.seen[0]
    assert [error.status for error in recorder.errors] == [413]
    bench.clock.advance(100)
    recorder.downstream.start(413, [JSON], None)
    recorder.downstream.write(b"{}")
    bench.clock.advance(100)
    bench.feed(b"x" * 100_000)
    assert bench.transport.reading
    recorder.downstream.end()
    assert len(recorder.errors) == 1
    assert bench.transport.ended
    bench.end()


async def test_an_answer_that_began_ends_the_wait_for_the_body() -> None:
    bench = Bench(EchoAcceptor())
    bench.feed(post(b"x" * 100_000)[:-90_000])
    recorder = bench.acceptor.seen[0]
    recorder.downstream.start(200, [JSON], None)
    recorder.downstream.write(b"early")
    bench.clock.advance(100)
    bench.feed(b"x" * 80_000)
    assert bench.transport.reading
    assert not recorder.errors
    assert not recorder.bodies
    recorder.downstream.end()
    bench.end()


async def test_nothing_is_served_behind_an_answer_that_was_dropped() -> None:
    acceptor = EchoAcceptor(lambda recorder: recorder.downstream.abort())
    bench = Bench(acceptor)
    bench.feed(post() + post())
    assert bench.transport.aborted
    assert len(acceptor.seen) == 1
    bench.end()


# Expect: 100-continue


async def test_continue_is_sent_when_the_body_is_asked_for() -> None:
    acceptor = EchoAcceptor(nothing)
    async with running_edge(acceptor) as edge, RawClient(edge.port) as client:
        await client.send(request("POST", CHAT, None, [("content-length", "5"), EXPECT]))
        recorder = await acceptor.next()
        recorder.downstream.read_body(100)
        assert (await client.continue_head()).status == 100
        await client.send(b"hello")
        assert (await client.answer()).body == b"hello"


async def test_continue_is_not_sent_to_a_client_that_is_refused() -> None:
    async with running_edge(EchoAcceptor(refuse)) as edge:
        answer = await edge.ask(request("POST", CHAT, None, [("content-length", "5"), EXPECT]))
        assert (answer.status, answer.header("connection")) == (401, "close")


async def test_continue_is_not_sent_for_a_body_that_is_too_large() -> None:
    async with running_edge(EchoAcceptor(limit=4)) as edge:
        answer = await edge.ask(request("POST", CHAT, None, [("content-length", "5"), EXPECT]))
        assert (answer.status, answer.header("connection")) == (413, "close")


async def test_continue_is_not_sent_to_a_client_that_did_not_wait() -> None:
    bench = Bench(EchoAcceptor())
    bench.feed(request("POST", CHAT, b"hello", [EXPECT]))
    assert bench.transport.written.startswith(b"HTTP/1.1 200")
    bench.end()


# Deadlines


async def test_a_connection_that_says_nothing_is_closed() -> None:
    bench = Bench(EchoAcceptor())
    bench.clock.advance(9.9)
    assert not bench.transport.closed
    bench.clock.advance(0.3)
    assert bench.transport.closed
    assert bench.transport.written == b""
    assert bench.context.stats.head_timeouts == 1
    bench.end()


async def test_a_head_must_be_whole_in_time_however_it_drips() -> None:
    bench = Bench(EchoAcceptor())
    for byte in post()[:11]:
        bench.feed(bytes([byte]))
        bench.clock.advance(0.9)
    bench.clock.advance(0.2)
    assert bench.transport.written.startswith(b"HTTP/1.1 408 ")
    assert bench.transport.ended
    bench.end()


async def test_the_next_head_has_its_time_from_its_first_byte() -> None:
    bench = Bench(EchoAcceptor())
    bench.feed(post())
    bench.clock.advance(60)
    bench.feed(b"POST ")
    bench.clock.advance(9.9)
    assert not bench.transport.ended
    bench.clock.advance(0.3)
    assert bench.transport.ended
    bench.end()


async def test_an_idle_connection_is_closed_in_the_end() -> None:
    bench = Bench(EchoAcceptor())
    bench.feed(post())
    bench.clock.advance(74.9)
    assert not bench.transport.closed
    bench.clock.advance(0.4)
    assert bench.transport.closed
    assert bench.context.stats.idle_closed == 1
    bench.end()


async def test_an_engine_that_takes_its_time_is_waited_for() -> None:
    bench = Bench(EchoAcceptor(nothing))
    bench.feed(post())
    bench.clock.advance(3600)
    refuse(bench.acceptor.seen[0])
    assert bench.transport.written.startswith(b"HTTP/1.1 401 ")
    bench.end()


@pytest.mark.parametrize("cut", [None, -5, -2])
async def test_no_body_is_waited_for_once_it_is_here(cut: int | None) -> None:
    bench = Bench(EchoAcceptor(echo=False))
    sent = post(b"hello")
    for piece in (sent[:-5], sent[-5:cut], sent[cut:]) if cut is not None else (sent,):
        if piece:
            bench.feed(piece)
    recorder = bench.acceptor.seen[0]
    bench.clock.advance(3600)
    assert recorder.errors == []
    recorder.downstream.reply(200, [JSON], recorder.bodies[0])
    assert bench.transport.written.endswith(b"\r\n\r\nhello")
    bench.end()


async def test_a_stream_with_long_pauses_is_no_stall() -> None:
    bench = Bench(EchoAcceptor(nothing))
    bench.feed(post())
    downstream = bench.acceptor.seen[0].downstream
    downstream.start(200, [JSON], None)
    for _ in range(5):
        downstream.write(b"data\n\n")
        bench.clock.advance(500)
    assert not bench.transport.closed
    bench.end()


async def test_a_client_that_takes_nothing_is_cut_after_the_stall() -> None:
    bench = Bench(EchoAcceptor(nothing))
    bench.feed(post())
    recorder = bench.acceptor.seen[0]
    recorder.downstream.start(200, [JSON], None)
    bench.transport.stuck = True
    recorder.downstream.write(b"data\n\n")
    bench.clock.advance(29.9)
    assert not bench.transport.closed
    bench.clock.advance(5.3)
    assert bench.transport.aborted
    assert bench.context.stats.write_stalls == 1
    bench.end()
    assert recorder.gone == 1


@pytest.mark.parametrize(("bytes_taken", "served"), [(5000, True), (200, False)])
async def test_a_client_must_take_more_than_a_byte_now_and_then(bytes_taken: int, served: bool) -> None:
    bench = Bench(EchoAcceptor(nothing))
    bench.feed(post())
    recorder = bench.acceptor.seen[0]
    recorder.downstream.start(200, [JSON], None)
    bench.transport.stuck = True
    recorder.downstream.write(b"x" * 60_000)
    for _ in range(10):
        bench.clock.advance(20)
        bench.transport.unsent -= bytes_taken
    assert bench.transport.aborted is not served
    bench.end()


@pytest.mark.parametrize("last", [False, True])
async def test_a_stall_is_noticed_after_the_answer_was_whole(last: bool) -> None:
    bench = Bench(EchoAcceptor())
    bench.transport.stuck = True
    bench.feed(post(b"x" * 10_000, *([("connection", "close")] if last else [])))
    bench.clock.advance(20)
    assert not bench.transport.aborted
    bench.clock.advance(20)
    assert bench.transport.aborted
    bench.end()


async def test_a_refused_client_is_listened_to_for_a_while() -> None:
    bench = Bench(EchoAcceptor())
    bench.feed(b"nonsense\r\n\r\n")
    assert bench.transport.ended
    assert not bench.transport.closed
    for _ in range(9):
        bench.clock.advance(3)
        bench.feed(b"x" * 100_000)
    assert not bench.transport.closed
    bench.clock.advance(3.2)
    assert bench.transport.closed
    bench.end()


async def test_a_refused_client_that_falls_silent_is_closed() -> None:
    bench = Bench(EchoAcceptor())
    bench.feed(b"nonsense\r\n\r\n")
    bench.clock.advance(5.2)
    assert bench.transport.closed
    bench.end()


# Heads without end


@pytest.mark.parametrize("segment", [1000, 65_536, 262_144])
async def test_a_head_without_end_is_cut_at_its_limit(segment: int) -> None:
    bench = Bench(EchoAcceptor())
    fed = 0
    while not bench.transport.written:
        bench.feed((f"GET {CHAT} HTTP/1.1\r\nx: ".encode() if fed == 0 else b"") + b"a" * segment)
        fed += segment
        assert len(bench.connection.unread) <= 65_536
    assert bench.transport.written.startswith(b"HTTP/1.1 431 ")
    assert fed <= 65_536 + segment
    bench.end()


async def test_sixty_megabytes_of_header_are_answered_and_not_kept() -> None:
    async with running_edge(EchoAcceptor()) as edge, RawClient(edge.port) as client:
        await client.send(b"GET / HTTP/1.1\r\nx: ")
        for _ in range(60):
            await client.send(b"a" * MIB)
            (connection,) = edge.context.connections
            assert len(connection.unread) <= 65_536
        answer = await client.answer()
        assert (answer.status, answer.error["code"], answer.header("connection")) == (431, "headers_too_large", "close")


# The client leaves


@pytest.mark.parametrize("at", ["head", "body", "answer", "stream"])
async def test_a_half_close_counts_as_leaving(at: str) -> None:
    bench = Bench(EchoAcceptor(nothing if at in ("answer", "stream") else None))
    data = post(b"x" * 100)
    bench.feed(data[: {"head": 20, "body": -10}.get(at, len(data))])
    if at == "stream":
        bench.acceptor.seen[0].downstream.start(200, [JSON], None)
        bench.acceptor.seen[0].downstream.write(b"data\n\n")
    bench.connection.eof_received()
    assert bench.transport.closed
    assert [recorder.gone for recorder in bench.acceptor.seen] == ([] if at == "head" else [1])
    bench.end()
    assert [recorder.gone for recorder in bench.acceptor.seen] == ([] if at == "head" else [1])


@pytest.mark.parametrize("reset", [False, True])
async def test_a_request_cut_at_any_byte_leaves_nothing(reset: bool) -> None:
    acceptor = EchoAcceptor()
    data = request("POST", CHAT, None, [("transfer-encoding", "chunked")]) + b"2\r\n{}\r\n0\r\n\r\n"
    head = data.index(b"\r\n\r\n") + 4
    async with running_edge(acceptor) as edge:
        for cut in range(1, len(data)):
            async with RawClient(edge.port) as client:
                await client.send(data[:cut])
                if cut >= head:
                    await acceptor.next()
                client.leave(reset=reset)
            await edge.quiet()
        assert [recorder.gone for recorder in acceptor.seen] == [1] * (len(data) - head)
        assert not any(recorder.bodies or recorder.errors for recorder in acceptor.seen)


async def test_a_lost_connection_keeps_no_object_alive() -> None:
    def protocols() -> int:
        return sum(isinstance(thing, HttpProtocol) for thing in gc.get_objects())

    gc.collect()
    before = protocols()
    acceptor = EchoAcceptor(nothing)
    async with running_edge(acceptor) as edge:
        async with RawClient(edge.port) as client:
            await client.send(post())
            await acceptor.next()
            assert protocols() == before + 1
            client.leave(reset=True)
        await edge.quiet()
        await asyncio.sleep(0.01)
        assert protocols() == before


# Bounds on connections, guard, drain, bugs


async def test_a_connection_above_the_bound_hears_503() -> None:
    async with running_edge(EchoAcceptor(), limits=EdgeLimits(connections=2)) as edge:
        async with RawClient(edge.port) as first, RawClient(edge.port) as second:
            await first.send(post())
            await second.send(post())
            assert (await first.answer()).status == (await second.answer()).status == 200
            answer = await edge.ask(post())
            assert (answer.status, answer.error["code"]) == (503, "overloaded")
            assert answer.header("retry-after") == "1"
            await first.send(post())
            assert (await first.answer()).status == 200
        await edge.quiet()
        assert (await edge.ask(post())).status == 200
        assert edge.context.stats.over_limit == 1


async def test_far_above_the_bound_connections_are_closed_at_once() -> None:
    benches = Bench(EchoAcceptor(), connections=8)
    transports = []
    connections = [benches.connection]
    for _ in range(12):
        connections.append(HttpProtocol(benches.context))
        transports.append(FakeTransport())
        connections[-1].connection_made(transports[-1])
    assert [transport.aborted for transport in transports] == [False] * 9 + [True] * 3
    benches.clock.advance(1.2)
    assert [transport.closed for transport in transports] == [False] * 7 + [True] * 5
    for connection in connections:
        connection.connection_lost(None)
    assert not benches.context.connections


@pytest.mark.parametrize("path", [CHAT, "/healthz"])
@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([("origin", "https://evil.example")], "origin_not_allowed"),
        ([("origin", "null")], "origin_not_allowed"),
        ([], "host_not_allowed"),
    ],
)
async def test_pages_from_elsewhere_are_refused_on_every_path(
    path: str, headers: list[tuple[str, str]], code: str
) -> None:
    acceptor = EchoAcceptor()
    host = "rebound.example" if code == "host_not_allowed" else "localhost"
    async with running_edge(acceptor) as edge:
        answer = await edge.ask(request("POST", path, b"{}", headers, host=host))
        assert (answer.status, answer.error["code"], answer.header("connection")) == (403, code, "close")
        answer = await edge.ask(request("HEAD", path, None, headers, host=host))
        assert (answer.status, answer.body) == (403, b"")
    assert acceptor.seen == []


@pytest.mark.parametrize("code", ["origin_not_allowed", "host_not_allowed"])
async def test_what_comes_again_is_held_to_the_rules_of_the_moment(code: str) -> None:
    """A reload replaces the guard; what the one before has let in is nothing to it."""
    acceptor = EchoAcceptor()
    page = [("origin", "https://a.example")] if code == "origin_not_allowed" else []
    ask = request("POST", CHAT, b"{}", page, host="localhost" if page else "gateway.example")
    guard = Guard(open_to_all=False, origins=["https://a.example"])
    async with running_edge(acceptor, guard=guard) as edge, RawClient(edge.port) as client:
        for _ in range(4):
            await client.send(ask)
            assert (await client.answer()).status == 200
        edge.context.guard = Guard(open_to_all=True)
        await client.send(ask)
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (403, code)
    assert len(acceptor.seen) == 4


async def test_what_comes_again_goes_where_its_path_leads_at_the_moment() -> None:
    acceptor = EchoAcceptor()
    async with running_edge(acceptor) as edge, RawClient(edge.port) as client:
        for taken in (True, True, True, True, False):
            acceptor.taken = CHAT if taken else ""
            edge.context.guard = Guard(open_to_all=True)
            await client.send(post(b"x"))
            assert (await client.answer()).body == (b"x" if taken else b"%b x" % CHAT.encode())


async def test_draining_ends_connections_as_they_fall_idle() -> None:
    acceptor = EchoAcceptor(nothing)
    async with running_edge(acceptor) as edge, RawClient(edge.port) as idle, RawClient(edge.port) as busy:
        await idle.send(post())
        (await acceptor.next()).downstream.read_body(100)
        await idle.answer()
        await busy.send(post())
        recorder = await acceptor.next()
        edge.context.draining = True
        edge.server.close_listeners()
        edge.server.close_idle()
        assert await idle.closed()
        recorder.downstream.read_body(100)
        answer = await busy.answer()
        assert (answer.status, answer.header("connection")) == (200, "close")
        assert await busy.closed()


async def test_after_the_last_call_an_answer_ends_its_connection_and_who_asks_nothing_is_closed_later() -> None:
    async with (
        running_edge(EchoAcceptor(), limits=EdgeLimits(last_call=0.3)) as edge,
        RawClient(edge.port) as active,
        RawClient(edge.port) as idle,
        RawClient(edge.port) as fresh,
    ):
        for client in (active, idle):
            await client.send(post())
            assert (await client.answer()).header("connection") is None
        await edge.settle(3)
        edge.server.last_call()
        assert len(edge.context.connections) == 3
        await active.send(post())
        answer = await active.answer()
        assert (answer.status, answer.header("connection")) == (200, "close")
        assert await idle.closed()
        assert await fresh.closed()
        assert edge.context.stats.idle_closed == 2
        assert (await edge.ask(post())).header("connection") == "close"


async def test_a_request_that_the_loop_has_not_read_yet_keeps_its_idle_connection_open() -> None:
    async with running_edge(EchoAcceptor()) as edge, RawClient(edge.port) as client:
        await client.send(post())
        await client.answer()
        [connection] = edge.context.connections
        client.send_unseen(post())
        connection.shutdown()  # as a timer would, before the loop looks at its sockets
        assert (await client.answer()).status == 200
        connection.shutdown()
        assert await client.closed()


async def test_what_has_connected_is_accepted_before_the_socket_is_let_go() -> None:
    async with running_edge(EchoAcceptor()) as edge:
        where = ("127.0.0.1", edge.port)
        waiting = [socket.create_connection(where, timeout=5) for _ in range(20)]
        await edge.server.stop_accepting()
        accepted = len(edge.context.connections)
        for sock in waiting:
            sock.close()
        assert accepted == 20
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(where, timeout=5)


async def test_closing_waits_for_what_runs_and_then_cuts_it() -> None:
    acceptor = EchoAcceptor(nothing)
    async with running_edge(acceptor) as edge, RawClient(edge.port) as client:
        await client.send(post())
        recorder = await acceptor.next()
        closing = asyncio.create_task(edge.server.aclose(grace=5))
        await asyncio.sleep(0.03)
        assert not closing.done()
        recorder.downstream.read_body(100)
        assert (await client.answer()).status == 200
        await closing


async def test_closing_without_grace_tells_the_engine() -> None:
    acceptor = EchoAcceptor(nothing)
    async with running_edge(acceptor) as edge, RawClient(edge.port) as client:
        await client.send(post())
        recorder = await acceptor.next()
        await edge.server.aclose()
        assert recorder.gone == 1


@pytest.mark.parametrize("started", [False, True])
async def test_an_engine_that_raises_is_answered_for(started: bool) -> None:
    def act(recorder: Recorder) -> None:
        if started:
            recorder.downstream.start(200, [JSON], None)
        raise ZeroDivisionError("a secret")

    async with running_edge(EchoAcceptor(act)) as edge, RawClient(edge.port) as client:
        await client.send(post())
        if not started:
            answer = await client.answer()
            assert (answer.status, answer.error["code"], answer.header("connection")) == (
                500,
                "internal_error",
                "close",
            )
            assert b"secret" not in answer.raw
            assert b"ZeroDivision" not in answer.raw
        assert await client.closed()


async def test_an_engine_that_raises_after_its_answer_costs_the_next_request_nothing() -> None:
    def act(recorder: Recorder) -> None:
        refuse(recorder)
        raise ZeroDivisionError

    bench = Bench(EchoAcceptor(act))
    bench.feed(post() + post())
    assert bench.transport.written.count(b"HTTP/1.1 401 ") == 2
    assert not bench.transport.closed
    bench.end()


async def test_an_engine_that_raises_after_it_aborted_is_not_answered_for() -> None:
    def act(recorder: Recorder) -> None:
        recorder.downstream.abort()
        raise ZeroDivisionError

    bench = Bench(EchoAcceptor(act))
    bench.feed(post() + post())
    assert bench.transport.written == b""
    assert bench.transport.aborted
    bench.end()


async def test_a_header_with_a_line_end_in_it_never_leaves() -> None:
    bench = Bench(EchoAcceptor(nothing))
    bench.feed(post())
    downstream = bench.acceptor.seen[0].downstream
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        downstream.start(200, [(b"x", b"a\r\nset-cookie: b")], 0)
    assert bench.transport.written == b""
    refuse(bench.acceptor.seen[0])
    assert bench.transport.written.startswith(b"HTTP/1.1 401 ")
    bench.end()


# Anything at all

VALID = [
    post(b'{"model": "x"}'),
    request("GET", "/healthz"),
    request("POST", CHAT, None, [("transfer-encoding", "chunked")]) + b"2\r\n{}\r\n0\r\n\r\n",
    request("POST", CHAT, None, [("content-length", "5"), EXPECT]) + b"hello",
]


@st.composite
def mutated(draw: st.DrawFn) -> list[bytes]:
    """A few requests with a few bytes changed, cut into segments."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(VALID), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
        if not data:
            break
    cuts = sorted({draw(st.integers(0, len(data))) for _ in range(draw(st.integers(0, 3)))} | {0, len(data)})
    return [bytes(data[start:stop]) for start, stop in pairwise(cuts) if stop > start]


async def play(pieces: list[bytes], act: Callable[[Recorder], None] | None) -> None:
    """Feed the pieces; only 2xx and 4xx may come back, and nothing may be left."""
    bench = Bench(EchoAcceptor(act), sweep=5.0)
    bench.context.app = EchoAcceptor(act)
    for piece in pieces:
        if not bench.transport.closed and not bench.transport.ended:
            bench.feed(piece)
    bench.clock.advance(200)
    await asyncio.sleep(0)
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", bench.transport.written)]
    assert all(status in (100, 200) or 400 <= status < 500 for status in statuses), statuses
    bench.end()
    for recorder in bench.acceptor.seen:
        assert len(recorder.bodies) + len(recorder.errors) <= 1
        assert recorder.gone <= 1


@settings(max_examples=500, deadline=None)
@given(mutated(), st.sampled_from([None, nothing, refuse]))
@example([b"\r\n", b"\r\n"], None)
def test_no_bytes_raise_or_leak(pieces: list[bytes], act: Callable[[Recorder], None] | None) -> None:
    asyncio.run(play(pieces, act))


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(mutated(), st.sampled_from([None, nothing, refuse]))
def test_many_more_bytes_do_not_either(pieces: list[bytes], act: Callable[[Recorder], None] | None) -> None:
    asyncio.run(play(pieces, act))
