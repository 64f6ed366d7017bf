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

from .meters import Slots, Window
from .rules import AMOUNTS, Granted, Refused, report_of, tightest, usual

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .meters import Meter
    from .rules import Counted, Kind, Rule

MOST_METERS: Final = 65_536
"""Of one rule; 10 MB when all are in use."""
MOST_KNOWN: Final = 8_192
"""Callers whose meters a filter remembers; 2 MB."""
_MUCH: Final = 1 << 62


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

    def find(self, key: str) -> Meter | None:
        """Its own meter, where it has one."""
        return self._meters.get(key)

    def enter(self, key: str, limit: int) -> Slots | None:
        """A slot, taken; None where it must be looked at more closely."""
        meter = self._meters.get(key)
        if meter is None:
            if len(self._meters) >= self._most or not self._others.idle(0, 0):
                return None
            meter = self._meters[key] = Slots()
        if not isinstance(meter, Slots) or meter.used >= limit:
            return None
        meter.used += 1
        return meter

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
    """The rules of one filter and their tables.

    `count` keeps at hand the windows of callers it has met, for as long as they are open: until then no table gives
    them up."""

    __slots__ = (
        "_at_once", "_known", "_most_at_once", "_most_requests", "_most_tokens", "_places", "_usual", "crowded",
    )  # fmt: skip

    def __init__(self, places: Sequence[tuple[Rule, Table]]) -> None:
        self._places = tuple(places)
        self._usual = usual([rule for rule, _ in places])
        requests, amounts, slots = self._usual or (None, None, None)
        self._most_requests = places[requests][0].limit if requests is not None else _MUCH
        self._most_tokens = places[amounts][0].limit if amounts is not None else _MUCH
        self._at_once = places[slots][1] if slots is not None else None
        self._most_at_once = places[slots][0].limit if slots is not None else 0
        self._known: dict[str, tuple[Window, Window, int, int, int]] = {}
        """Of a caller, the windows of requests and of tokens or money, when they close, and which is first."""
        self.crowded = 0

    def count(self, caller: str, tokens: int, now: int) -> Counted | None:
        """See `Limits`."""
        known = self._known.get(caller)
        if known is None and (known := self._find(caller)) is None:
            return None
        requests, amounts, requests_until, tokens_until, until = known
        if now >= until:
            self._known.pop(caller, None)
            return None
        requests_used = requests.used + 1
        tokens_used = amounts.used + tokens
        requests_left = self._most_requests - requests_used
        tokens_left = self._most_tokens - tokens_used
        if requests_left < 0 or tokens_left < 0:
            return None
        slots = None
        if self._at_once is not None:
            slots = self._at_once.enter(caller, self._most_at_once)
            if slots is None:
                return None
        requests.used = requests_used
        amounts.used = tokens_used
        return requests_left, requests_until, tokens_left, tokens_until, tokens, amounts, slots, caller

    def recount(self, counted: Counted, tokens: int) -> None:
        """See `Limits`."""
        _, _, _, closes, taken, amounts, slots, caller = counted
        if amounts.closes == closes:
            amounts.used += tokens - taken
        if slots is not None and self._at_once is not None:
            slots.used -= 1
            self._at_once.let_go(caller, slots)

    def _find(self, caller: str) -> tuple[Window, Window, int, int, int] | None:
        if self._usual is None:
            return None
        requests, amounts = self._window(self._usual.requests, caller), self._window(self._usual.amounts, caller)
        if requests is None or amounts is None:
            return None
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        closes = requests.closes, amounts.closes
        known = self._known[caller] = requests, amounts, *closes, min(closes)
        return known

    def _window(self, at: int | None, caller: str) -> Window | None:
        """One that is always open and has room for all, where there is no such rule."""
        if at is None:
            return Window(0, _MUCH)
        meter = self._places[at][1].find(caller)
        return meter if isinstance(meter, Window) else None

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
