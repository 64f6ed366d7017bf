"""What all connections of a mock have in common, and how one is reset."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Protocol

from ...proxy.edge.body import BodyBudget
from ...proxy.edge.context import EdgeLimits

if TYPE_CHECKING:
    import asyncio

    from ...proxy.clock import Clock
    from ...proxy.edge.downstream import RequestHead
    from .provider import MockProvider, Script

BODY_BYTES = 32 << 20
_RESET = struct.pack("ii", 1, 0)


class Watcher(Protocol):
    """Who wants to know what is played."""

    def on_accept(self, script: Script) -> None:
        """A new connection meets a fault before anything is read from it."""

    def on_request(self, head: RequestHead, body: bytes, script: Script) -> None:
        """A whole request has come; this is about to be played."""


class Connection(Protocol):
    """One that is open."""

    deaf: bool
    """Nothing is read from it any more, not even that the other side has closed."""

    @property
    def spoiled(self) -> bool:
        """A fault is being played on it, or has left it of no use."""

    def abort(self) -> None:
        """End it, whatever it is doing."""


class Shared:
    """See the top."""

    __slots__ = ("budget", "clock", "connections", "limits", "provider", "speed", "strays", "watcher")

    def __init__(
        self,
        provider: MockProvider,
        clock: Clock,
        *,
        speed: float = 1.0,
        watcher: Watcher | None = None,
    ) -> None:
        self.provider = provider
        self.clock = clock
        self.speed = speed
        """How many times faster than life faults are played."""
        self.watcher = watcher
        self.limits = EdgeLimits()
        self.budget = BodyBudget(8 * BODY_BYTES)
        self.connections: set[Connection] = set()
        self.strays = 0
        """Times that something came on a connection that could not carry it any more."""


def reset(transport: asyncio.Transport) -> None:
    """Close without a word, as after a crash."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
