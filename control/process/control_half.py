"""The control half: admin listener, ledger, reload. It runs beside the data half in one process, or in the
supervisor."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from ...config import ConfigError
from ...proxy.edge.context import EdgeContext, EdgeLimits
from ...proxy.edge.guard import Guard
from ...proxy.edge.listen import serve
from ..admin.app import admin_app
from ..admin.view import ControlStats
from ..events.tailer import Tailer

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable

    from ...config import GatewayConfig
    from ...proxy.clock import Clock, Deadlines
    from ...proxy.edge.downstream import Downstream
    from ..admin.view import AdminView

ADMIN_CONNECTIONS = 256
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0
MANY_CRASHES = 3
"""Crashes of the tailer in a row after which readiness says so."""
log = structlog.get_logger("headgate")


class Nobody:
    """An acceptor of nothing: every path of the admin listener is the app's."""

    def accepts(self, path: str) -> bool:
        """Never."""
        return False

    def accept(self, downstream: Downstream) -> None:
        """Never called."""
        raise NotImplementedError


class ControlHalf:
    """Everything that is not on a request's path."""

    def __init__(self, clock: Clock, deadlines: Deadlines, config: GatewayConfig, version: str) -> None:
        events = config.events
        self.clock = clock
        self.deadlines = deadlines
        self.config = config
        self.version = version
        self.started = clock.wall()
        self.stats = ControlStats()
        self.tailer_crashes = 0
        self.tailer = Tailer(
            events.path,
            events.spool.path,
            retention=events.retention.total_seconds(),
            max_size=events.max_size,
            clock=clock,
        )

    @asynccontextmanager
    async def running(self, admin: socket.socket, view: AdminView) -> AsyncIterator[None]:
        """Serve admin and tail the ledger; at the end the ledger holds what was written by then."""
        context = EdgeContext(
            Nobody(),
            clock=self.clock,
            deadlines=self.deadlines,
            guard=Guard(open_to_all=self.config.auth_is_open),
            limits=EdgeLimits(connections=ADMIN_CONNECTIONS),
        )
        self._warn()
        tailing = asyncio.get_running_loop().create_task(self._tail())
        server = await serve(admin_app(view), context, [admin])
        try:
            yield
        finally:
            tailing.cancel()
            await asyncio.gather(tailing, return_exceptions=True)
            if not await self.tailer.flush():
                log.warning("ledger_behind", spool=str(self.config.events.spool.path))
            self.tailer.close()
            await server.aclose()

    async def reload(
        self, load: Callable[[], GatewayConfig], apply: Callable[[GatewayConfig], Awaitable[None]]
    ) -> bool:
        """Read the config again and serve under it; a bad one changes nothing and says every reason."""
        try:
            config = load()
            await apply(config)
        except ConfigError as error:
            self.stats.reloads_refused += 1
            for problem in error.problems:
                log.error("reload_refused", problem=str(problem))
            return False
        self.config = config
        self.stats.reloads += 1
        self._warn()
        log.info("reloaded", config=config.digest)
        return True

    def _warn(self) -> None:
        for warning in self.config.warnings:
            log.warning("config", message=warning)

    def not_ready(self) -> list[str]:
        """What of the control half should keep traffic away."""
        return ["the ledger keeps crashing"] if self.tailer_crashes >= MANY_CRASHES else []

    async def _tail(self) -> None:
        """Tail for ever; a crash is logged, and answered with a pause and another try."""
        while True:
            try:
                await self.tailer.run()
            except Exception as error:
                self.tailer_crashes += 1
                log.error("tailer_crashed", exc_info=error)
                await self.clock.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self.tailer_crashes, 10)))
