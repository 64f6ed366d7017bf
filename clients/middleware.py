"""The gateway as ASGI middleware: an application serves the OpenAI API beside its own routes.

    app = GatewayMiddleware(app, "gateway.yaml")

It answers the paths of the endpoint table and `/v1/health`; every other scope passes untouched. It starts with the
application's lifespan, or, under a server that has none, with the first request; it ends with the lifespan.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ..proxy.edge.asgi import serve_exchange
from ..proxy.edge.data_app import data_app
from .embedded import Embedded

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, MutableMapping

    from ..config import GatewayConfig
    from ..gateway import Gateway

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Message, Receive, Send], Awaitable[None]]

HEALTH = "/v1/health"


class GatewayMiddleware:
    """`app` with the gateway in front of it."""

    def __init__(self, app: App, config: GatewayConfig | str | os.PathLike[str] | None = None) -> None:
        self._app = app
        self._embedded = Embedded(config)
        self._health = data_app(self._not_ready, version("headgate"))

    @property
    def gateway(self) -> Gateway:
        """The gateway inside."""
        return self._embedded.gateway

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if path == HEALTH:
                await self._embedded.start()
                await self._health(scope, receive, send)
                return
            if path.startswith("/v1/"):
                await self._embedded.start()
                if self.gateway.engine.accepts(path):
                    await serve_exchange(self._embedded.context, scope, receive, send)
                    return
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _lifespan(self, scope: Message, receive: Receive, send: Send) -> None:
        """Around the application's own lifespan; in its place where it has none."""
        started = False

        async def receive_and_start() -> Message:
            nonlocal started
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self._embedded.start()
                started = True
            return message

        async def close_and_send(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed", "lifespan.startup.failed"):
                await self._embedded.aclose()
            await send(message)

        try:
            await self._app(scope, receive_and_start, close_and_send)
        except Exception:
            if started:
                await self._embedded.aclose()
                raise
            # The application has no lifespan, and says so the way ASGI asks for: by raising.
            await self._own_lifespan(receive, send)

    async def _own_lifespan(self, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "lifespan.shutdown":
            await self._embedded.start()
            await send({"type": "lifespan.startup.complete"})
        await self._embedded.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    def _not_ready(self) -> list[str]:
        return [] if self.gateway.ready else ["starting"]
