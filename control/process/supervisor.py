"""The control half in front of N workers: it owns the data socket, and no request passes through it.

Workers are started by exec, never by fork: each is a fresh interpreter that inherits the listening socket and one end
of a socket pair. All accept on the same socket, so a worker that dies takes only what it was doing with it. A worker
serves the text the supervisor has checked; a reload is whole when every worker has said so.

Not here: when to replace (restarts.py), what is said (channel.py), admin and ledger (control_half.py).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog

from ...config import ConfigError, Problem
from ...proxy.edge.listen import BACKLOG
from ...proxy.snapshot import Snapshot, Totals
from .channel import Channel, Configure, Drain, Ready, Refused, Told
from .control_half import ControlHalf
from .errors import BootError
from .restarts import RestartPolicy
from .sockets import bound
from .view import SupervisorView

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ...config import GatewayConfig
    from ...proxy.clock import Clock, Deadlines
    from .source import ConfigSource

START_SECONDS = 30.0
RELOAD_SECONDS = 10.0
KILL_SECONDS = 5.0
"""Past `limits.drain`, after which a worker that does not end is killed."""
log = structlog.get_logger("headgate")


class Worker:
    """One worker process and what it last told."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self.name = name
        self.process = process
        self.channel = channel
        self.digest = ""
        self.refused: Refused | None = None
        self.chains: list[dict[str, Any]] = []
        self.snapshot: Snapshot | None = None
        self.changed = asyncio.Event()

    @property
    def ready(self) -> bool:
        """It serves, under some version."""
        return bool(self.digest)

    async def listen(self, totals: Totals) -> None:
        """Take in what it says until it is gone."""
        with suppress(EOFError):  # its end is seen by who waits for the process
            while True:
                match await self.channel.from_worker():
                    case Ready(digest=digest, chains=chains):
                        self.digest = digest
                        self.chains = chains
                    case Refused() as refused:
                        self.refused = refused
                    case Told(snapshot=snapshot):
                        self.snapshot = snapshot
                        totals.tell(snapshot)
                self.changed.set()

    async def wait_for(self, digest: str, seconds: float) -> str | None:
        """Until it serves under `digest`: None; or why it does not."""
        try:
            async with asyncio.timeout(seconds):
                while self.digest != digest:
                    if self.refused is not None and self.refused.digest == digest:
                        return self.refused.reason
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            return "no answer in time"
        return None


class Supervisor:
    """Keeps `workers` of them alive."""

    def __init__(
        self, source: ConfigSource, config: GatewayConfig, text: str, version: str, clock: Clock, deadlines: Deadlines
    ) -> None:
        self.source = source
        self.config = config
        self.clock = clock
        self.deadlines = deadlines
        self.policy = RestartPolicy()
        self.workers: dict[str, Worker] = {}
        self.totals = Totals()
        self.draining = False
        self._refusing = False
        self._text = text
        self._version = version
        self._candidate = text
        self._data: socket.socket
        self._control: ControlHalf
        self._failed: asyncio.Future[bool]

    def not_ready(self) -> list[str]:
        """Why no new traffic should come; empty when it may."""
        if self.draining or self._refusing:
            return ["draining"]
        return [] if any(worker.ready for worker in self.workers.values()) else ["no worker is ready"]

    @property
    def chains(self) -> list[dict[str, Any]]:
        """The compiled chains, as the first worker described them."""
        return next((worker.chains for worker in self.workers.values() if worker.ready), [])

    def refuse_new_work(self) -> None:
        """Readiness off on every worker, now and for those that follow; the processes stay."""
        self._refusing = True
        for worker in self.workers.values():
            worker.channel.send(Drain(leave=False))

    async def run(self, announce: Callable[[GatewayConfig, int, int], None]) -> None:
        """Serve until SIGTERM or SIGINT, then drain. Raises BootError: an address is taken, workers will not start."""
        loop = asyncio.get_running_loop()
        listeners = self.config.listeners
        self._data = bound(str(listeners.data.address), listeners.data.port, "listeners.data.port")
        self._data.listen(BACKLOG)
        admin = bound(str(listeners.admin.address), listeners.admin.port, "listeners.admin.port")
        self._failed = loop.create_future()
        control = self._control = ControlHalf(self.clock, self.deadlines, self.config, self._version)
        stop = asyncio.Event()
        hangup = asyncio.Event()
        loop.add_signal_handler(signal.SIGHUP, hangup.set)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with control.running(admin, SupervisorView(control, self)):
            keepers = [loop.create_task(self._keep(str(index))) for index in range(self.config.workers)]
            reloader = loop.create_task(self._reload_on(hangup, control))
            announcer = loop.create_task(self._announce(announce, admin))
            stopping = loop.create_task(stop.wait())
            try:
                ends: list[asyncio.Future[Any]] = [stopping, self._failed]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self.draining = True
                log.info("draining", workers=len(self.workers))
                for task in (reloader, announcer, stopping):
                    task.cancel()
                await self._drain(keepers)
                await asyncio.gather(reloader, announcer, stopping, return_exceptions=True)
                self._data.close()
        log.info("stopped")
        if self._failed.done():
            self._failed.result()

    async def _announce(self, announce: Callable[[GatewayConfig, int, int], None], admin: socket.socket) -> None:
        while len([worker for worker in self.workers.values() if worker.ready]) < self.config.workers:
            await self.clock.sleep(0.02)
        announce(self.config, self._data.getsockname()[1], admin.getsockname()[1])

    # -- one worker after the other in one place

    async def _keep(self, name: str) -> None:
        """One worker, and its successors."""
        while not self.draining:
            worker = await self._spawn(name)
            self.workers[name] = worker
            listening = asyncio.get_running_loop().create_task(worker.listen(self.totals))
            overdue = self.clock.call_at(self.clock.monotonic() + START_SECONDS, self._kill_if_not_ready, worker)
            try:
                code = await worker.process.wait()
            finally:
                overdue.cancel()
                await asyncio.wait([listening], timeout=1.0)
                listening.cancel()
                await worker.channel.aclose()
            self.workers.pop(name, None)
            if worker.snapshot is not None:
                self.totals.gone(worker.snapshot.life)
            if self.draining:
                return
            verdict = self.policy.died(self.clock.monotonic(), was_ready=worker.ready)
            self._control.stats.worker_restarts += 1
            log.error("worker_died", worker=name, pid=worker.process.pid, code=code, was_ready=worker.ready)
            if verdict.give_up:
                if not self._failed.done():
                    self._failed.set_exception(
                        BootError("workers keep dying before they are ready; what they said stands above")
                    )
                return
            await self.clock.sleep(verdict.delay)

    @staticmethod
    def _kill_if_not_ready(worker: Worker) -> None:
        if not worker.ready:
            with suppress(ProcessLookupError):
                worker.process.kill()

    async def _spawn(self, name: str) -> Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command(name, theirs.fileno()),
                pass_fds=(theirs.fileno(), self._data.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
            )
        finally:
            theirs.close()
        channel = await Channel.over(ours)
        channel.send(Configure(self._text, self.config.digest))
        if self._refusing:
            channel.send(Drain(leave=False))
        return Worker(name, process, channel)

    def _command(self, name: str, control_fd: int) -> Sequence[str]:
        path = [] if self.source.path is None else [str(self.source.path)]
        workers = [] if self.source.workers is None else ["--workers", str(self.source.workers)]
        fds = ["--control-fd", str(control_fd), "--data-fd", str(self._data.fileno())]
        return [
            sys.executable,
            "-m",
            "headgate",
            "_worker",
            *path,
            "--name",
            name,
            "--parent",
            str(os.getpid()),
            *fds,
            *workers,
        ]

    # -- all of them

    async def _reload_on(self, hangup: asyncio.Event, control: ControlHalf) -> None:
        while True:
            await hangup.wait()
            hangup.clear()
            await control.reload(self._load, self._push)

    def _load(self) -> GatewayConfig:
        self._candidate = self.source.read()
        return self.source.parse(self._candidate)

    async def _push(self, config: GatewayConfig) -> None:
        """Every worker on the new version, or every worker on the old one. Raises ConfigError."""
        old_text, old = self._text, self.config
        self._text, self.config = self._candidate, config
        failures = await self._tell_all(self._text, config.digest)
        if failures:
            self._text, self.config = old_text, old
            await self._tell_all(old_text, old.digest)
            raise ConfigError([Problem("gateway.yaml", 0, 0, "", reason) for reason in sorted(set(failures))])

    async def _tell_all(self, text: str, digest: str) -> list[str]:
        workers = [worker for worker in self.workers.values() if worker.ready]
        for worker in workers:
            worker.refused = None
            worker.channel.send(Configure(text, digest))
        answers = await asyncio.gather(*(worker.wait_for(digest, RELOAD_SECONDS) for worker in workers))
        # A worker that died meanwhile starts under the new text anyway.
        return [
            answer
            for worker, answer in zip(workers, answers, strict=True)
            if answer is not None and worker.process.returncode is None
        ]

    async def _drain(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        for worker in self.workers.values():
            worker.channel.send(Drain())
        grace = self.config.limits.drain.total_seconds() + KILL_SECONDS
        _, late = await asyncio.wait(keepers, timeout=grace)
        for worker in list(self.workers.values()):
            log.error("worker_killed", worker=worker.name, pid=worker.process.pid)
            with suppress(ProcessLookupError):
                worker.process.kill()
        if late:
            await asyncio.wait(late, timeout=KILL_SECONDS)
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
