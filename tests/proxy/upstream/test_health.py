"""health: outcomes are counted in a row; the first success and an unexpected status decide at once."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.upstream.health import Health, HealthSettings, HealthState

RNG = Random(1)
OUTCOMES = st.lists(st.sampled_from([200, 404, 503, None]), max_size=60)


def healthy(rules: Health) -> HealthState:
    state = HealthState()
    assert rules.on_check(state, 200)
    return state


def test_an_endpoint_is_unhealthy_until_its_first_check() -> None:
    state = HealthState()
    assert not state.healthy
    assert repr(state) == "<HealthState unhealthy, not checked>"
    assert repr(healthy(Health(HealthSettings()))) == "<HealthState healthy>"


def test_the_first_success_alone_makes_it_healthy() -> None:
    rules = Health(HealthSettings(healthy_threshold=5))
    assert healthy(rules).healthy
    assert (rules.success, rules.failure) == (1, 0)


def test_a_failed_first_check_leaves_the_thresholds_in_force() -> None:
    rules = Health(HealthSettings(healthy_threshold=2))
    state = HealthState()
    assert not rules.on_check(state, None)
    assert [rules.on_check(state, 200) for _ in range(2)] == [False, True]


def test_three_checks_without_an_answer_make_it_unhealthy() -> None:
    rules = Health(HealthSettings())
    state = healthy(rules)
    assert [rules.on_check(state, None) for _ in range(3)] == [False, False, True]
    assert not state.healthy
    assert rules.failure == 3


def test_an_answer_in_between_starts_the_count_again() -> None:
    rules = Health(HealthSettings())
    state = healthy(rules)
    for status in (None, None, 200, None, None):
        assert not rules.on_check(state, status)
    assert state.healthy


@pytest.mark.parametrize("status", [500, 503, 404, 401, 301, 204])
def test_an_unexpected_status_makes_it_unhealthy_at_once(status: int) -> None:
    rules = Health(HealthSettings())
    assert rules.on_check(healthy(rules), status)


def test_a_retriable_status_is_counted_like_no_answer() -> None:
    rules = Health(HealthSettings(retriable_statuses=(503,)))
    state = healthy(rules)
    assert [rules.on_check(state, status) for status in (503, None, 503)] == [False, False, True]


def test_what_is_expected_can_be_said() -> None:
    rules = Health(HealthSettings(expected_statuses=range(200, 300)))
    assert not rules.on_check(healthy(rules), 204)


def test_an_endpoint_that_asks_to_be_left_alone_is_until_the_next_good_check() -> None:
    rules = Health(HealthSettings())
    state = healthy(rules)
    assert rules.fail(state)
    assert not rules.fail(state)
    assert rules.on_check(state, 200)


def test_checks_are_rarer_without_traffic() -> None:
    rules = Health(HealthSettings(jitter=0))
    state = healthy(rules)
    rules.on_check(state, 200)
    assert rules.next_check_in(state, RNG, traffic=True) == 5
    assert rules.next_check_in(state, RNG, traffic=False) == 60
    slow = Health(HealthSettings(interval=300, jitter=0))
    assert slow.next_check_in(state, RNG, traffic=False) == 300


def test_silence_excuses_only_who_is_healthy_and_nothing_is_being_counted() -> None:
    rules = Health(HealthSettings(jitter=0))
    state = healthy(rules)
    assert rules.next_check_in(state, RNG, traffic=False) == 5, "once more after a change"
    for status in (200, None, None, None, None):
        rules.on_check(state, status)
        quiet = state.healthy and not state.edge
        assert rules.next_check_in(state, RNG, traffic=False) == (60 if quiet else 5)
    assert not state.healthy


def test_checks_are_closer_while_a_change_is_counted_and_once_after_it() -> None:
    rules = Health(HealthSettings(edge_interval=1, jitter=0))
    state = healthy(rules)
    waits = []
    for status in (200, None, None, None, None, 200, 200):
        rules.on_check(state, status)
        waits.append(rules.next_check_in(state, RNG, traffic=True))
    assert waits == [5, 1, 1, 1, 5, 1, 5]


def test_without_an_edge_interval_a_change_is_counted_at_the_usual_one() -> None:
    rules = Health(HealthSettings(jitter=0))
    assert rules.next_check_in(healthy(rules), RNG, traffic=True) == 5


def test_checks_drift_apart() -> None:
    rules = Health(HealthSettings())
    state = healthy(rules)
    waits = {rules.next_check_in(state, RNG, traffic=True) for _ in range(50)}
    assert len(waits) == 50
    assert all(5 <= wait <= 5.5 for wait in waits)
    assert all(0 <= rules.first_check_in(RNG) <= 0.5 for _ in range(50))


@given(outcomes=OUTCOMES, fall=st.integers(1, 4), rise=st.integers(1, 4))
def test_a_change_is_reported_exactly_when_it_happens_and_only_after_enough_in_a_row(
    outcomes: list[int | None], fall: int, rise: int
) -> None:
    rules = Health(HealthSettings(unhealthy_threshold=fall, healthy_threshold=rise, retriable_statuses=(503,)))
    state = HealthState()
    for at, status in enumerate(outcomes):
        before = state.healthy
        changed = rules.on_check(state, status)
        assert changed == (state.healthy != before)
        if changed and state.healthy:
            assert at == 0 or (outcomes[max(0, at - rise + 1) : at + 1] == [200] * rise)
        elif changed and status != 404:
            assert all(earlier in (503, None) for earlier in outcomes[at - fall + 1 : at + 1])
    assert rules.success + rules.failure == len(outcomes)
