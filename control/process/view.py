"""What the admin listener sees: one process, or a supervisor and its workers.

The two differ only in where snapshots come from and whom `drain` reaches; all else is the same and stands in the base.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from ...config.listeners import is_loopback
from ...filters.auth import find_auth
from ...proxy.exchange import ANONYMOUS, Principal
from ..admin.chains import describe_chains
from ..admin.clusters import NO_CHECKS
from ..events.tailer import ELSEWHERE

if TYPE_CHECKING:
    from ...config import GatewayConfig
    from ...filters.auth import Auth
    from ...proxy.clock import Clock
    from ...proxy.snapshot import Snapshot
    from ..admin.clusters import Checks
    from ..admin.view import ControlStats
    from ..events.tailer import Tailer
    from .control_half import ControlHalf
    from .data_server import DataServer
    from .supervisor import Supervisor


class View(ABC):
    """The parts of `AdminView` that do not depend on how many processes there are."""

    def __init__(self, control: ControlHalf) -> None:
        self._control = control

    @property
    def config(self) -> GatewayConfig:
        """The configuration in force."""
        return self._control.config

    @property
    def clock(self) -> Clock:
        """The clock of the process that serves admin."""
        return self._control.clock

    @property
    def started(self) -> float:
        """Unix seconds."""
        return self._control.started

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the admin listener."""
        return is_loopback(self.config.listeners.admin.address)

    @property
    def stats(self) -> ControlStats:
        """What the control half counts."""
        return self._control.stats

    @property
    def tailer(self) -> Tailer | None:
        """The ledger's keeper."""
        return self._control.tailer

    def warnings(self) -> list[str]:
        """What an operator should look at, though traffic is served."""
        found = list(self.config.warnings)
        if any(worker.spool_full for worker in self.workers()):
            found.append("the spool is full: records are dropped or requests refused, as events.spool.on_full says")
        if any(worker.shedding for worker in self.workers()):
            found.append(
                "a worker has too much to do and turns requests away: see its loop_lag_seconds and memory_ratio"
            )
        away = sorted({name for worker in self.workers() for name, up in worker.stores.items() if not up})
        found += [f"{name} is away for a worker: what it counts is decided as on_store_failure says" for name in away]
        if self._control.tailer.last_error is not None:
            found.append("the event store is away; records wait in the spool")
        if self._control.tailer.elsewhere:
            found.append(ELSEWHERE)
        return found

    def checks(self) -> Checks:
        """What active health checks have counted."""
        health = self._control.health
        return health.counters() if health is not None else NO_CHECKS

    def identify(self, header: bytes | None) -> Principal:
        """Whose key the value of a header holds; raises UnauthorizedError."""
        auth = self.auth
        return auth.identify(header, self.clock.wall()) if auth is not None else ANONYMOUS

    @property
    @abstractmethod
    def auth(self) -> Auth | None:
        """The filter that knows the keys."""

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """All workers as one."""

    @abstractmethod
    def workers(self) -> list[Snapshot]:
        """Each living worker's last word."""

    @abstractmethod
    def readiness(self) -> list[str]:
        """Why the gateway should get no traffic."""

    @abstractmethod
    def chains(self) -> list[dict[str, Any]]:
        """The compiled chain of each route."""

    @abstractmethod
    async def decision(self, id_: str) -> dict[str, Any] | None:
        """Why the exchange of this id went as it did; None where nobody remembers."""

    @abstractmethod
    async def drain(self) -> None:
        """Readiness off and no new work; the process stays."""


class SingleView(View):
    """Both halves in this process."""

    def __init__(self, control: ControlHalf, server: DataServer) -> None:
        super().__init__(control)
        self._server = server

    @property
    def auth(self) -> Auth | None:
        """Of the graph in force."""
        return find_auth(self._server.half.engine.graph.prefix.filters)

    def snapshot(self) -> Snapshot:
        """Taken now."""
        return self._server.snapshot()

    def workers(self) -> list[Snapshot]:
        """The one there is."""
        return [self._server.snapshot()]

    def readiness(self) -> list[str]:
        """Of both halves."""
        return [*self._server.not_ready(), *self._control.not_ready()]

    def chains(self) -> list[dict[str, Any]]:
        """Of the graph in force."""
        return describe_chains(self._server.half.engine.graph)

    async def decision(self, id_: str) -> dict[str, Any] | None:
        """From this process."""
        return self._server.half.engine.decisions.find(id_)

    async def drain(self) -> None:
        """Refuse new work from now on."""
        self._server.refuse_new_work()


class SupervisorView(View):
    """N workers, as they last told."""

    def __init__(self, control: ControlHalf, supervisor: Supervisor) -> None:
        super().__init__(control)
        self._supervisor = supervisor

    @property
    def auth(self) -> Auth | None:
        """The supervisor's own: no worker is asked."""
        return self._supervisor.auth

    def snapshot(self) -> Snapshot:
        """The living and the dead as one, at most a second old."""
        return self._supervisor.crew.totals.merged()

    def workers(self) -> list[Snapshot]:
        """Each living worker's last word."""
        return self._supervisor.crew.totals.workers()

    def readiness(self) -> list[str]:
        """Ready while one worker is."""
        return [*self._supervisor.not_ready(), *self._control.not_ready()]

    def chains(self) -> list[dict[str, Any]]:
        """As a worker described them when it became ready."""
        return self._supervisor.crew.chains

    async def decision(self, id_: str) -> dict[str, Any] | None:
        """From whichever worker has it."""
        return await self._supervisor.crew.explain(id_)

    async def drain(self) -> None:
        """Tell every worker."""
        self._supervisor.crew.refuse_new_work()
