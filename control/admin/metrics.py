"""/metrics and /stats: one sheet of samples in two formats.

The snapshot is taken on the loop and rendered in a thread, one at a time: a large page takes tens of milliseconds, in
which a gateway of one process serves on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread

from ..telemetry.exposition import prometheus_text, stats_json
from ..telemetry.families import Observed, Telemetry
from .state import readiness

if TYPE_CHECKING:
    from .view import AdminView


class Metrics:
    """Keeps what one page of metrics must remember for the next."""

    def __init__(self, view: AdminView, version: str) -> None:
        self._view = view
        self._version = version
        self._telemetry = Telemetry()
        self._one = anyio.CapacityLimiter(1)

    async def text(self) -> bytes:
        """The body of /metrics."""
        observed = self._observe()
        return await to_thread.run_sync(lambda: prometheus_text(self._telemetry.families(observed)), limiter=self._one)

    async def stats(self, wanted: str = "") -> dict[str, Any]:
        """The body of /stats."""
        observed = self._observe()
        found = await to_thread.run_sync(
            lambda: stats_json(self._telemetry.families(observed), wanted), limiter=self._one
        )
        now = self._view.clock.wall()
        return {
            **readiness(self._view),
            "version": self._version,
            "config_version": self._view.config.digest,
            "uptime_seconds": round(max(0.0, now - self._view.started), 3),
            "time": now,
            "stats": found,
        }

    def _observe(self) -> Observed:
        view = self._view
        control, tailer = view.stats, view.tailer
        ledger = {}
        if tailer is not None:
            ledger = {
                "rows": tailer.rows,
                "lost": tailer.lost,
                "dead_letters": tailer.dead_letters,
                "errors": tailer.errors,
                "trimmed": tailer.trimmed,
                "up": int(tailer.last_error is None),
            }
        return Observed(
            snapshot=view.snapshot(),
            workers=view.workers(),
            version=self._version,
            started=view.started,
            ready=not view.readiness(),
            warnings=len(view.warnings()),
            control={name: getattr(control, name) for name in control.__slots__},
            ledger=ledger,
            auth_filters=frozenset(entry.name for entry in view.config.filters if entry.kind == "auth"),
            checks=view.checks(),
            alerts=dict(tailer.alerts) if tailer is not None else {},
        )
