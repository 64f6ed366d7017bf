"""What each budget has been charged: one total for each caller and period, and what is set aside of calls under way.

Written in the transaction of the usage rows, from records of the same spool, and by no other way; neither `retention`
nor `max_size` of the rows touches it. Of a call whose worker died, what was set aside is charged.

The same totals tell when a caller has spent so many percent of a budget. That stands beside the total, so it is told
once for each period, however many workers there are and whatever dies in between.

Not here: which budgets there are (control/budgets.py), the counting that decides (filters/stores/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ...proxy.accounting.record import Reserved, Spent, decode, encode

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from ...proxy.accounting.record import Share

MOST_TOTALS: Final = 200_000
"""Above it, totals of periods that are over go, the oldest first; those of current periods never do."""
MOST_ALERTS: Final = 1_000
"""Of one turn; more callers at once have a line in the log about them all."""
TRIM_TOTALS: Final = 2000
ALL: Final = 100

Of = tuple[str, str, str]
"""A limit: its filter's place, `per` and `unit`."""
_Key = tuple[str, str, str, str, str, int]

_ADD: Final = """
INSERT INTO spending (budget, per, unit, period, caller, until, nanos) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (budget, per, unit, period, caller) DO UPDATE SET
    nanos = nanos + excluded.nanos, until = max(until, excluded.until)
"""
_ROW: Final = "budget = ? AND per = ? AND unit = ? AND period = ? AND caller = ?"
_LOOK: Final = f"SELECT nanos, told, exhausted FROM spending WHERE {_ROW}"  # noqa: S608 - our own text
_TOLD: Final = f"UPDATE spending SET told = ?, exhausted = ? WHERE {_ROW}"  # noqa: S608 - our own text


class Threshold(NamedTuple):
    """The amount of a limit, and the percents at which somebody wants to know."""

    limit: int
    percents: tuple[int, ...]


class Alert(NamedTuple):
    """A caller has spent `percent` of a budget, or at 100 what is left was too little. Amounts in nano-dollars."""

    budget: str
    per: str
    unit: str
    caller: str
    period: str
    percent: int
    spent: int
    limit: int


class Spending:
    """The tables `spending` and `reserved`. All but `take_alerts` inside the caller's transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.thresholds: Mapping[Of, Threshold] = {}
        self.alerts: list[Alert] = []
        """Of transactions that are whole, for somebody to take out."""
        self.alerts_dropped = 0
        self._new: list[Alert] = []

    def add(self, spool: str, records: Iterable[Reserved | Spent], now: float) -> None:
        """What was set aside, and what became of it, in the order of the spool. `now` in Unix seconds."""
        open_: dict[tuple[str, str], Reserved] = {}
        closed: dict[tuple[str, str], None] = {}
        spent: dict[tuple[str, tuple[Share, ...]], int] = {}
        exhausted: set[_Key] = set()
        for record in records:
            call = record.id, record.budget
            if isinstance(record, Reserved):
                open_[call] = record
                continue
            whose = record.budget, record.shares
            spent[whose] = spent.get(whose, 0) + record.nanos
            if record.exhausted:
                exhausted.update(_keys(*whose))
            else:
                open_.pop(call, None)
                closed[call] = None
        sums: dict[_Key, int] = {}
        for whose, nanos in spent.items():
            _sum(sums, _keys(*whose), nanos)
        self._db.executemany("DELETE FROM reserved WHERE id = ? AND budget = ?", self._kept(closed))
        self._db.executemany(
            "INSERT INTO reserved VALUES (?, ?, ?, ?) ON CONFLICT (id, budget) DO UPDATE SET line = excluded.line",
            [(*key, spool, encode(record)) for key, record in open_.items()],
        )
        self._charge(sums, exhausted, now)

    def lose(self, spool: str, now: float) -> None:
        """Charge what a dead spool had set aside."""
        sums: dict[_Key, int] = {}
        for (line,) in self._db.execute("SELECT line FROM reserved WHERE spool = ?", (spool,)).fetchall():
            record = decode(line)
            if isinstance(record, Reserved):
                _sum(sums, _keys(record.budget, record.shares), record.nanos)
        self._db.execute("DELETE FROM reserved WHERE spool = ?", (spool,))
        self._charge(sums, set(), now)

    def commit(self) -> None:
        """The transaction is whole: what it has to tell may be told."""
        room = MOST_ALERTS - len(self.alerts)
        self.alerts += self._new[:room]
        self.alerts_dropped += len(self._new[room:])
        self._new = []

    def forget(self) -> None:
        """It was rolled back."""
        self._new = []

    def trim(self, now: float, most: int = MOST_TOTALS) -> None:
        """Drop the oldest of what is over, where there is too much of it."""
        over = self._db.execute("SELECT count(*) FROM spending").fetchone()[0] - most
        if over > 0:
            self._db.execute(
                "DELETE FROM spending WHERE (budget, per, unit, period, caller) IN (SELECT budget, per, unit, period, "
                "caller FROM spending WHERE until <= ? ORDER BY until LIMIT ?)",
                (now, min(over, TRIM_TOTALS)),
            )

    def _kept(self, calls: Collection[tuple[str, str]]) -> Collection[tuple[str, str]]:
        """Those of which something may be kept as set aside: most begin and end between two turns, and have no row. One
        look at all rows, where they are few, is less than a look for each call."""
        rows = self._db.execute("SELECT id, budget FROM reserved LIMIT ?", (len(calls),)).fetchall()
        return calls if len(rows) == len(calls) else [row for row in rows if row in calls]

    def _charge(self, sums: Mapping[_Key, int], exhausted: set[_Key], now: float) -> None:
        self._db.executemany(_ADD, [(*key, nanos) for key, nanos in sums.items()])
        for key in sums:
            threshold = self.thresholds.get(key[:3])
            if threshold is None or key[5] <= now:
                continue
            spent, told, was_exhausted = self._db.execute(_LOOK, key[:5]).fetchone()
            percents = [
                percent for percent in threshold.percents if percent > told and spent * ALL >= threshold.limit * percent
            ]
            is_exhausted = bool(was_exhausted or key in exhausted or ALL in percents)
            if percents or is_exhausted != was_exhausted:
                self._db.execute(_TOLD, (percents[-1] if percents else told, is_exhausted, *key[:5]))
            # Workers' spools are read one after the other: that it is all gone may be known before that half is.
            if ALL in threshold.percents:
                percents = [percent for percent in percents if percent != ALL]
                percents += [ALL] if is_exhausted and not was_exhausted else []
            budget, per, unit, period, caller = key[:5]
            self._new += [
                Alert(budget, per, unit, caller, period, percent, spent, threshold.limit) for percent in percents
            ]


def read_spent(db: sqlite3.Connection, wanted: Sequence[tuple[Of, str]]) -> list[dict[str, int]]:
    """For each limit and the name of a period, what every caller has spent in it, with what is set aside now."""
    found: list[dict[str, int]] = []
    for of, period in wanted:
        rows = db.execute(
            "SELECT caller, nanos FROM spending WHERE budget = ? AND per = ? AND unit = ? AND period = ?", (*of, period)
        )
        found.append(dict(rows))
    places = {(*of, period): callers for (of, period), callers in zip(wanted, found, strict=True)}
    for (line,) in db.execute("SELECT line FROM reserved"):
        record = decode(line)
        if isinstance(record, Reserved):
            for share in record.shares:
                callers = places.get((record.budget, share.per, share.unit, share.period))
                if callers is not None:
                    callers[share.caller] = callers.get(share.caller, 0) + record.nanos
    return found


def _keys(budget: str, shares: Iterable[Share]) -> list[_Key]:
    return [(budget, share.per, share.unit, share.period, share.caller, share.until) for share in shares]


def _sum(sums: dict[_Key, int], keys: Iterable[_Key], nanos: int) -> None:
    for key in keys:
        sums[key] = sums.get(key, 0) + nanos
