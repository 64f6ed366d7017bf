"""From addresses to a connection: connect, shake hands.

Several addresses are raced as RFC 8305 says: the next one starts when the one before failed, or after a quarter of a
second.

Not here: where a name leads (names.py); how long it may take. Whoever dials cancels the task (pool.py), and a cancelled
dial leaves no socket behind.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConnectError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .names import Name
    from .resolver import Address

HEAD_START_SECONDS = 0.25
"""RFC 8305, "Connection Attempt Delay"."""

TLS_GOODBYE_SECONDS = 1.0
"""How long a connection that we close in order waits for the provider's goodbye before it is cut."""

UNREACHABLE = "The provider could not be reached."
UNVERIFIED = "The provider's certificate could not be verified; nothing was sent."


class Dialer:
    """Opens connections to one host and port, which needs a resolver where it is a `Name`."""

    __slots__ = ("_host", "_port", "_tls", "_where", "name")

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, where: Name | Sequence[Address]) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._where = where
        self.name = None if isinstance(where, Sequence) else where

    async def open(self, protocol_factory: Callable[[], asyncio.Protocol]) -> Address:
        """Connect a protocol; it has heard `connection_made` when this returns. Returns where it led. Raises
        ConnectError."""
        loop = asyncio.get_running_loop()
        try:
            address, sock = await self._connect(loop)
        except OSError as error:
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
        return address

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> tuple[Address, socket.socket]:
        if isinstance(self._where, Sequence):
            return await _first_to_connect(self._where, loop)
        addresses = await self._where.addresses()
        try:
            return await _first_to_connect(addresses, loop)
        except BaseException:  # refused, or taking too long
            self._where.doubt()
            raise


async def _connect(address: Address) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await sock_connect(sock, address.sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


async def sock_connect(sock: socket.socket, address: Any) -> None:
    """Connect a socket that does not block. Raises OSError.

    Not the loop's own: uvloop's asks the system's resolver where an address leads, in one of four threads that all
    share, and forgets the interface of an address that belongs to one link.
    """
    try:
        sock.connect(address)
    except BlockingIOError:
        pass
    else:
        return
    loop = asyncio.get_running_loop()
    writable: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock, _told, writable)
    try:
        await writable
    finally:
        loop.remove_writer(sock)
    if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(error, f"Connect call failed {address}")


def _told(writable: asyncio.Future[None]) -> None:
    if not writable.done():
        writable.set_result(None)


async def _first_to_connect(
    addresses: Sequence[Address], loop: asyncio.AbstractEventLoop
) -> tuple[Address, socket.socket]:
    """The first address that connects, and its socket; the others are closed. Raises the last OSError when all
    fail."""
    if len(addresses) == 1:
        return addresses[0], await _connect(addresses[0])
    left = list(addresses)
    started: list[asyncio.Task[socket.socket]] = []
    racing: set[asyncio.Task[socket.socket]] = set()
    winner: asyncio.Task[socket.socket] | None = None
    failure: BaseException = OSError("no address is known")
    try:
        while winner is None and (left or racing):
            if left:
                started.append(loop.create_task(_connect(left.pop(0))))
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
        return addresses[started.index(winner)], winner.result()
    finally:
        for task in started:
            if task is not winner:
                task.add_done_callback(_close_late)
                task.cancel()


def _close_late(task: asyncio.Task[socket.socket]) -> None:
    """A loser that had connected before it could be cancelled."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
