"""Keeps the ledger up to date: the task that takes the workers' spools over into the event store.

The work is SQLite and files, so it runs in a thread, one turn at a time and a few milliseconds each. A record is in
the store within `interval` of being written. When the store is away the tailer backs off and tries again; records
wait in the spool, which has a bound of its own, and requests do not notice.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final, TypeVar

import anyio
import structlog

from ...filters.callers import named
from ...proxy.accounting.money import usd
from .ingest import Ingest
from .schema import SchemaError
from .threads import in_thread

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from ...proxy.clock import Clock
    from .spending import Alert, Of, Threshold

INTERVAL: Final = 0.5
LONGEST_WAIT: Final = 10.0
FLUSH_SECONDS: Final = 10.0
SHORT_WAIT: Final = 0.05
# A trim looks at two numbers when there is nothing to do; between two of them this many rows make some megabytes.
TRIM_SECONDS: Final = 60.0
TRIM_ROWS: Final = 10_000

AWAY: Final = (sqlite3.Error, OSError, SchemaError)

T = TypeVar("T")

log = structlog.get_logger(__name__)


ELSEWHERE: Final = (
    "another gateway takes the records of this events.spool.path into a ledger of its own: "
    "give each ledger a spool of its own"
)


class LedgerBehindError(Exception):
    """The ledger does not have everything that was written."""


class Tailer:
    """Tails all spools in `spool_directory` into the store at `store`.

    `retention` is in seconds, `max_size` in bytes of the store. The counters are plain integers for /metrics:
    `errors` are turns that failed, `last_error` says why as long as the store is away.
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        spool_directory: str | os.PathLike[str],
        *,
        retention: float,
        max_size: int,
        clock: Clock,
        interval: float = INTERVAL,
    ) -> None:
        self._ingest = Ingest(store, spool_directory, wall=clock.wall)
        self._retention = retention
        self._max_size = max_size
        self._clock = clock
        self._interval = interval
        self._turn = anyio.Lock()
        self._trimmed_rows = 0
        self._trim_at = 0.0
        self.errors = 0
        self.trimmed = 0
        self.alerts: dict[tuple[str, int], int] = {}
        """Told so far, by budget and percent."""
        self.last_error: str | None = None

    @property
    def rows(self) -> int:
        """Records taken over."""
        return self._ingest.rows

    @property
    def lost(self) -> int:
        """Exchanges of dead workers that were written as `lost`."""
        return self._ingest.lost

    @property
    def dead_letters(self) -> int:
        """Lines that were no record."""
        return self._ingest.dead_letters

    @property
    def holder(self) -> bool:
        """Whether it is this gateway that tails."""
        return self._ingest.holder

    @property
    def elsewhere(self) -> bool:
        """Whether another gateway takes the records of the spool into a ledger of its own."""
        return self._ingest.elsewhere

    async def run(self) -> None:
        """Tail until cancelled; a turn that is under way is finished first. Then `close` it."""
        wait = self._interval
        while True:
            try:
                more = await self._step()
                await self._trim_if_due()
            except AWAY as error:
                wait = min(LONGEST_WAIT, wait * 2)
                self._away(error)
            else:
                wait = self._interval
                self._back()
                if more:
                    continue
            await self._clock.sleep(wait)

    async def turn(self) -> bool:
        """One turn now, and not only when the interval is over; True when there may be more to take over.

        Raises sqlite3.Error, OSError, SchemaError when the store is away."""
        return await self._step()

    async def flush(self, within: float = FLUSH_SECONDS) -> bool:
        """Take over what is written so far, for at most `within` seconds; False when it is not all in the store."""
        until = self._clock.monotonic() + within
        try:
            while await self._step():
                if self._clock.monotonic() >= until:
                    return False
        except AWAY as error:
            self._away(error)
            return False
        return self.holder

    def close(self) -> None:
        """Let go of the store and the locks, when `run` is over."""
        self._ingest.close()

    def watch(self, thresholds: Mapping[Of, Threshold]) -> None:
        """From now on these totals raise alerts."""
        self._ingest.thresholds = thresholds

    async def spent(self, wanted: Sequence[tuple[Of, str]], within: float = FLUSH_SECONDS) -> list[dict[str, int]]:
        """What callers have spent of each limit in the period of that name, by all that stands in the spools by now;
        with what is set aside of calls under way.

        Raises sqlite3.Error, OSError, SchemaError when the store is away, and LedgerBehindError when it, or whoever
        else tails, has not taken over everything `within` seconds.
        """
        until = self._clock.monotonic() + within
        lacks = await self._in_thread(self._ingest.measure)
        while True:
            more = await self._step()
            if not await self._in_thread(lacks):
                return await self._in_thread(lambda: self._ingest.spent(wanted))
            if self._clock.monotonic() >= until:
                raise LedgerBehindError(f"not all of the spools is in the ledger after {within:g} s")
            if not more:
                await self._clock.sleep(SHORT_WAIT)

    async def _step(self) -> bool:
        before = self.elsewhere
        more = await self._in_thread(self._ingest.step)
        for alert in self._ingest.take_alerts():
            self._tell(alert)
        if self.elsewhere and not before:
            log.warning("ledger_elsewhere", reason=ELSEWHERE)
        return more

    def _tell(self, alert: Alert) -> None:
        key = alert.budget, alert.percent
        self.alerts[key] = self.alerts.get(key, 0) + 1
        log.warning(
            "budget_alert",
            budget=alert.budget,
            per=alert.per,
            caller=named(alert.per, alert.caller),
            period=alert.period,
            percent=alert.percent,
            spent_usd=usd(alert.spent),
            limit_usd=usd(alert.limit),
        )

    async def _trim_if_due(self) -> None:
        now = self._clock.monotonic()
        if now < self._trim_at and self.rows < self._trimmed_rows + TRIM_ROWS:
            return
        self._trim_at = now + TRIM_SECONDS
        self._trimmed_rows = self.rows
        self.trimmed += await self._in_thread(lambda: self._ingest.trim(self._retention, self._max_size))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        async with self._turn:
            return await in_thread(work)

    def _away(self, error: Exception) -> None:
        self.errors += 1
        if self.last_error is None:
            log.warning("ledger_away", error=str(error))
        self.last_error = str(error)

    def _back(self) -> None:
        if self.last_error is not None:
            log.info("ledger_back")
            self.last_error = None
