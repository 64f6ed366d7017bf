"""A worker as its supervisor sees it: a process, a channel, and what it said last.

It is started by exec, never by fork: a fresh interpreter that inherits the listening socket and one end of a socket
pair. It has a session of its own, so that Ctrl-C in a terminal reaches the supervisor alone.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from ...config import ConfigError, Problem
from .channel import (
    Answer,
    Ask,
    Channel,
    Configure,
    Explain,
    Explained,
    LeaveAlone,
    Ready,
    Refused,
    Retire,
    Told,
    WantJwks,
)

if TYPE_CHECKING:
    from ...filters.stores.shared_memory import Berths
    from ...proxy.accounting.record import Issued
    from ...proxy.snapshot import Life, Totals
    from ..events.lookups import Lookups

Command = Callable[[str, int, int], Sequence[str]]
"""Makes the command line of a worker from its name and its two descriptors: its channel, and the listening socket."""
LAST_WORDS_SECONDS = 2.0
"""Between the end of the channel and that of the process, in either order; then the process is killed."""
log = structlog.get_logger("headgate")


class WorkerProcess:
    """One life of one worker."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self.name = name
        self.process = process
        self.channel = channel
        self.chains: list[dict[str, Any]] = []
        self.ready = False
        """It serves, under some version."""
        self.retiring = False
        """A successor has its place: it brings to an end what it has."""
        self.want_jwks: Callable[[], None] = lambda: None
        self.leave_alone: Callable[[str, str], None] = lambda provider, endpoint: None
        """Called when it meets a token whose key it does not know."""
        self.relieved = asyncio.Event()
        """Set when it holds its place no more: it has ended, or retires."""
        self.silent = 0
        """How often somebody has looked since it last said something; see `Crew.watch`."""
        self.berth: int | None = None
        """Its cells in shared memory."""
        self._digest = ""
        self._refused: Refused | None = None
        self._life: Life | None = None
        self._gone = False
        self._changed = asyncio.Event()
        self._questions = 0
        self._asked: dict[int, asyncio.Future[dict[str, Any] | None]] = {}
        """Who waits for an `Explained`, by its number."""

    @classmethod
    async def spawn(cls, name: str, command: Command, data: int, berths: Berths | None = None) -> WorkerProcess:
        """Start one; `data` is the listening socket, `berths` gives it its cells in shared memory. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        berth: int | None = None
        try:
            with theirs:
                passed = [theirs.fileno(), data]
                arguments = [*command(name, theirs.fileno(), data)]
                if berths is not None:
                    berth = berths.take()
                    passed.append(berths.memory.file)
                    arguments += ["--shared-fd", str(berths.memory.file), "--process", str(berth)]
                process = await asyncio.create_subprocess_exec(
                    *arguments,
                    pass_fds=passed,
                    stdin=asyncio.subprocess.DEVNULL,
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            if berths is not None and berth is not None:
                berths.leave(berth)
            raise
        worker = cls(name, process, await Channel.over(ours))
        worker.berth = berth
        return worker

    async def run(self, totals: Totals, lookups: Lookups, on_ready: Callable[[], None]) -> int:
        """Hear it out, and have `lookups` answer it; returns its exit code. `on_ready` is called whenever it has taken
        a config over."""
        loop = asyncio.get_running_loop()
        hearing = loop.create_task(self._hear(totals, lookups, on_ready))
        exiting = loop.create_task(self.process.wait())
        try:
            await asyncio.wait([hearing, exiting], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([hearing, exiting], timeout=LAST_WORDS_SECONDS)
            self.kill()
            return await exiting
        finally:
            self._gone = True
            for asked in self._asked.values():
                if not asked.done():
                    asked.set_result(None)
            self._changed.set()
            self.relieved.set()
            for task in (hearing, exiting):
                task.cancel()
            await asyncio.gather(hearing, exiting, return_exceptions=True)
            await self.channel.aclose()
            if self._life is not None:
                totals.gone(self._life)

    async def _hear(self, totals: Totals, lookups: Lookups, on_ready: Callable[[], None]) -> None:
        try:
            while True:
                match await self.channel.from_worker():
                    case Ready(digest=digest, chains=chains):
                        self._digest, self.chains, self.ready = digest, chains, True
                        on_ready()
                    case Refused() as refused:
                        self._refused = refused
                    case Ask(number=number, ids=ids):
                        lookups.ask(ids, partial(self._answer, number))
                    case WantJwks():
                        self.want_jwks()
                    case LeaveAlone(provider=provider, endpoint=endpoint):
                        self.leave_alone(provider, endpoint)
                    case Explained(number=number, decision=decision):
                        asked = self._asked.pop(number, None)
                        if asked is not None and not asked.done():
                            asked.set_result(decision)
                    case Told(snapshot=snapshot):
                        self._life = snapshot.life
                        totals.tell(snapshot)
                self.silent = 0
                self._changed.set()
        except EOFError as end:
            log.debug("worker_silent", worker=self.name, reason=str(end))
        except Exception as error:  # a bug, which costs this worker and no other
            log.error("worker_not_heard", worker=self.name, exc_info=error)

    def _answer(self, number: int, rows: list[Issued] | None) -> None:
        self.channel.send(Answer(number, rows))

    async def explain(self, id_: str, seconds: float) -> dict[str, Any] | None:
        """The decision of this id; None where it is not this worker's, or this does not say so within `seconds`."""
        self._questions += 1
        number = self._questions
        asked: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
        self._asked[number] = asked
        self.channel.send(Explain(number, id_))
        try:
            async with asyncio.timeout(seconds):
                return await asked
        except TimeoutError:
            return None
        finally:
            self._asked.pop(number, None)

    async def until_ready(self) -> bool:
        """Wait until it serves, or has ended; returns which."""
        while not (self.ready or self._gone):
            self._changed.clear()
            await self._changed.wait()
        return not self._gone

    def retire(self) -> None:
        """Leave its place to a successor that serves already."""
        self.retiring = True
        self.channel.send(Retire())
        self.relieved.set()

    async def configure(self, order: Configure, seconds: float, *, again: bool = False) -> None:
        """Have it serve under another config. Raises ConfigError where it does not, for whatever reason.

        `again`: have it take over even what it serves already, for a file that the config names may have changed.
        """
        served = self._digest
        if again:
            self._digest = ""
        self._refused = None
        self.channel.send(order)
        try:
            async with asyncio.timeout(seconds):
                while self._digest != order.digest:
                    if self._refused is not None and self._refused.digest == order.digest:
                        self._digest = served
                        raise ConfigError(self._refused.problems)
                    if self._gone:
                        raise self._failed("died while it took the config over")
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise self._failed(f"did not take the config over within {seconds:g} s") from None

    def _failed(self, what: str) -> ConfigError:
        return ConfigError([Problem(f"worker {self.name}", 0, 0, "", what)])

    def kill(self) -> None:
        """End it now, if it has not ended."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.kill()
