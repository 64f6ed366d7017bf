"""Both halves in one process and one loop: `workers: 1`."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import structlog

from .control_half import ControlHalf
from .data_server import DataHalf, DataServer
from .sockets import bound
from .view import SingleView

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...config import GatewayConfig

log = structlog.get_logger("headgate")


async def run_single(
    half: DataHalf, load: Callable[[], GatewayConfig], version: str, announce: Callable[[GatewayConfig, int, int], None]
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; SIGHUP reloads. A second SIGINT stops at once.

    Raises BootError (an address that is taken) and what `half.start` raises, before anything is announced.
    """
    config = half.config
    listeners = config.listeners
    data_socket = bound(str(listeners.data.address), listeners.data.port, "listeners.data.port")
    admin_socket = bound(str(listeners.admin.address), listeners.admin.port, "listeners.admin.port")
    await half.start()
    server = DataServer(half, version)
    control = ControlHalf(half.clock, half.deadlines, config, version)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    reloading = asyncio.Lock()
    tasks: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        async with reloading:
            await control.reload(load, server.reload)

    def on_hangup() -> None:
        task = loop.create_task(reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def on_stop() -> None:
        if stop.is_set():
            raise SystemExit(130)
        stop.set()

    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_stop)
    async with control.running(admin_socket, SingleView(control, server)):
        await server.open([data_socket])
        announce(config, data_socket.getsockname()[1], admin_socket.getsockname()[1])
        await stop.wait()
        log.info("draining", exchanges=len(half.engine.live))
        for task in list(tasks):
            task.cancel()
        await server.drain()
    log.info("stopped")
