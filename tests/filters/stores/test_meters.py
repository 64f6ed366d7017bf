"""meters: exactly the limit in each window, never more than the limit and what was paid back, never more slots than
there are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.filters.stores.meters import SLOT_WAIT, Debt, Meter, Slots, Window

S = 1_000_000
MINUTE = 60 * S
steps = st.lists(st.tuples(st.integers(0, 3 * S), st.integers(1, 4)), min_size=1, max_size=60)
limits = st.integers(1, 12)


def take(meter: Meter, limit: int, amount: int, now: int) -> bool:
    """As a store does it."""
    if amount > limit or meter.wait(limit, amount, now):
        return False
    meter.take(limit, amount, now)
    return True


def test_a_window_admits_exactly_its_limit() -> None:
    window = Window(MINUTE)
    assert [take(window, 3, 1, 5 * S) for _ in range(5)] == [True, True, True, False, False]
    assert (window.left(3, 5 * S), window.resets(3, 5 * S)) == (0, MINUTE)


def test_a_window_is_opened_by_the_first_call_and_closes_after_its_length() -> None:
    window = Window(MINUTE)
    assert take(window, 1, 1, 30 * S)
    assert window.wait(1, 1, 60 * S) == 30 * S
    assert window.wait(1, 1, 90 * S - 1) == 1
    assert take(window, 1, 1, 90 * S)
    assert window.wait(1, 1, 91 * S) == 59 * S


def test_a_closed_window_is_as_good_as_new() -> None:
    window = Window(S)
    assert window.idle(0, 5)
    take(window, 5, 5, 0)
    assert (window.idle(S - 1, 5), window.left(5, S - 1)) == (False, 0)
    assert (window.idle(S, 5), window.left(5, S), window.resets(5, S)) == (True, 5, 0)


def test_tokens_that_were_not_used_may_be_used_by_the_next_call() -> None:
    window = Window(MINUTE)
    stamp = window.take(100, 80, 0)
    assert window.wait(100, 30, S) == 59 * S
    window.settle(100, stamp, 80, 20, S)
    assert (window.wait(100, 80, S), window.left(100, S)) == (0, 80)


def test_what_was_used_beyond_the_estimate_is_made_up_for() -> None:
    window = Window(MINUTE)
    stamp = window.take(100, 10, 0)
    window.settle(100, stamp, 10, 150, S)
    assert (window.left(100, S), window.wait(100, 1, S)) == (0, 59 * S)


def test_a_window_takes_no_correction_of_a_call_of_an_earlier_one() -> None:
    window = Window(MINUTE)
    stamp = window.take(100, 80, 0)
    window.take(100, 50, MINUTE)
    window.settle(100, stamp, 80, 0, MINUTE + S)
    assert window.left(100, MINUTE + S) == 50


def test_a_debt_admits_a_burst_of_the_limit_and_then_its_rate() -> None:
    debt = Debt(MINUTE)
    assert [take(debt, 6, 1, 0) for _ in range(8)] == [True] * 6 + [False] * 2
    assert (debt.wait(6, 1, 0), debt.wait(6, 2, 0)) == (10 * S, 20 * S)
    assert not take(debt, 6, 1, 10 * S - 1)
    assert take(debt, 6, 1, 10 * S)
    assert (debt.left(6, 10 * S), debt.resets(6, 10 * S)) == (0, MINUTE)
    assert (debt.idle(70 * S - 1, 6), debt.idle(70 * S, 6)) == (False, True)


def test_a_debt_that_is_paid_back_is_not_paid_back_twice() -> None:
    debt = Debt(MINUTE)
    stamp = debt.take(60, 60, 0)
    debt.settle(60, stamp, 60, 0, 30 * S)  # half of it was paid back meanwhile
    assert (debt.left(60, 30 * S), debt.idle(30 * S, 60)) == (60, True)
    assert not take(debt, 60, 61, 30 * S)


def test_slots_are_held_until_they_are_given_back() -> None:
    slots = Slots()
    stamp = slots.take(2, 1, 0)
    assert take(slots, 2, 1, 0)
    assert (slots.wait(2, 1, MINUTE), slots.left(2, 0), slots.resets(2, 0)) == (SLOT_WAIT, 0, SLOT_WAIT)
    slots.settle(2, stamp, 1, 12345, 0)
    assert (slots.wait(2, 1, 0), slots.left(2, 0), slots.idle(0, 2)) == (0, 1, False)
    slots.settle(2, stamp, 1, 0, 0)
    assert (slots.idle(0, 2), slots.resets(2, 0)) == (True, 0)


@given(limits, steps)
def test_no_window_admits_more_than_its_limit_and_none_refuses_what_has_room(
    limit: int, steps: list[tuple[int, int]]
) -> None:
    window = Window(S)
    now, opened, used = 0, -S, 0
    for pause, amount in steps:
        now += pause
        if now - opened >= S and amount <= limit:
            opened, used = now, 0
        fits = amount <= limit and used + amount <= limit
        assert take(window, limit, amount, now) == fits
        used += amount if fits else 0


@given(limits, steps)
def test_a_debt_never_admits_more_than_the_limit_and_what_was_paid_back_in_any_span(
    limit: int, steps: list[tuple[int, int]]
) -> None:
    debt = Debt(S)
    now, admitted = 0, []
    for pause, amount in steps:
        now += pause
        if take(debt, limit, amount, now):
            admitted.append((now, amount))
    for first, (since, _) in enumerate(admitted):
        total = 0
        for at, amount in admitted[first:]:
            total += amount
            assert (total - limit) * S <= (at - since) * limit


@pytest.mark.parametrize("kind", [Window, Debt])
@given(limits, steps)
def test_it_admits_after_exactly_the_wait_that_it_tells(
    kind: type[Window | Debt], limit: int, steps: list[tuple[int, int]]
) -> None:
    meter = kind(S)
    now = 0
    for pause, amount in steps:
        now += pause
        if amount > limit:
            continue
        wait = meter.wait(limit, amount, now)
        if wait:
            assert meter.wait(limit, amount, now + wait - 1)
            assert not meter.wait(limit, amount, now + wait)
            assert wait <= meter.resets(limit, now)
        else:
            assert meter.left(limit, now) >= amount
            meter.take(limit, amount, now)
            assert not meter.idle(now, limit)


@pytest.mark.parametrize("kind", [Window, Debt])
@given(limits, st.lists(st.tuples(st.integers(0, S // 2), st.integers(1, 6), st.integers(0, 6)), max_size=40))
def test_settled_calls_count_as_what_they_used_whenever_they_end(
    kind: type[Window | Debt], limit: int, calls: list[tuple[int, int, int]]
) -> None:
    """Two stand side by side: in one every call is settled at once, in the other it counted right from the start."""
    settled, exact = kind(S), kind(S)
    now = 0
    for pause, guess, used in calls:
        now += pause
        stamp = settled.take(limit, guess, now)
        settled.settle(limit, stamp, guess, used, now)
        exact.take(limit, used, now)
        assert settled.left(limit, now) == exact.left(limit, now)
        assert settled.wait(limit, 1, now) == exact.wait(limit, 1, now)
