"""A supervisor over workers that are scripts: they speak the channel and do nothing else.

async with supervising("obeys", "obeys, dies") as (supervisor, keepers):
    [first, second] = await ready(supervisor, 2)
"""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from headgate.control.process.source import ConfigSource
from headgate.control.process.supervisor import Supervisor
from headgate.control.resources import open_provider
from headgate.proxy.clock import Deadlines, LoopClock

from .caller import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from headgate.control.process.worker_process import WorkerProcess

PLAYED = """
import asyncio, socket, sys
from headgate.control.process.channel import *
from headgate.config import Problem

async def main(fd, play):
    channel = await Channel.over(socket.socket(fileno=fd))
    async def refuse(order):
        channel.send(Refused(order.digest, [Problem("gateway.yaml", 3, 1, "x", "not me")]))
    async def take(order):
        channel.send(Ready(order.digest, [{"route": "default"}]))
    async def next():
        return await channel.from_supervisor()
    await eval(play)(channel, next, take, refuse)
    await channel.aclose()

async def sits(channel, next, take, refuse):
    await next()
    await asyncio.sleep(60)

async def obeys(channel, next, take, refuse):
    while isinstance(order := await next(), Configure):
        await take(order)

async def refuses(channel, next, take, refuse):
    await take(await next())
    while isinstance(order := await next(), Configure):
        await refuse(order)

async def deaf(channel, next, take, refuse):
    await take(await next())
    await asyncio.sleep(60)

async def only_once(channel, next, take, refuse):
    await take(await next())
    await take(await next())
    while isinstance(order := await next(), Configure):
        await refuse(order)

async def lingers(channel, next, take, refuse):
    while not isinstance(order := await next(), Leave):
        if isinstance(order, Configure):
            await take(order)

async def lingers_and_refuses(channel, next, take, refuse):
    await take(await next())
    while not isinstance(order := await next(), Leave):
        if isinstance(order, Configure):
            await refuse(order)
        if isinstance(order, Refuse):
            break

async def dies(channel, next, take, refuse):
    await next()

async def takes_its_time(channel, next, take, refuse):
    order = await next()
    await asyncio.sleep(1)
    await take(order)
    while not isinstance(order := await next(), Leave):
        pass

async def says_nothing_more(channel, next, take, refuse):
    await take(await next())
    await asyncio.sleep(60)

async def keeps_talking(channel, next, take, refuse):
    order = await next()
    for _ in range(600):
        await take(order)
        await asyncio.sleep(0.05)

async def babbles(channel, next, take, refuse):
    await take(await next())
    channel._writer.write(b"\\0\\0\\0\\3abc")
    await asyncio.sleep(60)

asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
"""
TEXTS = ["limits: {json_depth: 7}", "limits: {json_depth: 8}"]


@asynccontextmanager
async def supervising(*plays: str) -> AsyncIterator[tuple[Supervisor, list[asyncio.Task[None]]]]:
    """One place for a worker for each play, without the control half and its signals.

    A play `first, then` is that of the first worker in its place, and that of all who follow.
    """
    seen: set[str] = set()
    clock = LoopClock()
    deadlines = Deadlines(clock)
    source = ConfigSource(None)

    def command(name: str, control: int, data: int) -> list[str]:
        first, _, then = plays[int(name)].partition(", ")
        play = then if then and name in seen else first
        seen.add(name)
        return [sys.executable, "-P", "-c", PLAYED, str(control), play]

    made = Supervisor(
        source,
        source.loaded(TEXTS[0]),
        command=command,
        version="test",
        clock=clock,
        deadlines=deadlines,
        open_provider=partial(open_provider, clock=clock, deadlines=deadlines),
    )
    made._listen(socket.create_server(("127.0.0.1", 0)))
    keepers = [asyncio.ensure_future(made.crew.keep(str(number))) for number in range(len(plays))]
    try:
        yield made, keepers
    finally:
        hurry = asyncio.Event()
        hurry.set()
        await made._drain(keepers, hurry)
        await asyncio.gather(*keepers, return_exceptions=True)
        assert made.crew.workers == {}
        assert made.crew.lives == {}


async def ready(made: Supervisor, count: int) -> list[WorkerProcess]:
    """So many serving workers, by name."""
    await eventually(lambda: len(made.crew.serving()) == count, 20)
    return sorted(made.crew.serving(), key=lambda worker: worker.name)
