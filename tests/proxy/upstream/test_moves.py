"""A provider that moves: calls go where its name leads; connections to where it was end after what they carry."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from openai import AsyncOpenAI

from headgate.proxy.upstream import names as names_module
from headgate.proxy.upstream.names import LINGER_SECONDS, REFRESH_SECONDS
from tests_support.answers import chat_completion, json_response, response
from tests_support.caller import Caller, eventually
from tests_support.clock import FakeClock
from tests_support.embedded import MESSAGES
from tests_support.gateway import CLIENT_KEY, config_for, running_gateway
from tests_support.h2_upstream import H2Upstream, hello
from tests_support.names import DOWN, FakeResolver
from tests_support.upstream import FakeUpstream, Pause, in_turn

if TYPE_CHECKING:
    from tests_support.h2_upstream import PeerStream

pytestmark = pytest.mark.usefixtures("no_leaks")

HELLO = response(200, b"hello")
HERE = "127.0.0.1"
SOON = LINGER_SECONDS + 2 * REFRESH_SECONDS
"""Well below 30 seconds."""


async def test_idle_connections_go_and_busy_ones_are_not_used_again() -> None:
    clock, hold = FakeClock(), Pause()
    async with FakeUpstream(in_turn([hold, HELLO], HELLO)) as old, FakeUpstream(HELLO) as new:
        names = FakeResolver((HERE, old.port))
        async with Caller(f"http://a.example:{old.port}", clock=clock, resolver=names) as caller:
            busy = caller.ask()
            await hold.reached()
            idle = caller.ask()
            assert await idle.over() == "clean"
            names.leads_to((HERE, new.port))
            await clock.run(SOON)
            await old.wait_closed()
            assert len(old.open_connections) == 1
            hold.go()
            assert await busy.over() == "clean"
            await old.wait_closed(2)
            assert caller.stats.cx_moved == 2
            assert await caller.ask().over() == "clean"
            assert len(new.requests) == 1
            assert {request.header("host") for request in (*old.requests, *new.requests)} == {f"a.example:{old.port}"}


async def test_new_connections_go_to_the_new_address_before_the_old_ones_are_left() -> None:
    clock, hold = FakeClock(), Pause()
    async with FakeUpstream([hold, HELLO]) as old, FakeUpstream(HELLO) as new:
        names = FakeResolver((HERE, old.port))
        async with Caller("http://a.example", clock=clock, resolver=names) as caller:
            busy = caller.ask()
            await hold.reached()
            names.leads_to((HERE, new.port))
            await clock.run(REFRESH_SECONDS + 1)
            assert await caller.ask().over() == "clean"
            assert len(new.requests) == 1
            hold.go()
            assert await busy.over() == "clean"


async def test_a_connection_of_http2_ends_after_its_last_stream() -> None:
    clock, hold = FakeClock(), Pause()

    async def held(stream: PeerStream) -> None:
        await hold.wait()
        await hello(stream)

    async with H2Upstream(held) as old, H2Upstream() as new:
        names = FakeResolver((HERE, old.port))
        async with Caller("http://a.example", clock=clock, resolver=names, http2=True) as caller:
            busy = caller.ask()
            await old.request()
            names.leads_to((HERE, new.port))
            await clock.run(SOON)
            assert await caller.ask().over() == "clean"
            assert (len(old.peers), len(new.peers)) == (1, 1)
            hold.go()
            assert await busy.over() == "clean"
            await eventually(lambda: caller.stats.cx_active == 1)
            names.leads_to((HERE, old.port))
            await clock.run(SOON)
            await eventually(lambda: caller.stats.cx_active == 0)


@pytest.mark.parametrize("hangs", [False, True])
async def test_an_address_where_nobody_is_makes_the_next_call_look_again(hangs: bool) -> None:
    clock = FakeClock()
    async with FakeUpstream(HELLO) as new:
        with ExitStack() as sockets:
            dead = sockets.enter_context(socket.socket())
            dead.bind((HERE, 0))
            names = FakeResolver(dead.getsockname())
            if hangs:  # the kernel's queue is full, and nobody empties it
                dead.listen(0)
                for _ in range(3):
                    filler = sockets.enter_context(socket.socket())
                    filler.setblocking(False)
                    filler.connect_ex(dead.getsockname())
            async with Caller("http://a.example", clock=clock, resolver=names) as caller:
                heard = caller.ask()
                if hangs:
                    await asyncio.sleep(0.05)
                    clock.advance(5.2)
                assert await heard.over() == ("ConnectTimeoutError" if hangs else "ConnectError")
                names.leads_to((HERE, new.port))
                await clock.run(1)
                assert await caller.ask().over() == "clean"


async def test_while_the_resolver_is_down_nothing_changes() -> None:
    clock = FakeClock()
    async with FakeUpstream(HELLO) as upstream:
        names = FakeResolver((HERE, upstream.port))
        async with Caller("http://a.example", clock=clock, resolver=names) as caller:
            assert await caller.ask().over() == "clean"
            names.found = DOWN
            await clock.run(60)
            assert await caller.ask().over() == "clean"
            assert len(upstream.connections) == 1
            await clock.run(600)
            await upstream.wait_closed()
            assert await caller.ask().over() == "clean", "by a new connection to the last good address"


async def test_an_address_costs_nothing() -> None:
    clock, names = FakeClock(), FakeResolver()
    async with FakeUpstream(HELLO) as upstream:
        for host in (HERE, "localhost"):
            async with Caller(f"http://{host}:{upstream.port}", clock=clock, resolver=names) as caller:
                assert await caller.ask().over() == "clean"
                await clock.run(60)
        assert names.asked == []


class System:
    """The system's resolver for one name: `port`, or silence."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, port: int) -> None:
        self.port = port
        self.answers = threading.Event()
        self.answers.set()
        self.silent = 0
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self.getaddrinfo)

    def getaddrinfo(self, host: str, *args: Any, **options: Any) -> list[Any]:
        if host != "a.example":
            return list(self._real(host, *args, **options))
        if not self.answers.is_set():
            self.silent += 1
            assert self.answers.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (HERE, self.port))]


@pytest.mark.parametrize("times", [0.01, pytest.param(1, marks=pytest.mark.slow)])
async def test_a_gateway_under_load_follows_its_provider_within_30_seconds_and_without_a_failure(
    times: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults A20; everything is `times` as slow as it is."""
    monkeypatch.setattr(names_module, "REFRESH_SECONDS", REFRESH_SECONDS * times)
    monkeypatch.setattr(names_module, "LINGER_SECONDS", LINGER_SECONDS * times)
    whole = json_response(chat_completion())
    async with FakeUpstream(whole) as old, FakeUpstream(whole) as new:
        system = System(monkeypatch, old.port)
        config = config_for()
        config["providers"]["up"]["base_url"] = "http://a.example/v1"
        async with (
            running_gateway(config) as gateway,
            AsyncOpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY, max_retries=0) as client,
        ):
            over = False

            async def load() -> None:
                while not over:
                    answer = await client.chat.completions.create(model="m", messages=MESSAGES)
                    assert answer.choices
                    await asyncio.sleep(0.02)

            loads = [asyncio.ensure_future(load()) for _ in range(4)]
            await old.wait_request(20)
            system.port = new.port
            await old.wait_until(lambda: not old.open_connections, "the old connections to go", within=30)
            seen = len(old.requests)
            await new.wait_request(len(new.requests) + 20)
            assert len(old.requests) == seen

            system.answers.clear()
            await eventually(lambda: system.silent > 0)
            await new.wait_request(len(new.requests) + 20)
            over = True
            await asyncio.gather(*loads)
            system.answers.set()
