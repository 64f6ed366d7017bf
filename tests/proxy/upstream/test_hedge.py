"""hedge: only what is later than the learned quantile, and never more than the budget in calls and in money."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.upstream.hedge import Hedge, HedgeSettings


def learned(seconds: float = 1.0, **settings: float) -> Hedge:
    hedge = Hedge(HedgeSettings(**settings))  # type: ignore[arg-type]
    for _ in range(200):
        hedge.on_first_token(seconds, 0.0)
    return hedge


def test_nothing_is_hedged_before_enough_is_known() -> None:
    hedge = Hedge(HedgeSettings(min_samples=3))
    for second in range(3):
        assert hedge.delay(float(second)) is None
        hedge.on_first_token(0.5, float(second))
    hedge.on_first_token(0.5, 3.0)
    assert hedge.delay(3.0) == pytest.approx(0.5, rel=0.05)


def test_the_delay_is_what_nearly_all_first_tokens_stay_below() -> None:
    hedge = Hedge(HedgeSettings())
    for hundredth in range(1, 1001):
        hedge.on_first_token(hundredth / 100, 0.0)
    assert hedge.delay(0.0) == pytest.approx(9.75, rel=0.05)


def test_the_delay_is_looked_up_once_a_second() -> None:
    hedge = learned(1.0)
    before = hedge.delay(0.0)
    for _ in range(10_000):
        hedge.on_first_token(5.0, 0.0)
    assert hedge.delay(0.9) == before
    assert hedge.delay(1.0) == pytest.approx(5, rel=0.05)


def test_after_a_long_silence_nothing_is_known() -> None:
    hedge = learned(half_life=60)
    assert hedge.delay(0.0) is not None
    assert hedge.delay(600.0) is None


def test_three_hedges_for_each_hundred_calls() -> None:
    hedge = Hedge(HedgeSettings())
    assert not hedge.take()
    taken = 0
    for _ in range(1000):
        hedge.on_call()
        taken += hedge.take()
    assert taken == hedge.hedges == pytest.approx(30, abs=1)
    assert hedge.refused == 1001 - taken


def test_only_a_burst_can_be_saved_up() -> None:
    hedge = Hedge(HedgeSettings(burst=4))
    for _ in range(10_000):
        hedge.on_call()
    assert sum(hedge.take() for _ in range(50)) == 4


def test_a_hedge_that_costs_too_much_is_refused() -> None:
    hedge = Hedge(HedgeSettings(spend_percent=1))
    for _ in range(110):
        hedge.on_call(cost=0.01)
    assert not hedge.take(cost=0.02)
    assert hedge.take(cost=0.01)
    assert not hedge.take(cost=0.01)


def test_a_percentage_of_zero_never_hedges() -> None:
    hedge = Hedge(HedgeSettings(percent=0))
    for _ in range(1000):
        hedge.on_call(cost=1.0)
    assert not hedge.take()


@given(
    steps=st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=300),
    percent=st.floats(0, 100),
    spend=st.floats(0, 100),
)
def test_hedges_never_exceed_their_share_of_calls_and_of_spend(
    steps: list[tuple[bool, float]], percent: float, spend: float
) -> None:
    hedge = Hedge(HedgeSettings(percent=percent, spend_percent=spend))
    calls, spent, hedged = 0, 0.0, 0.0
    for is_call, cost in steps:
        if is_call:
            hedge.on_call(cost)
            calls += 1
            spent += cost
        elif hedge.take(cost):
            hedged += cost
        assert hedge.hedges <= calls * percent / 100 + 1e-6
        assert hedged <= spent * spend / 100 + 1e-6


def first_tokens(seed: int, *, hedged: bool, calls: int = 10_000) -> tuple[list[float], Hedge]:
    """Seconds to the first token of calls to a provider with a slow tail of 2 %, sorted."""
    rng, hedge, found = Random(seed), Hedge(HedgeSettings()), []

    def attempt() -> float:
        return rng.lognormvariate(-1.2, 0.3) + (rng.uniform(3, 8) if rng.random() < 0.02 else 0.0)

    for number in range(calls):
        now = number / 10
        hedge.on_call(cost=0.01)
        seconds, delay = attempt(), hedge.delay(now)
        if hedged and delay is not None and seconds > delay and hedge.take(cost=0.01):
            seconds = min(seconds, delay + attempt())
        hedge.on_first_token(seconds, now + seconds)
        found.append(seconds)
    return sorted(found), hedge


@pytest.mark.parametrize("seed", range(10))
def test_against_a_slow_tail_p99_falls_by_seventy_percent_for_three_percent_more_calls(seed: int) -> None:
    before, _ = first_tokens(seed, hedged=False)
    after, hedge = first_tokens(seed, hedged=True)
    p99 = int(0.99 * len(before))
    assert after[p99] <= 0.3 * before[p99]
    assert hedge.hedges <= 0.03 * len(before)
