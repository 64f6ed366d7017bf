"""quantile: within 5 % of a value that was seen, the recent counting more than the old, in bounded memory."""

from __future__ import annotations

from math import ceil, floor
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.upstream.quantile import DecayedQuantile

VALUES = st.lists(st.floats(0.001, 600.0), min_size=1, max_size=200)


def seen(values: list[float], now: float = 0.0) -> DecayedQuantile:
    quantile = DecayedQuantile(60.0)
    for value in values:
        quantile.add(value, now)
    return quantile


def test_nothing_seen_has_no_quantile() -> None:
    assert DecayedQuantile(60.0).quantile(0.5) is None
    assert DecayedQuantile(60.0).count(0.0) == 0


@given(values=VALUES, q=st.floats(0, 1), now=st.floats(0, 1e6))
def test_a_quantile_is_within_five_percent_of_the_exact_one(values: list[float], q: float, now: float) -> None:
    found = seen(values, now).quantile(q)
    values.sort()
    below = values[max(0, ceil(q * len(values) - 1e-6) - 1)]
    above = values[min(len(values) - 1, floor(q * len(values) + 1e-6))]
    assert found is not None
    assert below / 1.0501 <= found <= above * 1.0501


@pytest.mark.parametrize("q", [0.5, 0.975, 0.99])
def test_the_tail_of_a_real_shape_is_within_five_percent(q: float) -> None:
    rng = Random(1)
    values = [rng.lognormvariate(-1, 0.5) for _ in range(20_000)]
    assert seen(values).quantile(q) == pytest.approx(sorted(values)[int(q * 20_000)], rel=0.05)


def test_values_outside_count_as_the_nearest_inside() -> None:
    low, high = seen([0.0, 1e-9]).quantile(0.5), seen([1e9]).quantile(0.5)
    assert low == pytest.approx(0.001, rel=0.05)
    assert high == pytest.approx(600, rel=0.06)


def test_what_is_old_weighs_less() -> None:
    quantile = seen([10.0] * 1000)
    for _ in range(100):
        quantile.add(0.1, now=60.0 * 2)
    assert quantile.quantile(0.5) == pytest.approx(10, rel=0.05)
    for _ in range(100):
        quantile.add(0.1, now=60.0 * 5)
    assert quantile.quantile(0.5) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("lives", [0, 1, 3, 59, 61, 100, 2000])
def test_a_count_halves_each_half_life(lives: int) -> None:
    quantile = seen([1.0] * 8)
    assert quantile.count(60.0 * lives) == pytest.approx(8 * 0.5**lives)
    quantile.add(1.0, 60.0 * lives)
    assert quantile.count(60.0 * lives) == pytest.approx(8 * 0.5**lives + 1)
    assert quantile.quantile(1) == pytest.approx(1, rel=0.05)


@given(values=VALUES, wait=st.floats(0, 1e5))
def test_quantiles_are_in_order_and_among_what_was_seen_at_any_time(values: list[float], wait: float) -> None:
    quantile, now = DecayedQuantile(60.0), 0.0
    for value in values:
        now += wait
        quantile.add(value, now)
    found = [quantile.quantile(q / 10) or 0.0 for q in range(11)]
    assert found == sorted(found)
    assert min(values) / 1.0501 <= found[0]
    assert found[-1] <= max(values) * 1.0501
