"""The mock on a listening socket. Not hardened as the gateway's edge is: it is for tests, on a machine of one's own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from .connection import MockConnection
from .shared import Shared

if TYPE_CHECKING:
    import socket

    from ...proxy.clock import Clock
    from .provider import MockProvider
    from .shared import Connection, Watcher

BACKLOG = 1024
_CLOSE_POLL = 0.01


class MockServer:
    """What `serve` started."""

    __slots__ = ("_clock", "_server", "_shared", "port")

    def __init__(self, server: asyncio.Server, shared: Shared, clock: Clock, port: int) -> None:
        self._server = server
        self._shared = shared
        self._clock = clock
        self.port = port

    @property
    def connections(self) -> set[Connection]:
        """Those that are open."""
        return self._shared.connections

    @property
    def strays(self) -> int:
        """Times that something came on a connection after a fault that left it of no use."""
        return self._shared.strays

    async def aclose(self) -> None:
        """Stop, whatever is being played; no connection is left when this returns."""
        self._server.close()
        for connection in list(self._shared.connections):
            connection.abort()
        while self._shared.connections:
            await self._clock.sleep(_CLOSE_POLL)


async def serve(
    sock: socket.socket,
    provider: MockProvider,
    clock: Clock,
    *,
    speed: float = 1.0,
    watcher: Watcher | None = None,
) -> MockServer:
    """Serve on a bound socket, HTTP/1.1 and, to who begins with it, HTTP/2; `speed`: how many times faster than
    life faults are played. Ready on return."""
    shared = Shared(provider, clock, speed=speed, watcher=watcher)
    server = await asyncio.get_running_loop().create_server(lambda: MockConnection(shared), sock=sock, backlog=BACKLOG)
    return MockServer(server, shared, clock, sock.getsockname()[1])
