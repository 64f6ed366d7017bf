"""Meters in the memory of one process: exact there, gone with it.

A call is counted under all its rules or under none: every meter is asked first, then each is taken from, and nothing
runs in between.

Each rule has at most `MOST_METERS` of them, and no meter that still counts is ever forgotten for room's sake, for that
would give its owner the limit anew. A table is kept in the order in which its meters will be as good as new (windows of
one length close in the order they were opened), so it is full only when the first of it still counts; callers that are
new at such a time share one meter, `others`, until there is room and that one is as good as new, too. A flood of
made-up callers slows newcomers, and opens nobody a door.

Tables are found by name and kind and live as long as a filter holds them: a reload that changes a number finds the
table as it was, and one that takes a rule out leaves nothing behind.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakValueDictionary

from .rules import AMOUNTS, Granted, Refused, report_of, tightest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .meters import Meter
    from .rules import Kind, Rule

MOST_METERS: Final = 65_536
"""Of one rule; 10 MB when all are in use."""


class Table:
    """The meters of one rule, by the caller they belong to."""

    __slots__ = ("__weakref__", "_continuous", "_fresh", "_kind", "_meters", "_most", "_others")

    def __init__(self, kind: Kind, most: int = MOST_METERS) -> None:
        self._kind = kind
        self._most = most
        self._continuous = kind.continuous
        self._meters: OrderedDict[str, Meter] = OrderedDict()
        self._others = kind.meter()
        self._fresh = kind.meter()

    def __len__(self) -> int:
        return len(self._meters)

    def look(self, key: str, limit: int, now: int) -> Meter:
        """The meter of `key`, to ask; a new one is `fresh` and belongs to nobody."""
        meter = self._meters.get(key)
        if meter is not None:
            return meter
        return self._fresh if self._has_room(limit, now) else self._others

    def hold(self, key: str, meter: Meter, limit: int, now: int) -> Meter:
        """The meter that was looked at, to take from at once."""
        if meter is self._fresh:
            if len(self._meters) >= self._most:
                self._meters.popitem(last=False)
            meter = self._meters[key] = self._kind.meter()
        elif meter is not self._others and (self._continuous or meter.idle(now, limit)):
            self._meters.move_to_end(key)
        return meter

    def is_crowded(self, meter: Meter) -> bool:
        """There was no room for a meter of its own."""
        return meter is self._others

    def let_go(self, key: str, meter: Meter) -> None:
        """Nobody holds a slot of it any more."""
        if meter is not self._others and meter.idle(0, 0):
            self._meters.pop(key, None)

    def _has_room(self, limit: int, now: int) -> bool:
        # As long as `others` counts, who is new may be counted there: a meter of its own would be the limit anew.
        meters = self._meters
        return self._others.idle(now, limit) and (
            len(meters) < self._most or next(iter(meters.values())).idle(now, limit)
        )


class Hold(NamedTuple):
    """What a call has taken and must give back or settle."""

    table: Table
    key: str
    meter: Meter
    rule: Rule
    stamp: int
    taken: int


class MemoryLimits:
    """The rules of one filter and their tables."""

    __slots__ = ("_places", "crowded")

    def __init__(self, places: Sequence[tuple[Rule, Table]]) -> None:
        self._places = tuple(places)
        self.crowded = 0

    def take(self, keys: Sequence[str], tokens: int, now: int) -> Granted[Hold] | Refused:
        """Count a call of `tokens` under every rule, each for the caller at its place in `keys`; or under none, and say
        which of those that refuse it keeps it waiting longest."""
        refused: Refused | None = None
        meters: list[Meter] = []
        for (rule, table), key in zip(self._places, keys, strict=True):
            limit = rule.limit
            meter = table.look(key, limit, now)
            meters.append(meter)
            wait = meter.wait(limit, tokens if rule.kind.what in AMOUNTS else 1, now)
            if wait and (refused is None or wait > refused.wait):
                refused = Refused(rule, wait, report_of(rule, meter, now))
        if refused is not None:
            return refused
        granted: Granted[Hold] = Granted()
        for (rule, table), key, looked in zip(self._places, keys, meters, strict=True):
            limit, what = rule.limit, rule.kind.what
            meter = table.hold(key, looked, limit, now)
            if table.is_crowded(meter):
                self.crowded += 1
            amount = tokens if what in AMOUNTS else 1
            stamp = meter.take(limit, amount, now)
            if what != "requests":
                granted.holds.append(Hold(table, key, meter, rule, stamp, amount))
            if what == "requests":
                granted.requests = tightest(granted.requests, report_of(rule, meter, now))
            elif what == "tokens":
                granted.tokens = tightest(granted.tokens, report_of(rule, meter, now))
        return granted

    def settle(self, granted: Granted[Hold], tokens: int, now: int) -> None:
        """The call is over and has used `tokens`. Once."""
        for hold in granted.holds:
            hold.meter.settle(hold.rule.limit, hold.stamp, hold.taken, tokens, now)
            if hold.rule.kind.what == "concurrent":
                hold.table.let_go(hold.key, hold.meter)


class MemoryStore:
    """The tables of one process. A table lives as long as somebody holds it."""

    def __init__(self) -> None:
        self._tables: WeakValueDictionary[tuple[str, Kind], Table] = WeakValueDictionary()
        self._restored: dict[tuple[str, Kind], Table] = {}
        """Until somebody opens them."""

    def open(self, name: str, rules: Sequence[Rule]) -> MemoryLimits:
        """The limits of the filter `name`, with what is already counted under that name."""
        places: list[tuple[Rule, Table]] = []
        for rule in rules:
            table = self._tables.get((name, rule.kind))
            if table is None:
                table = self._tables[name, rule.kind] = Table(rule.kind)
            self._restored.pop((name, rule.kind), None)
            places.append((rule, table))
        return MemoryLimits(places)

    async def restore(self, name: str, kind: Kind, spent: Mapping[str, int], now: int) -> None:
        """A table that counts something knows all there is to know."""
        table = self._tables.get((name, kind))
        if table is None:
            table = self._tables[name, kind] = self._restored[name, kind] = Table(kind)
        elif len(table):
            return
        for key, amount in spent.items():
            table.hold(key, table.look(key, 0, now), 0, now).take(0, amount, now)

    def close(self) -> None:
        """Nothing to let go of."""
