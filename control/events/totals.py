"""Sums per day and label, written in the same transaction as the rows they are made of.

They outlive the rows: what was spent in March is still known when March's rows are trimmed. A day holds at most
MOST_GROUPS combinations of labels; a model name, the one label a client chooses freely, is `other` from then on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from ...proxy.accounting.record import Done

DAY: Final = 86400
MOST_GROUPS: Final = 2000
OTHER: Final = "other"

Group = tuple[int, str, str, str, str, str, str]

_ADD: Final = """
INSERT INTO totals VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (day, key, team, owner, endpoint, model, provider) DO UPDATE SET
    requests = requests + excluded.requests,
    ok = ok + excluded.ok,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens,
    cached_tokens = cached_tokens + excluded.cached_tokens,
    cost_usd = cost_usd + excluded.cost_usd,
    unknown_cost = unknown_cost + excluded.unknown_cost,
    estimated = estimated + excluded.estimated
"""


class Totals:
    """Adds rows to the table `totals`. Remembers the labels of the day it saw last, so that it can tell new ones."""

    __slots__ = ("_day", "_db", "_known")

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._day = -1
        self._known: set[Group] = set()

    def add(self, rows: Iterable[Done], sign: int = 1) -> None:
        """Add the rows, or take them away with `sign` -1. Inside the caller's transaction."""
        sums: dict[Group, list[float]] = {}
        for row in rows:
            group = (int(row.at // DAY), row.key, row.team, row.owner, row.endpoint, row.model, row.provider)
            if (found := sums.get(group)) is None:
                found = sums[group] = [0] * 8  # in the order of the columns
            found[0] += 1
            found[1] += row.outcome == "ok"
            found[2] += row.prompt_tokens
            found[3] += row.completion_tokens
            found[4] += row.cached_tokens
            if row.cost_usd is not None:
                found[5] += row.cost_usd
            elif row.usage_source != "none" or row.outcome == "lost":
                found[6] += 1
            found[7] += row.usage_source == "estimated"
        self._db.executemany(
            _ADD,
            # By day, then by label: around midnight the labels of a day are looked up once, not at every turn.
            [(*self._bounded(group), *(sign * value for value in found)) for group, found in sorted(sums.items())],
        )

    def forget(self) -> None:
        """The transaction was rolled back: what was learned in it may not be there."""
        self._day = -1

    def _bounded(self, group: Group) -> Group:
        day = group[0]
        if day != self._day:
            found = self._db.execute(
                "SELECT day, key, team, owner, endpoint, model, provider FROM totals WHERE day = ?", (day,)
            )
            self._day, self._known = day, set(found)
        if group not in self._known:
            if len(self._known) >= MOST_GROUPS:
                return (*group[:5], OTHER, group[6])
            self._known.add(group)
        return group
