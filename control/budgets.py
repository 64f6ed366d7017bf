"""The budgets of a config, and how a store that is new learns what was spent of them.

A store in memory knows nothing when it starts; the ledger does, once it has taken over what every process before has
written. So before anybody is served, and before a config with other budgets is, the totals of the current periods go
into the store. It takes them only where it counts nothing yet.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..config import BudgetConfig
from ..filters.budget import rules_of
from ..filters.periods import Calendar
from ..filters.whose import meter_key
from .events.schema import SchemaError
from .events.spending import Threshold
from .events.tailer import LedgerBehindError
from .process.errors import BootError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..config import GatewayConfig
    from ..filters.stores.rules import Kind
    from ..proxy.clock import Clock
    from .events.spending import Of
    from .events.tailer import Tailer

RECALL_SECONDS = 30.0
"""For what may lie in the spools: 256 MiB are taken over in some five seconds."""


class Totals(Protocol):
    """Who can be told what was spent."""

    async def restore(self, name: str, kind: Kind, spent: Mapping[str, int], now: int) -> None:
        """See `Store.restore`."""


class Limit(NamedTuple):
    """One limit of one budget, with the period it is in."""

    place: str
    kind: Kind
    threshold: Threshold
    period: str

    @property
    def of(self) -> Of:
        """As the ledger calls it."""
        return self.place, "+".join(self.kind.per), self.kind.unit


def limits_of(config: GatewayConfig, wall: float) -> list[Limit]:
    """Every limit of every budget, those that routes have for themselves included, at the Unix time `wall`."""
    return [
        Limit(place, rule.kind, Threshold(rule.limit, budget.alerts), calendar.at(rule.kind.unit, wall).name)
        for place, budget in _budgets(config)
        for calendar in [Calendar(budget.time_zone)]
        for rule in rules_of(budget)
    ]


def thresholds_of(config: GatewayConfig) -> Mapping[Of, Threshold]:
    """At which totals somebody wants to know."""
    return {limit.of: limit.threshold for limit in limits_of(config, 0.0)}


def where_counted(config: GatewayConfig, local: Totals, clock: Clock) -> Totals:
    """Redis, where that counts, else `local`."""
    redis = config.stores.redis
    if redis is None or not config.stores.in_redis:
        return local
    from ..filters.stores.redis_totals import RedisTotals  # the driver costs 0.1 s and 19 MB

    return RedisTotals(redis, clock)


async def recall(config: GatewayConfig, store: Totals, tailer: Tailer, clock: Clock) -> None:
    """Fill `store` with what was spent in the current periods, where the config counts money.

    Raises BootError where the ledger cannot say: everybody's money would be there once more."""
    limits = limits_of(config, clock.wall())
    if not limits:
        return
    try:
        spent = await tailer.spent([(limit.of, limit.period) for limit in limits], RECALL_SECONDS)
    except (sqlite3.Error, OSError, SchemaError, LedgerBehindError) as error:
        raise BootError(
            f"what was spent of the budgets cannot be read from events.path ({config.events.path}): {error}"
        ) from error
    now = int(clock.monotonic() * 1e6)
    for limit, callers in zip(limits, spent, strict=True):
        amounts = {meter_key(caller, limit.period): amount for caller, amount in callers.items()}
        await store.restore(limit.place, limit.kind, amounts, now)


def _budgets(config: GatewayConfig) -> Iterator[tuple[str, BudgetConfig]]:
    """Each with its place, as filter_set.py gives it."""
    for entry in config.filters:
        if isinstance(entry.config, BudgetConfig):
            yield entry.name, entry.config
            for route in config.routes:
                override = route.filters.get(entry.name)
                if isinstance(override, BudgetConfig):
                    yield f"{route.name}/{entry.name}", override
