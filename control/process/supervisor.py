"""The control half in front of N workers: it owns the data socket, and no request passes through it.

Its workers serve the text that it has checked. A reload is tried on one of them first, and is whole when every one has
taken it over; else all go on, or go back to, what they had.

Not here: how the workers are kept and replaced (crew.py), what is said (channel.py), admin and ledger
(control_half.py).
"""

from __future__ import annotations

import asyncio
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import structlog
from anyio import to_thread

from ...config import ConfigError
from ...filters.auth import Auth
from ...filters.stores.shared import SharedStore
from ...filters.stores.shared_memory import Berths, SharedMemory
from ...proxy.edge.listen import BACKLOG
from ..clusters import open_check, open_url
from ..filter_set import read_keys
from ..health_watch import HealthWatch
from ..jwks_watch import JwksWatch
from ..model_watch import ModelWatch
from .channel import Configure, Jwks, Mark, ReadKeys, Refuse, Show
from .control_half import ControlHalf
from .crew import RETIRING_PER_PLACE, Crew
from .errors import BootError
from .key_watch import KeyWatch
from .signals import Signals, unless
from .sockets import listening
from .view import SupervisorView

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Sequence

    from ...config import GatewayConfig
    from ...proxy.catalog import Listing
    from ...proxy.clock import Clock, Deadlines
    from ...proxy.upstream.health import Verdict
    from ..model_watch import OpenProvider
    from .channel import FromSupervisor
    from .source import ConfigSource, Loaded
    from .worker_process import Command, WorkerProcess

RELOAD_SECONDS = 10.0
SLACK_SECONDS = 1.0
"""Past `limits.drain`: once for the worker to cut what it still does, once for it to obey when told so, then it is
killed."""
log = structlog.get_logger("headgate")


class Supervisor:
    """Keeps `config.workers` of them alive. `command` makes their command line: see worker_process.py."""

    def __init__(
        self,
        source: ConfigSource,
        loaded: Loaded,
        *,
        command: Command,
        version: str,
        clock: Clock,
        deadlines: Deadlines,
        open_provider: OpenProvider,
    ) -> None:
        self._source = source
        self._served = loaded
        self._models = ModelWatch(clock, open_provider, self._show)
        checks = partial(open_check, clock, deadlines)
        self._health = HealthWatch(clock, Random(), checks, self._mark, self._calls)  # noqa: S311 - jitter
        keys = KeyWatch(clock, self._read_keys)
        self._jwks = JwksWatch(clock, partial(open_url, clock, deadlines), self._take_jwks)
        self._control = ControlHalf(
            clock, deadlines, loaded.config, version, self._models, self._health, keys, self._jwks
        )
        self._auth: Auth | None = None
        self.crew = Crew(command, self._briefing, clock, self._control.stats, self._control.lookups)
        self.crew.want_jwks, self.crew.leave_alone = self._jwks.ask, self._health.leave_alone
        self._all_ready = asyncio.Event()
        self._data: socket.socket

    @property
    def auth(self) -> Auth | None:
        """Knows the keys of the config that is served."""
        settings = self._control.config.auth
        if settings is None:
            return None
        if self._auth is None or self._auth.settings is not settings:
            self._auth = Auth(settings)
            if self._auth.tokens is not None:
                self._auth.tokens.ask = self._jwks.ask
        return self._auth

    def not_ready(self) -> list[str]:
        """Why no new traffic should come; empty when it may."""
        if self.crew.refusing or self.crew.ending.is_set():
            return ["draining"]
        return [] if self.crew.serving() else ["no worker is ready"]

    async def run(self, announce: Callable[[GatewayConfig, int, int], None]) -> int:
        """Serve until SIGTERM or SIGINT, then drain; SIGHUP reloads, SIGUSR2 replaces the workers. Returns the exit
        code.

        Raises BootError when an address is taken, or workers do not start.
        """
        signals = Signals()
        config = self._served.config
        listeners = config.listeners
        self._listen(listening(listeners.data, "listeners.data"))
        crew_memory = _shared_memory(config.workers)
        self.crew.berths = Berths(crew_memory)
        admin = listening(listeners.admin, "listeners.admin")
        control, crew = self._control, self.crew
        loop = asyncio.get_running_loop()
        control.store = SharedStore(crew_memory)
        await control.recall(config)
        async with control.running(admin, SupervisorView(control, self)):
            keepers = [loop.create_task(crew.keep(str(number))) for number in range(config.workers)]
            ready = loop.create_task(self._all_ready.wait())
            stop = loop.create_task(signals.stop.wait())
            others = [
                loop.create_task(control.reload_on(signals.hangup, self._source, self._served, self._push)),
                loop.create_task(self._replace_on(signals.replace)),
                loop.create_task(crew.watch(lambda: self._served.config.limits.unresponsive.total_seconds())),
            ]
            try:
                # A keeper ends by itself only where there is no use in going on.
                done, _ = await asyncio.wait([ready, stop, *keepers], return_when=asyncio.FIRST_COMPLETED)
                if ready in done:
                    announce(config, self._data.getsockname()[1], admin.getsockname()[1])
                    await asyncio.wait([stop, *keepers], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (ready, stop, *others):
                    task.cancel()
                await asyncio.gather(ready, stop, *others, return_exceptions=True)
                await self._drain(keepers, signals.hurry)
                self.crew.berths = None
                crew_memory.close()
        for end in await asyncio.gather(*keepers, return_exceptions=True):
            if isinstance(end, Exception):
                raise end
        log.info("stopped")
        return signals.exit_code

    def _listen(self, data: socket.socket) -> None:
        self._data = data
        data.listen(BACKLOG)
        self.crew.accept_on(data.fileno(), self._on_ready)

    def _briefing(self) -> list[FromSupervisor]:
        """What a new worker is told first."""
        return [
            self._order(),
            *map(Show, self._models.listings.values()),
            *map(Mark, self._health.verdicts),
            *self._known_jwks(),
        ]

    def _known_jwks(self) -> list[Jwks]:
        return [Jwks(*self._jwks.found)] if self._jwks.found is not None else []

    def _take_jwks(self, url: str, jwks: bytes) -> None:
        """Raises ValueError where they are of no use."""
        auth = self.auth
        if auth is not None:
            auth.take_jwks(url, jwks)
        for worker in self.crew.lives:
            worker.channel.send(Jwks(url, jwks))

    def _show(self, listing: Listing) -> None:
        for worker in self.crew.lives:
            worker.channel.send(Show(listing))

    def _mark(self, verdict: Verdict) -> None:
        for worker in self.crew.lives:
            worker.channel.send(Mark(verdict))

    def _calls(self, provider: str) -> int:
        return self.crew.totals.calls(provider)

    async def _read_keys(self) -> None:
        """Each worker reads the keys for itself: they may be more than a message holds."""
        if (auth := self.auth) is not None:
            auth.adopt(await to_thread.run_sync(read_keys, auth))
        for worker in self.crew.lives:
            worker.channel.send(ReadKeys())

    def _on_ready(self) -> None:
        if len(self.crew.serving()) == self._served.config.workers:
            self._all_ready.set()

    async def _replace_on(self, asked: asyncio.Event) -> None:
        """Replace the workers each time `asked` is set, for ever; what is asked meanwhile is one more time."""
        while True:
            await asked.wait()
            asked.clear()
            try:
                await self.crew.replace_all()
            except Exception as error:  # a bug, which must not be the end of replacing
                log.error("replacement_failed", exc_info=error)

    async def _drain(self, keepers: Sequence[asyncio.Task[None]], hurry: asyncio.Event) -> None:
        crew = self.crew
        log.info("draining", workers=len(crew.lives))
        # The last one to close it refuses what still connects; left open, it would take connections nobody serves.
        self._data.close()
        crew.tell_to_leave()
        limits = self._served.config.limits
        grace = (limits.drain_delay + limits.drain).total_seconds()
        everybody = [*keepers, *crew.lives.values()]
        await unless(hurry, asyncio.wait(everybody, timeout=grace + SLACK_SECONDS))
        crew.tell_to_leave()  # said again, it means at once
        await asyncio.wait(everybody, timeout=SLACK_SECONDS)
        for worker in crew.lives:
            log.error("worker_killed", worker=worker.name, pid=worker.process.pid)
            worker.kill()
        await asyncio.wait(everybody, timeout=SLACK_SECONDS)
        for task in everybody:
            task.cancel()

    # -- reload

    def _order(self) -> Configure:
        return Configure(self._served.text, self._served.config.digest)

    async def _push(self, loaded: Loaded) -> None:
        """Every worker under the new config, or every worker under the old one. Raises ConfigError."""
        async with self.crew.changing:
            before, self._served = self._served, loaded
            told = self.crew.serving()[:1]
            try:
                await self._configure(told)
                others = [worker for worker in self.crew.workers.values() if worker not in told]
                told += others
                await self._configure(others)
            except ConfigError:
                self._served = before
                await self._go_back(told)
                self._health.tell()  # hosts that were gone for a moment are new
                raise
            await asyncio.gather(*map(self._configure_retiring, self.crew.retiring()))

    async def _configure(self, workers: Iterable[WorkerProcess]) -> None:
        """All of them at once. Raises the first refusal, when all have answered."""
        order = self._order()
        answers = await asyncio.gather(
            *(worker.configure(order, RELOAD_SECONDS, again=True) for worker in workers), return_exceptions=True
        )
        for answer in answers:
            if answer is not None:
                raise answer

    async def _configure_retiring(self, worker: WorkerProcess) -> None:
        """It still hears new requests on old connections: under the new config, or not at all."""
        try:
            await worker.configure(self._order(), RELOAD_SECONDS)
        except ConfigError as error:
            log.warning("retiring_worker_refuses", worker=worker.name, pid=worker.process.pid, reason=str(error))
            worker.channel.send(Refuse())

    async def _go_back(self, workers: Iterable[WorkerProcess]) -> None:
        """To what is served. A worker that cannot is killed: its successor starts under it."""
        for worker in workers:
            try:
                await worker.configure(self._order(), RELOAD_SECONDS)
            except ConfigError as error:
                log.error("worker_killed", worker=worker.name, pid=worker.process.pid, reason=str(error))
                worker.kill()


def _shared_memory(workers: int) -> SharedMemory:
    """For all processes there may be at one time: those who serve, who retire, and who are about to end. It takes up no
    room before something is counted in it."""
    try:
        return SharedMemory.create(workers * (RETIRING_PER_PLACE + 2))
    except (OSError, AttributeError) as error:
        raise BootError(f"workers cannot share memory here: {error}; serve with --workers 1") from error
