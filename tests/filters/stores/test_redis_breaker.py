"""redis_breaker: five failures in a row, or a second of them, and Redis is left alone until a probe succeeds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headgate.filters.stores.redis_breaker import FAILURES, MOST_SECONDS, StoreBreaker


def test_five_failures_in_a_row_open_it() -> None:
    breaker = StoreBreaker()
    assert [breaker.fail(0.1) for _ in range(5)] == [False] * 4 + [True]
    assert breaker.open


def test_a_second_without_success_opens_it() -> None:
    breaker = StoreBreaker()
    assert not breaker.fail(10.0)
    assert not breaker.fail(10.9)
    assert breaker.fail(11.0)


def test_a_success_makes_up_for_what_failed_before() -> None:
    breaker = StoreBreaker()
    for _ in range(4):
        breaker.fail(0.0)
    breaker.succeed()
    assert not breaker.fail(5.0)


def test_a_probe_closes_it_and_makes_up_for_nothing_while_it_is_closed() -> None:
    breaker = StoreBreaker()
    for _ in range(4):
        breaker.fail(0.0)
    assert not breaker.close()
    assert breaker.fail(0.0)
    assert not breaker.fail(0.0)  # it is open: said once
    assert breaker.close()
    assert not breaker.open
    assert not breaker.fail(9.0)


@given(st.lists(st.tuples(st.floats(0, 0.5), st.booleans()), max_size=60))
def test_it_is_open_only_after_enough_failures_in_a_row_or_long_enough(turns: list[tuple[float, bool]]) -> None:
    breaker, now, row, since = StoreBreaker(), 0.0, 0, 0.0
    for pause, good in turns:
        now += pause
        if good:
            breaker.succeed()
            row = 0
        else:
            since = now if not row else since
            row += 1
            assert breaker.fail(now) == (row >= FAILURES or now - since >= MOST_SECONDS)
            if breaker.open:
                assert breaker.close()
                row = 0
