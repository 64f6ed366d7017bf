"""Money that is counted: whole nano-dollars, so that sums are exact and "not more than" needs no tolerance.

Costs are doubles (prices.py). A double becomes the smallest whole number that is not below it, so what is counted is
never less than what the ledger says; digits beyond the twelfth decimal are noise of the double, and are dropped first.
"""

from __future__ import annotations

from typing import Final

NANOS: Final = 1_000_000_000
"""Of a dollar."""


def nanos(cost: float) -> int:
    """US dollars as whole nano-dollars, rounded up."""
    return -(-round(cost * 1e12) // 1000)


def usd(amount: int) -> str:
    """Nano-dollars as plain decimals of a dollar, without trailing zeros."""
    sign = "-" if amount < 0 else ""
    whole, part = divmod(abs(amount), NANOS)
    return f"{sign}{whole}.{part:09d}".rstrip("0").rstrip(".")
