"""Dialer: addresses are raced, and nothing is left behind."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from headgate.proxy.clock import Deadlines, LoopClock
from headgate.proxy.errors import ConnectError
from headgate.proxy.upstream import dial
from headgate.proxy.upstream.dial import HEAD_START_SECONDS, Dialer
from headgate.proxy.upstream.names import Name
from headgate.proxy.upstream.resolver import Address
from tests_support.names import FakeResolver
from tests_support.upstream import FakeUpstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("no_leaks")

Place = tuple[Any, ...]
NAME = "provider.example"


class Names:
    """Where the name leads: `places`."""

    def __init__(self) -> None:
        self.places: list[Place] = []

    async def open(self, factory: Callable[[], asyncio.Protocol]) -> Address:
        """By a dialer of its own."""
        clock = LoopClock()
        name = Name(NAME, 443, FakeResolver(*self.places), clock, Deadlines(clock))
        return await Dialer(NAME, 443, None, name).open(factory)


@pytest.fixture
async def names() -> Names:
    return Names()


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


async def opened(names: Names) -> tuple[Place, asyncio.Transport]:
    """Dial, and say where it led."""
    made: list[asyncio.Transport] = []

    class Client(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            made.append(transport)

    assert (await names.open(Client)).sockaddr == made[0].get_extra_info("peername")
    peer: Place = made[0].get_extra_info("peername")
    return peer, made[0]


async def reached(names: Names) -> int:
    """Dial, say which port it led to, and hang up."""
    async with asyncio.timeout(5):
        peer, transport = await opened(names)
    transport.abort()
    return int(peer[1])


async def test_a_refused_address_gives_way_to_the_next_at_once(names: Names, refusing: Place) -> None:
    async with FakeUpstream() as upstream:
        names.places = [refusing, refusing, ("127.0.0.1", upstream.port)]
        started = time.monotonic()
        assert await reached(names) == upstream.port
        assert time.monotonic() - started < HEAD_START_SECONDS


async def test_a_silent_address_gives_way_after_its_head_start(names: Names, hanging: Place) -> None:
    async with FakeUpstream() as upstream:
        names.places = [hanging, ("127.0.0.1", upstream.port)]
        started = time.monotonic()
        assert await reached(names) == upstream.port
        assert HEAD_START_SECONDS <= time.monotonic() - started < HEAD_START_SECONDS + 1


async def test_all_addresses_refused_is_a_connect_failure_that_names_no_host(names: Names, refusing: Place) -> None:
    names.places = [refusing, refusing]
    with pytest.raises(ConnectError) as caught:
        await reached(names)
    assert NAME not in caught.value.message
    assert NAME in str(caught.value.detail)


async def test_a_name_without_addresses_is_a_connect_failure(names: Names) -> None:
    names.places = []
    with pytest.raises(ConnectError):
        await reached(names)


async def test_a_dial_that_is_cancelled_leaves_nothing_behind(names: Names, hanging: Place) -> None:
    for places in ([hanging], [hanging, hanging]):
        names.places = places
        task = asyncio.ensure_future(reached(names))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def test_losers_that_connect_all_the_same_are_closed(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    connect, gate, at_the_gate = dial.sock_connect, asyncio.Event(), asyncio.Semaphore(0)

    async def connect_and_wait(sock: socket.socket, address: Place) -> None:
        await connect(sock, address)
        at_the_gate.release()
        await gate.wait()

    monkeypatch.setattr(dial, "sock_connect", connect_and_wait)
    async with FakeUpstream() as one, FakeUpstream() as other:
        names.places = [("127.0.0.1", one.port), ("127.0.0.1", other.port)]
        for cancelled in (False, True):
            gate.clear()
            dialling = asyncio.ensure_future(reached(names))
            await at_the_gate.acquire()
            await at_the_gate.acquire()
            gate.set()
            if cancelled:
                dialling.cancel()
            await asyncio.wait([dialling])
            assert dialling.cancelled() == cancelled
            await one.wait_until(lambda: not one.open_connections, "the one to be closed")
            await other.wait_until(lambda: not other.open_connections, "the other to be closed")


async def test_connections_send_at_once_and_notice_a_dead_peer(names: Names) -> None:
    async with FakeUpstream() as upstream:
        names.places = [("127.0.0.1", upstream.port)]
        _, transport = await opened(names)
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        transport.abort()


class WithoutResolver(uvloop.Loop):
    """Its own resolver may hang, for whomever; it has few threads."""

    async def getaddrinfo(self, *args: Any, **options: Any) -> Any:
        raise AssertionError(f"asked where {args} leads")


async def test_an_address_is_connected_to_without_asking_where_it_leads() -> None:
    async def connect() -> None:
        async with FakeUpstream() as upstream:
            place = Address(socket.AF_INET, ("127.0.0.1", upstream.port))
            made: list[asyncio.Transport] = []

            class Client(asyncio.Protocol):
                def connection_made(self, transport: Any) -> None:
                    made.append(transport)

            assert await Dialer("127.0.0.1", upstream.port, None, [place]).open(Client) == place
            made[0].abort()

    def run() -> None:
        with asyncio.Runner(loop_factory=WithoutResolver) as runner:
            runner.run(connect())

    await asyncio.to_thread(run)


async def test_an_address_is_dialled_with_all_that_belongs_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address of one's own link means nothing without the number of its interface."""
    seen: list[Place] = []

    class Seeing(socket.socket):
        def connect(self, address: Any) -> None:
            seen.append(address)
            raise OSError(errno.ENETUNREACH, "as wherever there is none")

    place = Address(socket.AF_INET6, ("fe80::1", 443, 0, 7))
    monkeypatch.setattr(socket, "socket", Seeing)
    with pytest.raises(ConnectError):
        await Dialer("fe80::1", 443, None, [place]).open(asyncio.Protocol)
    assert seen == [("fe80::1", 443, 0, 7)]
