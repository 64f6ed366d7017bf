"""Meters in memory that the workers of one host share: exact over all of them, without a server.

A call is counted under all its rules or under none, under one lock, so nothing runs in between. Whoever does not get
the lock in time is refused with 503, never let in uncounted. When a call is over, its slots are given back and its
tokens corrected without the lock, and so at once.

The short way (`count`) reads the rows of a caller that it has met, of each rule one, and writes as the rules would by
themselves, but only what a write of one word says: windows that are open, cells that have their tag. Whatever else
there is to be done is done by `take`.

A worker that is killed at whatever instruction holds no lock, and what it leaves is never less than what it let in. Its
tokens count as used from the start: the estimate stays. Its slots are given back by the supervisor.

Not here: what is in the memory (shared_memory.py), whose row is which (shared_table.py), how each kind of rule is
counted (shared_counts.py).
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Final

from ...proxy.errors import OverloadError
from .rules import Granted, Refused, Rule, usual
from .shared_counts import FOLD, MOST, MOST_KNOWN, count_of
from .shared_memory import CELL_WORDS, CELLS, GENERATION, IN_USE, MONEY_ROWS, ROWS, SLOTS, USED
from .shared_table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .rules import Counted, Kind
    from .shared_counts import Count, Hold
    from .shared_memory import SharedMemory

MOST_LATE: Final = 10_000
"""Calls whose tokens could not be corrected yet, because that needs the lock and it was not to be had. Of what is more
the estimate stays."""
_HEAD: Final = 4
"""Words that are read before the cells: the row's generation, until when it counts, what was taken, its tag."""
_WINDOW: Final = Struct("@3q").unpack_from
_WORD: Final = 8

_Row = tuple[int, int, int]
"""Its number and generation, and the byte to read it from."""


class SharedLimits:
    """The rules of one filter, counted in shared memory by one process."""

    __slots__ = (
        "_cells", "_counts", "_known", "_late", "_lock", "_map", "_most_at_once", "_most_requests",
        "_most_tokens", "_own", "_processes", "_read", "_usual", "_words", "crowded",
    )  # fmt: skip

    def __init__(self, memory: SharedMemory, table: Table, process: int, name: str, rules: Sequence[Rule]) -> None:
        counts: tuple[Count, ...] = ()
        for rule in rules:
            counts += (count_of(rule)(memory, table, process, name, rule, counts),)
        self._counts = counts
        self._lock = memory.lock
        self._words = memory.words
        self._map = memory.map
        self._own = CELLS - GENERATION + CELL_WORDS * process
        """Of what is read of a row, the word with this process' tag."""
        self._expect()
        self._usual = usual(rules)
        requests, amounts, slots = self._usual or (None, None, None)
        self._most_requests = rules[requests].limit if requests is not None else 0
        self._most_tokens = rules[amounts].limit if amounts is not None else 0
        self._most_at_once = rules[slots].limit if slots is not None else 0
        self._known: dict[str, tuple[_Row | None, _Row | None, _Row | None]] = {}
        """Of a caller, the rows of requests, of tokens or money, and of slots."""
        self._late: deque[tuple[Hold, int]] = deque(maxlen=MOST_LATE)
        self.crowded = 0

    def count(self, caller: str, tokens: int, now: int) -> Counted | None:
        """See `Limits`."""
        known = self._known.get(caller)
        if known is None and (known := self._find(caller)) is None:
            return None
        lock, words, map_ = self._lock, self._words, self._map
        if not lock.take():
            return None
        try:
            if words[IN_USE] != self._processes:
                self._expect()
            requests, amounts, slots = known
            requests_used = requests_left = requests_until = tokens_taken = tokens_left = tokens_until = held = 0
            tag_at = slot_at = None
            if requests is not None:
                generation, requests_until, requests_used = _WINDOW(map_, requests[2])
                requests_left = self._most_requests - requests_used - 1
                if generation != requests[1] or now >= requests_until or requests_left < 0:
                    self._known.pop(caller, None)  # it may be another's row by now
                    return None
            if amounts is not None:
                row = self._read(map_, amounts[2])
                generation, tokens_until, tokens_taken, tag = row[:_HEAD]
                tokens_taken += tokens
                tokens_left = self._most_tokens - tokens_taken
                for cell in self._cells:
                    if row[cell] == tag:
                        tokens_left -= row[cell + 1]
                if (
                    generation != amounts[1]
                    or now >= tokens_until
                    or tokens_left < 0
                    or tokens_taken > FOLD
                    or row[self._own] != tag
                ):
                    self._known.pop(caller, None)
                    return None
                tag_at = amounts[0] + GENERATION + self._own, tag
            if slots is not None:
                row = self._read(map_, slots[2])
                for cell in self._cells:
                    if row[cell] == SLOTS:
                        held += row[cell + 1]
                own = self._own
                if row[0] != slots[1] or held >= self._most_at_once or row[own] != SLOTS:
                    self._known.pop(caller, None)
                    return None
                slot_at = slots[0] + GENERATION + own
            if requests is not None:
                words[requests[0] + USED] = requests_used + 1
            if amounts is not None:
                words[amounts[0] + USED] = tokens_taken
            if slot_at is not None:
                words[slot_at + 1] += 1
        finally:
            lock.release()
        return requests_left, requests_until, tokens_left, tokens_until, tokens, tag_at, slot_at, None

    def recount(self, counted: Counted, tokens: int) -> None:
        """See `Limits`. Without the lock."""
        _, _, _, _, taken, tag_at, slot_at, _ = counted
        words = self._words
        if tag_at is not None:
            cell, tag = tag_at
            if words[cell] == tag:
                words[cell + 1] = min(words[cell + 1] + tokens - taken, MOST)
        if slot_at is not None and words[slot_at] == SLOTS:
            words[slot_at + 1] -= 1

    def _find(self, caller: str) -> tuple[_Row | None, _Row | None, _Row | None] | None:
        if self._usual is None:
            return None
        rows: list[_Row | None] = []
        for at in self._usual:
            known = self._counts[at].known(caller) if at is not None else None
            if known is None and at is not None:
                return None
            rows.append((known[0], known[1], _WORD * (known[0] + GENERATION)) if known is not None else None)
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        found = self._known[caller] = rows[0], rows[1], rows[2]
        return found

    def _expect(self) -> None:
        """As many processes as are in use by now."""
        self._processes = self._words[IN_USE]
        end = max(_HEAD + CELL_WORDS * self._processes, self._own + CELL_WORDS)
        self._cells = tuple(range(_HEAD, end, CELL_WORDS))
        self._read = Struct(f"@{end}q").unpack_from

    def take(self, keys: Sequence[str], tokens: int, now: int) -> Granted[Hold] | Refused:
        """See `Limits`. Raises OverloadError where the lock was not to be had."""
        lock, counts = self._lock, self._counts
        if not lock.take():
            raise OverloadError("The gateway could not count this request in time. Try again.", retry_after=1)
        try:
            if self._late:
                self._catch_up(now)
            refused: Refused | None = None
            for count, key in zip(counts, keys, strict=True):
                wait = count.look(key, tokens, now)
                if wait and (refused is None or wait > refused.wait):
                    refused = Refused(count.rule, wait, count.report(now))
            if refused is not None:
                return refused
            granted: Granted[Hold] = Granted()
            for count in counts:
                if count.take(granted, now):
                    self.crowded += 1
            return granted
        finally:
            lock.release()

    def settle(self, granted: Granted[Hold], tokens: int, now: int) -> None:
        """See `Limits`. At once, but where the rule needs the lock and it is not to be had: then as soon as it is."""
        for hold in granted.holds:
            count, where, mark, taken = hold
            if not count.needs_lock:
                count.settle(where, mark, taken, tokens, now)
            elif tokens != taken:
                self._late.append((hold, tokens))
        if self._late and self._lock.take():
            try:
                self._catch_up(now)
            finally:
                self._lock.release()

    def _catch_up(self, now: int) -> None:
        while self._late:
            (count, where, mark, taken), used = self._late.popleft()
            count.settle(where, mark, taken, used, now)


class SharedStore:
    """Opens limits that `process` counts together with the others."""

    def __init__(self, memory: SharedMemory, process: int = 0) -> None:
        self._memory = memory
        self._table = Table(memory, 0, ROWS)
        self._money = Table(memory, ROWS, MONEY_ROWS)
        self._process = process
        self._restored: set[tuple[str, Kind]] = set()

    def open(self, name: str, rules: Sequence[Rule]) -> SharedLimits:
        """The limits of the filter `name`, with what is already counted under that name."""
        table = self._money if any(rule.kind.what == "money" for rule in rules) else self._table
        return SharedLimits(self._memory, table, self._process, name, rules)

    async def restore(self, name: str, kind: Kind, spent: Mapping[str, int], now: int) -> None:
        """Once for each name and kind: this memory forgets nothing, whatever config comes and goes. Raises
        OverloadError where the lock was not to be had."""
        if (name, kind) in self._restored:
            return
        self._restored.add((name, kind))
        limits = self.open(name, [Rule(kind, MOST)])
        for key, amount in spent.items():
            limits.take([key], min(amount, MOST), now)

    def close(self) -> None:
        """This process counts no more."""
        self._memory.close()
