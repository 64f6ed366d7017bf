"""HTTP/2: each call at the pace of its slower side, and no call at the pace of another."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
import weakref
from functools import partial
from typing import TYPE_CHECKING

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, SettingsFrame, WindowUpdateFrame

from headgate.proxy.upstream.call import BodySource, UpstreamRequest
from headgate.proxy.upstream.h2_session import STREAM_WINDOW
from headgate.proxy.upstream.pool import PoolLimits
from tests_support.caller import Caller, Recorder, eventually
from tests_support.clock import FakeClock
from tests_support.h2_upstream import H2Upstream, hello
from tests_support.upstream import Pause

if TYPE_CHECKING:
    from headgate.proxy.upstream.call import BodySink, Call
    from tests_support.h2_upstream import Peer, PeerStream

pytestmark = pytest.mark.usefixtures("no_leaks")

KIB = 1024
BODY = bytes(range(256)) * (4 * KIB)


async def many_bytes(stream: PeerStream) -> None:
    """16 MiB to who asks for much, `hello` to the others."""
    if await stream.body() != b"much":
        stream.head(200)
        await stream.data(b"hello", end=True)
        return
    stream.head(200)
    for _ in range(64):
        await stream.data(b"x" * 256 * KIB)
    await stream.data(b"", end=True)


def data_frames(peer: Peer) -> list[DataFrame]:
    return [one for one in peer.frames if isinstance(one, DataFrame)]


# Answers


async def test_a_paused_call_holds_its_provider_at_its_window_and_disturbs_nobody() -> None:
    async with H2Upstream(many_bytes) as upstream, Caller(upstream.base_url, http2=True) as caller:
        tracemalloc.start()
        paused = caller.ask(Recorder({"data": lambda call: call.pause()}), body=b"much")
        await paused.heard("data")
        await eventually(lambda: upstream.peers[0].h2.streams[1].outbound_flow_control_window == 0)
        for _ in range(20):
            assert await caller.ask().over() == "clean"
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert paused.events == ["sent", "head", "data"]
        assert held <= 2 * 512 * KIB  # the peer's own buffers included
        paused.cancel()
        assert await caller.ask().over() == "clean"
        assert len(upstream.peers) == 1


async def test_what_was_held_is_passed_on_when_the_call_goes_on_and_the_rest_follows() -> None:
    class Slow(Recorder):
        def on_data(self, call: Call, data: bytes) -> None:
            super().on_data(call, data)
            call.pause()
            asyncio.get_running_loop().call_soon(call.resume)

    async with H2Upstream(many_bytes) as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = [caller.ask(Slow(), body=b"much") for _ in range(2)]
        assert [await one.over(20) for one in heard] == ["clean"] * 2
        assert {len(one.body) for one in heard} == {16 << 20}


async def test_nothing_is_heard_while_a_call_is_paused_not_even_its_end() -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask()
        heard.call.pause()
        await upstream.request()
        await eventually(lambda: upstream.peers[0].open == [])
        assert await caller.ask().over() == "clean"
        assert heard.events == ["sent"]
        assert caller.stats.rq_active == 1
        heard.call.resume()
        assert heard.events == ["sent"]
        assert await heard.over() == "clean"
        assert heard.body == b"hello"


@pytest.mark.parametrize("event", ["head", "data"])
async def test_a_call_may_pause_again_while_what_was_held_is_passed_on(event: str) -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask(Recorder({event: lambda call: call.pause()}))  # type: ignore[dict-item]
        heard.call.pause()
        await upstream.request()
        assert await caller.ask().over() == "clean"
        heard.call.resume()
        await heard.heard(event)  # type: ignore[arg-type]
        await asyncio.sleep(0.02)
        assert heard.events == ["sent", "head", "data"][: 2 + (event == "data")]
        heard.call.resume()
        assert await heard.over() == "clean"


async def test_a_call_that_is_paused_and_resumed_in_one_turn_misses_nothing() -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask()
        await heard.heard("sent")
        for _ in range(3):
            heard.call.pause()
            heard.call.resume()
        assert await heard.over() == "clean"
        assert heard.body == b"hello"
        assert upstream.peers[0].resets == []


async def test_a_break_is_heard_after_what_came_before_it() -> None:
    async def breaks(stream: PeerStream) -> None:
        await stream.body()
        stream.head(200)
        await stream.data(b"hello")
        stream.reset(ErrorCodes.INTERNAL_ERROR)

    async with H2Upstream(breaks) as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask()
        heard.call.pause()
        await eventually(lambda: caller.stats.rq_rx_reset == 1)
        assert heard.events == ["sent"]
        heard.call.resume()
        assert await heard.over() == "BrokenAnswerError"
        assert (heard.events, heard.body) == (["sent", "head", "data", "error"], b"hello")
        assert upstream.peers[0].resets == []


async def test_a_call_cancelled_with_something_held_is_silent() -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        whole, begun = caller.ask(), caller.ask()
        whole.call.pause()
        await eventually(lambda: len(upstream.requests) == 2 and upstream.peers[0].open == [])
        await begun.over()
        whole.call.resume()
        whole.cancel()
        await asyncio.sleep(0.02)
        assert whole.events == ["sent"]
        assert upstream.peers[0].resets == []


async def test_a_receiver_that_raises_at_what_was_held_is_told_of_an_end() -> None:
    def raises(_: object) -> None:
        raise RuntimeError("a bug")

    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        told: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
        heard = caller.ask(Recorder({"head": raises}))
        heard.call.pause()
        await eventually(lambda: len(upstream.requests) == 1 and upstream.peers[0].open == [])
        assert await caller.ask().over() == "clean"
        heard.call.resume()
        assert await heard.over() == "GatewayError"
        loop.set_exception_handler(None)
        assert [str(one) for one in told] == ["a bug"]


async def test_more_than_its_window_costs_a_call_its_stream() -> None:
    async def floods(stream: PeerStream) -> None:
        await stream.body()
        stream.head(200)
        piece = b"x" * 16 * KIB
        stream.peer.raw(*[DataFrame(stream.id, piece) for _ in range(STREAM_WINDOW // len(piece) + 1)])

    async with H2Upstream(floods) as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask()
        heard.call.pause()
        await upstream.until(lambda: upstream.peers and upstream.peers[0].resets)
        assert upstream.peers[0].resets == [(1, int(ErrorCodes.FLOW_CONTROL_ERROR))]
        heard.call.resume()
        assert await heard.over() == "ProtocolError"
        assert len(heard.body) <= STREAM_WINDOW


async def test_a_stream_of_tiny_frames_is_held_in_little_memory() -> None:
    async def drips(stream: PeerStream) -> None:
        await stream.body()
        stream.head(200)
        one = DataFrame(stream.id, b"x").serialize()
        for _ in range(200):
            stream.peer.raw(one * 500)
            await stream.peer.drained()

    async with H2Upstream(drips) as upstream, Caller(upstream.base_url, http2=True) as caller:
        tracemalloc.start()
        heard = caller.ask(Recorder({"data": lambda call: call.pause()}))
        await heard.heard("data")
        stream = caller.endpoint._pool._shared[0].session.streams[1]
        await eventually(lambda: len(stream._held) == 200 * 500 - 1, 10)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 2 << 20
        heard.cancel()


async def test_a_connection_keeps_nothing_of_the_calls_it_carried() -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask()
        assert await heard.over() == "clean"
        kept = weakref.ref(heard)
        del heard
        gc.collect()
        assert kept() is None


# Requests


async def test_a_large_body_goes_out_as_the_provider_gives_room() -> None:
    room = {SettingCodes.INITIAL_WINDOW_SIZE: 1000}
    async with H2Upstream(settings=room) as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask().over() == "clean"
        heard = [caller.ask(body=BODY[:100_000]) for _ in range(5)]
        assert [await one.over(20) for one in heard] == ["clean"] * 5
        assert [one.events for one in heard] == [["sent", "head", "data", "end"]] * 5
        assert [bytes(stream.received) for stream in upstream.requests[1:]] == [BODY[:100_000]] * 5
        assert max(len(one.data) for one in data_frames(upstream.peers[0])) <= 1000


async def test_bodies_take_turns_where_the_connection_is_the_bottle_neck() -> None:
    room = {SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1}
    async with H2Upstream(settings=room) as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask().over() == "clean"
        heard = [caller.ask(body=BODY) for _ in range(4)]
        assert [await one.over(20) for one in heard] == ["clean"] * 4
        order = [one.stream_id for one in data_frames(upstream.peers[0])]
        ends = [len(order) - order[::-1].index(number) for number in (3, 5, 7, 9)]
        assert min(ends) > len(order) * 0.8


async def test_larger_frames_are_sent_where_the_provider_takes_them() -> None:
    room = {SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1, SettingCodes.MAX_FRAME_SIZE: 40_000}
    async with H2Upstream(settings=room) as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask().over() == "clean"
        assert await caller.ask(body=BODY).over() == "clean"
        assert max(len(one.data) for one in data_frames(upstream.peers[0])) == 40_000


async def test_a_window_that_shrinks_below_nothing_is_waited_for() -> None:
    shrink = Pause()

    async def shrinks(stream: PeerStream) -> None:
        await shrink.wait()
        stream.peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 70_000})
        stream.peer.flush()
        await asyncio.sleep(0.02)
        stream.peer.h2.increment_flow_control_window(1 << 20)
        stream.peer.h2.increment_flow_control_window(1 << 20, stream.id)
        stream.peer.flush()
        await hello(stream)

    first = {SettingCodes.INITIAL_WINDOW_SIZE: 100_000}
    async with (
        H2Upstream(shrinks, settings=first, gives_back=False) as upstream,
        Caller(upstream.base_url, http2=True) as caller,
    ):
        heard = caller.ask(body=BODY)
        await upstream.until(lambda: upstream.requests and len(upstream.requests[0].received) == 65_535)
        shrink.go()
        assert await heard.over() == "clean"
        assert bytes(upstream.requests[0].received) == BODY


async def test_a_provider_that_never_gives_room_fails_the_call_when_it_was_idle_for_too_long() -> None:
    clock = FakeClock()
    limits = PoolLimits(stall_timeout=120, keepalive_interval=10_000)
    async with (
        H2Upstream(gives_back=False) as upstream,
        Caller(upstream.base_url, http2=True, clock=clock, limits=limits) as caller,
    ):
        heard = caller.ask(body=BODY)
        await upstream.until(lambda: upstream.requests and len(upstream.requests[0].received) == 65_535)
        clock.advance(119)
        assert heard.outcome is None
        clock.advance(1.5)
        assert heard.outcome == "UpstreamTimeoutError"
        assert heard.events == ["error"]
        await upstream.until(lambda: upstream.peers[0].resets == [(1, int(ErrorCodes.CANCEL))])


async def test_an_answer_before_the_request_is_over_is_heard_and_the_rest_is_not_sent() -> None:
    async def refuses(stream: PeerStream) -> None:
        stream.head(413, [("content-length", "9")])
        await stream.data(b"too large", end=True)

    async with H2Upstream(refuses, gives_back=False) as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask(body=BODY)
        assert await heard.over() == "clean"
        assert (heard.status, heard.body, heard.events) == (413, b"too large", ["head", "data", "end"])
        await upstream.until(lambda: upstream.peers[0].resets == [(1, int(ErrorCodes.CANCEL))])
        assert await caller.ask(body=b"").over() == "clean"
        assert len(upstream.peers) == 1


async def test_a_provider_that_does_not_read_at_all_gets_no_more_than_a_buffer() -> None:
    room = {SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1}
    async with H2Upstream(settings=room) as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask().over() == "clean"
        peer = upstream.peers[0]
        peer.h2.increment_flow_control_window(2**31 - 1 - 65_535)
        peer.flush()
        assert await caller.ask().over() == "clean"
        peer.stop_reading()
        heard = caller.ask(body=b"x" * (64 << 20))
        transport = caller.endpoint._pool._shared[0]._transport
        for _ in range(10):
            await asyncio.sleep(0.02)
        assert transport.get_write_buffer_size() < 1 << 20
        assert heard.events == []
        heard.cancel()
        peer.abort()
        await eventually(lambda: caller.stats.cx_active == 0)


# Bodies that arrive while they are sent


class Source(BodySource):
    """Gives what the test tells it to."""

    def __init__(self, length: int | None = None) -> None:
        self.length = length
        self.begun = False
        self.sink: BodySink | None = None
        self.paused = False
        self.cancelled = False
        self.resumed = 0

    def start(self, sink: BodySink) -> None:
        self.sink = sink

    def give(self, data: bytes) -> None:
        assert self.sink is not None
        self.begun = True
        self.sink.put(data)

    def finish(self) -> None:
        assert self.sink is not None
        self.sink.finish()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self.resumed += 1

    def cancel(self) -> None:
        self.cancelled = True


def upload(caller: Caller, source: Source) -> Recorder:
    heard = Recorder()
    heard.call = caller.endpoint.start(UpstreamRequest(b"POST", b"/files", [], b"", source), heard)
    return heard


@pytest.mark.parametrize("length", [None, 10])
async def test_a_streamed_body_goes_out_as_it_comes(length: int | None) -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        source = Source(length)
        heard = upload(caller, source)
        assert source.sink is None
        stream = await upstream.request()
        await eventually(lambda: source.sink is not None)
        for piece in (b"hello", b"world"):
            source.give(piece)
            await upstream.until(partial(stream.received.endswith, piece))
        assert heard.events == []
        source.finish()
        assert await heard.over() == "clean"
        assert heard.events == ["sent", "head", "data", "end"]
        assert stream.header("content-length") == (None if length is None else "10")
        assert not source.cancelled


async def test_a_streamed_body_waits_for_room_and_goes_on() -> None:
    room = {SettingCodes.INITIAL_WINDOW_SIZE: 10}
    async with H2Upstream(settings=room) as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask().over() == "clean"
        source = Source()
        heard = upload(caller, source)
        await eventually(lambda: source.sink is not None)
        source.give(b"x" * 25)
        assert source.paused
        source.give(b"y" * 5)  # what was on its way
        source.finish()
        assert await heard.over() == "clean"
        assert bytes(upstream.requests[1].received) == b"x" * 25 + b"y" * 5
        assert source.resumed == 0  # it had finished


async def test_a_streamed_body_is_resumed_when_there_is_room() -> None:
    room = {SettingCodes.INITIAL_WINDOW_SIZE: 10}
    async with H2Upstream(settings=room) as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask().over() == "clean"
        source = Source()
        heard = upload(caller, source)
        await eventually(lambda: source.sink is not None)
        source.give(b"x" * 25)
        await eventually(lambda: not source.paused)
        assert source.resumed == 1
        source.finish()
        assert await heard.over() == "clean"


async def test_a_streamed_body_that_was_begun_goes_to_nobody_else() -> None:
    async def refuse(stream: PeerStream) -> None:
        await stream.changed.wait()
        stream.reset(ErrorCodes.REFUSED_STREAM)

    async with H2Upstream(refuse) as upstream, Caller(upstream.base_url, http2=True) as caller:
        source = Source()
        heard = upload(caller, source)
        await eventually(lambda: source.sink is not None)
        source.give(b"hello")
        assert await heard.over() == "ResetError"
        assert source.cancelled
        source.give(b"nobody")
        source.finish()
        assert len(upstream.requests) == 1


async def test_a_streamed_body_that_was_not_begun_may_go_elsewhere() -> None:
    async def refuse_first(stream: PeerStream) -> None:
        if stream.id == 1:
            stream.reset(ErrorCodes.REFUSED_STREAM)
        else:
            await hello(stream)

    async with H2Upstream(refuse_first) as upstream, Caller(upstream.base_url, http2=True) as caller:
        source = Source()
        heard = upload(caller, source)
        await eventually(lambda: len(upstream.requests) == 2 and not source.begun)
        await eventually(lambda: source.sink is not None)
        source.give(b"hello")
        source.finish()
        assert await heard.over() == "clean"
        assert bytes(upstream.requests[1].received) == b"hello"


async def test_a_cancelled_call_lets_go_of_its_body() -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        source = Source()
        heard = upload(caller, source)
        await eventually(lambda: source.sink is not None)
        heard.cancel()
        assert source.cancelled
        await upstream.until(lambda: upstream.peers and upstream.peers[0].resets)


# Windows that break the rules


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (WindowUpdateFrame(0, window_increment=2**31 - 1), ErrorCodes.FLOW_CONTROL_ERROR),
        (SettingsFrame(0, {SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1}), ErrorCodes.FLOW_CONTROL_ERROR),
    ],
)
async def test_a_window_above_its_maximum_costs_the_connection(frame: WindowUpdateFrame, code: ErrorCodes) -> None:
    async def answer(stream: PeerStream) -> None:
        await stream.body()
        stream.peer.raw(WindowUpdateFrame(stream.id, window_increment=1 << 20), frame)

    async with H2Upstream(answer) as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask().over() == "ProtocolError"
        await upstream.until(lambda: upstream.peers[0].goaway)
        assert upstream.peers[0].goaway is not None
        assert upstream.peers[0].goaway.error_code == code


@pytest.mark.parametrize("increment", [0, 2**31 - 1])
async def test_a_window_of_a_stream_above_its_maximum_costs_the_stream(increment: int) -> None:
    async def answer(stream: PeerStream) -> None:
        await stream.body()
        update = WindowUpdateFrame(stream.id, window_increment=1).serialize()
        stream.peer.raw(update[:-4] + increment.to_bytes(4, "big"))

    async with H2Upstream(answer) as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask().over() == "ProtocolError"
        await upstream.until(lambda: upstream.peers[0].resets == [(1, int(ErrorCodes.FLOW_CONTROL_ERROR))])
        assert caller.stats.cx_active == 1


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_connection_on_which_a_request_starved_gets_no_more_calls(cancelled: bool) -> None:
    clock = FakeClock()
    limits = PoolLimits(stall_timeout=120, keepalive_interval=10_000)
    async with (
        H2Upstream(gives_back=False) as upstream,
        Caller(upstream.base_url, http2=True, clock=clock, limits=limits) as caller,
    ):
        starved = caller.ask(body=BODY)
        await upstream.until(lambda: upstream.requests and len(upstream.requests[0].received) == 65_535)
        if cancelled:  # by the deadline of who waits for it
            clock._now += 120
            starved.cancel()
        else:
            clock.advance(120.2)
            assert starved.outcome == "UpstreamTimeoutError"
        assert await caller.ask().over() == "clean"
        assert len(upstream.peers) == 2
        await upstream.until(lambda: upstream.peers[0].lost)
