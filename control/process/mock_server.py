"""`headgate mock` as a process: serve until a signal says stop."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import structlog

from ...proxy.clock import LoopClock
from ..mock.server import serve
from .sockets import bound

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...proxy.edge.downstream import RequestHead
    from ..mock.provider import MockProvider, Script

_log = structlog.get_logger("headgate.mock")


async def run_mock(
    address: str, port: int, provider: MockProvider, announce: Callable[[int], None], *, speed: float = 1.0
) -> int:
    """Serve until SIGTERM or SIGINT; `speed` as for `serve`. Returns the exit code.

    Raises BootError when the address is taken.
    """
    sock = bound(address, port, "--port", "--address")
    server = await serve(sock, provider, LoopClock(), speed=speed, watcher=_Logging())
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    announce(server.port)
    await stop.wait()
    await server.aclose()
    return 0


class _Logging:
    """A line for every fault, so that a test that failed can be read beside what was done to it."""

    def on_accept(self, script: Script) -> None:
        _log_fault(script, None)

    def on_request(self, head: RequestHead, body: bytes, script: Script) -> None:
        _log_fault(script, (head.header(b"x-request-id") or b"").decode("ascii", "replace") or None)


def _log_fault(script: Script, request_id: str | None) -> None:
    if script.fault is not None:
        _log.info("fault", name=script.fault.name, request_id=request_id)
