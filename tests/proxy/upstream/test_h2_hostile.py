"""HTTP/2: a provider that breaks the rules costs its own connection, in bounded memory and time, and nobody else's."""

from __future__ import annotations

import time
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from headgate.proxy.upstream.h1 import HEAD_SECONDS
from headgate.proxy.upstream.h2_session import MAX_OVERHEAD
from headgate.proxy.upstream.pool import PoolLimits
from tests_support.caller import Caller, eventually
from tests_support.clock import FakeClock
from tests_support.h2_upstream import H2Upstream, hello

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests_support.h2_upstream import PeerStream

pytestmark = pytest.mark.usefixtures("no_leaks")

MANY = MAX_OVERHEAD + 10
EMPTY_SETTINGS = SettingsFrame(0).serialize()


def raw(kind: int, flags: int, stream_id: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """A frame that no library would build."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def flagged(frame: Frame, *flags: str) -> Frame:
    frame.flags |= set(flags)
    return frame


def headers(stream: PeerStream, fields: list[tuple[str, str]], *flags: str) -> Frame:
    return flagged(HeadersFrame(stream.id, stream.peer.h2.encoder.encode(fields)), *flags)


OK = [(":status", "200")]
FLOODS: dict[str, Callable[[PeerStream], bytes]] = {
    "settings": lambda _: EMPTY_SETTINGS * MANY,
    "settings acknowledged": lambda _: raw(4, 1, 0) * MANY,
    "ping": lambda _: PingFrame(0, b"12345678").serialize() * MANY,
    "pong": lambda _: raw(6, 1, 0, b"12345678") * MANY,
    "priority": lambda one: PriorityFrame(one.id, depends_on=0, stream_weight=1).serialize() * MANY,
    "reset of the same": lambda one: RstStreamFrame(one.id, error_code=8).serialize() * MANY,
    "window by bits": lambda _: WindowUpdateFrame(0, window_increment=1).serialize() * MANY,
    "window of a stream": lambda one: WindowUpdateFrame(one.id, window_increment=1).serialize() * MANY,
    "empty data": lambda one: headers(one, OK, "END_HEADERS").serialize() + DataFrame(one.id, b"").serialize() * MANY,
    "nothing but padding": lambda one: (
        headers(one, OK, "END_HEADERS").serialize() + raw(0, 8, one.id, b"\x01\x00") * MANY
    ),
    "unknown frames": lambda _: raw(0xEE, 0xFF, 0, b"x") * MANY,
    "interim answers": lambda one: headers(one, [(":status", "103")], "END_HEADERS").serialize() * MANY,
    "continuations": lambda one: headers(one, OK).serialize() + ContinuationFrame(one.id, b"").serialize() * MANY,
    "goaway": lambda _: GoAwayFrame(0, last_stream_id=2**31 - 1).serialize() * MANY,
}


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_flood_costs_its_connection_only(flood: str) -> None:
    async def drowns(stream: PeerStream) -> None:
        await stream.body()
        if stream.id == 1:
            stream.peer.raw(FLOODS[flood](stream))
        else:
            await hello(stream)

    async with H2Upstream(drowns) as upstream, Caller(upstream.base_url, http2=True) as caller:
        tracemalloc.start()
        began = time.process_time()
        drowned = caller.ask()
        assert await drowned.over() in ("ProtocolError", "ResetError")
        await eventually(lambda: caller.stats.cx_active == 0)
        spent = time.process_time() - began
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4 << 20
        assert spent < 5
        assert await caller.ask().over() == drowned.outcome  # the first stream of another connection: the same flood
        assert await caller.ask().over() in (drowned.outcome, "clean")


async def test_a_flood_of_settings_with_many_values_is_cheap() -> None:
    many = raw(4, 0, 0, b"".join((4).to_bytes(2, "big") + n.to_bytes(4, "big") for n in range(2700)))

    async def answer(stream: PeerStream) -> None:
        await stream.body()
        stream.peer.raw(many * 100)
        await hello(stream)

    async with H2Upstream(answer) as upstream, Caller(upstream.base_url, http2=True) as caller:
        began = time.process_time()
        heard = [caller.ask() for _ in range(10)]
        assert [await one.over() for one in heard] == ["clean"] * 10
        assert time.process_time() - began < 5


# Field sections


BOMBS: dict[str, Callable[[PeerStream], bytes]] = {
    # One entry of 4000 bytes in the table, and 16000 references of a byte each.
    "hpack": lambda one: flagged(
        HeadersFrame(one.id, b"\x88\x40\x01a\x7f\xa1\x1e" + b"x" * 4000 + b"\xbe" * 11_000), "END_HEADERS"
    ).serialize(),
    "a list above 64 KiB": lambda one: b"".join(
        [
            HeadersFrame(one.id, b"\x88\x00\x01a\x7f\x81\xf1\x04" + b"x" * 16_000).serialize(),
            *[ContinuationFrame(one.id, b"x" * 16_000).serialize() for _ in range(5)],
        ]
    ),
    "no end of continuations": lambda one: (
        HeadersFrame(one.id, b"\x88").serialize() + ContinuationFrame(one.id, b"").serialize() * 70
    ),
    "an index that is none": lambda one: flagged(HeadersFrame(one.id, b"\xff\x80\x01"), "END_HEADERS").serialize(),
    "a number without end": lambda one: flagged(HeadersFrame(one.id, b"\xff" * 40), "END_HEADERS").serialize(),
    "a string cut short": lambda one: flagged(HeadersFrame(one.id, b"\x00\x05ab"), "END_HEADERS").serialize(),
    "bad huffman": lambda one: flagged(
        HeadersFrame(one.id, b"\x00\x84\xff\xff\xff\xff\x00"), "END_HEADERS"
    ).serialize(),
    "a table above ours": lambda one: flagged(HeadersFrame(one.id, b"\x3f\xe1\xff\x03"), "END_HEADERS").serialize(),
}


@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_field_section_that_cannot_be_taken_costs_the_connection(bomb: str) -> None:
    async def answer(stream: PeerStream) -> None:
        await stream.body()
        stream.peer.raw(BOMBS[bomb](stream))

    async with H2Upstream(answer) as upstream, Caller(upstream.base_url, http2=True) as caller:
        tracemalloc.start()
        assert await caller.ask().over() == "ProtocolError"
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4 << 20
        assert caller.stats.cx_protocol_error == 1
        await upstream.until(lambda: upstream.peers[0].goaway)
        assert upstream.peers[0].goaway is not None
        assert upstream.peers[0].goaway.error_code in (ErrorCodes.COMPRESSION_ERROR, ErrorCodes.ENHANCE_YOUR_CALM)


@pytest.mark.parametrize("drip", ["a frame", "a section"])
async def test_a_head_that_drips_holds_the_connection_for_ten_seconds(drip: str) -> None:
    async def answer(stream: PeerStream) -> None:
        await stream.body()
        whole = headers(stream, OK).serialize()
        stream.peer.raw(whole if drip == "a section" else whole[:-1])

    clock = FakeClock()
    limits = PoolLimits(keepalive_interval=10_000)
    async with (
        H2Upstream(answer) as upstream,
        Caller(upstream.base_url, http2=True, clock=clock, limits=limits) as caller,
    ):
        heard = caller.ask()
        await eventually(
            lambda: caller.endpoint._pool._shared and caller.endpoint._pool._shared[0].session.reading_head
        )
        clock.advance(HEAD_SECONDS - 1)
        assert heard.outcome is None
        clock.advance(1.2)
        assert heard.outcome == "ProtocolError"
        assert caller.stats.cx_active == 0


# Frames that are none


def block(stream: PeerStream) -> bytes:
    return headers(stream, OK).serialize()


BAD: dict[str, Callable[[PeerStream], bytes]] = {
    "larger than we take": lambda one: raw(0, 0, one.id, b"x" * 16_385),
    "data on no stream": lambda _: raw(0, 0, 0, b"x"),
    "data on a stream nobody opened": lambda _: raw(0, 0, 99, b"x"),
    "data on a stream of theirs": lambda _: raw(0, 0, 2, b"x"),
    "more padding than data": lambda one: raw(0, 8, one.id, b"\x05x"),
    "padding without a length": lambda one: raw(0, 8, one.id),
    "headers on no stream": lambda _: raw(1, 4, 0, b"\x88"),
    "headers on a stream nobody opened": lambda _: raw(1, 4, 99, b"\x88"),
    "headers shorter than their priority": lambda one: raw(1, 0x24, one.id, b"\x00\x00"),
    "headers with more padding than block": lambda one: raw(1, 0xC, one.id, b"\xff\x88"),
    "priority on no stream": lambda _: raw(2, 0, 0, b"\0" * 5),
    "reset on no stream": lambda _: raw(3, 0, 0, b"\0" * 4),
    "reset of a stream nobody opened": lambda _: raw(3, 0, 99, b"\0" * 4),
    "reset of a wrong size": lambda one: raw(3, 0, one.id, b"\0" * 3),
    "settings on a stream": lambda one: raw(4, 0, one.id),
    "settings of a wrong size": lambda _: raw(4, 0, 0, b"\0" * 5),
    "settings acknowledged with values": lambda _: raw(4, 1, 0, b"\0" * 6),
    "settings: pushes allowed": lambda _: SettingsFrame(0, {SettingCodes.ENABLE_PUSH: 1}).serialize(),
    "settings: a window too large": lambda _: SettingsFrame(0, {SettingCodes.INITIAL_WINDOW_SIZE: 2**31}).serialize(),
    "settings: a frame too small": lambda _: SettingsFrame(0, {SettingCodes.MAX_FRAME_SIZE: 100}).serialize(),
    "a pushed stream": lambda one: flagged(PushPromiseFrame(one.id, 2, b"\x82"), "END_HEADERS").serialize(),
    "ping on a stream": lambda one: raw(6, 0, one.id, b"\0" * 8),
    "ping of a wrong size": lambda _: raw(6, 0, 0, b"\0" * 7),
    "goaway on a stream": lambda one: raw(7, 0, one.id, b"\0" * 8),
    "goaway of a wrong size": lambda _: raw(7, 0, 0, b"\0" * 7),
    "window of a wrong size": lambda _: raw(8, 0, 0, b"\0" * 3),
    "window that does not grow": lambda _: raw(8, 0, 0, b"\0" * 4),
    "window of a stream nobody opened": lambda _: raw(8, 0, 99, b"\0\0\0\x01"),
    "continuation of nothing": lambda one: raw(9, 4, one.id, b"\x88"),
    "continuation of another": lambda one: block(one) + raw(9, 4, one.id + 2, b"\x88"),
    "data within a section": lambda one: block(one) + raw(0, 0, one.id, b"x"),
    "ping within a section": lambda one: block(one) + raw(6, 0, 0, b"\0" * 8),
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_bad_frame_ends_the_connection_after_the_good_ones_that_came_with_it(bad: str) -> None:
    async def answer(stream: PeerStream) -> None:
        await stream.body()
        if stream.id == 3:
            first = stream.peer.streams[1]
            good = headers(first, [(":status", "200"), ("content-length", "5")], "END_HEADERS").serialize()
            good += flagged(DataFrame(1, b"hello"), "END_STREAM").serialize()
            stream.peer.raw(good + BAD[bad](stream))
        elif len(stream.peer.server.peers) > 1:
            await hello(stream)

    async with H2Upstream(answer) as upstream, Caller(upstream.base_url, http2=True) as caller:
        good, bad_one = caller.ask(), caller.ask()
        assert await good.over() == "clean"
        assert good.body == b"hello"
        assert await bad_one.over() == "ProtocolError"
        assert (caller.stats.cx_protocol_error, caller.stats.cx_active) == (1, 0)
        assert caller.stats.cx_destroy_with_active_rq == 1
        assert await caller.ask().over() == "clean"
        await upstream.until(lambda: upstream.peers[0].goaway)


@pytest.mark.parametrize(
    "greeting",
    [b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n", raw(6, 0, 0, b"\0" * 8), raw(4, 1, 0), b"\0" * 20],
)
async def test_a_provider_that_does_not_begin_with_settings_speaks_no_http_2(greeting: bytes) -> None:
    async with H2Upstream(greeting=greeting, deaf=True) as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask().over() in ("ProtocolError", "ConnectError")  # the latter where it was quicker than we


async def test_what_may_be_ignored_is_ignored() -> None:
    async def answer(stream: PeerStream) -> None:
        await stream.body()
        stream.peer.raw(
            raw(0xEE, 0, stream.id, b"x"),
            PriorityFrame(stream.id + 100, depends_on=0, stream_weight=1),
            SettingsFrame(0, {0x99: 5, SettingCodes.HEADER_TABLE_SIZE: 0, SettingCodes.MAX_HEADER_LIST_SIZE: 100}),
            raw(6, 1, 0, b"nobody's"),
            raw(10, 0, 0, b"\0\x03a.b"),
        )
        await hello(stream)

    async with H2Upstream(answer) as upstream, Caller(upstream.base_url, http2=True) as caller:
        for _ in range(3):
            assert await caller.ask().over() == "clean"
        assert len(upstream.peers) == 1


@pytest.mark.parametrize("late", ["headers", "reset", "window", "data"])
async def test_frames_on_a_stream_that_is_over_are_ignored(late: str) -> None:
    async def answer(stream: PeerStream) -> None:
        await hello(stream)
        if late == "headers":
            stream.peer.raw(headers(stream, [("x-late", "1")], "END_HEADERS", "END_STREAM"))
        elif late == "reset":
            stream.peer.raw(RstStreamFrame(stream.id))
        elif late == "window":
            stream.peer.raw(WindowUpdateFrame(stream.id, window_increment=5))
        else:
            stream.peer.raw(raw(0, 8, stream.id, b"\x01late\0"))

    async with H2Upstream(answer) as upstream, Caller(upstream.base_url, http2=True) as caller:
        for _ in range(3):
            assert await caller.ask().over() == "clean"
        assert len(upstream.peers) == 1
