"""schedule: which request meets which fault."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.control.mock.catalogue import FAULTS
from headgate.control.mock.schedule import Schedule

A, B, ACCEPT = FAULTS["500"], FAULTS["garbage"], FAULTS["accept-close"]


def test_without_faults_only_a_model_that_names_one_meets_it() -> None:
    schedule = Schedule()
    assert schedule.at_accept() is None
    assert schedule.at_request("gpt-4o") is None
    assert schedule.at_request("mock-fault-500") is A
    assert schedule.at_request("x-mock-fault-500") is None
    with pytest.raises(KeyError, match="there is no fault 'gone'"):
        schedule.at_request("mock-fault-gone")


def test_several_are_met_in_turn() -> None:
    schedule = Schedule([A, B])
    assert [schedule.at_request("m") for _ in range(5)] == [A, B, A, B, A]


def test_every_third_and_two_times_at_most() -> None:
    schedule = Schedule([A, B], every=3, times=2)
    assert [schedule.at_request("m") for _ in range(12)] == [None, None, A, None, None, B] + [None] * 6


def test_a_connection_that_fails_unread_counts_as_a_request() -> None:
    schedule = Schedule([ACCEPT], every=2)
    assert schedule.at_accept() is None
    assert schedule.at_request("m") is None
    assert schedule.at_accept() is ACCEPT
    assert schedule.at_accept() is None
    assert schedule.at_request("m") is None
    assert schedule.at_request("m") is ACCEPT, "no new connection came: it is played on this one"


def test_another_fault_does_not_wait_for_a_connection() -> None:
    assert Schedule([A]).at_accept() is None


@given(every=st.integers(1, 9), times=st.none() | st.integers(1, 9), requests=st.integers(0, 100))
def test_as_many_meet_one_as_were_promised(every: int, times: int | None, requests: int) -> None:
    schedule = Schedule([A], every=every, times=times)
    met = [schedule.at_request("m") for _ in range(requests)]
    assert met.count(A) == min(requests // every, requests if times is None else times)
    assert all(met[at] is None for at in range(requests) if (at + 1) % every)
