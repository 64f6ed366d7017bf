"""New connections to one address, each of the version of HTTP that is spoken there.

Where the TLS handshake decides, a stand-in waits for its end. The code of HTTP/2 and its packages are loaded when a
provider first speaks it: who has no such provider never pays.
"""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, cast

from .h1 import H1Connection

if TYPE_CHECKING:
    from ..clock import Clock
    from .dial import Dialer
    from .h2_connection import H2Connection
    from .pool import Pool
    from .tls import Http2

    Connection = H1Connection | H2Connection

H2 = "h2"
"""Its name in ALPN."""


class Destination(NamedTuple):
    """What all requests to an endpoint have in common."""

    scheme: bytes
    authority: bytes
    base: bytes
    """Path that precedes every target."""
    credential: tuple[tuple[bytes, bytes], ...] = ()


class Connector:
    """Opens connections for a pool."""

    __slots__ = ("_clock", "_dialer", "_to", "http2", "name")

    def __init__(self, dialer: Dialer, clock: Clock, to: Destination, http2: Http2 = False) -> None:
        self._dialer = dialer
        self.name = dialer.name
        """Of the host, where it has one; None for an address."""
        self._clock = clock
        self._to = to
        self.http2 = http2

    async def open(self, pool: Pool) -> Connection:
        """A connection that belongs to `pool`. Raises ConnectError; cancelled, it leaves no socket behind."""
        if self.http2 == "auto":
            return await self._negotiate(pool)
        if self.http2:
            await _load()
        connection = self._h2(pool) if self.http2 else H1Connection(pool, self._clock)
        try:
            connection.address = await self._dialer.open(lambda: connection)
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _negotiate(self, pool: Pool) -> Connection:
        waiting = Waiting()
        address = await self._dialer.open(lambda: waiting)
        try:
            if waiting.speaks_h2:
                await _load()
        except BaseException:
            waiting.transport.abort()
            raise
        connection = self._h2(pool) if waiting.speaks_h2 else H1Connection(pool, self._clock)
        connection.address = address
        return waiting.give(connection)

    def _h2(self, pool: Pool) -> H2Connection:
        from .h2_connection import H2Connection

        return H2Connection(pool, self._clock, self._to)


async def _load() -> None:
    """Import the code of HTTP/2, beside the loop: that takes some tens of milliseconds, once."""
    name = f"{__package__}.h2_connection"
    if name not in sys.modules:
        await asyncio.get_running_loop().run_in_executor(None, import_module, name)


class Waiting(asyncio.Protocol):
    """Holds a connection from the end of its handshake until what was chosen there is known and loaded."""

    transport: asyncio.Transport
    speaks_h2: bool

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.pause_reading()
        self.speaks_h2 = transport.get_extra_info("ssl_object").selected_alpn_protocol() == H2

    def give(self, connection: Connection) -> Connection:
        """Hand it over."""
        self.transport.set_protocol(connection)
        connection.connection_made(self.transport)
        self.transport.resume_reading()
        return connection
