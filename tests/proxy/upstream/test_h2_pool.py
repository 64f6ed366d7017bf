"""HTTP/2 in the pool: how many connections, which of them, and when they go; and which version an address speaks."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import trustme
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import SettingsFrame

from headgate.proxy.upstream import negotiate
from headgate.proxy.upstream.dial import TLS_GOODBYE_SECONDS
from headgate.proxy.upstream.h2_connection import H2Connection
from headgate.proxy.upstream.pool import SURPLUS_SECONDS, IdleQuota, PoolLimits
from headgate.proxy.upstream.tls import client_context
from tests_support.answers import response
from tests_support.caller import Caller, Recorder, eventually
from tests_support.clock import FakeClock
from tests_support.h2_upstream import H2Upstream, hello
from tests_support.upstream import RST, FakeUpstream, Pause

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from headgate.proxy.upstream.tls import Http2
    from tests_support.h2_upstream import PeerStream

pytestmark = pytest.mark.usefixtures("no_leaks")

HOST = "127.0.0.1"
MAX = SettingCodes.MAX_CONCURRENT_STREAMS


class Held:
    """Answers once the test lets it."""

    def __init__(self) -> None:
        self.hold = Pause()

    async def __call__(self, stream: PeerStream) -> None:
        await self.hold.wait()
        await hello(stream)


def streams(upstream: H2Upstream) -> list[int]:
    """How many requests each connection carried."""
    return [len(peer.streams) for peer in upstream.peers]


# How many


async def test_a_connection_carries_what_its_provider_allows_and_the_next_call_opens_another() -> None:
    held = Held()
    async with H2Upstream(settings={MAX: 3}) as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask().over() == "clean"
        upstream.answer = held
        heard = [caller.ask() for _ in range(7)]
        await eventually(lambda: len(upstream.requests) == 8)
        assert (caller.stats.cx_total, caller.stats.rq_pending_active) == (3, 0)
        assert streams(upstream) == [4, 3, 1]
        held.hold.go()
        assert [await one.over() for one in heard] == ["clean"] * 7
        assert upstream.peers[0].resets == []


async def test_where_no_further_connection_is_allowed_calls_wait_in_order_for_a_stream() -> None:
    held = Held()
    limits = PoolLimits(max_connections=1)
    async with (
        H2Upstream(settings={MAX: 2}) as upstream,
        Caller(upstream.base_url, http2=True, limits=limits) as caller,
    ):
        assert await caller.ask().over() == "clean"
        upstream.answer = held
        heard = [caller.ask(body=b"%d" % n) for n in range(6)]
        await eventually(lambda: len(upstream.requests) == 3)
        assert (caller.stats.rq_active, caller.stats.rq_pending_active) == (2, 4)
        held.hold.go()
        assert [await one.over() for one in heard] == ["clean"] * 6
        assert [bytes(one.received) for one in upstream.requests[1:]] == [b"%d" % n for n in range(6)]
        assert len(upstream.peers) == 1
        assert upstream.peers[0].resets == []


async def test_calls_beyond_the_queue_are_refused_and_those_that_wait_too_long_are_told() -> None:
    clock = FakeClock()
    limits = PoolLimits(max_connections=1, max_pending=1, connect_timeout=5)
    held = Held()
    async with (
        H2Upstream(held, settings={MAX: 1}) as upstream,
        Caller(upstream.base_url, http2=True, limits=limits, clock=clock) as caller,
    ):
        first = caller.ask()
        await upstream.request()
        await eventually(lambda: caller.endpoint._pool._shared[0].session.max_streams == 1)
        waits, refused = caller.ask(), caller.ask()
        assert await refused.over() == "PoolOverflowError"
        clock.advance(5.2)
        assert waits.outcome == "PoolOverflowError"
        held.hold.go()
        assert await first.over() == "clean"


async def test_a_provider_that_takes_one_stream_and_then_a_hundred_is_followed() -> None:
    held = Held()
    limits = PoolLimits(max_connections=1)
    async with (
        H2Upstream(held, settings={MAX: 1}) as upstream,
        Caller(upstream.base_url, http2=True, limits=limits) as caller,
    ):
        heard = [caller.ask()]
        await upstream.request()
        await eventually(lambda: caller.endpoint._pool._shared[0].session.max_streams == 1)
        heard += [caller.ask() for _ in range(60)]
        assert caller.stats.rq_pending_active == 60
        upstream.peers[0].h2.update_settings({MAX: 100})
        upstream.peers[0].flush()
        await eventually(lambda: len(upstream.requests) == 61)
        assert caller.stats.rq_pending_active == 0
        held.hold.go()
        assert [await one.over() for one in heard] == ["clean"] * 61


async def test_a_limit_that_falls_below_what_is_under_way_is_kept_from_then_on() -> None:
    held = Held()
    limits = PoolLimits(max_connections=1)
    async with (
        H2Upstream(held, settings={MAX: 10}) as upstream,
        Caller(upstream.base_url, http2=True, limits=limits) as caller,
    ):
        heard = [caller.ask() for _ in range(4)]
        await eventually(lambda: len(upstream.requests) == 4)
        upstream.peers[0].h2.update_settings({MAX: 2})
        upstream.peers[0].flush()
        await eventually(lambda: caller.endpoint._pool._shared[0].session.max_streams == 2)
        waits = caller.ask()
        assert caller.stats.rq_pending_active == 1
        held.hold.go()
        assert [await one.over() for one in [*heard, waits]] == ["clean"] * 5


async def test_more_than_was_allowed_before_the_provider_said_so_is_sent_again_one_by_one() -> None:
    async def one_at_a_time(stream: PeerStream) -> None:
        if stream.id == 1:
            stream.peer.raw(SettingsFrame(0, {MAX: 1}))
        if len(stream.peer.open) > 1:
            stream.reset(ErrorCodes.REFUSED_STREAM)
        else:
            await hello(stream)

    limits = PoolLimits(max_connections=1)
    async with H2Upstream(one_at_a_time) as upstream, Caller(upstream.base_url, http2=True, limits=limits) as caller:
        heard = [caller.ask() for _ in range(10)]
        assert [await one.over() for one in heard] == ["clean"] * 10
        assert (caller.stats.rq_retry, len(upstream.requests)) == (9, 19)


async def test_a_provider_that_takes_none_at_the_moment_is_waited_for_on_the_connection_there_is() -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask().over() == "clean"
        upstream.peers[0].raw(SettingsFrame(0, {MAX: 0}))
        await eventually(lambda: caller.endpoint._pool._shared[0].session.max_streams == 0)
        heard = [caller.ask() for _ in range(3)]
        await asyncio.sleep(0.02)
        assert (caller.stats.rq_pending_active, caller.stats.cx_total) == (3, 1)
        upstream.peers[0].raw(SettingsFrame(0, {MAX: 1}))
        await heard[0].over()
        upstream.peers[0].raw(SettingsFrame(0, {MAX: 0}))
        await eventually(lambda: caller.endpoint._pool._shared[0].session.max_streams == 0)
        upstream.peers[0].abort()
        assert [await one.over() for one in heard] == ["clean"] * 3


async def test_a_burst_on_a_cold_pool_opens_one_connection() -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = [caller.ask() for _ in range(64)]
        assert [await one.over() for one in heard] == ["clean"] * 64
        assert caller.stats.cx_total == 1


async def test_a_refused_connection_is_told_to_all_it_was_opened_for() -> None:
    async with Caller("http://127.0.0.1:9", http2=True) as caller:
        heard = [caller.ask() for _ in range(20)]
        assert [await one.over() for one in heard] == ["ConnectError"] * 20
        assert caller.stats.cx_connect_fail == 1


# When they go


async def test_the_oldest_connection_with_room_is_used_so_that_others_may_rest_and_close() -> None:
    clock = FakeClock()
    held = Held()
    limits = PoolLimits(idle_timeout=90, keepalive_interval=10_000)
    async with (
        H2Upstream(settings={MAX: 2}) as upstream,
        Caller(upstream.base_url, http2=True, clock=clock, limits=limits) as caller,
    ):
        assert await caller.ask().over() == "clean"
        upstream.answer = held
        heard = [caller.ask() for _ in range(4)]
        await eventually(lambda: len(upstream.requests) == 5)
        held.hold.go()
        assert [await one.over() for one in heard] == ["clean"] * 4
        upstream.answer = hello
        clock.advance(60)
        for _ in range(3):
            assert await caller.ask().over() == "clean"
        assert streams(upstream) == [6, 2]
        clock.advance(60)
        await upstream.until(lambda: upstream.peers[1].lost)
        assert (caller.stats.cx_idle_timeout, caller.stats.cx_active) == (1, 1)
        assert upstream.peers[1].goaway is not None


async def test_idle_connections_are_counted_with_those_of_others() -> None:
    clock, quota = FakeClock(), IdleQuota(0)
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True, clock=clock, quota=quota) as caller:
        assert await caller.ask().over() == "clean"
        assert quota.idle == 1
        held = Held()
        upstream.answer = held
        heard = caller.ask()
        assert quota.idle == 0
        held.hold.go()
        assert await heard.over() == "clean"
        clock.advance(SURPLUS_SECONDS + 0.2)
        assert caller.stats.cx_active == 0
    assert quota.idle == 0


async def test_a_pool_that_closes_lets_calls_finish_and_takes_no_more() -> None:
    held = Held()
    async with H2Upstream(held) as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask()
        await upstream.request()
        await caller.endpoint.aclose()
        assert await caller.ask().over() == "ShuttingDownError"
        held.hold.go()
        assert await heard.over() == "clean"
        await upstream.until(lambda: upstream.peers[0].lost)


async def test_a_pool_that_closes_while_it_connects_serves_who_waits() -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = [caller.ask(), caller.ask()]
        await caller.endpoint.aclose()
        assert [await one.over() for one in heard] == ["clean", "clean"]
        await upstream.until(lambda: upstream.peers[0].lost)


async def test_a_connection_above_new_bounds_goes_after_its_last_call() -> None:
    held = Held()
    async with H2Upstream(held, settings={MAX: 1}) as upstream, Caller(upstream.base_url, http2=True) as caller:
        first = caller.ask()
        await upstream.request()
        await eventually(lambda: caller.endpoint._pool._shared[0].session.max_streams == 1)
        second = caller.ask()
        await upstream.request(2)
        caller.endpoint.update(PoolLimits(max_connections=1))
        held.hold.go()
        assert [await first.over(), await second.over()] == ["clean", "clean"]
        assert caller.stats.cx_active == 1
        assert await caller.ask().over() == "clean"
        await upstream.until(lambda: upstream.peers[1].lost)
        assert len(upstream.peers[0].streams) == 2


async def test_a_connection_whose_stream_ids_are_used_up_is_replaced() -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask().over() == "clean"
        caller.endpoint._pool._shared[0].session.next_id = 2**31 - 3
        assert [await caller.ask().over() for _ in range(4)] == ["clean"] * 4
        assert [max(peer.streams) for peer in upstream.peers] == [2**31 - 1, 3]


# Which version


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def serving(authority: trustme.CA, *protocols: str) -> ssl.SSLContext:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


@pytest.mark.parametrize("http2", ["auto", True])
async def test_a_provider_that_chooses_http_2_gets_it(authority: trustme.CA, ca: str, http2: Http2) -> None:
    tls = client_context(ca, http2)
    async with (
        H2Upstream(tls=serving(authority)) as upstream,
        Caller(upstream.base_url, tls=tls, http2=http2) as caller,
    ):
        heard = [caller.ask() for _ in range(64)]
        assert [await one.over() for one in heard] == ["clean"] * 64
        assert [await caller.ask().over() for _ in range(3)] == ["clean"] * 3
        assert len(upstream.peers) == caller.stats.cx_http2_total == 1
        assert upstream.requests[0].header(":scheme") == "https"


@pytest.mark.parametrize("offered", [("http/1.1",), ()], ids=["chosen", "no ALPN"])
async def test_a_provider_that_does_not_gets_http_1_1_and_is_remembered(
    authority: trustme.CA, ca: str, offered: tuple[str, ...]
) -> None:
    hold = Pause()
    async with (
        FakeUpstream([hold, response(200, b"hello")], tls=serving(authority, *offered)) as upstream,
        Caller(upstream.base_url, tls=client_context(ca, "auto"), http2="auto") as caller,
    ):
        heard = [caller.ask() for _ in range(5)]
        await upstream.wait_request(5)
        hold.go()
        assert [await one.over() for one in heard] == ["clean"] * 5
        assert (caller.stats.cx_total, caller.stats.cx_http2_total) == (5, 0)
        assert caller.endpoint._pool.speaks_h1


async def test_one_attempt_finds_out_for_all_who_wait(authority: trustme.CA, ca: str) -> None:
    async with (
        FakeUpstream(greeting=[RST], tls=serving(authority, "http/1.1")) as upstream,
        Caller(upstream.base_url, tls=client_context(ca, "auto"), http2="auto") as caller,
    ):
        heard = [caller.ask() for _ in range(5)]
        assert len(caller.endpoint._pool._attempts) == 1
        ends = [await one.over() for one in heard]
        assert set(ends) <= {"ConnectError", "ResetError"}


async def test_a_provider_that_changes_its_mind_is_followed(authority: trustme.CA, ca: str) -> None:
    tls = client_context(ca, "auto")
    async with H2Upstream(tls=serving(authority)) as new, FakeUpstream(response(200, b"old")) as old:
        del old
        async with Caller(new.base_url, tls=tls, http2="auto") as caller:
            assert await caller.ask().over() == "clean"
            assert not caller.endpoint._pool.speaks_h1
            port = new.port
            new.peers[0].close()
            await eventually(lambda: caller.stats.cx_active == 0)
            new._server.close()
            await new._server.wait_closed()
            before = FakeUpstream(response(200, b"old"), tls=serving(authority, "http/1.1"))
            before.port = port
            async with before:
                heard = [caller.ask(), caller.ask()]
                assert [await one.over() for one in heard] == ["clean", "clean"]
                assert heard[0].body == b"old"
                assert caller.endpoint._pool.speaks_h1


async def test_only_http_2_means_no_other(authority: trustme.CA, ca: str) -> None:
    async with (
        FakeUpstream(response(200, b"hello"), tls=serving(authority, "http/1.1")) as upstream,
        Caller(upstream.base_url, tls=client_context(ca, True), http2=True) as caller,
    ):
        assert await caller.ask().over() in ("ConnectError", "ProtocolError", "ResetError")
        assert [request.method for request in upstream.requests] in ([], ["PRI"])


async def test_a_field_that_cannot_be_sent_costs_nothing_whatever_is_spoken(authority: trustme.CA, ca: str) -> None:
    async with (
        FakeUpstream(response(200, b"hello"), tls=serving(authority, "http/1.1")) as upstream,
        Caller(upstream.base_url, tls=client_context(ca, "auto"), http2="auto") as caller,
    ):
        bad, good = caller.ask(headers=[(b"x", b"\n")]), caller.ask()
        assert await bad.over() == "GatewayError"
        assert await good.over() == "clean"
        assert caller.stats.rq_active == 0


async def test_without_tls_auto_is_http_1_1() -> None:
    async with FakeUpstream(response(200, b"hello")) as upstream, Caller(upstream.base_url, http2="auto") as caller:
        assert await caller.ask().over() == "clean"
        assert caller.stats.cx_http2_total == 0


async def test_a_reset_in_the_handshake_is_a_failure_to_connect(authority: trustme.CA, ca: str) -> None:
    async with (
        FakeUpstream(greeting=[RST]) as upstream,
        Caller(upstream.base_url.replace("http:", "https:"), tls=client_context(ca, "auto"), http2="auto") as caller,
    ):
        assert await caller.ask().over() == "ConnectError"


async def test_a_pool_that_closes_in_mid_handshake_leaves_nothing(authority: trustme.CA, ca: str) -> None:
    async with H2Upstream(tls=serving(authority)) as upstream:
        async with Caller(upstream.base_url, tls=client_context(ca, "auto"), http2="auto") as caller:
            heard = caller.ask()
            await asyncio.sleep(0)
            heard.cancel()
        assert caller.endpoint._pool._attempts == set()


async def test_a_call_that_leaves_while_it_is_connected_leaves_the_connection_to_others() -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        caller.ask().cancel()
        await eventually(lambda: caller.stats.cx_active == 1)
        assert await caller.ask().over() == "clean"
        assert len(upstream.peers) == 1
        connection = caller.endpoint._pool._shared[0]
        assert isinstance(connection, H2Connection)


async def test_a_call_started_from_the_end_of_another_finds_its_stream_free() -> None:
    limits = PoolLimits(max_connections=1)
    async with (
        H2Upstream(settings={MAX: 1}) as upstream,
        Caller(upstream.base_url, http2=True, limits=limits) as caller,
    ):
        started: list[Recorder] = []
        first = caller.ask(Recorder({"end": lambda _: started.append(caller.ask())}))
        assert await first.over() == "clean"
        assert await started[0].over() == "clean"
        assert len(upstream.peers) == 1


async def test_a_provider_that_does_not_return_our_goodbye_is_cut_off(
    authority: trustme.CA, ca: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = asyncio.Event()
    async with H2Upstream(tls=serving(authority)) as upstream:
        async with Caller(upstream.base_url, tls=client_context(ca, "auto"), http2="auto") as caller:
            assert await caller.ask().over() == "clean"
            upstream.peers[0].stop_reading()
            monkeypatch.setattr(H2Connection, "connection_lost", lambda *_: gone.set())
        async with asyncio.timeout(TLS_GOODBYE_SECONDS + 10):  # uvloop's own bound is 30 s
            await gone.wait()


async def test_the_code_of_http_2_is_loaded_beside_the_loop_and_who_leaves_meanwhile_leaves_nothing(
    authority: trustme.CA, ca: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a process that has not spoken it yet."""
    asked, may_go = threading.Event(), threading.Event()

    def load(name: str) -> None:
        assert name == "headgate.proxy.upstream.h2_connection"
        asked.set()
        may_go.wait(10)

    monkeypatch.setattr(negotiate, "sys", SimpleNamespace(modules={}))
    monkeypatch.setattr(negotiate, "import_module", load)
    tls = client_context(ca, "auto")
    async with H2Upstream(tls=serving(authority)) as upstream:
        async with Caller(upstream.base_url, tls=tls, http2="auto") as caller:
            left = caller.ask()
            await eventually(asked.is_set)
            left.cancel()
        asked.clear()
        async with Caller(upstream.base_url, tls=tls, http2="auto") as caller:
            heard = caller.ask()
            await eventually(asked.is_set)
            may_go.set()
            assert await heard.over() == "clean"
