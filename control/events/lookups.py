"""Answers the workers' question who made an id.

A worker writes what was made to its spool before it relays the answer that names it, so whatever a client can know
stands in a spool or in the store. An id that is not in the store is therefore looked for once more when the store has
taken over all that stood in the spools when the question came: after that it is unknown, and not merely late. Where
another gateway keeps the store, that one takes it over, within its interval.

Questions that come while one turn is under way are answered together by the next.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from .issuers import IssuerTable
from .spools import measure_spools
from .tailer import AWAY
from .threads import in_thread

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from ...proxy.accounting.record import Issued
    from ...proxy.clock import Clock
    from .tailer import Tailer

    Reply = Callable[[list[Issued] | None], None]

CATCH_UP_SECONDS: Final = 2.0
"""How long the store may take for what stands in the spools; the tailer of another gateway turns every half second."""
LOOK_AGAIN_SECONDS: Final = 0.05
MOST_WAITING: Final = 4096

log = structlog.get_logger(__name__)


class Lookups:
    """`ask` at any time; `run` answers. `failed` counts the questions to which nobody could say anything."""

    def __init__(
        self, store: str | os.PathLike[str], spool_directory: str | os.PathLike[str], tailer: Tailer, clock: Clock
    ) -> None:
        self._table = IssuerTable(store)
        self._directory = Path(spool_directory)
        self._tailer = tailer
        self._clock = clock
        self._waiting: list[tuple[Sequence[str], Reply]] = []
        self._asked = asyncio.Event()
        self.failed = 0

    def ask(self, ids: Sequence[str], reply: Reply) -> None:
        """Who made these? `reply` gets the rows of those that are known, in no order; None when the store is away, or
        does not catch up in time, or too many wait."""
        if len(self._waiting) >= MOST_WAITING:
            self.failed += 1
            reply(None)
            return
        self._waiting.append((ids, reply))
        self._asked.set()

    async def run(self) -> None:
        """Answer until cancelled; whoever waits then is told that nobody knows. Then `close` it."""
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                await self._answer()
        finally:
            self._reply(self._take(), None)

    def close(self) -> None:
        """Let go of the store, when `run` is over."""
        self._table.close()

    async def _answer(self) -> None:
        asked = self._take()
        found = None
        try:
            found = await self._find({id for ids, _ in asked for id in ids})
        except (*AWAY, TimeoutError) as error:
            self.failed += len(asked)
            log.warning("issuers_away", asked=len(asked), error=str(error))
        except Exception as error:
            self.failed += len(asked)
            log.error("lookup_failed", exc_info=error)
        finally:
            self._reply(asked, found)

    def _take(self) -> list[tuple[Sequence[str], Reply]]:
        asked, self._waiting = self._waiting, []
        return asked

    @staticmethod
    def _reply(asked: list[tuple[Sequence[str], Reply]], found: dict[str, list[Issued]] | None) -> None:
        for ids, reply in asked:
            reply([row for id in ids for row in found.get(id, ())] if found is not None else None)

    async def _find(self, ids: set[str]) -> dict[str, list[Issued]]:
        found = await in_thread(partial(self._table.find, ids))
        if len(found) < len(ids):
            await self._catch_up()
            found |= await in_thread(partial(self._table.find, ids - found.keys()))
        return found

    async def _catch_up(self) -> None:
        """Return once the store has all that is in the spools now. Raises TimeoutError."""
        ends = await in_thread(partial(measure_spools, self._directory))
        until = self._clock.monotonic() + CATCH_UP_SECONDS
        while True:
            more = await self._tailer.turn()
            if not await in_thread(partial(self._table.lacks, ends)):
                return
            if self._clock.monotonic() >= until:
                raise TimeoutError("the store does not catch up with the spools")
            if not more:
                await self._clock.sleep(LOOK_AGAIN_SECONDS)
