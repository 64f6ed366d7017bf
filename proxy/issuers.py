"""What one worker knows of who made which object, and whom it asks for the rest.

What is made here is written to the spool before the answer that names it goes down (one `write`, in the kernel when it
returns), so it is known to the control half whatever becomes of this process; no answer waits for anybody. What was
made elsewhere is asked for, in one message for all ids of a request, and remembered: who made an object never changes.
An id that nobody knows is not remembered; the next moment somebody may make it.

`ask` is the way to the control half: its own process for several workers, else a call. Without one nobody else knows.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from .accounting.record import Forgotten, Issued

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .accounting.ledger import Ledger
    from .clock import Clock, Timer

    Found = dict[str, tuple[Issued, ...]]

REMEMBERED = 16_384
"""Ids, some 300 bytes each."""
MOST_WAITING = 4096
ASK_SECONDS = 3.0
_ID = re.compile(r"[!-~]{1,256}")


class _Question(NamedTuple):
    known: Found
    then: Callable[[Found | None], None]
    timer: Timer


class Issuers:
    """`asked` and `unanswered` count questions to the control half."""

    __slots__ = ("_clock", "_known", "_ledger", "_number", "_waiting", "ask", "asked", "unanswered")

    def __init__(self, clock: Clock, ledger: Ledger) -> None:
        self.ask: Callable[[int, list[str]], None] | None = None
        """Sends a numbered question; `answered` is called with its number, sooner or later or never."""
        self.asked = 0
        self.unanswered = 0
        self._clock = clock
        self._ledger = ledger
        self._known: Found = {}
        """The latest used last."""
        self._waiting: dict[int, _Question] = {}
        self._number = 0

    def made(self, objects: Iterable[tuple[str, str]], provider: str, team: str) -> None:
        """A provider made these, as (kind, id). They survive this process from here on."""
        for kind, id_ in objects:
            if _ID.fullmatch(id_) and not any(row.provider == provider for row in self._known.get(id_, ())):
                issued = Issued(id=id_, at=self._clock.wall(), provider=provider, team=team, kind=kind)
                self._ledger.write(issued)
                self._remember(id_, (*self._known.get(id_, ()), issued))

    def deleted(self, id_: str, provider: str) -> None:
        """A provider says that it deleted this."""
        self._ledger.write(Forgotten(id=id_, at=self._clock.wall(), provider=provider))
        rows = tuple(row for row in self._known.pop(id_, ()) if row.provider != provider)
        if rows:
            self._remember(id_, rows)

    def find(self, ids: Iterable[str], then: Callable[[Found | None], None]) -> None:
        """Who made these? `then` gets those that are known: at once, or within ASK_SECONDS; None: nobody could say."""
        known: Found = {}
        missing: list[str] = []
        for id_ in dict.fromkeys(ids):
            rows = self._known.get(id_)
            if rows is not None:
                known[id_] = rows
                self._remember(id_, rows)
            elif _ID.fullmatch(id_):
                missing.append(id_)
        if not missing or self.ask is None:
            then(known)
            return
        self.asked += 1
        if len(self._waiting) >= MOST_WAITING:
            self.unanswered += 1
            then(None)
            return
        self._number = number = self._number + 1
        timer = self._clock.call_at(self._clock.monotonic() + ASK_SECONDS, self.answered, number, None)
        self._waiting[number] = _Question(known, then, timer)
        self.ask(number, missing)

    def answered(self, number: int, rows: Sequence[Issued] | None) -> None:
        """The control half's answer, or that it has none. Harmless when it comes late."""
        question = self._waiting.pop(number, None)
        if question is None:
            return
        question.timer.cancel()
        if rows is None:
            self.unanswered += 1
            question.then(None)
            return
        for row in rows:
            question.known[row.id] = (*question.known.get(row.id, ()), row)
        for id_ in {row.id for row in rows}:
            self._remember(id_, question.known[id_])
        question.then(question.known)

    def _remember(self, id_: str, rows: tuple[Issued, ...]) -> None:
        self._known.pop(id_, None)
        self._known[id_] = rows
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
