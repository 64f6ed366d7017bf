"""A network in memory: both ends of every connection on one loop, without sockets, time or chance of its own.

    net = MemoryNet(loop, Random(7))
    net.listen("provider", lambda: MockConnection(shared))
    with net.dialled():                     # every Dialer of the product connects here
        ...
        await net.settled()                 # nothing is on its way any more

Bytes arrive in segments that are cut at random, one for each turn of the loop, and never out of order; a reset arrives
after what was sent before it. Who does not read is not written to for ever: `pause_writing` comes as from a socket.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

from headgate.proxy.errors import ConnectError
from headgate.proxy.upstream.dial import UNREACHABLE, Dialer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from random import Random

HIGH = 64 * 1024
LOW = 16 * 1024
_MANY_TURNS = 200_000


class _Ends(Enum):
    FIN = "closed in order"
    RST = "reset"


class Reach(Enum):
    """What becomes of an attempt to connect."""

    OPEN = "connects"
    REFUSED = "is refused"
    SILENT = "hears nothing"


class MemoryTransport(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, net: MemoryNet, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._net = net
        self.protocol = protocol
        self.peer: MemoryTransport
        self._inbox: deque[bytes | _Ends] = deque()
        self._unread = 0
        self._reading = True
        self._scheduled = False
        self._writing_paused = False
        self._closing = False
        self.lost = False
        net.open.add(self)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or not data:
            return
        self.peer._take(self._net.cut(bytes(data)))
        if self.peer._unread > HIGH and not self._writing_paused:
            self._writing_paused = True
            self.protocol.pause_writing()

    def writelines(self, pieces: Iterable[Any]) -> None:
        self.write(b"".join(map(bytes, pieces)))

    def get_write_buffer_size(self) -> int:
        return self.peer._unread

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Not here."""

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._schedule()

    def close(self) -> None:
        self._part(_Ends.FIN)

    def abort(self) -> None:
        self._part(_Ends.RST)

    def _part(self, how: _Ends) -> None:
        if self._closing:
            return
        self._closing = True
        self._inbox.clear()
        self.peer._take([how])
        self._net.loop.call_soon(self._lose, None)

    def _take(self, items: Iterable[bytes | _Ends]) -> None:
        if self._closing:
            return
        for item in items:
            self._inbox.append(item)
            self._unread += len(item) if isinstance(item, bytes) else 0
        self._schedule()

    def _schedule(self) -> None:
        if self._inbox and self._reading and not self._scheduled and not self._closing:
            self._scheduled = True
            self._net.loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        if not self._inbox or not self._reading or self._closing:
            return
        item = self._inbox.popleft()
        if isinstance(item, bytes):
            self._unread -= len(item)
            self.protocol.data_received(item)
            self.peer._has_room(self._unread)
        elif item is _Ends.FIN:
            if not self.protocol.eof_received():
                self.close()
        else:
            self._closing = True
            self._lose(ConnectionResetError("reset"))
        self._schedule()

    def _has_room(self, unread: int) -> None:
        if self._writing_paused and unread < LOW and not self._closing:
            self._writing_paused = False
            self._net.loop.call_soon(self.protocol.resume_writing)

    def _lose(self, error: Exception | None) -> None:
        if not self.lost:
            self.lost = True
            self._net.open.discard(self)
            self.protocol.connection_lost(error)


class MemoryNet:
    """Listeners by host name."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rng: Random) -> None:
        self.loop = loop
        self.reach: dict[str, Reach] = {}
        self.open: set[MemoryTransport] = set()
        """Ends that have not been told of their loss."""
        self._rng = rng
        self._listeners: dict[str, Callable[[], asyncio.Protocol]] = {}

    def listen(self, host: str, factory: Callable[[], asyncio.Protocol]) -> None:
        """Answer at `host`, on every port."""
        self._listeners[host] = factory
        self.reach[host] = Reach.OPEN

    async def connect(self, host: str, factory: Callable[[], asyncio.Protocol]) -> None:
        """As `Dialer.open`."""
        await asyncio.sleep(0)
        if self.reach[host] is Reach.SILENT:
            await self.loop.create_future()
        if self.reach[host] is Reach.REFUSED:
            raise ConnectError(UNREACHABLE)
        near = MemoryTransport(self, factory())
        far = MemoryTransport(self, self._listeners[host]())
        near.peer, far.peer = far, near
        near.protocol.connection_made(near)
        far.protocol.connection_made(far)

    def cut(self, data: bytes) -> list[bytes]:
        """The same bytes in up to four segments."""
        places = sorted({self._rng.randrange(len(data)) for _ in range(self._rng.choice((0, 0, 1, 3)))} - {0})
        return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]

    @contextmanager
    def dialled(self) -> Iterator[None]:
        """Connections of the product are made here."""

        async def open_here(dialer: Dialer, factory: Callable[[], asyncio.Protocol]) -> None:
            await self.connect(dialer._host, factory)

        with patch.object(Dialer, "open", open_here):
            yield

    async def settled(self) -> None:
        """Run the loop until nothing is left to do that waits for no timer."""
        ready = self.loop._ready  # type: ignore[attr-defined]  # asyncio's own loop; nothing public says "idle"
        for _ in range(_MANY_TURNS):
            await asyncio.sleep(0)
            if not ready:
                return
        raise AssertionError("it never comes to rest")
