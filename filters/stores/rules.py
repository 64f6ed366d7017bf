"""One number of a limit, as a value: what is counted, for whom, and how much of it in how long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, Protocol, TypeVar

from ...proxy.accounting.money import usd
from .meters import Debt, Slots, Window

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .meters import Meter

What = Literal["requests", "tokens", "concurrent", "money"]
AMOUNTS: Final = frozenset(("tokens", "money"))
"""Of these a call takes as many as it may use, and what it has used is corrected at its end. Of the others it takes
one."""
OnStoreFailure = Literal["open", "closed", "local_share"]
_USUAL: Final = ("requests", "amounts", "concurrent")
SECONDS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
PERIODS: Final = {"day": 2 * 86_400, "week": 8 * 86_400, "month": 32 * 86_400}
"""Seconds that money of a period is remembered, from the first call in it on. The period is part of the caller's key,
so what matters is that no day, week or month lasts longer than this."""


class Kind(NamedTuple):
    """What stays while an operator changes the number: meters of one kind are carried over to the next config."""

    what: What
    per: tuple[str, ...]
    """Whose: each combination of these has a meter."""
    unit: str
    """`minute` …; of money `day`, `week` or `month`; empty for `concurrent`."""
    continuous: bool = False

    def meter(self) -> Meter:
        """A new one."""
        if self.what == "concurrent":
            return Slots()
        if self.what == "money":
            return Window(PERIODS[self.unit] * 1_000_000)
        length = SECONDS[self.unit] * 1_000_000
        return Debt(length) if self.continuous else Window(length)


class Rule(NamedTuple):
    """A kind and its number; money in nano-dollars."""

    kind: Kind
    limit: int
    on_store_failure: OnStoreFailure = "local_share"
    """What is done while the store is away that counts it."""
    part_of: int | None = None
    """The whole limit, where this is one worker's share of it while the store is away."""

    def __str__(self) -> str:
        kind = self.kind
        if kind.what == "money":
            return f"{usd(self.limit)} USD per {kind.unit} for each {' and '.join(kind.per)}"
        many = "requests at once" if kind.what == "concurrent" else f"{kind.what} per {kind.unit}"
        part = f", which is a share of {self.part_of}" if self.part_of is not None else ""
        return f"{self.limit} {many} for each {' and '.join(kind.per)}{part}"


class Report(NamedTuple):
    """How it stands with a rule that a call was counted under. `resets_at` in microseconds of the store's clock."""

    limit: int
    left: int
    resets_at: int


class Refused(NamedTuple):
    """Nothing was taken. `wait` in microseconds."""

    rule: Rule
    wait: int
    report: Report


H = TypeVar("H")


class Granted(Generic[H]):
    """A call was admitted under every rule. `holds` is the store's; `reports` of requests and tokens, the least that is
    left of each."""

    __slots__ = ("holds", "requests", "tokens")

    def __init__(self) -> None:
        self.holds: list[H] = []
        self.requests: Report | None = None
        self.tokens: Report | None = None


Counted = tuple[int, int, int, int, int, Any, Any, Any]
"""A call that was admitted the short way: how many requests are left and when they are whole again, both of tokens, how
many of these it has taken, and three things of the store's own. What there is no rule for means nothing. A plain tuple,
for one is made for each call."""


class Usual(NamedTuple):
    """Which of some rules is that of requests, of tokens or money, of slots; None where there is none."""

    requests: int | None
    amounts: int | None
    slots: int | None


def usual(rules: Sequence[Rule]) -> Usual | None:
    """Of rules such as most filters have: for one caller, in windows, and at most one of each. Under these a call can
    be counted in one go, instead of asking each rule and then taking from each."""
    kinds = ["amounts" if rule.kind.what in AMOUNTS else rule.kind.what for rule in rules]
    if len(set(kinds)) < len(kinds) or len({rule.kind.per for rule in rules}) != 1:
        return None
    if any(rule.kind.continuous for rule in rules):
        return None
    requests, amounts, slots = (kinds.index(kind) if kind in kinds else None for kind in _USUAL)
    return Usual(requests, amounts, slots)


class Limits(Protocol):
    """The rules of one filter, and what is counted under them.

    There are two ways to count a call. `take` and `settle` are for all rules and say all there is to say; `count` and
    `recount` do the same in a fraction of the time for what nearly every call is: one that `usual` rules admit, in
    windows that are open. What one way has counted, the other knows of."""

    crowded: int
    """Calls that were counted on a meter that strangers share, for want of room."""

    def count(self, caller: str, tokens: int, now: int) -> Counted | None:
        """As `take`, for the same caller under every rule. None: nothing was counted, `take` must be asked."""

    def recount(self, counted: Counted, tokens: int) -> None:
        """As `settle`. Once for each that was counted."""

    def take(self, keys: Sequence[str], tokens: int, now: int) -> Granted[Any] | Refused:
        """Count a call of `tokens` under every rule, each for the caller at its place in `keys`; or under none, and say
        which of those that refuse it keeps it waiting longest. `now` in microseconds.

        A filter has rules of money or others: of money `tokens` are nano-dollars, and the period is part of the key."""

    def settle(self, granted: Granted[Any], tokens: int, now: int) -> None:
        """The call is over and has used `tokens`. Once for each that was granted and holds something."""


Verdict = Literal["counted", "local", "uncounted"]
"""Who decided about a call: the server; or while it is away, this worker's share; or nobody."""


class RemoteLimits(Protocol):
    """The same, counted by a server: an answer takes a moment, and may not come."""

    async def take(self, keys: Sequence[str], tokens: int) -> tuple[Granted[Any] | Refused, Verdict]:
        """As `Limits.take`, and who decided. Raises OverloadError where nobody may. A caller that is cancelled holds
        nothing."""

    def settle(self, granted: Granted[Any], tokens: int) -> None:
        """As `Limits.settle`; returns at once."""


class Store(Protocol):
    """Where limits are counted."""

    def open(self, name: str, rules: Sequence[Rule]) -> Limits:
        """The limits of the filter `name`, with what is already counted under that name. At most one rule of a kind."""

    async def restore(self, name: str, kind: Kind, spent: Mapping[str, int], now: int) -> None:
        """What the filter `name` had counted under `kind` before there was this store, for each key: it counts from now
        on, unless something is counted there already. For kinds of money; before a call is counted under it."""

    def close(self) -> None:
        """This process counts no more."""


class RemoteStore(Protocol):
    """Where a server counts limits."""

    def open(self, name: str, rules: Sequence[Rule]) -> RemoteLimits:
        """As `Store.open`; what is counted there, other processes have counted, too."""

    async def aclose(self) -> None:
        """This process counts no more."""


def report_of(rule: Rule, meter: Meter, now: int) -> Report:
    """How a meter of the rule stands."""
    return Report(rule.limit, meter.left(rule.limit, now), now + meter.resets(rule.limit, now))


def tightest(one: Report | None, other: Report | None) -> Report | None:
    """The one with less left; of two alike, the one that lasts longer."""
    if one is None or other is None:
        return one or other
    return other if (other.left, -other.resets_at) < (one.left, -one.resets_at) else one
