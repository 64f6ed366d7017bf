"""Which HTTP a new connection speaks, where its TLS handshake says so.

The code of HTTP/2 and its packages are loaded when a provider first chooses it: who has no such provider never pays.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .h1 import H1Connection
    from .h2_connection import H2Connection

H2 = "h2"
"""Its name in ALPN."""


class Negotiation(asyncio.Protocol):
    """Stands in until the handshake is over, then gives the transport to a connection of the chosen version."""

    def __init__(self, h1: Callable[[], H1Connection], h2: Callable[[], H2Connection]) -> None:
        self._h1 = h1
        self._h2 = h2
        self.connection: H1Connection | H2Connection | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        chosen = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        self.connection = self._h2() if chosen == H2 else self._h1()
        transport.set_protocol(self.connection)
        self.connection.connection_made(transport)

    def close(self) -> None:
        """Close what there is; idempotent."""
        if self.connection is not None:
            self.connection.close()
