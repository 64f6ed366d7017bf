"""money: whole nano-dollars, never less than the double they come from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.accounting.money import NANOS, nanos, usd


@pytest.mark.parametrize(
    ("cost", "amount"),
    [(0.0, 0), (0.003, 3_000_000), (1e-9, 1), (1.2e-9, 2), (0.1 + 0.2, 300_000_000), (123.456789, 123_456_789_000)],
)
def test_a_cost_is_counted_in_whole_nano_dollars_rounded_up(cost: float, amount: int) -> None:
    assert nanos(cost) == amount


@given(st.floats(0, 1_000, allow_nan=False))
def test_nothing_is_counted_for_less_than_a_billionth_below_or_above_what_it_costs(cost: float) -> None:
    assert cost * NANOS - 1e-2 <= nanos(cost) < cost * NANOS + 1.01


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0"), (1, "0.000000001"), (100 * NANOS, "100"), (1_500_000_000, "1.5"), (-20_000_000, "-0.02")],
)
def test_amounts_are_written_as_plain_decimals(amount: int, text: str) -> None:
    assert usd(amount) == text
