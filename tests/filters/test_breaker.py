"""breaker: opens exactly on enough failures that are young enough, and closes on what began after its rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.filters.breaker import OPEN, SLICES, Breaker, BreakerSettings, verdict
from headgate.proxy.errors import (
    BadStatusError,
    BrokenAnswerError,
    BusyStatusError,
    ConnectError,
    ConnectTimeoutError,
    ErrorEventError,
    GatewayError,
    PoolOverflowError,
    ProtocolError,
    ResetError,
    UpstreamAuthError,
    UpstreamTimeoutError,
)

if TYPE_CHECKING:
    from headgate.proxy.attempt import Attempt

SETTINGS = BreakerSettings(failures=5, percent=50, window=60.0, open_for=30.0)
PROBE = cast("Attempt", object())
OTHER = cast("Attempt", object())


def opened(at: float = 100.0) -> Breaker:
    """Open from `at` to `at` + 30."""
    breaker = Breaker(SETTINGS)
    assert [breaker.fail(at, at) for _ in range(5)] == [False] * 4 + [True]
    return breaker


def test_enough_failures_open_it_and_it_rests_for_its_time() -> None:
    breaker = opened(100.0)
    assert [breaker.objection(now) for now in (100.0, 129.9, 130.0)] == [OPEN, OPEN, None]


def test_failures_that_are_too_small_a_part_do_not_open_it() -> None:
    breaker = Breaker(SETTINGS)
    for _ in range(6):
        breaker.succeed(100.0, 100.0)
    assert not any(breaker.fail(100.0, 100.0) for _ in range(5))
    assert breaker.fail(100.0, 100.0)


def test_failures_older_than_the_window_do_not_count() -> None:
    breaker = Breaker(SETTINGS)
    assert not any(breaker.fail(at, at) for at in (100.0, 101.0, 102.0, 103.0, 163.0))
    assert breaker.objection(163.0) is None


def test_half_open_it_lets_one_probe_pass_at_a_time() -> None:
    breaker = opened(100.0)
    assert not breaker.begin(PROBE, 129.0)
    assert breaker.begin(PROBE, 130.0)
    assert breaker.objection(130.0) == OPEN
    assert not breaker.begin(OTHER, 130.0)
    breaker.probe = None
    assert breaker.objection(130.0) is None


def test_a_probe_that_succeeds_closes_it_and_all_is_forgotten() -> None:
    breaker = opened(100.0)
    breaker.begin(PROBE, 131.0)
    breaker.probe = None
    assert breaker.succeed(131.0, 132.0)
    assert breaker.objection(132.0) is None
    assert breaker.is_quiet(132.0)


def test_a_probe_that_fails_opens_it_again_at_once() -> None:
    breaker = opened(100.0)
    breaker.begin(PROBE, 131.0)
    breaker.probe = None
    assert breaker.fail(131.0, 140.0)
    assert [breaker.objection(now) for now in (140.0, 169.9, 170.0)] == [OPEN, OPEN, None]


@pytest.mark.parametrize("now", [110.0, 131.0])
def test_what_began_before_the_rest_was_over_changes_nothing(now: float) -> None:
    breaker = opened(100.0)
    before = breaker.rests_until
    assert not breaker.succeed(99.0, now)
    assert not breaker.fail(99.0, now)
    assert breaker.rests_until == before


def test_one_that_nobody_used_of_late_is_quiet() -> None:
    breaker = Breaker(SETTINGS)
    assert breaker.is_quiet(100.0)
    breaker.succeed(100.0, 100.0)
    assert not breaker.is_quiet(140.0)
    assert breaker.is_quiet(161.0)
    assert not opened(100.0).is_quiet(900.0)


@given(
    st.lists(st.tuples(st.floats(0, 20, allow_nan=False), st.booleans()), max_size=80),
    st.integers(1, 6),
    st.integers(1, 100),
    st.floats(0, 1e6),
)
def test_it_opens_exactly_on_what_the_window_holds(
    ends: list[tuple[float, bool]], failures: int, percent: int, start: float
) -> None:
    """Held against two plain counts: over the whole window and over nine tenths of it."""
    window = 60.0
    breaker = Breaker(BreakerSettings(failures, percent, window, 1e9))
    now, seen = start, list[tuple[float, bool]]()
    for gap, good in ends:
        now += gap
        seen.append((now, good))
        if good:
            breaker.succeed(now, now)
        elif breaker.fail(now, now):
            bad = sum(not good for at, good in seen if at > now - window - 1e-6)
            assert bad >= failures
            return
        else:
            young = [good for at, good in seen if at > now - window * (SLICES - 1) / SLICES + 1e-6]
            old = [good for at, good in seen if at > now - window - 1e-6]
            bad = young.count(False)
            assert bad < failures or bad * 100 < percent * (bad + old.count(True))


@given(st.lists(st.tuples(st.floats(0.0, 40.0), st.sampled_from(["begin", "good", "bad", "gone"])), max_size=60))
def test_there_is_never_more_than_one_probe_and_it_is_never_lost(steps: list[tuple[float, str]]) -> None:
    breaker, now, held, began = opened(0.0), 0.0, None, 0.0
    for gap, what in steps:
        now += gap
        if what == "begin":
            attempt = cast("Attempt", object())
            asked = breaker.objection(now) is None and breaker.rests_until is not None
            if breaker.begin(attempt, now):
                assert held is None
                assert asked
                held, began = attempt, now
        elif held is not None:
            breaker.probe = held = None
            if what == "good":
                assert breaker.succeed(began, now)
            elif what == "bad":
                assert breaker.fail(began, now)
    if held is None and breaker.rests_until is not None:
        assert breaker.objection(breaker.rests_until) is None


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (None, 200, True),
        (None, 404, True),
        (None, 429, None),
        (ConnectError, 0, False),
        (ConnectTimeoutError, 0, False),
        (ResetError, 0, False),
        (ProtocolError, 0, False),
        (BrokenAnswerError, 200, False),
        (BadStatusError, 503, False),
        (ErrorEventError, 200, False),
        (UpstreamTimeoutError, 0, False),
        (BusyStatusError, 429, None),
        (UpstreamAuthError, 401, None),
        (PoolOverflowError, 0, None),
    ],
)
def test_what_speaks_against_a_target(error: type[GatewayError] | None, status: int, expected: bool | None) -> None:
    assert verdict(error("…") if error is not None else None, status, in_time=True) is expected


def test_a_caller_who_waits_no_longer_says_nothing() -> None:
    assert verdict(UpstreamTimeoutError("…"), 0, in_time=False) is None
    assert verdict(BadStatusError("…"), 500, in_time=False) is False
