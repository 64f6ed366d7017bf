"""What the admin listener needs to know, whoever runs it: one process, or the supervisor of several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ...config import GatewayConfig
    from ...proxy.clock import Clock
    from ...proxy.exchange import Principal
    from ...proxy.snapshot import Snapshot
    from ..events.tailer import Tailer
    from .clusters import Checks


class ControlStats:
    """What the control half counts, plain integers and one writer."""

    __slots__ = (
        "reloads",
        "reloads_refused",
        "replacements",
        "replacements_aborted",
        "worker_restarts",
        "workers_hung",
    )

    def __init__(self) -> None:
        self.reloads = 0
        """Configurations taken over after the first."""
        self.reloads_refused = 0
        """Bad files: everything stayed as it was."""
        self.worker_restarts = 0
        """Workers replaced because they ended on their own."""
        self.workers_hung = 0
        """Workers killed because they said nothing any more; each is a restart, too."""
        self.replacements = 0
        """Times that every worker was replaced on request."""
        self.replacements_aborted = 0
        """Times that a new worker did not become ready; the old ones stayed."""


class AdminView(Protocol):
    """Read at each request, on the loop of the admin listener; nothing here may block.

    Sources of records need nothing of their own here: `config.events` says where the store and the spool are.
    """

    @property
    def config(self) -> GatewayConfig:
        """The configuration in force."""

    @property
    def clock(self) -> Clock: ...

    @property
    def started(self) -> float:
        """Unix seconds."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the admin endpoints."""

    @property
    def stats(self) -> ControlStats: ...

    @property
    def tailer(self) -> Tailer | None:
        """The ledger's keeper; None where no records are kept."""

    def snapshot(self) -> Snapshot:
        """All workers as one; counters never go back."""

    def workers(self) -> list[Snapshot]:
        """Each living worker's last word."""

    def checks(self) -> Checks:
        """What active health checks have counted."""

    def readiness(self) -> list[str]:
        """Why the gateway should get no traffic: `starting`, `draining`, …; empty when it should."""

    def warnings(self) -> list[str]:
        """What an operator should look at, though traffic is served: a full spool, a provider without its key, …"""

    def chains(self) -> list[dict[str, Any]]:
        """The compiled chain of each route: see `describe_chains`."""

    def identify(self, header: bytes | None) -> Principal:
        """Whose key the value of a header holds; raises UnauthorizedError."""

    async def decision(self, id_: str) -> dict[str, Any] | None:
        """Why the exchange of this id went as it did, rendered; None where nobody remembers."""

    async def drain(self) -> None:
        """Readiness off and no new work, on every worker; returns without waiting for what runs. Idempotent."""
