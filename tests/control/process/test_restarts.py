"""restarts: a dead worker is replaced at once, many are replaced slowly, and only stillborn ones end it all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headgate.control.process.restarts import (
    FIRST_DELAY,
    FREE_DEATHS,
    LONGEST_DELAY,
    STILLBORN,
    WINDOW_SECONDS,
    RestartPolicy,
)


def test_a_worker_that_served_is_replaced_at_once() -> None:
    assert RestartPolicy().died(0.0, was_ready=True) == (0.0, False)


def test_from_the_tenth_death_in_a_minute_on_replacing_slows_down_to_its_bound() -> None:
    policy = RestartPolicy()
    delays = [policy.died(n * 0.1, was_ready=True).delay for n in range(20)]
    assert delays[:FREE_DEATHS] == [0.0] * FREE_DEATHS
    assert delays[FREE_DEATHS:] == [0.5, 1, 2, 4, 8, *[LONGEST_DELAY] * 6]


def test_deaths_of_an_hour_ago_are_forgotten() -> None:
    policy = RestartPolicy()
    for n in range(30):
        policy.died(float(n), was_ready=True)
    assert policy.died(3600.0, was_ready=True).delay == 0.0
    assert policy.total == 31


def test_the_fifth_stillborn_in_a_minute_ends_it() -> None:
    policy = RestartPolicy()
    verdicts = [policy.died(float(n), was_ready=False) for n in range(STILLBORN)]
    assert [verdict.give_up for verdict in verdicts] == [False] * (STILLBORN - 1) + [True]
    assert verdicts[0].delay == FIRST_DELAY


def test_a_stillborn_a_minute_never_ends_it() -> None:
    policy = RestartPolicy()
    assert not any(policy.died(n * 60.0, was_ready=False).give_up for n in range(50))


def test_deaths_of_workers_that_served_never_end_it() -> None:
    policy = RestartPolicy()
    assert not any(policy.died(0.0, was_ready=True).give_up for _ in range(1000))


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60))
def test_delays_are_bounded_and_giving_up_needs_that_many_stillborn_in_the_window(
    deaths: list[tuple[float, bool]],
) -> None:
    policy = RestartPolicy()
    now = 1000.0
    stillborn: list[float] = []
    for pause, was_ready in deaths:
        now += pause
        verdict = policy.died(now, was_ready=was_ready)
        if not was_ready:
            stillborn.append(now)
        recent = [at for at in stillborn if at > now - WINDOW_SECONDS]
        assert verdict.give_up == (len(recent) >= STILLBORN)
        assert 0.0 <= verdict.delay <= LONGEST_DELAY
