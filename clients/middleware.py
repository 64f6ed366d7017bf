"""The gateway as ASGI middleware: an application serves the OpenAI API beside its own routes.

    app = GatewayMiddleware(app, "gateway.yaml")

It answers the paths of the endpoint table, its WebSockets included, and `/v1/health`; every other scope passes
untouched. It starts with the
application's lifespan, or, under a server that has none, with the first request; it ends with the lifespan.

Who may reach the application is the application's to say: hosts, origins and TLS are not looked at here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from ..control.endpoints import endpoint_table
from ..proxy.edge.asgi import serve_exchange
from .embedded import Embedded, below_mount

if TYPE_CHECKING:
    import os

    from ..config import GatewayConfig
    from ..gateway import Gateway
    from .embedded import App, Message, Receive, Send

HEALTH = "/v1/health"
_ENDS = frozenset(("lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed"))
log = structlog.get_logger("headgate")


class GatewayMiddleware:
    """`app` with the gateway in front of it. `config` is a path, a loaded config, or None for what an empty file
    means."""

    def __init__(self, app: App, config: GatewayConfig | str | os.PathLike[str] | None = None) -> None:
        self._app = app
        self._embedded = Embedded(config)
        self._table = endpoint_table(self._embedded.gateway.config.routes)

    @property
    def gateway(self) -> Gateway:
        """The gateway inside."""
        return self._embedded.gateway

    @property
    def admin(self) -> App:
        """The admin endpoints, to mount where the application wants them."""
        return self._embedded.admin

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One scope, ours or the application's."""
        if scope["type"] == "http":
            own = below_mount(scope)
            if self._table.serves(own["path"]):
                server = await self._embedded.start()
                await serve_exchange(server.context, own, receive, send)
                return
            if own["path"] == HEALTH:
                await self._embedded.health(dict(own), receive, send)
                return
        elif scope["type"] == "websocket":
            own = below_mount(scope)
            if self._table.opens_websocket(own["path"]):
                from ..proxy.edge.asgi_websocket import serve_session  # its packages are loaded by who has sessions

                server = await self._embedded.start()
                await serve_session(server.context, own, receive, send)
                return
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _lifespan(self, scope: Message, receive: Receive, send: Send) -> None:
        """Around the application's own lifespan: up before it, down after it."""
        unread = [await receive()]
        try:
            await self._embedded.start()
        except Exception as error:
            log.error("not_started", exc_info=error)
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        spoke = False

        async def receive_all() -> Message:
            return unread.pop() if unread else await receive()

        async def close_and_send(message: Message) -> None:
            nonlocal spoke
            spoke = True
            if message["type"] in _ENDS:
                await self._embedded.aclose()
            await send(message)

        try:
            await self._app(scope, receive_all, close_and_send)
        except Exception as error:
            if spoke:
                await self._embedded.aclose()
                raise
            log.info("application_has_no_lifespan", error=repr(error))
        if not spoke:
            await self._own_lifespan(receive, send)

    async def _own_lifespan(self, receive: Receive, send: Send) -> None:
        """In place of an application that has none: it says so by raising, or by not answering."""
        await send({"type": "lifespan.startup.complete"})
        while (await receive())["type"] != "lifespan.shutdown":
            pass
        await self._embedded.aclose()
        await send({"type": "lifespan.shutdown.complete"})
