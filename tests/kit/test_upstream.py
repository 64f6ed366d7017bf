"""FakeUpstream says what its script says, byte for byte, and knows how each connection ended."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from tests_support.answers import chat_chunks, chat_completion, json_response, sse
from tests_support.upstream import FIN, RST, STALL, FakeUpstream, Pause, Repeat, Sleep, in_thread, in_turn

GET = b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX-Request-Id: r-1\r\n\r\n"


async def connect(upstream: FakeUpstream) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", upstream.port)


async def test_says_its_bytes_then_closes(no_leaks: None) -> None:
    async with FakeUpstream([b"HTTP/1.1 200 OK\r\n", Sleep(0.001), b"\r\nhello", FIN]) as upstream:
        reader, writer = await connect(upstream)
        writer.write(GET)
        assert await reader.read() == b"HTTP/1.1 200 OK\r\n\r\nhello"
        writer.close()
        request = await upstream.wait_request()
    assert (request.method, request.target, request.request_id, request.raw) == ("GET", "/v1/models", "r-1", GET)
    assert upstream.connections[0].closed_by == "script"


async def test_reset_is_a_reset_after_all_bytes(no_leaks: None) -> None:
    async with FakeUpstream([b"partial", RST]) as upstream:
        reader, writer = await connect(upstream)
        writer.write(GET)
        assert await reader.readexactly(7) == b"partial"
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_reset_before_anything_is_read(no_leaks: None) -> None:
    async with FakeUpstream(greeting=[RST]) as upstream:
        reader, writer = await connect(upstream)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
    assert upstream.requests == []


async def test_keeps_the_connection_and_plays_scripts_in_turn(no_leaks: None) -> None:
    async with FakeUpstream(in_turn(json_response({"n": 1}), json_response({"n": 2}))) as upstream:
        reader, writer = await connect(upstream)
        for n in (1, 2, 2):
            writer.write(GET)
            assert (await reader.readuntil(b"}")).endswith(b'{"n": %d}' % n)
        writer.close()
        await upstream.wait_closed()
    assert [request.connection for request in upstream.requests] == [upstream.connections[0]] * 3


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_reads_bodies_of_either_framing_cut_anywhere(framing: str, no_leaks: None) -> None:
    body = b'{"model": "x"}'
    if framing == "length":
        raw = b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    else:
        raw = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n4\r\n%b\r\na;x=y\r\n%b\r\n0\r\n\r\n" % (
            body[:4],
            body[4:],
        )
    async with FakeUpstream(json_response({})) as upstream:
        reader, writer = await connect(upstream)
        for byte in raw + raw:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        await upstream.wait_request(2)
        assert [request.json() for request in upstream.requests] == [{"model": "x"}] * 2
        assert [request.raw for request in upstream.requests] == [raw] * 2
        await reader.readuntil(b"{}")
        writer.close()


async def test_pause_holds_until_the_test_says_go(no_leaks: None) -> None:
    pause = Pause()
    async with FakeUpstream([b"a", pause, b"b", FIN]) as upstream:
        reader, writer = await connect(upstream)
        writer.write(GET)
        assert await reader.readexactly(1) == b"a"
        await pause.reached()
        pause.go()
        assert await reader.read() == b"b"
        writer.close()


@pytest.mark.parametrize(("linger", "expected"), [(False, "peer"), (True, "peer-reset")])
async def test_knows_how_the_other_side_left_in_mid_stall(linger: bool, expected: str, no_leaks: None) -> None:
    async with FakeUpstream([STALL]) as upstream:
        _, writer = await connect(upstream)
        writer.write(GET)
        await upstream.wait_request()
        if linger:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        else:
            writer.close()
        assert (await upstream.wait_closed()).closed_by == expected
        assert upstream.open_connections == []


async def test_stops_writing_while_nobody_reads(no_leaks: None) -> None:
    async with FakeUpstream([Repeat(b"x" * 65536, 1000), FIN]) as upstream:
        _, writer = await connect(upstream)
        writer.write(GET)
        await upstream.wait_request()
        await asyncio.sleep(0.2)
        assert upstream.connections[0].written < 40_000_000
        writer.close()


async def test_a_wait_in_vain_says_what_for() -> None:
    async with FakeUpstream() as upstream:
        with pytest.raises(AssertionError, match="for request 1"):
            await upstream.wait_request(within=0.01)


async def test_a_script_that_fails_fails_the_test() -> None:
    def broken(_: object) -> bytes:
        raise LookupError("no script")

    upstream = await FakeUpstream(broken).__aenter__()
    reader, writer = await connect(upstream)
    writer.write(GET)
    assert await reader.read() == b""
    writer.close()
    with pytest.raises(AssertionError, match="no script"):
        await upstream.__aexit__(None)


def test_serves_tests_that_have_no_loop() -> None:
    with in_thread(FakeUpstream(json_response(chat_completion()))) as upstream:
        with socket.create_connection(("127.0.0.1", upstream.port), timeout=5) as sock:
            sock.sendall(GET)
            assert sock.recv(16) == b"HTTP/1.1 200 OK\r"
        assert len(upstream.requests) == 1


def test_a_stream_is_head_events_and_end() -> None:
    steps = sse(chat_chunks("hi", usage={"total_tokens": 1}))
    assert steps[0].startswith(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream")
    assert steps[-2:] == [b"e\r\ndata: [DONE]\n\n\r\n", b"0\r\n\r\n"]
    assert len(steps) == 7
