"""A gateway inside an application's own event loop: data half, ledger, and an admin app to mount.

No socket is opened: `listeners` and `workers` may stand in the file and are said to be unused. Several may live in one
process; they share nothing but, where the file says so, a ledger.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from ..control.events.tailer import Tailer
from ..gateway import Gateway
from ..proxy.edge.body import BodyBudget
from ..proxy.edge.context import EdgeContext
from ..proxy.edge.guard import Guard

if TYPE_CHECKING:
    import os

    from ..config import GatewayConfig

CUT_SECONDS = 0.0
log = structlog.get_logger("headgate")


class Embedded:
    """Started on the loop that first uses it, and bound to it from then on. `start` and `aclose` are idempotent."""

    def __init__(self, config: GatewayConfig | str | os.PathLike[str] | None = None) -> None:
        self.gateway = Gateway(config)
        self.context: EdgeContext
        self._starting: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tailer: Tailer | None = None
        self._tailing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Build everything on the running loop. Raises ConfigError, and RuntimeError on another loop than the first."""
        loop = asyncio.get_running_loop()
        if self._starting is None:
            self._starting, self._loop = asyncio.Lock(), loop
        if self._loop is not loop:
            raise RuntimeError("this gateway was started on another event loop; make one for each loop")
        async with self._starting:
            if self._tailing is not None:
                return
            gateway = self.gateway
            await gateway.start()
            config = gateway.config
            self.context = EdgeContext(
                gateway.engine,
                clock=gateway.clock,
                deadlines=gateway.deadlines,
                guard=Guard(open_to_all=False),  # the application's server decides who reaches it
                budget=BodyBudget(config.limits.buffered),
                new_id=gateway.engine.next_id,
            )
            events = config.events
            self._tailer = Tailer(
                events.path,
                events.spool.path,
                retention=events.retention.total_seconds(),
                max_size=events.max_size,
                clock=gateway.clock,
            )
            self._tailing = loop.create_task(self._tailer.run())

    async def aclose(self) -> None:
        """Let what runs finish, at most `limits.drain`; end the rest; put every record into the ledger."""
        tailing, self._tailing = self._tailing, None
        if tailing is None or self._tailer is None:
            return
        await self.gateway.drain()
        await self.gateway.aclose()
        tailing.cancel()
        await asyncio.gather(tailing, return_exceptions=True)
        if not await self._tailer.flush():
            log.warning("ledger_behind", spool=str(self.gateway.config.events.spool.path))
        self._tailer.close()
