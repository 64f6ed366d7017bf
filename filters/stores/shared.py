"""Meters in memory that the workers of one host share: exact over all of them, without a server.

A call is counted under all its rules or under none, under one lock, so nothing runs in between. Whoever does not get
the lock in time is refused with 503, never let in uncounted. When a call is over, its slots are given back and its
tokens corrected without the lock, and so at once.

A worker that is killed at whatever instruction holds no lock, and what it leaves is never less than what it let in. Its
tokens count as used from the start: the estimate stays. Its slots are given back by the supervisor.

Not here: what is in the memory (shared_memory.py), whose row is which (shared_table.py), how each kind of rule is
counted (shared_counts.py).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from ...proxy.errors import OverloadError
from .rules import Granted, Refused, Rule
from .shared_counts import MOST, count_of
from .shared_memory import MONEY_ROWS, ROWS
from .shared_table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .rules import Kind
    from .shared_counts import Count, Hold
    from .shared_memory import SharedMemory

MOST_LATE: Final = 10_000
"""Calls whose tokens could not be corrected yet, because that needs the lock and it was not to be had. Of what is more
the estimate stays."""


class SharedLimits:
    """The rules of one filter, counted in shared memory by one process."""

    __slots__ = ("_counts", "_late", "_lock", "crowded")

    def __init__(self, memory: SharedMemory, table: Table, process: int, name: str, rules: Sequence[Rule]) -> None:
        counts: tuple[Count, ...] = ()
        for rule in rules:
            counts += (count_of(rule)(memory, table, process, name, rule, counts),)
        self._counts = counts
        self._lock = memory.lock
        self._late: deque[tuple[Hold, int]] = deque(maxlen=MOST_LATE)
        self.crowded = 0

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
