"""New connections to one address, each of the version of HTTP that is spoken there.

Where the TLS handshake decides, a stand-in waits for its end. The code of HTTP/2 and its packages are loaded when a
provider first speaks it: who has no such provider never pays.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from .h1 import H1Connection

if TYPE_CHECKING:
    from collections.abc import Callable

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

    __slots__ = ("_clock", "_dialer", "_to", "http2")

    def __init__(self, dialer: Dialer, clock: Clock, to: Destination, http2: Http2 = False) -> None:
        self._dialer = dialer
        self._clock = clock
        self._to = to
        self.http2 = http2

    async def open(self, pool: Pool) -> Connection:
        """A connection that belongs to `pool`. Raises ConnectError; cancelled, it leaves no socket behind."""
        h1, h2 = partial(H1Connection, pool, self._clock), partial(self._h2, pool)
        if self.http2 == "auto":
            choice = Choice(h1, h2)
            try:
                await self._dialer.open(lambda: choice)
            except BaseException:
                choice.close()
                raise
            return choice.connection
        connection: Connection = h2() if self.http2 else h1()
        try:
            await self._dialer.open(lambda: connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _h2(self, pool: Pool) -> H2Connection:
        from .h2_connection import H2Connection

        return H2Connection(pool, self._clock, self._to)


class Choice(asyncio.Protocol):
    """Stands in until the handshake is over, then gives the transport to a connection of the chosen version."""

    connection: Connection

    def __init__(self, h1: Callable[[], H1Connection], h2: Callable[[], H2Connection]) -> None:
        self._h1 = h1
        self._h2 = h2
        self._made = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        chosen = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        self.connection = self._h2() if chosen == H2 else self._h1()
        self._made = True
        transport.set_protocol(self.connection)
        self.connection.connection_made(transport)

    def close(self) -> None:
        """Close what there is; idempotent."""
        if self._made:
            self.connection.close()
