"""Calls over real sockets: back-pressure both ways, leaving early, the race for a connection that closes."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
import weakref
from typing import TYPE_CHECKING

import pytest

from headgate.proxy.upstream import dial
from headgate.proxy.upstream.http_endpoint import RACE_SECONDS
from headgate.proxy.upstream.pool import PoolLimits
from tests_support.answers import LAST_CHUNK, chunk, response
from tests_support.caller import Caller, Recorder, eventually
from tests_support.clock import FakeClock
from tests_support.upstream import FIN, RST, STALL, End, FakeUpstream, Pause, Repeat, in_turn

if TYPE_CHECKING:
    from headgate.proxy.upstream.call import Call
    from tests_support.upstream import Step

pytestmark = pytest.mark.usefixtures("no_leaks")

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
HELLO = response(200, b"hello")
MEGABYTE = chunk(b"x" * (1 << 20))
KIB = 1024


class SlowReader(Recorder):
    """Reads one piece, then nothing until `go` is set for it, and keeps only the size."""

    size = 0

    def on_data(self, call: Call, data: bytes) -> None:
        self.size += len(data)
        call.pause()
        asyncio.get_running_loop().call_soon(call.resume)


async def test_a_stream_of_100_mb_is_held_back_at_the_provider_while_its_receiver_pauses() -> None:
    async with (
        FakeUpstream([CHUNKED, Repeat(MEGABYTE, 100), LAST_CHUNK]) as upstream,
        Caller(upstream.base_url) as caller,
    ):
        tracemalloc.start()
        heard = caller.ask(Recorder({"data": lambda call: call.pause()}))
        await heard.heard("data")
        written = -1
        while written != upstream.connections[0].written:  # until the socket buffers of both sides are full
            written = upstream.connections[0].written
            await asyncio.sleep(0.1)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert 0 < len(heard.body) <= held <= 512 * KIB
        assert written < 20 << 20
        heard.cancel()
        await upstream.wait_closed()


async def test_a_stream_of_100_mb_reaches_a_slow_receiver_whole_and_in_little_memory() -> None:
    async with (
        FakeUpstream([CHUNKED, Repeat(MEGABYTE, 100), LAST_CHUNK]) as upstream,
        Caller(upstream.base_url) as caller,
    ):
        tracemalloc.start()
        heard = SlowReader()
        caller.ask(heard)
        assert await heard.over(30) == "clean"
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert heard.size == 100 << 20
        assert peak <= 1024 * KIB


async def test_a_large_request_waits_for_a_provider_that_does_not_read() -> None:
    body = bytes(range(256)) * (64 * KIB)
    async with FakeUpstream(HELLO) as upstream, Caller(upstream.base_url) as caller:
        assert await caller.ask().over() == "clean"
        transport = upstream.connections[0]._transport
        transport.pause_reading()
        heard = caller.ask(body=body)
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert heard.events == []
        transport.resume_reading()
        assert await heard.over() == "clean"
        assert heard.events == ["sent", "head", "data", "end"]
        assert upstream.requests[1].body == body


async def test_a_provider_that_refuses_in_mid_upload_is_heard_and_its_connection_is_closed() -> None:
    begun = Pause()
    refusal = response(413, b"too large")
    async with FakeUpstream(greeting=[begun, refusal, STALL]) as upstream, Caller(upstream.base_url) as caller:
        heard = caller.ask(body=b"x" * (32 << 20))
        await begun.reached()
        upstream.connections[0]._transport.pause_reading()
        begun.go()
        assert await heard.over() == "clean"
        assert (heard.status, heard.body) == (413, b"too large")
        assert caller.stats.cx_active == 0
        upstream.connections[0]._transport.resume_reading()
        await upstream.wait_closed()


async def test_leaving_closes_the_connection_within_the_turn_and_nothing_more_is_heard() -> None:
    more = Pause()
    async with (
        FakeUpstream([CHUNKED + chunk(b"a"), more, chunk(b"b") + LAST_CHUNK]) as upstream,
        Caller(upstream.base_url) as caller,
    ):
        heard = caller.ask()
        await heard.heard("data")
        heard.cancel()
        assert (caller.stats.cx_active, caller.stats.rq_active) == (0, 0)
        heard.call.cancel()
        heard.call.pause()
        heard.call.resume()
        assert (await upstream.wait_closed(within=0.1)).closed_by == "peer"
        more.go()
        assert heard.outcome is None
        assert (caller.stats.rq_cancelled, caller.stats.cx_destroy_with_active_rq) == (1, 1)


async def test_leaving_right_after_the_start_is_silent_wherever_the_call_stands() -> None:
    async with FakeUpstream(HELLO) as upstream, Caller(upstream.base_url) as caller:
        before_a_connection = caller.ask()
        before_a_connection.cancel()
        assert await caller.ask().over() == "clean"
        on_a_warm_connection = caller.ask()
        on_a_warm_connection.cancel()
        refused_at_once = caller.ask(target=b"/a b")
        refused_at_once.cancel()
        assert await caller.ask().over() == "clean"
        for heard in (before_a_connection, refused_at_once):
            assert (heard.outcome, heard.events) == (None, [])
        assert (on_a_warm_connection.outcome, on_a_warm_connection.events) == (None, ["sent"])


async def test_cancelling_after_the_end_spares_the_connection() -> None:
    async with FakeUpstream(HELLO) as upstream, Caller(upstream.base_url) as caller:
        heard = caller.ask(Recorder({"end": lambda call: call.cancel()}))
        assert await heard.over() == "clean"
        heard.call.cancel()
        assert await caller.ask().over() == "clean"
        assert len(upstream.connections) == 1


async def test_a_call_paused_before_it_is_connected_reads_nothing_until_it_is_resumed() -> None:
    async with FakeUpstream(HELLO) as upstream, Caller(upstream.base_url) as caller:
        heard = caller.ask()
        heard.call.pause()
        await upstream.wait_request()
        await asyncio.sleep(0.05)
        assert heard.events == ["sent"]
        heard.call.resume()
        assert await heard.over() == "clean"


@pytest.mark.parametrize("how", [FIN, RST])
async def test_a_provider_that_closes_an_idle_connection_as_we_send_is_asked_once_more(how: End) -> None:
    async with (
        FakeUpstream(in_turn(HELLO, [how], HELLO, HELLO)) as upstream,
        Caller(upstream.base_url) as caller,
    ):
        assert await caller.ask().over() == "clean"
        heard = caller.ask(body=b"again")
        assert await heard.over() == "clean"
        assert heard.events == ["sent", "head", "data", "end"]
        assert [request.body for request in upstream.requests] == [b"{}", b"again", b"again"]
        assert (caller.stats.rq_retry, caller.stats.rq_total, caller.stats.cx_total) == (1, 2, 2)


async def test_the_second_connection_that_is_closed_is_a_failure() -> None:
    async with FakeUpstream(in_turn(HELLO, [FIN])) as upstream, Caller(upstream.base_url) as caller:
        assert await caller.ask().over() == "clean"
        assert await caller.ask().over() == "ResetError"
        assert len(upstream.requests) == 3


async def test_a_fresh_connection_that_is_closed_is_a_failure_at_once() -> None:
    async with FakeUpstream([FIN]) as upstream, Caller(upstream.base_url) as caller:
        assert await caller.ask().over() == "ResetError"
        assert len(upstream.requests) == 1


async def test_a_provider_that_closes_after_it_may_have_worked_is_not_asked_again() -> None:
    clock = FakeClock()
    closing = Pause()
    async with (
        FakeUpstream(in_turn(HELLO, [closing, FIN], HELLO)) as upstream,
        Caller(upstream.base_url, clock=clock) as caller,
    ):
        assert await caller.ask().over() == "clean"
        heard = caller.ask()
        await closing.reached()
        clock.advance(RACE_SECONDS)
        closing.go()
        assert await heard.over() == "ResetError"
        assert len(upstream.requests) == 2


async def test_an_answer_that_was_begun_is_not_asked_for_again() -> None:
    async with (
        FakeUpstream(in_turn(HELLO, [b"HTTP/1.1 100 Continue\r\n\r\n", FIN])) as upstream,
        Caller(upstream.base_url) as caller,
    ):
        assert await caller.ask().over() == "clean"
        assert await caller.ask().over() == "BrokenAnswerError"
        assert len(upstream.requests) == 2


async def test_the_call_that_is_sent_again_goes_before_those_that_wait() -> None:
    hold = Pause()
    limits = PoolLimits(max_connections=1)
    async with (
        FakeUpstream(in_turn(HELLO, [hold, FIN], HELLO)) as upstream,
        Caller(upstream.base_url, limits=limits) as caller,
    ):
        assert await caller.ask().over() == "clean"
        first, second = caller.ask(body=b"first"), caller.ask(body=b"second")
        await hold.reached()
        hold.go()
        assert [await first.over(), await second.over()] == ["clean", "clean"]
        assert [request.body for request in upstream.requests[1:]] == [b"first", b"first", b"second"]


async def test_a_call_is_sent_again_once_even_when_it_meets_a_second_old_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warm, hold = Pause(), Pause()
    scripts: dict[bytes, list[Step]] = {b"warm": [warm, HELLO], b"long": [hold, HELLO], b"unlucky": [FIN]}
    async with FakeUpstream(lambda request: scripts[request.body]) as upstream, Caller(upstream.base_url) as caller:
        both = [caller.ask(body=b"warm") for _ in range(2)]
        await upstream.wait_request(2)
        warm.go()
        assert [await one.over() for one in both] == ["clean", "clean"]
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(dial, "sock_connect", lambda *_: loop.create_future())
        long, unlucky = caller.ask(body=b"long"), caller.ask(body=b"unlucky")
        await eventually(lambda: caller.stats.rq_retry == 1)
        hold.go()
        assert await long.over() == "clean"
        assert await unlucky.over() == "ResetError"
        assert [request.body for request in upstream.requests].count(b"unlucky") == 2


async def test_a_connection_that_is_on_its_way_out_is_not_taken() -> None:
    async with FakeUpstream(HELLO) as upstream, Caller(upstream.base_url) as caller:
        assert await caller.ask().over() == "clean"
        (idle,) = caller.endpoint._pool._idle
        idle._transport.abort()
        assert await caller.ask().over() == "clean"
        assert (len(upstream.connections), caller.stats.rq_retry) == (2, 0)


async def test_the_call_that_is_sent_again_gets_a_fresh_connection_even_when_the_pool_is_full() -> None:
    hold = Pause()
    script = in_turn([hold, HELLO], HELLO, [FIN], HELLO)
    async with (
        FakeUpstream(script) as upstream,
        Caller(upstream.base_url, limits=PoolLimits(max_connections=2)) as caller,
    ):
        first, second = caller.ask(), caller.ask()
        assert await second.over() == "clean"
        third = caller.ask()
        assert await third.over() == "clean"
        hold.go()
        assert await first.over() == "clean"
        assert len(upstream.connections) == 3


async def test_an_idle_connection_that_the_provider_closes_leaves_the_pool() -> None:
    closing = Pause()
    async with FakeUpstream([HELLO, closing, FIN]) as upstream, Caller(upstream.base_url) as caller:
        assert await caller.ask().over() == "clean"
        assert caller.stats.cx_active == 1
        closing.go()
        await eventually(lambda: caller.stats.cx_active == 0)
        assert caller.stats.rq_retry == 0


async def test_an_idle_connection_keeps_nothing_of_the_call_it_carried() -> None:
    async with FakeUpstream(HELLO) as upstream, Caller(upstream.base_url) as caller:
        heard = caller.ask()
        assert await heard.over() == "clean"
        kept = weakref.ref(heard)
        del heard
        gc.collect()
        assert kept() is None


async def test_an_answer_nobody_asked_for_is_never_heard() -> None:
    async with (
        FakeUpstream([HELLO, b"", b"", HELLO.replace(b"hello", b"WRONG"), STALL]) as upstream,
        Caller(upstream.base_url) as caller,
    ):
        assert await caller.ask().over() == "clean"
        await upstream.wait_closed()
        heard = caller.ask()
        assert await heard.over() == "clean"
        assert heard.body == b"hello"
