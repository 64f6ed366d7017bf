"""retry_budget: over ten seconds retries stay below a share of first attempts plus a floor."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.upstream.retry_budget import WINDOW, RetryBudget


def test_a_quiet_provider_has_the_floor() -> None:
    budget = RetryBudget()
    taken = sum(budget.take(100.0, percent=20, min_per_second=1) for _ in range(50))
    assert taken == WINDOW


def test_first_attempts_widen_it() -> None:
    budget = RetryBudget()
    for _ in range(1000):
        budget.count_first(100.0)
    taken = sum(budget.take(100.5, percent=20, min_per_second=0) for _ in range(500))
    assert taken == 200


def test_what_is_ten_seconds_old_no_longer_counts() -> None:
    budget = RetryBudget()
    assert sum(budget.take(100.0, percent=0, min_per_second=1) for _ in range(20)) == 10
    assert not budget.take(109.9, percent=0, min_per_second=1)
    assert budget.take(110.0, percent=0, min_per_second=1)


@given(
    steps=st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=200),
    percent=st.floats(0, 100),
    floor=st.floats(0, 5),
)
def test_it_never_lets_through_more_than_it_says(steps: list[tuple[float, bool]], percent: float, floor: float) -> None:
    budget = RetryBudget()
    now = 1000.0
    firsts: list[int] = []
    retries: list[int] = []
    for wait, is_retry in steps:
        now += wait
        second = int(now)
        if is_retry:
            if budget.take(now, percent=percent, min_per_second=floor):
                retries.append(second)
        else:
            budget.count_first(now)
            firsts.append(second)
        recent_firsts = sum(at > second - WINDOW for at in firsts)
        recent_retries = sum(at > second - WINDOW for at in retries)
        if is_retry and retries and retries[-1] == second:
            assert recent_retries <= recent_firsts * percent / 100 + floor * WINDOW or not budget.take(
                now, percent=percent, min_per_second=floor
            )
