"""The data half on its sockets: an edge in front of one engine, and the steps of its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from ...proxy.edge.body import BodyBudget
from ...proxy.edge.context import EdgeContext, EdgeLimits, connection_bound
from ...proxy.edge.data_app import data_app
from ...proxy.edge.guard import Guard
from ...proxy.edge.listen import EdgeServer, serve
from ...proxy.observe import Observer
from .signals import unless

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from ...config import GatewayConfig
    from ...proxy.accounting.spool import Spool
    from ...proxy.clock import Clock, Deadlines
    from ...proxy.engine import Engine
    from ...proxy.snapshot import Snapshot

FLUSH_SECONDS = 5.0
"""How long a slow client may take, within the grace, for the end of an answer that is complete."""
CUT_SECONDS = 1.0
"""How long the last words of exchanges that were cut may take to reach their clients."""


class DataHalf(Protocol):
    """What gateway.Gateway is, as far as processes care."""

    config: GatewayConfig
    worker: str
    clock: Clock
    deadlines: Deadlines
    engine: Engine
    spool: Spool | None
    ready: bool

    async def start(self) -> None:
        """Build everything. Raises ConfigError, BootError."""

    async def reload(self, config: GatewayConfig) -> None:
        """Serve new exchanges under another config. Raises ConfigError, and then nothing has changed."""

    async def drain(self) -> int:
        """Let what runs finish; returns how many were left."""

    async def aclose(self) -> None:
        """End what is left."""


class DataServer:
    """Serves one started `DataHalf`."""

    def __init__(self, half: DataHalf, version: str) -> None:
        config = half.config
        self.half = half
        self._version = version
        self.context = EdgeContext(
            half.engine,
            clock=half.clock,
            deadlines=half.deadlines,
            guard=Guard(open_to_all=config.auth_is_open),
            limits=_limits(config),
            budget=BodyBudget(config.limits.buffered),
            new_id=half.engine.next_id,
        )
        self._edge: EdgeServer | None = None
        self._observer = Observer(half.engine, worker=half.worker, edges=[self.context], spool=half.spool)

    async def open(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections."""
        self._edge = await serve(data_app(self.not_ready, self._version), self.context, sockets)

    def not_ready(self) -> list[str]:
        """Why this worker should get no new traffic; empty when it should."""
        if not self.half.ready:
            return ["draining" if self.half.engine.draining else "starting"]
        return []

    def snapshot(self) -> Snapshot:
        """What this worker counts, now."""
        return self._observer.take(ready=self.half.ready)

    def refuse_new_work(self) -> None:
        """Readiness off and no new exchanges; what runs goes on, and the sockets stay open to say so."""
        self.half.ready = False
        self.half.engine.draining = True
        self.context.draining = True

    async def reload(self, config: GatewayConfig) -> None:
        """Raises ConfigError and leaves everything as it was."""
        await self.half.reload(config)
        self.context.guard = Guard(open_to_all=config.auth_is_open)
        self.context.limits = _limits(config)
        self.context.budget.limit = config.limits.buffered

    async def drain(self, hurry: asyncio.Event | None = None) -> None:
        """Readiness off and no new work; what runs finishes, or is cut with an error its client sees; then everything
        closes.

        What runs has `limits.drain`, or until `hurry` is set.
        """
        hurry = hurry or asyncio.Event()
        now = self.half.clock.monotonic
        until = now() + self.half.config.limits.drain.total_seconds()
        self.refuse_new_work()
        if self._edge is not None:
            self._edge.close_listeners()
            self._edge.close_idle()
        await unless(hurry, self.half.drain())
        self.half.engine.cut()
        if self._edge is not None:
            if now() < until:
                await unless(hurry, self._edge.aclose(min(until - now(), FLUSH_SECONDS)))
            await self._edge.aclose(CUT_SECONDS)
        await self.half.aclose()


def _limits(config: GatewayConfig) -> EdgeLimits:
    return EdgeLimits(head_bytes=config.limits.headers, connections=connection_bound())
