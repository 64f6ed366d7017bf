"""GET /admin/budgets: what callers have spent of each limit in its current period, with what is set aside now."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ...proxy.accounting.money import NANOS
from ..budgets import limits_of
from ..events.report import connect
from ..events.spending import read_spent
from .usage import read_ledger

if TYPE_CHECKING:
    import anyio

    from ...config import GatewayConfig

MOST_CALLERS: Final = 1_000
"""Of a limit: those who have spent most."""


async def budget_report(config: GatewayConfig, now: float, limiter: anyio.CapacityLimiter) -> bytes:
    """The body, read in a thread. Raises OverloadError while the store cannot be read."""
    found = await read_ledger(lambda: _read(config, now), limiter)
    return msgspec.json.encode({"object": "list", "data": found or []})


def _read(config: GatewayConfig, now: float) -> list[dict[str, Any]]:
    limits = limits_of(config, now)
    if not limits:
        return []
    db = connect(config.events.path)
    try:
        spent = read_spent(db, [(limit.of, limit.period) for limit in limits])
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        return []  # of a version that knew no budgets, and that nobody has opened since
    finally:
        db.close()
    rows: list[dict[str, Any]] = []
    for limit, callers in zip(limits, spent, strict=True):
        most = sorted(callers.items(), key=lambda item: (-item[1], item[0]))[:MOST_CALLERS]
        amount = limit.threshold.limit
        rows += [
            {
                "budget": limit.place,
                "per": list(limit.kind.per),
                "unit": limit.kind.unit,
                "period": limit.period,
                "caller": caller,
                "limit_usd": amount / NANOS,
                "spent_usd": nanos / NANOS,
                "left_usd": max(0, amount - nanos) / NANOS,
            }
            for caller, nanos in most
        ]
    return rows
