"""The control half in front of N workers: it owns the data socket, and no request passes through it.

All workers accept on the one socket they inherit, so a worker that dies takes only what it was doing with it. They
serve the text that the supervisor has checked. A reload is tried on one of them first, and is whole when every one has
taken it over; else all go on, or go back to, what they had.

Not here: when a dead one is replaced (restarts.py), one worker's process (worker_process.py), what is said
(channel.py), admin and ledger (control_half.py).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog

from ...config import ConfigError
from ...proxy.edge.listen import BACKLOG
from ...proxy.snapshot import Totals
from .channel import Configure, Leave, Refuse
from .control_half import ControlHalf
from .errors import BootError
from .restarts import STILLBORN, WINDOW_SECONDS, RestartPolicy
from .signals import Signals, unless
from .sockets import listening
from .view import SupervisorView
from .worker_process import WorkerProcess

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Sequence

    from ...config import GatewayConfig
    from ...proxy.clock import Clock, Deadlines
    from .source import ConfigSource
    from .worker_process import Command

START_SECONDS = 30.0
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
        text: str,
        config: GatewayConfig,
        *,
        command: Command,
        version: str,
        clock: Clock,
        deadlines: Deadlines,
    ) -> None:
        self.totals = Totals()
        self.workers: dict[str, WorkerProcess] = {}
        self._source = source
        self._served = (text, config)
        self._command = command
        self._version = version
        self._clock = clock
        self._deadlines = deadlines
        self._policy = RestartPolicy()
        self._refusing = False
        self._ending = asyncio.Event()
        self._all_ready = asyncio.Event()
        self._data: socket.socket
        self._control: ControlHalf

    # -- for the admin listener

    def not_ready(self) -> list[str]:
        """Why no new traffic should come; empty when it may."""
        if self._refusing or self._ending.is_set():
            return ["draining"]
        return [] if self._serving() else ["no worker is ready"]

    @property
    def chains(self) -> list[dict[str, Any]]:
        """The compiled chains, as a worker described them."""
        return next((worker.chains for worker in self._serving()), [])

    def refuse_new_work(self) -> None:
        """Readiness off on every worker, now and for those that follow; the processes stay."""
        self._refusing = True
        for worker in self.workers.values():
            worker.channel.send(Refuse())

    # -- from start to end

    async def run(self, announce: Callable[[GatewayConfig, int, int], None]) -> int:
        """Serve until SIGTERM or SIGINT, then drain; SIGHUP reloads. Returns the exit code.

        Raises BootError when an address is taken, or workers do not start.
        """
        signals = Signals()
        config = self._served[1]
        listeners = config.listeners
        self._data = listening(listeners.data, "listeners.data")
        self._data.listen(BACKLOG)
        admin = listening(listeners.admin, "listeners.admin")
        self._control = ControlHalf(self._clock, self._deadlines, config, self._version)
        loop = asyncio.get_running_loop()
        async with self._control.running(admin, SupervisorView(self._control, self)):
            keepers = [loop.create_task(self._keep(str(number))) for number in range(config.workers)]
            ready = loop.create_task(self._all_ready.wait())
            stop = loop.create_task(signals.stop.wait())
            reloading = loop.create_task(self._control.reload_on(signals.hangup, self._load, self._push))
            try:
                # A keeper ends by itself only where there is no use in going on.
                done, _ = await asyncio.wait([ready, stop, *keepers], return_when=asyncio.FIRST_COMPLETED)
                if ready in done:
                    announce(config, self._data.getsockname()[1], admin.getsockname()[1])
                    await asyncio.wait([stop, *keepers], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (ready, stop, reloading):
                    task.cancel()
                await asyncio.gather(ready, stop, reloading, return_exceptions=True)
                await self._drain(keepers, signals.hurry)
        for end in await asyncio.gather(*keepers, return_exceptions=True):
            if isinstance(end, Exception):
                raise end
        log.info("stopped")
        return signals.exit_code

    async def _drain(self, keepers: Sequence[asyncio.Task[None]], hurry: asyncio.Event) -> None:
        log.info("draining", workers=len(self.workers))
        self._ending.set()
        # The last one to close it refuses what still connects; left open, it would take connections nobody serves.
        self._data.close()
        self._tell_to_leave()
        grace = self._served[1].limits.drain.total_seconds()
        await unless(hurry, asyncio.wait(keepers, timeout=grace + SLACK_SECONDS))
        self._tell_to_leave()  # said again, it means at once
        await asyncio.wait(keepers, timeout=SLACK_SECONDS)
        for worker in self.workers.values():
            log.error("worker_killed", worker=worker.name, pid=worker.process.pid)
            worker.kill()
        await asyncio.wait(keepers, timeout=SLACK_SECONDS)
        for keeper in keepers:
            keeper.cancel()

    def _tell_to_leave(self) -> None:
        for worker in self.workers.values():
            worker.channel.send(Leave())

    # -- one worker after the other in one place

    async def _keep(self, name: str) -> None:
        """A worker and its successors, until the drain. Raises BootError when there is no use in going on."""
        while not self._ending.is_set():
            was_ready = await self._live(name)
            if self._ending.is_set():
                return
            self._control.stats.worker_restarts += 1
            verdict = self._policy.died(self._clock.monotonic(), was_ready=was_ready)
            if verdict.give_up:
                raise BootError(
                    f"{STILLBORN} workers ended within {WINDOW_SECONDS:g} s before they were ready. What they said "
                    "stands above: mend it and start again, or look at one alone with --workers 1"
                )
            with suppress(TimeoutError):
                async with asyncio.timeout(verdict.delay):
                    await self._ending.wait()

    async def _live(self, name: str) -> bool:
        """One worker from start to end; returns whether it was ever ready."""
        try:
            worker = await WorkerProcess.spawn(name, self._command, self._data.fileno())
        except OSError as error:
            log.error("worker_not_started", worker=name, reason=str(error))
            return False
        self.workers[name] = worker
        worker.channel.send(self._order())
        if self._refusing:
            worker.channel.send(Refuse())
        if self._ending.is_set():
            worker.channel.send(Leave())
        overdue = self._clock.call_at(self._clock.monotonic() + START_SECONDS, self._kill_unready, worker)
        try:
            code = await worker.run(self.totals, self._on_ready)
        finally:
            overdue.cancel()
            worker.kill()
            del self.workers[name]
        if not self._ending.is_set():
            log.error("worker_died", worker=name, pid=worker.process.pid, code=code, was_ready=worker.ready)
        return worker.ready

    def _kill_unready(self, worker: WorkerProcess) -> None:
        if not worker.ready:
            log.error("worker_overdue", worker=worker.name, pid=worker.process.pid, seconds=START_SECONDS)
            worker.kill()

    def _on_ready(self) -> None:
        if len(self._serving()) == self._served[1].workers:
            self._all_ready.set()

    def _serving(self) -> list[WorkerProcess]:
        return [worker for worker in self.workers.values() if worker.ready]

    # -- reload

    def _order(self) -> Configure:
        text, config = self._served
        return Configure(text, config.digest)

    def _load(self) -> tuple[str, GatewayConfig]:
        text = self._source.read()
        return text, self._source.parse(text)

    async def _push(self, loaded: tuple[str, GatewayConfig]) -> GatewayConfig:
        """Every worker under the new config, or every worker under the old one. Raises ConfigError."""
        before, self._served = self._served, loaded
        told = self._serving()[:1]
        try:
            await self._configure(told)
            others = [worker for worker in self.workers.values() if worker not in told]
            told += others
            await self._configure(others)
        except ConfigError:
            self._served = before
            await self._go_back(told)
            raise
        return loaded[1]

    async def _configure(self, workers: Iterable[WorkerProcess]) -> None:
        """All of them at once. Raises the first refusal, when all have answered."""
        order = self._order()
        answers = await asyncio.gather(
            *(worker.configure(order, RELOAD_SECONDS) for worker in workers), return_exceptions=True
        )
        for answer in answers:
            if answer is not None:
                raise answer

    async def _go_back(self, workers: Iterable[WorkerProcess]) -> None:
        """To what is served. A worker that cannot is killed: its successor starts under it."""
        for worker in workers:
            try:
                await worker.configure(self._order(), RELOAD_SECONDS)
            except ConfigError as error:
                log.error("worker_killed", worker=worker.name, pid=worker.process.pid, reason=str(error))
                worker.kill()
