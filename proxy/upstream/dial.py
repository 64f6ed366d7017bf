"""From a host name to a connection: resolve, connect, shake hands.

The name is resolved anew for each connection, so a provider that moves is followed as soon as connections are
renewed; while the resolver fails, the addresses that answered last are used again. Several addresses are raced as RFC
8305 says: the next one starts when the one before failed, or after a quarter of a second.

Not here: how long it may take. Whoever dials cancels the task (pool.py), and a cancelled dial leaves no socket behind.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConnectError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HEAD_START_SECONDS = 0.25
"""RFC 8305, "Connection Attempt Delay"."""

TLS_GOODBYE_SECONDS = 1.0
"""How long a connection that we close in order waits for the provider's goodbye before it is cut."""

UNREACHABLE = "The provider could not be reached."
UNVERIFIED = "The provider's certificate could not be verified; nothing was sent."


class Address(NamedTuple):
    """One result of the resolver, as the socket module takes it."""

    family: int
    sockaddr: tuple[Any, ...]


class Dialer:
    """Opens connections to one host and port."""

    __slots__ = ("_host", "_last_good", "_port", "_tls")

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._last_good: list[Address] = []

    async def open(self, protocol_factory: Callable[[], asyncio.Protocol]) -> None:
        """Connect a protocol; it has heard `connection_made` when this returns. Raises ConnectError."""
        loop = asyncio.get_running_loop()
        try:
            sock = await _first_to_connect(await self._resolve(loop), loop)
        except (OSError, UnicodeError) as error:
            raise ConnectError(UNREACHABLE, detail=f"connect {self._host}:{self._port}: {error}") from error
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._tls is None:
                await loop.create_connection(protocol_factory, sock=sock)
            else:
                await loop.create_connection(
                    protocol_factory,
                    sock=sock,
                    ssl=self._tls,
                    server_hostname=self._host,
                    ssl_shutdown_timeout=TLS_GOODBYE_SECONDS,
                )
        except OSError as error:
            sock.close()
            message = UNVERIFIED if isinstance(error, ssl.CertificateError) else UNREACHABLE
            raise ConnectError(message, detail=f"tls {self._host}:{self._port}: {error!r}") from error
        except BaseException:
            sock.close()
            raise

    async def _resolve(self, loop: asyncio.AbstractEventLoop) -> list[Address]:
        try:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError:
            if not self._last_good:
                raise
            return self._last_good
        self._last_good = _alternate([Address(family, sockaddr) for family, _, _, _, sockaddr in found])
        return self._last_good


def _alternate(addresses: list[Address]) -> list[Address]:
    """One of each family in turn, beginning with the resolver's favourite: a dead family costs one head start."""
    first = [one for one in addresses if one.family == addresses[0].family]
    other = [one for one in addresses if one.family != addresses[0].family]
    mixed: list[Address] = []
    for at in range(max(len(first), len(other))):
        mixed += first[at : at + 1] + other[at : at + 1]
    return mixed


async def _connect(address: Address, loop: asyncio.AbstractEventLoop) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, address.sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


async def _first_to_connect(addresses: Sequence[Address], loop: asyncio.AbstractEventLoop) -> socket.socket:
    """The first socket that connects; the others are closed. Raises the last OSError when all fail."""
    if len(addresses) == 1:
        return await _connect(addresses[0], loop)
    left = list(addresses)
    started: list[asyncio.Task[socket.socket]] = []
    racing: set[asyncio.Task[socket.socket]] = set()
    winner: asyncio.Task[socket.socket] | None = None
    failure: BaseException = OSError("the name has no address")
    try:
        while winner is None and (left or racing):
            if left:
                started.append(loop.create_task(_connect(left.pop(0), loop)))
                racing.add(started[-1])
            head_start = HEAD_START_SECONDS if left else None
            done, racing = await asyncio.wait(racing, timeout=head_start, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is None:
                    winner = task
                else:
                    failure = error
        if winner is None:
            raise failure
        return winner.result()
    finally:
        for task in started:
            if task is not winner:
                task.add_done_callback(_close_late)
                task.cancel()


def _close_late(task: asyncio.Task[socket.socket]) -> None:
    """A loser that had connected before it could be cancelled."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
