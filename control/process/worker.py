"""One of N workers: a data half on a socket it inherited, under a supervisor it cannot outlive."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import structlog

from ...config import ConfigError, Problem
from ...config.chain import shown_url
from ..admin.chains import describe_chains
from .channel import (
    TELL_SECONDS,
    Answer,
    Ask,
    Channel,
    Configure,
    Explain,
    Explained,
    Jwks,
    Leave,
    LeaveAlone,
    Mark,
    ReadKeys,
    Ready,
    Refuse,
    Refused,
    Retire,
    Show,
    Told,
    WantJwks,
)
from .data_server import DataHalf, DataServer
from .tidy import give_back

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from ...config import GatewayConfig
    from .source import ConfigSource

ORPHAN_SECONDS = 1.0
"""What is left to exchanges when the supervisor is gone: the next one may already be waiting for the port."""
log = structlog.get_logger("headgate")


async def run_worker(
    make_half: Callable[[GatewayConfig], DataHalf],
    source: ConfigSource,
    version: str,
    control: socket.socket,
    data: socket.socket,
) -> int:
    """Serve until the supervisor says `Leave` or is gone, then drain. Returns the exit code.

    Raises what `half.start` raises.
    """
    channel = await Channel.over(control)
    try:
        first = await channel.from_supervisor()
        if isinstance(first, Configure):
            half = make_half(source.parse(first.text))
            await half.start()
            server = DataServer(half, version)
            give_back()
            await server.open([data])
            await _Worker(channel, server, source).run(first.digest)
    except EOFError as error:
        log.warning("supervisor_gone", reason=str(error))
    finally:
        await channel.aclose()
    return 0


class _Worker:
    """A serving worker: does what it is told, and tells what it counts."""

    def __init__(self, channel: Channel, server: DataServer, source: ConfigSource) -> None:
        self._channel = channel
        self._server = server
        self._source = source
        self._over = asyncio.Event()
        """Told to retire or to leave."""
        self._leave = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self, digest: str) -> None:
        """To the end of the drain."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._end, self._leave)
        issuers = self._server.half.engine.issuers
        issuers.ask = lambda number, ids: self._channel.send(Ask(number, ids))
        self._server.half.ask_jwks = lambda: self._channel.send(WantJwks())
        self._server.half.engine.leave_alone = lambda provider, endpoint: self._channel.send(
            LeaveAlone(provider, endpoint)
        )
        self._say_ready(digest)
        tasks = [loop.create_task(self._listen()), loop.create_task(self._tell())]
        try:
            await self._over.wait()
            if not self._leave.is_set():
                await self._server.retire(self._leave)
            await self._server.drain(self._hurry)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._channel.send(Told(self._server.snapshot()))

    async def _listen(self) -> None:
        try:
            while True:
                match await self._channel.from_supervisor():
                    case Configure() as order:
                        await self._reload(order)
                    case Show(listing=listing):
                        self._server.half.take_listing(listing)
                    case Mark(verdict=verdict):
                        self._server.half.take_verdict(verdict)
                    case Jwks(url=url, data=data):
                        self._take_jwks(url, data)
                    case ReadKeys():
                        await self._read_keys()
                    case Refuse():
                        self._server.refuse_new_work()
                    case Retire():
                        self._over.set()
                    case Answer() as answer:
                        self._server.half.engine.issuers.answered(answer.number, answer.rows)
                    case Explain(number=number, id=id_):
                        self._channel.send(Explained(number, self._server.half.engine.decisions.find(id_)))
                    case Leave():
                        self._end(self._hurry if self._leave.is_set() else self._leave)
        except EOFError as error:
            log.warning("supervisor_gone", worker=self._server.half.worker, reason=str(error))
            self._end(self._leave)
            await self._server.half.clock.sleep(ORPHAN_SECONDS)
            self._hurry.set()

    def _end(self, how: asyncio.Event) -> None:
        how.set()
        self._over.set()

    async def _reload(self, order: Configure) -> None:
        try:
            config = self._source.parse(order.text)
            if config.digest != order.digest:
                raise ConfigError([self._problem("a file it names has changed since it was read: reload again")])
            await self._server.reload(config)
        except ConfigError as error:
            self._channel.send(Refused(order.digest, list(error.problems)))
        except Exception as error:
            log.error("reload_failed", worker=self._server.half.worker, exc_info=error)
            self._channel.send(Refused(order.digest, [self._problem(f"a bug, see the log: {error!r}")]))
        else:
            self._say_ready(order.digest)

    def _take_jwks(self, url: str, jwks: bytes) -> None:
        try:
            self._server.half.take_jwks(url, jwks)
        except ValueError as error:  # another config is on its way
            log.warning("jwks_not_read", worker=self._server.half.worker, url=shown_url(url), reason=str(error))

    async def _read_keys(self) -> None:
        try:
            await self._server.half.read_keys()
        except ConfigError as error:  # the supervisor has read them, and tells of the next change
            for problem in error.problems:
                log.error("keys_refused", worker=self._server.half.worker, problem=str(problem))

    def _problem(self, message: str) -> Problem:
        return Problem(self._source.name, 0, 0, "", message)

    def _say_ready(self, digest: str) -> None:
        self._channel.send(Ready(digest, describe_chains(self._server.half.engine.graph)))

    async def _tell(self) -> None:
        while True:
            self._channel.send(Told(self._server.snapshot()))
            await self._server.half.clock.sleep(TELL_SECONDS)
