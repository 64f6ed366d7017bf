"""Both halves in one process and one loop: `workers: 1`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from .control_half import ControlHalf
from .data_server import DataHalf, DataServer
from .signals import Signals
from .sockets import listening
from .view import SingleView

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...config import GatewayConfig

log = structlog.get_logger("headgate")


async def run_single(
    half: DataHalf, load: Callable[[], GatewayConfig], version: str, announce: Callable[[GatewayConfig, int, int], None]
) -> int:
    """Serve until SIGTERM or SIGINT, then drain; SIGHUP reloads. Returns the exit code.

    Raises BootError when an address is taken, and what `half.start` raises, before anything is announced.
    """
    signals = Signals()
    config = half.config
    data = listening(config.listeners.data, "listeners.data")
    admin = listening(config.listeners.admin, "listeners.admin")
    await half.start()
    server = DataServer(half, version)
    control = ControlHalf(half.clock, half.deadlines, config, version)

    async def apply(config: GatewayConfig) -> GatewayConfig:
        await server.reload(config)
        return config

    async with control.running(admin, SingleView(control, server)):
        await server.open([data])
        announce(config, data.getsockname()[1], admin.getsockname()[1])
        reloading = asyncio.get_running_loop().create_task(control.reload_on(signals.hangup, load, apply))
        try:
            await signals.stop.wait()
        finally:
            reloading.cancel()
            await asyncio.gather(reloading, return_exceptions=True)
            log.info("draining", exchanges=len(half.engine.live))
            await server.drain(signals.hurry)
    log.info("stopped")
    return signals.exit_code
