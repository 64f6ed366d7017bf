"""A gateway inside an application's own event loop: data half, ledger, and an admin app to mount.

No socket is opened: `listeners` and `workers` may stand in the file, and are said to be unused. Several may live in one
process; they share nothing but, where the file says so, a ledger.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import structlog

from ..control.admin.app import admin_app
from ..control.model_watch import ModelWatch
from ..control.process.control_half import ControlHalf
from ..control.process.data_server import DataServer
from ..control.process.key_watch import KeyWatch
from ..control.process.single import health_watch, jwks_watch
from ..control.process.view import SingleView
from ..gateway import Gateway
from ..proxy.edge.data_app import data_app

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, MutableMapping

    from ..config import GatewayConfig
    from ..proxy.edge.downstream import Downstream

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Message, Receive, Send], Awaitable[None]]

UNUSED = ("listeners", "workers")
log = structlog.get_logger("headgate")


class Embedded:
    """Runs on the loop that first starts it, until it is closed. `start` and `aclose` are idempotent.

    A loop that ended without `aclose` is forgotten at the next `start`: what was left open goes to the ledger as lost.
    """

    def __init__(self, config: GatewayConfig | str | os.PathLike[str] | None = None) -> None:
        self.gateway = Gateway(config)
        written = self.gateway.config.model_fields_set
        self._unused = [name for name in UNUSED if name in written]
        self.gateway.config = self.gateway.config.model_copy(update={"workers": 1})
        self._version = version("headgate")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn: asyncio.Lock
        self._server: DataServer | None = None
        self._control: ControlHalf
        self._running: AsyncExitStack
        self._health: App
        self._admin: App

    async def start(self) -> DataServer:
        """Build everything on the running loop, once. Raises ConfigError and BootError, and RuntimeError where it runs
        on another loop."""
        self._bind(asyncio.get_running_loop())
        if self._server is not None:
            return self._server
        async with self._turn:
            if self._server is None:
                self._server = await self._build()
            return self._server

    async def aclose(self) -> None:
        """Let what runs finish, at most `limits.drain`; end the rest; put every record into the ledger."""
        if self._loop is None:
            return
        self._bind(asyncio.get_running_loop())
        async with self._turn:
            if self._server is not None:
                await self._server.drain()
                await self._running.aclose()
                self._server = None
            self._loop = None

    def live(self) -> list[Downstream]:
        """The client's side of what is under way."""
        return [] if self._server is None else [run.downstream for run in self.gateway.engine.live]

    async def health(self, scope: Message, receive: Receive, send: Send) -> None:
        """The app behind `/v1/health`."""
        await self.start()
        await self._health(scope, receive, send)

    async def admin(self, scope: Message, receive: Receive, send: Send) -> None:
        """The admin endpoints. Whoever reaches the application reaches them, so all but `/ready` ask for a key."""
        await self.start()
        await self._admin(below_mount(scope), receive, send)

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("this gateway runs on another event loop; make one for each loop")
        if self._server is not None:
            self._server = None
            self._control.tailer.close()
            self._control.lookups.close()
            if self.gateway.spool is not None:
                self.gateway.spool.close()
        self._loop, self._turn = loop, asyncio.Lock()

    async def _build(self) -> DataServer:
        gateway = self.gateway
        if self._unused:
            log.info("config", message=f"{' and '.join(self._unused)}: not used inside an application")
        await gateway.start()
        server = DataServer(gateway, self._version)
        models = ModelWatch(gateway.clock, gateway.open_provider, gateway.take_listing)
        keys = KeyWatch(gateway.clock, gateway.read_keys)
        self._control = control = ControlHalf(
            gateway.clock,
            gateway.deadlines,
            gateway.config,
            self._version,
            models,
            health_watch(gateway),
            keys,
            jwks_watch(gateway),
        )
        control.answer(gateway.engine.issuers)
        control.store = gateway.store
        try:
            await control.recall(gateway.config)
        except BaseException:
            control.tailer.close()
            await gateway.aclose()
            raise
        self._health = data_app(server.not_ready, self._version)
        self._admin = admin_app(MountedView(control, server))
        self._running = AsyncExitStack()
        await self._running.enter_async_context(control.working())
        return server


class MountedView(SingleView):
    """What admin sees where the application's listener is not ours to know."""

    @property
    def loopback(self) -> bool:
        """Not as far as we know."""
        return False


def below_mount(scope: Message) -> Message:
    """The scope as an app at the root would see it: below a mount, the path begins with the mount's (`root_path`)."""
    root = scope.get("root_path", "")
    if not root or not scope["path"].startswith(root + "/"):
        return scope
    return {**scope, "path": scope["path"][len(root) :], "raw_path": None, "root_path": ""}
