"""A realtime provider that really speaks: `websockets` on its own port, one response for each that is asked for.

    async with RealtimeProvider() as provider, running_gateway(provider.config()) as gateway:
        ...
        provider.sessions[0].closed      # (1000, "bye") once it is over

Of what it hears, `response.create` is answered by two deltas and a `response.done` with `USAGE`; binary comes back as
it is, and so does any other text. `{"type": "close", "code": …}` makes it close.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from websockets.asyncio.server import ServerConnection, serve

from .gateway import config_for
from .upstream import WITHIN
from .websocket import response_done

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from websockets.asyncio.server import Server
    from websockets.typing import Subprotocol


class ProviderSession:
    """One session, as the provider sees it."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self.heard: list[str | bytes] = []
        self.responses = 0
        self.over = asyncio.Event()

    @property
    def closed(self) -> tuple[int | None, str | None]:
        """Code and reason that ended it; 1006 where there was no Close."""
        return self.connection.close_code, self.connection.close_reason

    async def talk(self) -> None:
        """To the end."""
        await self._say({"type": "session.created", "event_id": "event_0", "session": {"type": "realtime"}})
        try:
            async for message in self.connection:
                self.heard.append(message)
                if isinstance(message, bytes):
                    await self.connection.send(message)
                else:
                    await self._answer(message)
        finally:
            self.over.set()

    async def _answer(self, message: str) -> None:
        event = json.loads(message)
        if event["type"] == "close":
            await self.connection.close(event["code"], event["reason"])
        elif event["type"] == "response.create":
            self.responses += 1
            name = f"resp_{self.responses}"
            for said in ("Hello", " there."):
                await self._say({"type": "response.output_text.delta", "response_id": name, "delta": said})
            await self._say(response_done(response=name))
        else:
            await self.connection.send(message)

    async def _say(self, event: dict[str, Any]) -> None:
        await self.connection.send(json.dumps(event))


class RealtimeProvider:
    """See the top. `options` are those of `websockets.asyncio.server.serve`."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, **options: Any) -> None:
        self.sessions: list[ProviderSession] = []
        self.tls = tls
        self._options: dict[str, Any] = {"ping_interval": None, "compression": "deflate", **options}
        self._server: Server
        self.port = 0

    @property
    def base_url(self) -> str:
        """As a provider's base_url is written."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/v1"

    def config(self, **options: Any) -> dict[str, Any]:
        """A config with this provider; `options` are those of `config_for`."""
        config = config_for(**options)
        config["providers"]["up"]["base_url"] = self.base_url
        return config

    async def over(self, n: int = 1) -> ProviderSession:
        """The n-th session, once it is over."""
        session = self.sessions[n - 1]
        async with asyncio.timeout(WITHIN):
            await session.over.wait()
        return session

    async def __aenter__(self) -> RealtimeProvider:
        self._server = await serve(
            self._serve, "127.0.0.1", 0, ssl=self.tls, select_subprotocol=_choose, **self._options
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, connection: ServerConnection) -> None:
        session = ProviderSession(connection)
        self.sessions.append(session)
        await session.talk()


def _choose(connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """As the real provider: the first one."""
    return offered[0] if offered else None
