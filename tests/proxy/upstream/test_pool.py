"""The pool's bounds: connections, the queue and its deadlines, idle ones; and what becomes of attempts to connect."""

from __future__ import annotations

import asyncio
import socket
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from headgate.proxy.upstream import dial
from headgate.proxy.upstream.names import Name
from headgate.proxy.upstream.pool import SURPLUS_SECONDS, IdleQuota, PoolLimits
from tests_support.answers import LAST_CHUNK, chunk, response
from tests_support.caller import Caller, Recorder, eventually
from tests_support.clock import FakeClock
from tests_support.upstream import RST, FakeUpstream, Pause, in_turn

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("no_leaks")

HELLO = response(200, b"hello")
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@contextmanager
def nobody_accepts() -> Iterator[str]:
    """A URL where connecting hangs: the kernel's queue is full, and nobody empties it."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for one in fillers:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for one in fillers:
            one.close()


def closed_port() -> str:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


async def test_never_more_connections_than_allowed_and_the_queue_is_served_in_order() -> None:
    holds = [Pause() for _ in range(6)]
    answers = iter(holds)
    async with (
        FakeUpstream(lambda _: [next(answers), HELLO]) as upstream,
        Caller(upstream.base_url, limits=PoolLimits(max_connections=2)) as caller,
    ):
        heard = [caller.ask(body=b"%d" % n) for n in range(6)]
        for turn in range(3):
            await upstream.wait_request(2 * turn + 2)
            assert (caller.stats.rq_active, caller.stats.rq_pending_active) == (2, 4 - 2 * turn)
            holds[2 * turn].go()
            holds[2 * turn + 1].go()
        assert [await one.over() for one in heard] == ["clean"] * 6
        assert [request.body for request in upstream.requests[2:]] == [b"2", b"3", b"4", b"5"]
        assert len(upstream.connections) == caller.stats.cx_total == 2


async def test_a_full_queue_refuses_at_once_and_says_so_from_the_next_turn() -> None:
    hold = Pause()
    async with (
        FakeUpstream([hold, HELLO]) as upstream,
        Caller(upstream.base_url, limits=PoolLimits(max_connections=1, max_pending=2)) as caller,
    ):
        served = [caller.ask()]
        await upstream.wait_request()
        served += [caller.ask(), caller.ask()]
        refused = caller.ask()
        assert refused.events == []
        assert await refused.over() == "PoolOverflowError"
        assert refused.error is not None
        assert (refused.error.status, refused.error.retry_after) == (503, 1.0)
        assert caller.stats.rq_pending_overflow == 1
        hold.go()
        assert [await one.over() for one in served] == ["clean"] * 3


async def test_who_waits_too_long_for_a_busy_pool_is_told_that_it_is_busy() -> None:
    clock = FakeClock()
    hold = Pause()
    async with (
        FakeUpstream([hold, HELLO]) as upstream,
        Caller(upstream.base_url, clock=clock, limits=PoolLimits(max_connections=1)) as caller,
    ):
        served = caller.ask()
        await upstream.wait_request()
        heard = caller.ask()
        clock.advance(4.9)
        assert heard.outcome is None
        clock.advance(0.2)
        assert heard.outcome == "PoolOverflowError"
        assert (caller.stats.rq_pending_timeout, caller.stats.rq_pending_active) == (1, 0)
        hold.go()
        assert await served.over() == "clean"


async def test_a_connection_that_does_not_come_in_time_is_a_time_out() -> None:
    clock = FakeClock()
    with nobody_accepts() as url:
        async with Caller(url, clock=clock, limits=PoolLimits(connect_timeout=2)) as caller:
            heard = caller.ask()
            await asyncio.sleep(0.05)
            assert heard.outcome is None
            await clock.run(2.1)
            assert heard.outcome == "ConnectTimeoutError"
            assert heard.error is not None
            assert (heard.error.status, heard.error.condition) == (504, "connect-failure")
            assert caller.stats.cx_connect_timeout == 1


async def test_the_time_out_of_one_attempt_is_not_the_failure_of_a_call_that_came_later() -> None:
    clock = FakeClock()
    with nobody_accepts() as url:
        async with Caller(url, clock=clock, limits=PoolLimits(connect_timeout=5)) as caller:
            early = caller.ask()
            await clock.run(3)
            late = caller.ask()
            await clock.run(2.1)
            assert (early.outcome, late.outcome) == ("ConnectTimeoutError", None)
            await clock.run(3)
            assert late.outcome == "ConnectTimeoutError"


async def test_an_attempt_that_timed_out_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    loop = asyncio.get_running_loop()
    connect, attempts = dial.sock_connect, iter([True])

    async def hangs_once(sock: Any, address: Any) -> None:
        if next(attempts, False):
            await loop.create_future()
        await connect(sock, address)

    monkeypatch.setattr(dial, "sock_connect", hangs_once)
    limits = PoolLimits(max_connections=1)
    async with FakeUpstream(HELLO) as upstream, Caller(upstream.base_url, clock=clock, limits=limits) as caller:
        early = caller.ask()
        await clock.run(3)
        late = caller.ask()
        await clock.run(2.1)
        assert early.outcome == "ConnectTimeoutError"
        assert await late.over() == "clean"


async def test_a_refused_connection_is_told_to_the_call_that_waits_longest() -> None:
    async with Caller(closed_port(), limits=PoolLimits(max_connections=2)) as caller:
        heard = [caller.ask() for _ in range(3)]
        assert [await one.over() for one in heard] == ["ConnectError"] * 3
        assert all(one.events == ["error"] for one in heard)
        assert heard[0].error is not None
        assert "127.0.0.1" not in heard[0].error.message
        assert "127.0.0.1" in str(heard[0].error.detail)
        assert caller.stats.cx_connect_fail == 3


async def test_a_provider_that_accepts_and_resets_is_a_failure_before_or_without_an_answer() -> None:
    async with FakeUpstream(greeting=[RST]) as upstream, Caller(upstream.base_url) as caller:
        assert await caller.ask().over() in ("ConnectError", "ResetError")


async def test_a_name_that_does_not_resolve_is_a_connect_failure() -> None:
    async with Caller("http://" + "a" * 64 + ".invalid") as caller:
        assert await caller.ask().over() == "ConnectError"
    async with Caller("http://nowhere.invalid") as caller:
        assert await caller.ask().over() == "ConnectError"


async def test_a_connect_that_fails_in_no_known_way_is_reported_and_is_a_connect_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    reported: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))

    async def broken(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(Name, "addresses", broken)
    async with Caller("http://a.example") as caller:
        assert await caller.ask().over() == "ConnectError"
    assert isinstance(reported[0]["exception"], KeyError)


async def test_a_connection_that_closes_before_it_is_used_is_a_connect_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    connect = loop.create_connection

    async def connect_and_close(*args: Any, **options: Any) -> tuple[Any, Any]:
        transport, protocol = await connect(*args, **options)
        protocol.eof_received()
        return transport, protocol

    monkeypatch.setattr(loop, "create_connection", connect_and_close)
    async with FakeUpstream(HELLO) as upstream, Caller(upstream.base_url) as caller:
        heard = caller.ask()
        assert await heard.over() == "ConnectError"
        assert heard.events == ["error"]


async def test_an_attempt_that_is_cancelled_as_it_connects_leaves_no_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    connect, cancelled = loop.create_connection, iter([True])

    async def cancelled_once(*args: Any, **options: Any) -> tuple[Any, Any]:
        made = await connect(*args, **options)
        if next(cancelled, False):
            raise asyncio.CancelledError
        return made

    monkeypatch.setattr(loop, "create_connection", cancelled_once)
    async with FakeUpstream(HELLO) as upstream, Caller(upstream.base_url) as caller:
        assert await caller.ask().over() == "clean"
        await eventually(lambda: len(upstream.connections) == 2)
        assert len(upstream.open_connections) == 1


async def test_whoever_leaves_the_queue_leaves_the_attempt_to_the_next() -> None:
    async with FakeUpstream(HELLO) as upstream, Caller(upstream.base_url) as caller:
        caller.ask().cancel()
        heard = caller.ask()
        assert await heard.over() == "clean"
        assert len(upstream.connections) == 1


async def test_an_attempt_nobody_waits_for_any_more_becomes_an_idle_connection() -> None:
    async with FakeUpstream(HELLO) as upstream, Caller(upstream.base_url) as caller:
        caller.ask().cancel()
        await eventually(lambda: caller.stats.cx_active == 1)
        assert await caller.ask().over() == "clean"
        assert len(upstream.connections) == 1


async def test_a_closed_connection_makes_room_for_the_next_in_the_queue() -> None:
    async with (
        FakeUpstream(in_turn([Pause()], HELLO)) as upstream,
        Caller(upstream.base_url, limits=PoolLimits(max_connections=1)) as caller,
    ):
        stuck = caller.ask()
        await upstream.wait_request()
        waiting = caller.ask()
        stuck.cancel()
        assert await waiting.over() == "clean"


async def test_idle_connections_end_after_their_time_and_those_above_the_bound_after_a_second() -> None:
    clock = FakeClock()
    hold = Pause()
    async with (
        FakeUpstream([hold, HELLO]) as upstream,
        Caller(upstream.base_url, clock=clock, limits=PoolLimits(max_idle=2, idle_timeout=90)) as caller,
    ):
        heard = [caller.ask() for _ in range(5)]
        await upstream.wait_request(5)
        hold.go()
        assert [await one.over() for one in heard] == ["clean"] * 5
        assert caller.stats.cx_active == 5
        clock.advance(SURPLUS_SECONDS + 0.1)
        assert (caller.stats.cx_active, caller.stats.cx_idle_timeout) == (2, 3)
        clock.advance(88)
        assert caller.stats.cx_active == 2
        clock.advance(1.1)
        assert caller.stats.cx_active == 0
        await upstream.wait_until(lambda: not upstream.open_connections, "the connections to be closed")


async def test_endpoints_share_a_quota_of_idle_connections() -> None:
    clock = FakeClock()
    quota = IdleQuota(2)
    async with (
        FakeUpstream(HELLO) as one,
        FakeUpstream(HELLO) as other,
        Caller(one.base_url, clock=clock, quota=quota) as first,
        Caller(other.base_url, clock=clock, quota=quota) as second,
    ):
        for caller in (first, second):
            heard = [caller.ask() for _ in range(2)]
            assert [await each.over() for each in heard] == ["clean"] * 2
            await eventually(lambda: caller.stats.cx_active == 2)  # noqa: B023 - awaited within this turn
        clock.advance(SURPLUS_SECONDS + 0.1)
        assert (first.stats.cx_active, second.stats.cx_active, quota.idle) == (2, 0, 2)
        assert await second.ask().over() == "clean"
    assert quota.idle == 0


async def test_a_busy_connection_has_no_idle_deadline() -> None:
    clock = FakeClock()
    hold, hold_again = Pause(), Pause()
    async with (
        FakeUpstream(in_turn(HELLO, [hold, CHUNKED, hold_again, chunk(b"x") + LAST_CHUNK])) as upstream,
        Caller(upstream.base_url, clock=clock) as caller,
    ):
        assert await caller.ask().over() == "clean"
        heard = caller.ask()
        await hold.reached()
        clock.advance(3600)
        hold.go()
        await heard.heard("head")
        clock.advance(3600)
        hold_again.go()
        assert await heard.over() == "clean"


async def test_new_limits_hold_for_what_comes_and_connections_stay() -> None:
    hold = Pause()
    async with (
        FakeUpstream([hold, HELLO]) as upstream,
        Caller(upstream.base_url, limits=PoolLimits(max_connections=1)) as caller,
    ):
        heard = [caller.ask() for _ in range(3)]
        await upstream.wait_request(1)
        caller.endpoint.update(PoolLimits(max_connections=3))
        await upstream.wait_request(3)
        caller.endpoint.update(PoolLimits(max_connections=1))
        assert caller.endpoint.limits.max_connections == 1
        hold.go()
        assert [await one.over() for one in heard] == ["clean"] * 3
        assert caller.stats.cx_active == 1


async def test_lower_limits_close_idle_connections_at_once() -> None:
    hold = Pause()
    async with FakeUpstream([hold, HELLO]) as upstream, Caller(upstream.base_url) as caller:
        heard = [caller.ask() for _ in range(3)]
        await upstream.wait_request(3)
        hold.go()
        assert [await one.over() for one in heard] == ["clean"] * 3
        assert caller.stats.cx_active == 3
        caller.endpoint.update(PoolLimits(max_connections=1))
        assert caller.stats.cx_active == 1


async def test_closing_lets_running_and_waiting_calls_end_and_takes_no_new_ones() -> None:
    hold = Pause()
    async with (
        FakeUpstream([hold, HELLO]) as upstream,
        Caller(upstream.base_url, limits=PoolLimits(max_connections=1)) as caller,
    ):
        running, waiting = caller.ask(), caller.ask()
        await upstream.wait_request()
        await caller.endpoint.aclose()
        late = caller.ask()
        assert await late.over() == "ShuttingDownError"
        hold.go()
        assert [await running.over(), await waiting.over()] == ["clean", "clean"]
        assert caller.stats.cx_active == 0


async def test_closing_ends_idle_connections_and_attempts_nobody_waits_for() -> None:
    with nobody_accepts() as url:
        async with Caller(url) as caller:
            caller.ask().cancel()
            await asyncio.sleep(0.01)
            await caller.endpoint.aclose()
            assert len(caller.deadlines) == 0


async def test_a_receiver_may_start_the_next_call_from_any_end() -> None:
    async with FakeUpstream(HELLO) as upstream, Caller(upstream.base_url) as caller:
        second = Recorder()
        await caller.ask(Recorder({"end": lambda _: caller.ask(second)})).over()
        assert await second.over() == "clean"
        assert len(upstream.connections) == 1
    async with Caller(closed_port()) as caller:
        second = Recorder()
        await caller.ask(Recorder({"error": lambda _: caller.ask(second)})).over()
        assert await second.over() == "ConnectError"
