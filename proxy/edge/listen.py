"""Listening sockets, and serving on them: uvicorn's server without its supervisor, its signals and its logging."""

from __future__ import annotations

import functools
import select
import socket
from typing import TYPE_CHECKING, Any

import uvicorn

from .asgi_app import AsgiApp
from .http_protocol import HttpProtocol

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from .context import EdgeContext

BACKLOG = 2048
_DRAIN_POLL = 0.02
_TURNS_TO_BE_MADE = 2
"""Of the loop, between the accepting of a connection and its `connection_made`."""


_TCP_OPTIONS = {
    "TCP_NODELAY": 1,
    # The kernel queues no more than this for a client that does not read: its queue is memory of ours as well.
    "TCP_NOTSENT_LOWAT": 128 * 1024,
    # A client whose machine vanished is noticed in a minute, and its upstream call cancelled, whether bytes wait for it
    # (the timeout, in ms; it ends what the process has already closed, too) or not (the probes).
    "TCP_USER_TIMEOUT": 60_000,
    "TCP_KEEPIDLE": 30,
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 3,
}


def bind(address: str, port: int) -> socket.socket:
    """A TCP socket bound to `address` (an IP address) and `port`, not yet listening; port 0 takes a free one.

    Raises OSError. Its options are inherited by every connection accepted on it.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _TCP_OPTIONS.items():
            if hasattr(socket, name):  # not every system has each
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        sock.setblocking(False)
        sock.set_inheritable(True)
    except OSError:
        sock.close()
        raise
    return sock


class EdgeServer:
    """What `serve` started. A drain is `last_call`, `stop_accepting`, `close_idle`, `aclose`, as many as it needs."""

    __slots__ = ("_context", "_server", "sockets")

    def __init__(self, server: uvicorn.Server, context: EdgeContext, sockets: Sequence[socket.socket]) -> None:
        self._server = server
        self._context = context
        self.sockets = tuple(sockets)

    @property
    def port(self) -> int:
        """The port of the first socket."""
        return int(self.sockets[0].getsockname()[1])

    def last_call(self) -> None:
        """Every answer that has not begun ends its connection, and idle ones are closed after `limits.last_call`."""
        self._context.draining = True
        for connection in list(self._context.connections):
            connection.last_call()

    async def stop_accepting(self) -> None:
        """Accept what has connected by now, and no more: what waits on a socket that its last owner closes is reset."""
        turn = self._context.clock.sleep
        for _ in range(BACKLOG):  # the loop takes one connection of each socket in a turn
            if not self._waiting():
                break
            await turn(0)
        for _ in range(_TURNS_TO_BE_MADE):
            await turn(0)
        self.close_listeners()

    def _waiting(self) -> bool:
        """Whether a connection is there that nobody has accepted."""
        looking = select.poll()
        for sock in self.sockets:
            if sock.fileno() >= 0:
                looking.register(sock, select.POLLIN)
        return bool(looking.poll(0))

    def close_listeners(self) -> None:
        """Accept no more."""
        for server in self._server.servers:
            server.close()

    def close_idle(self) -> None:
        """Close the connections that wait for a request; the others say `connection: close` if `context.draining`."""
        for connection in list(self._context.connections):
            connection.shutdown()

    async def aclose(self, grace: float = 0.0) -> None:
        """Stop: no new connections, idle ones closed, `grace` seconds for what runs, then the rest is cut."""
        context = self._context
        context.draining = True
        self.close_listeners()
        until = context.clock.monotonic() + grace
        while True:
            self.close_idle()
            if not context.connections or context.clock.monotonic() >= until:
                break
            await context.clock.sleep(_DRAIN_POLL)
        for connection in list(context.connections):
            connection.kill()
        if isinstance(context.app, AsgiApp):
            await context.app.aclose()
        for _ in range(2):  # connection_lost runs on the next turns of the loop
            await context.clock.sleep(0)


async def serve(
    app: Any, context: EdgeContext, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None = None
) -> EdgeServer:
    """Serve on `sockets`: to `context.acceptor` what it accepts, all else to the ASGI app. Ready on return.

    `tls`: every connection begins with its handshake."""
    config = uvicorn.Config(
        app,
        http=functools.partial(HttpProtocol, context),  # type: ignore[arg-type]  # called, never inspected
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
    )
    config.load()
    config.ssl = tls
    context.app = AsgiApp(config.loaded_app, new_id=context.new_id)
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=list(sockets))
    return EdgeServer(server, context, sockets)
