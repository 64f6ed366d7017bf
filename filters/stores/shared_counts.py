"""How the rules of each kind are counted in a row of shared memory, and in which order it is written.

A count is asked (`look`), and if all of a call's rules agree, taken from (`take`), both under one lock. What a call
has really used is written without it (`settle`), into a cell of the process' own; but not for a debt, whose arithmetic
needs all of it.

Whatever a process leaves when it is killed counts no less than what it let in:

- A window is opened by writing what is used in it, then when it closes: until then it is still the one that has closed.
- A cell gets the tag of a row after its value was zeroed.
- A debt has two states: the one that does not hold is written, then selected.

Not here: the lock (shared.py), whose row it is (shared_table.py), when a call may come in (meters.py says it in full;
here it is said once more for windows and slots, without objects).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from struct import Struct
from typing import TYPE_CHECKING, Final

from .meters import SLOT_WAIT, Debt
from .rules import PERIODS, SECONDS, Report, report_of, tightest
from .shared_memory import CELL_WORDS, CELLS, GENERATION, IN_USE, SELECT, SLOTS, STATE_WORDS, STATES, TAG, UNTIL, USED
from .shared_table import digest

if TYPE_CHECKING:
    from .rules import Granted, Rule
    from .shared_memory import SharedMemory
    from .shared_table import Table

MOST_KNOWN: Final = 8_192
"""Rows that each rule remembers, so that a caller who comes again costs no digest and no search; 2 MB."""
MOST: Final = 1 << 60
"""Of one call and of one limit: sums of them then fit into a word."""
FOLD: Final = 1 << 61
"""Of what is taken in a window: then what calls have used less is taken off."""
_WORD: Final = 8

Hold = tuple["Count", int, int, int]
"""What a call has taken and must give back or settle: of which count, in which word, marked how, and how much. A plain
tuple, for one is made for each call and rule."""


class Count(ABC):
    """One rule, as one process counts it. `before`: the rules of the same call that are looked at before it."""

    __slots__ = (
        "_before", "_cell", "_known", "_length", "_limit", "_map", "_memory", "_others", "_prefix", "_processes",
        "_read", "_table", "_words", "row", "rule",
    )  # fmt: skip
    needs_lock = False
    """To settle."""
    _first = UNTIL
    """The word of a row that `_read` begins with."""

    def __init__(
        self, memory: SharedMemory, table: Table, process: int, name: str, rule: Rule, before: tuple[Count, ...]
    ) -> None:
        self.rule = rule
        self.row = 0
        """Of the caller looked at last."""
        self._memory = memory
        self._words = memory.words
        self._map = memory.map
        self._table = table
        self._limit = rule.limit
        seconds = PERIODS if rule.kind.what == "money" else SECONDS
        self._length = seconds.get(rule.kind.unit, 0) * 1_000_000
        self._cell = CELLS + CELL_WORDS * process
        self._before = before
        self._prefix = f"{name}\0{rule.kind}\0".encode()
        self._others = digest(self._prefix)
        self._known: dict[str, tuple[int, int, int]] = {}
        self._processes = 0
        """Of so many `_read` gets the cells."""
        self._read = Struct("@2q").unpack_from

    @abstractmethod
    def look(self, caller: str, tokens: int, now: int) -> int:
        """0: a call of `tokens` may be taken at once; else the microseconds until it may."""

    @abstractmethod
    def take(self, granted: Granted[Hold], now: int) -> bool:
        """Take what was looked at. Whether it was counted together with strangers."""

    @abstractmethod
    def report(self, now: int) -> Report:
        """How what was looked at stands."""

    @abstractmethod
    def settle(self, where: int, mark: int, taken: int, used: int, now: int) -> None:
        """Correct a hold by what was `used`. Without the lock, but where the count needs it."""

    def known(self, caller: str) -> tuple[int, int, int] | None:
        """As `_find`, of a caller who was here before."""
        return self._known.get(caller)

    def _find(self, caller: str, now: int) -> tuple[int, int, int]:
        """The row of the caller, its generation, and the byte to read at."""
        known = self._known.get(caller)
        if known is not None and self._words[known[0] + GENERATION] == known[1]:
            return known
        row = self._table.claim(
            digest(self._prefix + caller.encode()),
            self._others,
            SLOTS if self.rule.kind.what == "concurrent" else 0,
            [count.row for count in self._before],
            now,
        )
        found = row, self._words[row + GENERATION], _WORD * (row + self._first)
        if self._table.is_own(row):  # who shares a row may get one of its own next time
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[caller] = found
        return found


class Requests(Count):
    """In windows that their first call opens."""

    __slots__ = ("_closed", "_until", "_used")

    def look(self, caller: str, tokens: int, now: int) -> int:
        """See `Count`."""
        self.row, _, at = self._find(caller, now)
        until, used = self._read(self._map, at)
        self._until, self._used = until, used
        self._closed = closed = now >= until
        return 0 if closed or used < self._limit else until - now

    def take(self, granted: Granted[Hold], now: int) -> bool:
        """See `Count`."""
        row = self.row
        if self._closed:
            used, until = 1, now + self._length
            self._words[row + USED] = 1
            self._words[row + UNTIL] = until
        else:
            used, until = self._used + 1, self._until
            self._words[row + USED] = used
        report = Report(self._limit, self._limit - used, until)
        granted.requests = report if granted.requests is None else tightest(granted.requests, report)
        return not self._table.is_own(row)

    def settle(self, where: int, mark: int, taken: int, used: int, now: int) -> None:
        """Nothing is held: a call is a call."""

    def report(self, now: int) -> Report:
        """See `Count`."""
        return Report(self._limit, max(0, self._limit - self._used), self._until)


class Amounts(Count):
    """Tokens or money, in windows that their first call opens. What calls have taken is in the row; by how much they
    have used more or less, in the cells that have the window's tag."""

    __slots__ = ("_amount", "_cells", "_closed", "_tag", "_taken", "_until", "_used")

    def look(self, caller: str, tokens: int, now: int) -> int:
        """See `Count`."""
        if self._words[IN_USE] != self._processes:
            self._expect()
        self.row, _, at = self._find(caller, now)
        state = self._read(self._map, at)
        until, taken, tag = state[0], state[1], state[2]
        self._amount, self._until, self._taken, self._tag = tokens, until, taken, tag
        if now >= until:
            self._closed = True
            return 0
        self._closed = False
        used = taken
        for cell in self._cells:
            if state[cell] == tag:
                used += state[cell + 1]
        self._used = used
        return 0 if used + tokens <= self._limit else until - now

    def take(self, granted: Granted[Hold], now: int) -> bool:
        """See `Count`."""
        words, row, amount = self._words, self.row, self._amount
        cell = row + self._cell
        if self._closed:
            used, until = amount, now + self._length
            tag = self._memory.serial()
            words[row + TAG] = tag
            words[row + USED] = amount
            words[row + UNTIL] = until
        else:
            used, until, tag = self._used + amount, self._until, self._tag
            taken = self._taken + amount
            if taken > FOLD:
                taken += self._fold(cell, tag)
            words[row + USED] = taken
        if words[cell] != tag:
            words[cell + 1] = 0
            words[cell] = tag
        granted.holds.append((self, cell, tag, amount))
        if self.rule.kind.what == "tokens":
            report = Report(self._limit, max(0, self._limit - used), until)
            granted.tokens = report if granted.tokens is None else tightest(granted.tokens, report)
        return not self._table.is_own(row)

    def _expect(self) -> None:
        self._processes = self._words[IN_USE]
        self._cells = tuple(range(3, 3 + CELL_WORDS * self._processes, CELL_WORDS))
        self._read = Struct(f"@{3 + CELL_WORDS * self._processes}q").unpack_from

    def _fold(self, cell: int, tag: int) -> int:
        """What this process' calls have used less than they took, which its cell then no longer says."""
        words = self._words
        change = words[cell + 1]
        if words[cell] != tag or change > 0:
            return 0
        words[cell + 1] = 0
        return change

    def settle(self, where: int, mark: int, taken: int, used: int, now: int) -> None:
        """In the window in which it was taken, if that still counts."""
        words = self._words
        if words[where] == mark:
            words[where + 1] = min(words[where + 1] + used - taken, MOST)

    def report(self, now: int) -> Report:
        """See `Count`."""
        if self._closed:
            return Report(self._limit, self._limit, now)
        return Report(self._limit, max(0, self._limit - self._used), self._until)


class Debts(Count):
    """Tokens or requests that are paid back evenly, as `Debt` reckons."""

    __slots__ = ("_amount", "_debt")
    needs_lock = True

    def look(self, caller: str, tokens: int, now: int) -> int:
        """See `Count`."""
        self.row, _, _ = self._find(caller, now)
        self._amount = tokens if self.rule.kind.what == "tokens" else 1
        self._debt = self._load(self.row)
        return self._debt.wait(self._limit, self._amount, now)

    def take(self, granted: Granted[Hold], now: int) -> bool:
        """See `Count`."""
        row, limit, debt = self.row, self._limit, self._debt
        debt.take(limit, self._amount, now)
        report = Report(limit, debt.left(limit, now), self._save(row, debt))
        if self.rule.kind.what == "requests":
            granted.requests = tightest(granted.requests, report)
        else:
            granted.tokens = tightest(granted.tokens, report)
            granted.holds.append((self, row, self._words[row + GENERATION], self._amount))
        return not self._table.is_own(row)

    def settle(self, where: int, mark: int, taken: int, used: int, now: int) -> None:
        """Under the lock."""
        if self._words[where + GENERATION] == mark:
            debt = self._load(where)
            debt.settle(self._limit, 0, taken, used, now)
            self._save(where, debt)

    def report(self, now: int) -> Report:
        """See `Count`."""
        return report_of(self.rule, self._debt, now)

    def _load(self, row: int) -> Debt:
        words = self._words
        state = row + STATES + STATE_WORDS * words[row + SELECT]
        length = self._length
        return Debt(length, words[state], words[state + 1] * length + words[state + 2])

    def _save(self, row: int, debt: Debt) -> int:
        """Returns when it will be paid back."""
        words = self._words
        other = 1 - words[row + SELECT]
        state = row + STATES + STATE_WORDS * other
        words[state] = debt.at
        words[state + 1], words[state + 2] = divmod(debt.owed, debt.length)
        until = debt.at + debt.resets(self._limit, debt.at)
        if until > words[row + UNTIL]:  # it never looks paid back while it is not
            words[row + UNTIL] = until
        words[row + SELECT] = other
        words[row + UNTIL] = until
        return until


class Slots(Count):
    """At once: each process counts in its cell those it holds."""

    __slots__ = ("_used",)

    def look(self, caller: str, tokens: int, now: int) -> int:
        """See `Count`."""
        self.row, _, _ = self._find(caller, now)
        self._used = used = self._table.held(self.row)
        return 0 if used < self._limit else SLOT_WAIT

    def take(self, granted: Granted[Hold], now: int) -> bool:
        """See `Count`."""
        words, cell = self._words, self.row + self._cell
        if words[cell] != SLOTS:
            words[cell + 1] = 0
            words[cell] = SLOTS
        words[cell + 1] += 1
        granted.holds.append((self, cell, SLOTS, 1))
        return not self._table.is_own(self.row)

    def settle(self, where: int, mark: int, taken: int, used: int, now: int) -> None:
        """Give it back."""
        if self._words[where] == mark:
            self._words[where + 1] -= taken

    def report(self, now: int) -> Report:
        """See `Count`."""
        return Report(self._limit, max(0, self._limit - self._used), now + (SLOT_WAIT if self._used else 0))


def count_of(rule: Rule) -> type[Count]:
    """How it is counted."""
    if rule.kind.what == "concurrent":
        return Slots
    if rule.kind.continuous:
        return Debts
    return Requests if rule.kind.what == "requests" else Amounts
