"""The workers of a supervisor: each place is kept filled, whether its worker dies, hangs, or is to be replaced.

All of them accept on one listening socket that the supervisor holds, so connections that wait to be accepted belong to
nobody in particular and survive every worker. (With a socket each, as SO_REUSEPORT has it, the kernel would reset those
that wait at one that closes.) A replacement therefore loses nothing: the successor serves first, then the old one stops
accepting, and ends when nobody is connected to it any more.

Not here: when a dead one is replaced (restarts.py), one worker's process (worker_process.py), config and drain
(supervisor.py).
"""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog

from ...proxy.snapshot import Totals
from .channel import TELL_SECONDS, Leave, Refuse
from .errors import BootError
from .restarts import STILLBORN, WINDOW_SECONDS, RestartPolicy
from .worker_process import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ...filters.stores.shared_memory import Berths
    from ...proxy.clock import Clock
    from ..admin.view import ControlStats
    from ..events.lookups import Lookups
    from .channel import FromSupervisor
    from .worker_process import Command

START_SECONDS = 30.0
EXPLAIN_SECONDS = 2.0
RETIRING_PER_PLACE = 2
"""Workers with a successor may live as long as their longest stream; a replacement waits while there are more."""
LEAST_SILENCE = 2
log = structlog.get_logger("headgate")


class Crew:
    """Places and who fills them. `briefing` is asked for what a new worker is told first: a `Configure`, and what else
    it needs; `lookups` answers what they ask."""

    def __init__(
        self,
        command: Command,
        briefing: Callable[[], Iterable[FromSupervisor]],
        clock: Clock,
        stats: ControlStats,
        lookups: Lookups,
    ) -> None:
        self.totals = Totals()
        self.workers: dict[str, WorkerProcess] = {}
        """Who holds each place now."""
        self.lives: dict[WorkerProcess, asyncio.Task[None]] = {}
        """Everybody with a process, those who retire included."""
        self.changing = asyncio.Lock()
        """Held by who gives workers another config or another process."""
        self.ending = asyncio.Event()
        self.refusing = False
        self.berths: Berths | None = None
        """Who has which cells in the memory that workers share; None: they share none."""
        self._command = command
        self._briefing = briefing
        self._clock = clock
        self._stats = stats
        self._lookups = lookups
        self._policy = RestartPolicy()
        self._socket = -1
        self._on_ready: Callable[[], None] = lambda: None
        self.want_jwks: Callable[[], None] = lambda: None
        self.leave_alone: Callable[[str, str], None] = lambda provider, endpoint: None
        """Called when a worker meets a token whose key it does not know."""

    def accept_on(self, socket: int, on_ready: Callable[[], None]) -> None:
        """The listening socket workers inherit; `on_ready` is called whenever one has taken a config over."""
        self._socket, self._on_ready = socket, on_ready

    def serving(self) -> list[WorkerProcess]:
        """Those who hold a place and fill it."""
        return [worker for worker in self.workers.values() if worker.ready]

    def retiring(self) -> list[WorkerProcess]:
        """Those whose successor serves."""
        return [worker for worker in self.lives if worker.retiring]

    @property
    def chains(self) -> list[dict[str, Any]]:
        """The compiled chains, as a worker described them."""
        return next((worker.chains for worker in self.serving()), [])

    async def explain(self, id_: str) -> dict[str, Any] | None:
        """The decision of this id, from whichever worker has it."""
        found = await asyncio.gather(*(worker.explain(id_, EXPLAIN_SECONDS) for worker in self.lives))
        return next((decision for decision in found if decision is not None), None)

    def refuse_new_work(self) -> None:
        """Readiness off on every worker, now and for those that follow; the processes stay."""
        self.refusing = True
        for worker in self.lives:
            worker.channel.send(Refuse())

    def tell_to_leave(self) -> None:
        """Everybody; said again, it means at once."""
        self.ending.set()
        for worker in self.lives:
            worker.channel.send(Leave())

    async def keep(self, name: str) -> None:
        """A worker and its successors in one place, until the end.

        Raises BootError when there is no use in going on.
        """
        while not self.ending.is_set():
            worker = await self._start(name)
            if worker is not None:
                self.workers[name] = worker
                worker = await self._last_of(name)
            if self.ending.is_set():
                return
            self._stats.worker_restarts += 1
            verdict = self._policy.died(self._clock.monotonic(), was_ready=worker is not None and worker.ready)
            if verdict.give_up:
                raise BootError(
                    f"{STILLBORN} workers ended within {WINDOW_SECONDS:g} s before they were ready. What they said "
                    "stands above: mend it and start again, or look at one alone with --workers 1"
                )
            with suppress(TimeoutError):
                async with asyncio.timeout(verdict.delay):
                    await self.ending.wait()

    async def replace_all(self) -> bool:
        """A new worker in every place, one after the other; returns whether all went well.

        The first that does not become ready ends it, and those that serve stay.
        """
        log.info("replacing", workers=len(self.workers))
        for name in list(self.workers):
            await self._until_few_retire()
            async with self.changing:
                reason = None if self.ending.is_set() else await self._replace(name)
            if reason is not None:
                self._stats.replacements_aborted += 1
                log.error("replacement_aborted", worker=name, reason=reason)
                return False
        self._stats.replacements += 1
        log.info("replaced", workers=len(self.workers))
        return True

    async def watch(self, patience: Callable[[], float]) -> None:
        """Kill who says nothing for `patience()` seconds, for ever; a worker tells what it counts once a second.

        What is counted is our own looks, not the time: a supervisor that was stopped, or a machine that slept, has not
        looked meanwhile.
        """
        while True:
            await self._clock.sleep(TELL_SECONDS)
            most = max(LEAST_SILENCE, math.ceil(patience() / TELL_SECONDS))
            for worker in list(self.lives):
                worker.silent += worker.ready
                if worker.silent > most:
                    self._stats.workers_hung += 1
                    log.error("worker_hung", worker=worker.name, pid=worker.process.pid, seconds=most * TELL_SECONDS)
                    worker.kill()

    async def _replace(self, name: str) -> str | None:
        """A successor for whoever holds a place; returns why not."""
        old = self.workers.get(name)
        if old is None:
            return None  # it died, and who follows is new in any case
        new = await self._start(name)
        if new is None:
            return "the new worker could not be started"
        if not await new.until_ready():
            return "the new worker ended before it was ready"
        if self.workers.get(name) is not old:
            new.channel.send(Leave())
            return "the old worker died meanwhile, and has a successor"
        self.workers[name] = new
        old.retire()
        log.info("worker_replaced", worker=name, pid=new.process.pid, old=old.process.pid)
        return None

    async def _until_few_retire(self) -> None:
        """Wait for those who retire where there are many: each of them is a whole process."""
        while len(self.retiring()) >= RETIRING_PER_PLACE * max(1, len(self.workers)):
            lives = [self.lives[worker] for worker in self.retiring()]
            log.info("replacement_waits", retiring=len(lives))
            await asyncio.wait(lives, return_when=asyncio.FIRST_COMPLETED)

    async def _start(self, name: str) -> WorkerProcess | None:
        """A new process; None where the system gives none."""
        try:
            worker = await WorkerProcess.spawn(name, self._command, self._socket, self.berths)
        except OSError as error:
            log.error("worker_not_started", worker=name, reason=str(error))
            return None
        self.lives[worker] = asyncio.get_running_loop().create_task(self._live(worker))
        for message in self._briefing():
            worker.channel.send(message)
        if self.refusing:
            worker.channel.send(Refuse())
        if self.ending.is_set():
            worker.channel.send(Leave())
        return worker

    async def _live(self, worker: WorkerProcess) -> None:
        """One worker from start to end."""
        overdue = self._clock.call_at(self._clock.monotonic() + START_SECONDS, self._kill_unready, worker)
        try:
            worker.want_jwks, worker.leave_alone = self.want_jwks, self.leave_alone
            code = await worker.run(self.totals, self._lookups, self._on_ready)
        finally:
            overdue.cancel()
            worker.kill()
            if worker.berth is not None:
                await worker.process.wait()  # what it still did after its cells are cleared would count for nobody
                if self.berths is not None:
                    self.berths.leave(worker.berth)
            del self.lives[worker]
        if worker.retiring:
            log.info("worker_retired", worker=worker.name, pid=worker.process.pid, code=code)
        elif not self.ending.is_set():
            log.error("worker_died", worker=worker.name, pid=worker.process.pid, code=code, was_ready=worker.ready)

    async def _last_of(self, name: str) -> WorkerProcess:
        """Wait until whoever holds a place has ended in it; it is empty then."""
        while True:
            worker = self.workers[name]
            await worker.relieved.wait()
            if self.workers[name] is worker:
                return self.workers.pop(name)

    def _kill_unready(self, worker: WorkerProcess) -> None:
        if not worker.ready:
            log.error("worker_overdue", worker=worker.name, pid=worker.process.pid, seconds=START_SECONDS)
            worker.kill()
