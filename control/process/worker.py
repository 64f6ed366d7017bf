"""One of N workers: a data half on sockets it inherited, under a supervisor it cannot outlive."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import structlog

from ...config import ConfigError
from ..admin.chains import describe_chains
from .channel import Channel, Configure, Drain, Ready, Refused, Told
from .data_server import DataHalf, DataServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from ...config import GatewayConfig
    from .source import ConfigSource

TELL_SECONDS = 1.0
log = structlog.get_logger("headgate")


async def run_worker(
    make_half: Callable[[GatewayConfig], DataHalf],
    source: ConfigSource,
    version: str,
    control: socket.socket,
    data: socket.socket,
) -> None:
    """Serve until the supervisor says `Drain`, or is gone. Raises what `half.start` raises."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGHUP, signal.SIGINT):
        # A terminal sends these to the whole group; what they mean is the supervisor's to say.
        loop.add_signal_handler(number, lambda: None)
    channel = await Channel.over(control)
    first = await channel.from_supervisor()
    if not isinstance(first, Configure):
        return
    half = make_half(source.parse(first.text))
    await half.start()
    server = DataServer(half, version)
    await server.open([data])
    channel.send(_ready(server))
    teller = loop.create_task(_tell(channel, server))
    listener = loop.create_task(_listen(channel, server, source))
    loop.add_signal_handler(signal.SIGTERM, listener.cancel)
    try:
        await asyncio.wait([listener])
    finally:
        teller.cancel()
        await asyncio.gather(listener, teller, return_exceptions=True)
    await server.drain()
    channel.send(Told(server.snapshot()))
    await channel.aclose()


async def _listen(channel: Channel, server: DataServer, source: ConfigSource) -> None:
    """Do what the supervisor says until it says the end, in either way."""
    while True:
        try:
            message = await channel.from_supervisor()
        except EOFError:
            log.warning("supervisor_gone", worker=server.half.worker)
            return
        if isinstance(message, Drain):
            if message.leave:
                return
            server.refuse_new_work()
            continue
        try:
            await server.reload(source.parse(message.text))
        except ConfigError as error:
            channel.send(Refused(message.digest, str(error)))
        else:
            channel.send(_ready(server))


def _ready(server: DataServer) -> Ready:
    return Ready(server.half.config.digest, describe_chains(server.half.engine.graph))


async def _tell(channel: Channel, server: DataServer) -> None:
    while True:
        channel.send(Told(server.snapshot()))
        await server.half.clock.sleep(TELL_SECONDS)
