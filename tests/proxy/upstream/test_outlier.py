"""outlier: failures in a row and rates below the others' eject for a while, never too many, never the last one."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.upstream.balance import Member
from headgate.proxy.upstream.outlier import Outlier, OutlierSettings, OutlierState, Result


def detector(hosts: int = 4, **settings: float) -> Outlier:
    states = [OutlierState(Member(f"m{at}")) for at in range(hosts)]
    return Outlier(OutlierSettings(**settings), states, Random(1))  # type: ignore[arg-type]


def eject(outlier: Outlier, state: OutlierState, now: float, result: Result = "5xx") -> bool:
    return [outlier.on_result(state, result, now) for _ in range(5)][-1]


def interval(outlier: Outlier, rates: list[float], volume: int = 100, now: float = 10.0) -> list[str]:
    """One interval in which each endpoint succeeds at its rate; returns who is out after it."""
    for state, rate in zip(outlier.states, rates, strict=True):
        good = round(volume * rate / 100)
        for number in range(volume):  # interleaved, so that no row of failures decides
            outlier.on_result(state, "ok" if (number + 1) * good // volume > number * good // volume else "5xx", now)
    outlier.sweep(now)
    return [state.member.name for state in outlier.states if state.ejected]


@pytest.mark.parametrize("result", ["5xx", "gateway"])
def test_the_fifth_failure_in_a_row_ejects(result: Result) -> None:
    outlier = detector()
    state = outlier.states[0]
    assert [outlier.on_result(state, result, 1.0) for _ in range(5)] == [False, False, False, False, True]
    assert state.ejected
    assert repr(state) == "<OutlierState m0 ejected>"
    assert outlier.ejected == 1


def test_a_success_starts_the_row_again() -> None:
    outlier = detector()
    state = outlier.states[0]
    for result in ("gateway", "5xx", "5xx", "gateway", "ok", "5xx", "gateway", "gateway", "gateway"):
        assert not outlier.on_result(state, result, 1.0)
    assert repr(state) == "<OutlierState m0>"
    assert outlier.on_result(state, "5xx", 1.0)


def test_gateway_failures_in_a_row_have_their_own_threshold() -> None:
    outlier = detector(consecutive_gateway_failure=2, consecutive_5xx=50)
    state = outlier.states[0]
    for result in ("gateway", "5xx", "gateway", "ok", "gateway"):
        assert not outlier.on_result(state, result, 1.0)
    assert outlier.on_result(state, "gateway", 1.0)
    assert outlier.enforced["consecutive_gateway_failure"] == 1


def test_a_refused_gateway_ejection_does_not_outlive_a_success() -> None:
    outlier = detector(hosts=1, consecutive_5xx=2, consecutive_gateway_failure=3)
    (state,) = outlier.states
    for _ in range(2):
        outlier.on_result(state, "gateway", 1.0)
    outlier.on_result(state, "ok", 1.0)
    outlier.on_result(state, "gateway", 1.0)
    assert outlier.detected["consecutive_gateway_failure"] == 0


def test_thresholds_of_zero_never_eject() -> None:
    outlier = detector(consecutive_5xx=0, consecutive_gateway_failure=0)
    assert not any(outlier.on_result(outlier.states[0], "gateway", 1.0) for _ in range(100))


def test_an_ejection_lasts_thirty_seconds_and_ends_at_a_sweep() -> None:
    outlier = detector()
    state = outlier.states[0]
    eject(outlier, state, now=100.0)
    assert outlier.sweep(129.9) == []
    assert outlier.sweep(130.0) == [state]
    assert not state.ejected


def test_each_further_ejection_lasts_longer_up_to_a_cap() -> None:
    outlier = detector()
    state, now, times = outlier.states[0], 0.0, []
    for _ in range(13):
        eject(outlier, state, now)
        times.append(state.until - now)
        now = state.until
        outlier.restore(state)
    assert times == [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300, 300]
    assert state.ejections == 10


def test_quiet_intervals_shorten_the_next_ejection() -> None:
    outlier = detector()
    state = outlier.states[0]
    for _ in range(3):
        eject(outlier, state, 0.0)
        outlier.restore(state)
    outlier.sweep(10.0)
    outlier.sweep(20.0)
    eject(outlier, state, 20.0)
    assert state.until == 20 + 60


def test_a_jitter_spreads_the_returns() -> None:
    outlier = detector(hosts=20, max_ejection_time_jitter=10)
    for state in outlier.states[:10]:
        eject(outlier, state, 0.0)
    ends = {state.until for state in outlier.states[:10]}
    assert len(ends) == 10
    assert all(30 <= end <= 40 for end in ends)


@pytest.mark.parametrize(("hosts", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (7, 3)])
def test_at_most_half_is_ejected(hosts: int, most: int) -> None:
    outlier = detector(hosts)
    for state in outlier.states:
        eject(outlier, state, 0.0)
    assert outlier.ejected == most
    assert outlier.overflow == hosts - most


def test_the_last_available_one_stays_even_when_all_may_be_ejected() -> None:
    outlier = detector(2, max_ejection_percent=100)
    outlier.states[1].member.available = False  # by an active check
    assert not eject(outlier, outlier.states[0], 0.0)
    outlier.states[1].member.available = True
    assert eject(outlier, outlier.states[0], 0.0)
    assert not eject(outlier, outlier.states[1], 0.0)


def test_the_first_may_always_be_ejected_when_told_so() -> None:
    outlier = detector(1, always_eject_one=True)
    assert eject(outlier, outlier.states[0], 0.0)
    outlier = detector(3, always_eject_one=True, max_ejection_percent=10)
    assert [eject(outlier, state, 0.0) for state in outlier.states] == [True, False, False]


@pytest.mark.parametrize("result", ["5xx", "gateway"])
def test_what_ends_during_an_ejection_says_nothing_new_and_after_it_the_count_begins_anew(result: Result) -> None:
    outlier = detector()
    state = outlier.states[0]
    eject(outlier, state, 0.0, result)
    assert not eject(outlier, state, 1.0, result)
    assert state.until == 30
    outlier.sweep(30.0)
    assert [outlier.on_result(state, result, 31.0) for _ in range(5)] == [False, False, False, False, True]


def test_a_success_rate_far_below_the_others_ejects() -> None:
    outlier = detector(6)
    assert interval(outlier, [99, 98, 99, 97, 99, 60]) == ["m5"]
    assert outlier.enforced["success_rate"] == 1
    assert [state.success_rate for state in outlier.states] == [99, 98, 99, 97, 99, 60]


def test_equal_success_rates_eject_nobody_however_low() -> None:
    assert interval(detector(6, consecutive_5xx=0), [20] * 6) == []


def test_a_success_rate_needs_enough_hosts_and_requests() -> None:
    assert interval(detector(4), [99, 98, 99, 60]) == []
    thin = detector(6)
    assert interval(thin, [99, 98, 99, 97, 99, 60], volume=99) == []
    assert thin.states[0].success_rate == -1
    assert interval(detector(6, enforcing_success_rate=False), [99, 98, 99, 97, 99, 60]) == []


def test_counts_begin_anew_with_each_interval() -> None:
    outlier = detector(6)
    for _ in range(4):
        assert interval(outlier, [99, 98, 99, 97, 99, 60], volume=50) == []


def test_a_failure_percentage_ejects_where_it_is_turned_on() -> None:
    rates: list[float] = [90, 90, 15, 16, 90]
    settings = {"consecutive_5xx": 0, "enforcing_success_rate": False, "failure_percentage_threshold": 85}
    assert interval(detector(5, **settings), rates) == []
    outlier = detector(5, enforcing_failure_percentage=True, **settings)
    assert interval(outlier, rates) == ["m2"]
    assert outlier.enforced["failure_percentage"] == 1
    assert interval(detector(5, enforcing_failure_percentage=True, **settings), rates, volume=49) == []
    assert interval(detector(4, enforcing_failure_percentage=True, **settings), rates[:4]) == []


def test_two_reasons_in_one_interval_are_one_ejection() -> None:
    outlier = detector(6, consecutive_5xx=0, enforcing_failure_percentage=True)
    assert interval(outlier, [99, 98, 99, 97, 99, 5]) == ["m5"]
    assert sum(outlier.enforced.values()) == 1


@given(
    hosts=st.integers(1, 6),
    percent=st.floats(0, 100),
    steps=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["ok", "5xx", "gateway", "sweep"])), max_size=300),
)
def test_never_too_many_never_the_last_and_everybody_comes_back(
    hosts: int, percent: float, steps: list[tuple[int, str]]
) -> None:
    outlier = detector(hosts, max_ejection_percent=percent)
    now = 0.0
    for at, step in steps:
        now += 1
        if step == "sweep":
            outlier.sweep(now)
        else:
            outlier.on_result(outlier.states[at % hosts], step, now)  # type: ignore[arg-type]
        for state in outlier.states:
            state.member.available = not state.ejected
        assert outlier.ejected < hosts
        assert 100 * outlier.ejected <= percent * hosts
        assert sum(outlier.detected.values()) == sum(outlier.enforced.values()) + outlier.overflow
    outlier.sweep(now + 300)
    assert outlier.ejected == 0
