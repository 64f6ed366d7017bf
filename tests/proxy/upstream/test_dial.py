"""Dialer: names are resolved for each connection, addresses are raced, and nothing is left behind."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from headgate.proxy.errors import ConnectError
from headgate.proxy.upstream.dial import HEAD_START_SECONDS, Dialer
from tests_support.upstream import FakeUpstream

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("no_leaks")

Place = tuple[Any, ...]
NAME = "provider.example"


class Names:
    """The resolver's side, under the test's control: `places` are its answer, None a failure."""

    def __init__(self, *places: Place) -> None:
        self.places: list[Place] | None = list(places)
        self.asked = 0
        self._real = asyncio.get_running_loop().getaddrinfo

    async def getaddrinfo(self, host: str, port: int, **how: Any) -> list[tuple[Any, ...]]:
        if host != NAME:  # uvloop asks again for the address that it was given
            return list(await self._real(host, port, **how))
        self.asked += 1
        if self.places is None:
            raise socket.gaierror(socket.EAI_AGAIN, "resolver down")
        return [
            (socket.AF_INET6 if ":" in place[0] else socket.AF_INET, socket.SOCK_STREAM, 6, "", place)
            for place in self.places
        ]


@pytest.fixture
async def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", names.getaddrinfo)
    return names


@pytest.fixture
async def dialer(names: Names) -> Dialer:
    return Dialer(NAME, 443, None)


@pytest.fixture
def refusing() -> Place:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        place: Place = free.getsockname()
    return place


@pytest.fixture
def hanging() -> Iterator[Place]:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        place: Place = listener.getsockname()
        fillers = [socket.socket() for _ in range(3)]
        for one in fillers:
            one.setblocking(False)
            one.connect_ex(place)
        yield place
        for one in fillers:
            one.close()


async def opened(dialer: Dialer) -> tuple[Place, asyncio.Transport]:
    """Dial, and say where it led."""
    made: list[asyncio.Transport] = []

    class Client(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            made.append(transport)

    await dialer.open(Client)
    peer: Place = made[0].get_extra_info("peername")
    return peer, made[0]


async def reached(dialer: Dialer) -> int:
    """Dial, say which port it led to, and hang up."""
    async with asyncio.timeout(5):
        peer, transport = await opened(dialer)
    transport.abort()
    return int(peer[1])


async def test_the_name_is_asked_for_each_connection_so_a_provider_that_moves_is_followed(
    dialer: Dialer, names: Names
) -> None:
    async with FakeUpstream() as here, FakeUpstream() as there:
        names.places = [("127.0.0.1", here.port)]
        assert await reached(dialer) == here.port
        names.places = [("127.0.0.1", there.port)]
        assert await reached(dialer) == there.port
        assert names.asked == 2


async def test_while_the_resolver_fails_the_last_good_addresses_are_used(dialer: Dialer, names: Names) -> None:
    names.places = None
    with pytest.raises(ConnectError):
        await reached(dialer)
    async with FakeUpstream() as upstream:
        names.places = [("127.0.0.1", upstream.port)]
        assert await reached(dialer) == upstream.port
        names.places = None
        assert await reached(dialer) == upstream.port


async def test_a_refused_address_gives_way_to_the_next_at_once(dialer: Dialer, names: Names, refusing: Place) -> None:
    async with FakeUpstream() as upstream:
        names.places = [refusing, refusing, ("127.0.0.1", upstream.port)]
        started = time.monotonic()
        assert await reached(dialer) == upstream.port
        assert time.monotonic() - started < HEAD_START_SECONDS


async def test_a_silent_address_gives_way_after_its_head_start(dialer: Dialer, names: Names, hanging: Place) -> None:
    async with FakeUpstream() as upstream:
        names.places = [hanging, ("127.0.0.1", upstream.port)]
        started = time.monotonic()
        assert await reached(dialer) == upstream.port
        assert HEAD_START_SECONDS <= time.monotonic() - started < HEAD_START_SECONDS + 1


async def test_all_addresses_refused_is_a_connect_failure_that_names_no_host(
    dialer: Dialer, names: Names, refusing: Place
) -> None:
    names.places = [refusing, refusing]
    with pytest.raises(ConnectError) as caught:
        await reached(dialer)
    assert NAME not in caught.value.message
    assert NAME in str(caught.value.detail)


async def test_a_name_without_addresses_is_a_connect_failure(dialer: Dialer, names: Names) -> None:
    names.places = []
    with pytest.raises(ConnectError):
        await reached(dialer)


async def test_a_dial_that_is_cancelled_leaves_nothing_behind(dialer: Dialer, names: Names, hanging: Place) -> None:
    for places in ([hanging], [hanging, hanging]):
        names.places = places
        task = asyncio.ensure_future(reached(dialer))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def test_losers_that_connect_all_the_same_are_closed(
    dialer: Dialer, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    connect, gate, at_the_gate = loop.sock_connect, asyncio.Event(), asyncio.Semaphore(0)

    async def connect_and_wait(sock: socket.socket, address: Place) -> None:
        await connect(sock, address)
        at_the_gate.release()
        await gate.wait()

    monkeypatch.setattr(loop, "sock_connect", connect_and_wait)
    async with FakeUpstream() as one, FakeUpstream() as other:
        names.places = [("127.0.0.1", one.port), ("127.0.0.1", other.port)]
        for cancelled in (False, True):
            gate.clear()
            dial = asyncio.ensure_future(reached(dialer))
            await at_the_gate.acquire()
            await at_the_gate.acquire()
            gate.set()
            if cancelled:
                dial.cancel()
            await asyncio.wait([dial])
            assert dial.cancelled() == cancelled
            await one.wait_until(lambda: not one.open_connections, "the one to be closed")
            await other.wait_until(lambda: not other.open_connections, "the other to be closed")


async def test_families_take_turns(dialer: Dialer, names: Names, refusing: Place) -> None:
    async with FakeUpstream() as upstream:
        good = ("127.0.0.1", upstream.port)
        dead = ("::1", refusing[1], 0, 0)
        names.places = [dead, dead, dead, good]
        assert await reached(dialer) == upstream.port


async def test_connections_send_at_once_and_notice_a_dead_peer(dialer: Dialer, names: Names) -> None:
    async with FakeUpstream() as upstream:
        names.places = [("127.0.0.1", upstream.port)]
        _, transport = await opened(dialer)
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        transport.abort()
