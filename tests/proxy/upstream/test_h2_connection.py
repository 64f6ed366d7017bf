"""H2Connection without a socket: answers may be cut anywhere, a provider may send anything, a receiver do anything."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection as Judge
from h2.errors import ErrorCodes
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headgate.proxy.clock import NEVER
from headgate.proxy.upstream.call import UpstreamRequest
from headgate.proxy.upstream.h1 import H1Call
from headgate.proxy.upstream.h2_connection import RESTED_SECONDS, UNREAD, H2Connection
from headgate.proxy.upstream.h2_frames import MAX_STREAM_ID
from headgate.proxy.upstream.negotiate import Destination
from headgate.proxy.upstream.pool import PoolLimits
from headgate.proxy.upstream.stats import UpstreamStats
from tests_support.caller import Recorder
from tests_support.clock import FakeClock

if TYPE_CHECKING:
    from headgate.proxy.errors import GatewayError
    from headgate.proxy.upstream.h1 import Carrier

GREETING = SettingsFrame(0).serialize()
ENDS = {"clean", "ResetError", "BrokenAnswerError", "ProtocolError", None}


class Wire(asyncio.Transport):
    """A transport that writes down what is done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.writes = 0
        self.unread = 0
        self.ended = ""

    def write(self, data: Any) -> None:
        self.sent += data
        self.writes += 1

    def get_write_buffer_size(self) -> int:
        return self.unread

    def abort(self) -> None:
        self.ended = self.ended or "aborted"

    def close(self) -> None:
        self.ended = self.ended or "closed"

    def is_closing(self) -> bool:
        return bool(self.ended)


class Owner:
    """A pool that only counts."""

    def __init__(self) -> None:
        self.limits = PoolLimits()
        self.stats = UpstreamStats()
        self.spared = 0
        self.retired = 0
        self.dropped = 0

    def spare(self, connection: H2Connection) -> None:
        self.spared += 1

    def retire(self, connection: H2Connection) -> None:
        self.retired += 1
        if not connection.busy:
            connection.close()

    def expire(self, connection: H2Connection) -> None:
        connection.close()

    def drop(self, connection: H2Connection) -> None:
        self.dropped += 1


class OneCall(H1Call):
    """A call that goes straight to its receiver."""

    def __init__(self, receiver: Recorder, body: bytes = b"") -> None:
        self.request = UpstreamRequest(b"POST", b"/x", [], body)
        self.head = b""
        self.body = body
        self.source = None
        self.content_expected = True
        self.announced = False
        self.receiver = receiver
        self.refused = False
        receiver.call = self

    def pause(self) -> None:
        assert self.carrier is not None
        self.carrier.pause()

    def resume(self) -> None:
        assert self.carrier is not None
        self.carrier.resume()

    def cancel(self) -> None:
        assert self.carrier is not None
        self.carrier.close()

    def on_over(self) -> None: ...

    def on_failed(self, error: GatewayError, carrier: Carrier) -> None:
        self.refused = carrier.refused
        self.receiver.on_error(self, error)


class Bench:
    """A connected connection and its surroundings."""

    def __init__(self, greeting: bytes = GREETING) -> None:
        self.clock = FakeClock()
        self.owner = Owner()
        self.wire = Wire()
        self.encoder = Encoder()
        self.connection = H2Connection(self.owner, self.clock, Destination(b"http", b"up", b"/v1"))
        self.connection.connection_made(self.wire)
        if greeting:
            self.feed(greeting)

    def send(self, receiver: Recorder | None = None, body: bytes = b"") -> Recorder:
        receiver = receiver or Recorder()
        call = OneCall(receiver, body)
        self.connection.send(call)
        return receiver

    def feed(self, *frames: Frame | bytes) -> None:
        if not self.wire.ended:
            data = b"".join(one if isinstance(one, bytes) else one.serialize() for one in frames)
            self.connection.data_received(data)

    def head(self, stream_id: int, status: str = "200", *, ends: bool = False) -> Frame:
        frame = HeadersFrame(stream_id, self.encoder.encode([(":status", status)]))
        frame.flags |= {"END_HEADERS", "END_STREAM"} if ends else {"END_HEADERS"}
        return frame

    async def turn(self) -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    @property
    def frames(self) -> list[Frame]:
        """All that was sent, and it is HTTP/2."""
        data, found = self.wire.sent[24:], []
        while data:
            one, length = Frame.parse_frame_header(memoryview(data[:9]))
            one.parse_body(memoryview(data[9 : 9 + length]))
            found.append(one)
            data = data[9 + length :]
        return found


def data(stream_id: int, content: bytes, *, ends: bool = False) -> Frame:
    frame = DataFrame(stream_id, content)
    if ends:
        frame.flags.add("END_STREAM")
    return frame


def answers(encoder: Encoder) -> bytes:
    """Four answers, interleaved: plain, with a long head, reset, with trailers; and some talk between them."""

    def head(stream_id: int, fields: list[tuple[str, str]], *flags: str) -> Frame:
        frame = HeadersFrame(stream_id, encoder.encode(fields))
        frame.flags |= set(flags)
        return frame

    long = encoder.encode([(":status", "200"), ("x-long", "y" * 100)])
    frames: list[Frame] = [
        SettingsFrame(0, {3: 100}),
        head(1, [(":status", "200"), ("content-length", "5")], "END_HEADERS"),
        PingFrame(0, b"12345678"),
        HeadersFrame(3, long[:10]),
        ContinuationFrame(3, long[10:]),
        data(1, b"hel"),
        head(5, [(":status", "503")], "END_HEADERS"),
        data(3, b"x" * 300),
        WindowUpdateFrame(0, window_increment=1000),
        data(1, b"lo", ends=True),
        RstStreamFrame(5, error_code=2),
        head(7, [(":status", "103")], "END_HEADERS"),
        head(7, [(":status", "200")], "END_HEADERS"),
        data(3, b"", ends=True),
        data(7, b"z"),
        head(7, [("x-sum", "1")], "END_HEADERS", "END_STREAM"),
    ]
    frames[4].flags.add("END_HEADERS")
    return b"".join(one.serialize() for one in frames)


def outcomes(bench: Bench, heard: list[Recorder]) -> list[tuple[object, ...]]:
    return [(one.outcome, one.status, one.body) for one in heard] + [(bench.wire.ended, bench.owner.dropped)]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cuts=st.lists(st.integers(0, 1000), max_size=12))
async def test_answers_cut_anywhere_have_the_same_outcome(cuts: list[int]) -> None:
    stream = answers(Encoder())
    places = sorted({cut for cut in cuts if cut < len(stream)} | {0, len(stream)})
    bench = Bench(b"")
    heard = [bench.send() for _ in range(4)]
    for a, b in pairwise(places):
        bench.feed(stream[a:b])
    await bench.turn()
    assert outcomes(bench, heard) == [
        ("clean", 200, b"hello"),
        ("clean", 200, b"x" * 300),
        ("BrokenAnswerError", 503, b""),
        ("clean", 200, b"z"),
        ("", 0),
    ]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(junk=st.binary(max_size=400), at=st.integers(0, 700))
async def test_whatever_is_sent_instead_ends_each_call_once_and_never_well_unless_it_was(junk: bytes, at: int) -> None:
    stream = answers(Encoder())
    bench = Bench(b"")
    heard = [bench.send() for _ in range(4)]
    bench.feed(stream[:at] + junk)
    bench.feed(stream[at:])
    bench.connection.connection_lost(None)
    await bench.turn()
    assert {one.outcome for one in heard} <= ENDS - {None}
    assert bench.owner.dropped == 1


FRAMES = st.builds(
    lambda kind, flags, number, payload: (
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + number.to_bytes(4, "big") + payload
    ),
    st.integers(0, 11),
    st.one_of(st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x2D]), st.integers(0, 255)),
    st.one_of(st.sampled_from([0, 1, 3, 5, 7, 9, 2]), st.integers(0, 2**32 - 1)),
    st.one_of(st.binary(max_size=20), st.sampled_from([b"\x88", b"\x88\x5c\x015", b"\0" * 8, b"\0\0\0\x05"])),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(frames=st.lists(FRAMES, max_size=30))
async def test_any_frames_in_any_order_are_survived_and_what_we_say_stays_http_2(frames: list[bytes]) -> None:
    bench = Bench()
    heard = [bench.send(body=b"b" * 10) for _ in range(4)]
    await bench.turn()
    for one in frames:
        bench.feed(one)
    await bench.turn()
    assert all(one.outcome in ENDS for one in heard)
    resets = [one.stream_id for one in bench.frames if isinstance(one, RstStreamFrame)]
    assert len(resets) == len(set(resets))
    judge = Judge(H2Configuration(client_side=False))
    judge.initiate_connection()
    acknowledged = bench.wire.sent.count(b"\0\0\0\x04\x01\0\0\0\0")
    for _ in range(acknowledged):
        judge.update_settings({})
    judge.receive_data(bench.wire.sent)
    bench.connection.connection_lost(ConnectionResetError())
    assert bench.owner.dropped == 1
    assert all(one.outcome is not None for one in heard)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    event=st.sampled_from(["head", "data", "end", "error"]),
    act=st.sampled_from(["cancel", "pause", "start", "cancel all", "close"]),
    cut=st.integers(1, 700),
)
async def test_a_receiver_may_do_anything_from_inside_a_callback(event: str, act: str, cut: int) -> None:
    bench = Bench(b"")
    heard: list[Recorder] = []

    def do(call: Any) -> None:
        if act == "cancel":
            call.cancel()
        elif act == "pause":
            call.pause()
        elif act == "start" and bench.connection.usable:
            bench.send()
        elif act == "cancel all":
            for one in heard:
                one.cancelled = one.outcome is None
                one.call.cancel()
        elif act == "close":
            bench.connection.close()

    heard += [bench.send(Recorder({event: do})) for _ in range(4)]  # type: ignore[dict-item]
    stream = answers(Encoder())
    bench.feed(stream[:cut])
    bench.feed(stream[cut:])
    await bench.turn()
    for one in heard:
        one.call.resume()
    await bench.turn()
    assert all(not one.wrong for one in heard)


# What waits, and for how long


async def test_what_one_turn_says_is_written_in_one_piece() -> None:
    bench = Bench()
    before = bench.wire.writes
    for _ in range(50):
        bench.send(body=b"body")
    await bench.turn()
    assert bench.wire.writes == before + 1


async def test_a_provider_that_makes_us_answer_and_reads_nothing_is_given_up() -> None:
    bench = Bench()
    heard = bench.send()
    await bench.turn()
    bench.connection.pause_writing()
    bench.wire.unread = UNREAD
    bench.feed(PingFrame(0, b"12345678"))
    assert heard.outcome is None
    bench.wire.unread = UNREAD + 1
    bench.feed(PingFrame(0, b"12345678"))
    assert heard.outcome == "ProtocolError"
    assert bench.wire.ended == "aborted"


async def test_a_body_waits_while_the_transport_is_behind() -> None:
    bench = Bench()
    bench.connection.pause_writing()
    heard = bench.send(body=b"x" * 1000)
    await bench.turn()
    assert not [one for one in bench.frames if isinstance(one, DataFrame)]
    assert heard.events == []
    bench.connection.resume_writing()
    await bench.turn()
    assert [one.data for one in bench.frames if isinstance(one, DataFrame)] == [b"x" * 1000]
    assert heard.events == ["sent"]


async def test_silence_is_asked_about_and_an_answer_of_any_kind_is_one() -> None:
    bench = Bench()
    heard = bench.send()
    connection, limits = bench.connection, bench.owner.limits
    start = bench.clock.monotonic()
    assert connection.deadline == start + limits.keepalive_interval
    bench.clock.advance(limits.keepalive_interval)
    connection.on_deadline()
    await bench.turn()
    assert [one.opaque_data for one in bench.frames if isinstance(one, PingFrame)] == [b"headgate"]
    assert connection.deadline == start + limits.keepalive_interval + limits.keepalive_timeout
    bench.clock.advance(limits.keepalive_timeout - 1)
    bench.feed(bench.head(1))
    bench.clock.advance(1)
    connection.on_deadline()
    assert heard.outcome is None
    assert connection.deadline > bench.clock.monotonic()


async def test_a_connection_that_does_not_answer_a_ping_is_given_up() -> None:
    bench = Bench()
    waiting, begun = bench.send(), bench.send()
    bench.feed(bench.head(3))
    for seconds in (bench.owner.limits.keepalive_interval, bench.owner.limits.keepalive_timeout):
        bench.clock.advance(seconds)
        bench.connection.on_deadline()
    assert (waiting.outcome, begun.outcome) == ("ResetError", "BrokenAnswerError")
    assert bench.owner.stats.cx_keepalive_timeout == 1
    assert bench.wire.ended == "aborted"


async def test_a_connection_that_has_rested_is_asked_along_with_the_next_request() -> None:
    bench = Bench()
    bench.send()
    bench.feed(bench.head(1, ends=True))
    assert bench.connection.deadline == NEVER
    bench.clock.advance(RESTED_SECONDS)
    bench.send()
    await bench.turn()
    assert [type(one).__name__ for one in bench.frames][-2:] == ["PingFrame", "HeadersFrame"]
    assert bench.connection.deadline == bench.clock.monotonic() + bench.owner.limits.keepalive_timeout


async def test_an_idle_connection_that_is_overdue_is_expired() -> None:
    bench = Bench()
    bench.connection.on_deadline()
    assert bench.wire.ended == "closed"
    assert isinstance(bench.frames[-1], GoAwayFrame)
    bench.connection.close()
    assert bench.owner.dropped == 1


async def test_a_head_that_its_caller_no_longer_waits_for_leaves_a_connection_for_nobody() -> None:
    bench = Bench()
    heard, other = bench.send(), bench.send()
    bench.feed(HeadersFrame(1, b"\x88"))
    heard.call.cancel()
    assert (bench.connection.retired, bench.connection.usable) == (True, False)
    assert other.outcome is None
    other.call.cancel()
    assert bench.wire.ended == "closed"


async def test_calls_that_are_given_up_in_silence_find_out_that_the_connection_is_dead() -> None:
    bench = Bench()
    patience = bench.owner.limits.keepalive_timeout / 5
    for number in range(6):
        heard = bench.send()
        bench.clock.advance(patience)
        heard.call.cancel()
        await bench.turn()
        pings = [one for one in bench.frames if isinstance(one, PingFrame)]
        assert len(pings) == 1, f"asked after {number + 1} calls"
        if bench.connection.deadline <= bench.clock.monotonic():
            bench.connection.on_deadline()
    assert bench.wire.ended == "aborted"
    assert bench.owner.stats.cx_keepalive_timeout == 1


async def test_a_call_given_up_on_a_connection_that_speaks_asks_nothing() -> None:
    bench = Bench()
    heard, other = bench.send(), bench.send()
    bench.clock.advance(1)
    bench.feed(bench.head(3))
    heard.call.cancel()
    await bench.turn()
    assert [one for one in bench.frames if isinstance(one, PingFrame)] == []
    assert other.outcome is None


async def test_an_idle_connection_that_was_asked_waits_for_the_answer_and_is_then_idle() -> None:
    bench = Bench()
    heard = bench.send()
    bench.clock.advance(1)
    heard.call.cancel()
    await bench.turn()
    bench.feed(PingFrame(0, b"headgate", flags={"ACK"}))
    bench.clock.advance(bench.owner.limits.keepalive_timeout)
    again = bench.send()
    assert (bench.wire.ended, again.outcome) == ("", None)


# Ends


async def test_the_last_stream_id_is_the_last_call_of_a_connection() -> None:
    bench = Bench()
    bench.connection.session.next_id = MAX_STREAM_ID
    heard = bench.send()
    assert (bench.connection.retired, bench.connection.usable, bench.connection.alive) == (True, False, True)
    assert bench.wire.ended == ""
    bench.feed(bench.head(MAX_STREAM_ID, ends=True))
    assert heard.outcome == "clean"
    assert bench.wire.ended == "closed"


async def test_a_retired_connection_says_what_it_has_to_say_before_it_closes() -> None:
    bench = Bench()
    heard = bench.send()
    await bench.turn()
    bench.feed(GoAwayFrame(0, last_stream_id=1))
    heard.cancel()
    kinds = [type(one).__name__ for one in bench.frames]
    assert kinds[-2:] == ["RstStreamFrame", "GoAwayFrame"]
    assert bench.wire.ended == "closed"


@pytest.mark.parametrize(
    "greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"<!DOCTYPE html>", b"\0\0\x08\x06\0\0\0\0\0" + b"\0" * 8]
)
async def test_what_is_no_http_2_is_shown_with_the_setting_that_asked_for_it(greeting: bytes) -> None:
    bench = Bench(greeting=b"")
    heard = bench.send()
    bench.connection.data_received(greeting)
    assert heard.error is not None
    assert heard.error.detail is not None
    assert heard.error.detail.startswith("PROTOCOL_ERROR: no HTTP/2: it begins with b")
    assert heard.error.detail.endswith("set http2: false if the server does not speak it")


async def test_a_fault_is_told_to_the_provider_by_its_code() -> None:
    bench = Bench()
    heard = bench.send()
    bench.feed(b"\0\0\x07\x06\0\0\0\0\0" + b"\0" * 7)
    assert heard.outcome == "ProtocolError"
    last = bench.frames[-1]
    assert isinstance(last, GoAwayFrame)
    assert (last.error_code, last.additional_data) == (ErrorCodes.FRAME_SIZE_ERROR, b"PING of a wrong size")
    bench.connection.data_received(GREETING)
    bench.connection.eof_received()
    bench.connection.connection_lost(None)
    bench.connection.resume_writing()
    assert bench.owner.dropped == 1


@pytest.mark.parametrize("stream_id", [1, 3])
async def test_only_what_was_not_looked_at_is_refused(stream_id: int) -> None:
    bench = Bench()
    heard = [bench.send(), bench.send()]
    await bench.turn()
    bench.feed(GoAwayFrame(0, last_stream_id=stream_id))
    assert [one.outcome for one in heard] == [None, "ResetError" if stream_id == 1 else None]
    assert [one.call.refused for one in heard] == [False, stream_id == 1]  # type: ignore[attr-defined]
    bench.connection.connection_lost(None)
    assert [one.outcome for one in heard] == ["ResetError", "ResetError"]
    assert heard[0].call.refused is False  # type: ignore[attr-defined]


async def test_an_answer_seen_in_part_is_never_refused() -> None:
    bench = Bench()
    head, interim = bench.send(), bench.send()
    bench.feed(bench.head(1), bench.head(3, "103"))
    bench.feed(RstStreamFrame(1, error_code=7), RstStreamFrame(3, error_code=7))
    assert [head.outcome, interim.outcome] == ["BrokenAnswerError"] * 2
    assert [one.call.refused for one in (head, interim)] == [False, False]  # type: ignore[attr-defined]
