"""limits: never more at once than allowed, in requests and in tokens; who waits is served in order or told in time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.upstream.limits import Limits, LimitSettings


class Request:
    def __init__(self, tokens: int = 0) -> None:
        self.tokens = tokens


def limits(requests: int = 1024, tokens: int | None = None, pending: int = 1024) -> Limits[Request]:
    return Limits(LimitSettings(requests, tokens, pending))


def test_places_are_taken_until_there_are_none() -> None:
    bounds = limits(requests=2)
    assert [bounds.try_acquire(10) for _ in range(3)] == [True, True, False]
    assert (bounds.requests, bounds.tokens) == (2, 20)
    bounds.release(10)
    assert bounds.try_acquire(5)
    assert (bounds.requests, bounds.tokens) == (2, 15)


def test_tokens_are_a_bound_of_their_own() -> None:
    bounds = limits(tokens=100)
    assert [bounds.try_acquire(60), bounds.try_acquire(41), bounds.try_acquire(40)] == [True, False, True]


def test_the_queue_is_served_in_order_and_its_places_are_taken_for_it() -> None:
    bounds = limits(requests=1)
    first, second = Request(), Request()
    bounds.try_acquire(0)
    assert [bounds.enqueue(first), bounds.enqueue(second)] == [True, True]
    assert bounds.admit() is None
    bounds.release(0)
    assert bounds.admit() is first
    assert bounds.requests == 1
    assert bounds.admit() is None
    bounds.release(0)
    assert bounds.admit() is second
    assert bounds.pending == 0
    bounds.release(0)
    assert bounds.admit() is None


def test_nobody_passes_those_who_wait() -> None:
    bounds = limits(tokens=100)
    large = Request(tokens=90)
    bounds.try_acquire(20)
    bounds.enqueue(large)
    assert not bounds.try_acquire(1)
    bounds.enqueue(Request(tokens=1))
    assert bounds.admit() is None
    bounds.release(20)
    assert bounds.admit() is large


def test_the_queue_is_bounded() -> None:
    bounds = limits(requests=0, pending=1)
    assert [bounds.enqueue(Request()) for _ in range(3)] == [True, False, False]
    assert bounds.overflow == 2
    assert not limits(requests=0, pending=0).enqueue(Request())


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    bounds = limits(tokens=100)
    assert not bounds.try_acquire(101)
    assert not bounds.enqueue(Request(tokens=101))
    assert bounds.overflow == 1


def test_one_that_leaves_makes_room_for_the_next() -> None:
    bounds = limits(tokens=100)
    large, small = Request(tokens=90), Request(tokens=10)
    bounds.try_acquire(20)
    bounds.enqueue(large)
    bounds.enqueue(small)
    bounds.leave(large)
    bounds.leave(large)
    assert bounds.admit() is small


def test_a_lower_limit_touches_nothing_that_runs_and_lets_the_hopeless_go() -> None:
    bounds = limits(requests=2, tokens=100)
    bounds.try_acquire(50)
    bounds.try_acquire(50)
    large, small = Request(tokens=80), Request(tokens=5)
    bounds.enqueue(large)
    bounds.enqueue(small)
    bounds.settings = LimitSettings(requests=1, tokens=60)
    assert (bounds.requests, bounds.tokens) == (2, 100)
    assert bounds.hopeless() == [large]
    assert bounds.hopeless() == []
    bounds.release(50)
    assert not bounds.try_acquire(1)
    bounds.release(50)
    assert bounds.admit() is small


@given(
    requests=st.integers(0, 4),
    tokens=st.none() | st.integers(0, 50),
    pending=st.integers(0, 4),
    steps=st.lists(st.tuples(st.sampled_from(["come", "end", "leave", "lower"]), st.integers(0, 30)), max_size=100),
)
def test_what_runs_stays_within_the_limits_and_who_waits_is_served_in_order(
    requests: int, tokens: int | None, pending: int, steps: list[tuple[str, int]]
) -> None:
    bounds = limits(requests, tokens, pending)
    running: list[int] = []
    queue: list[Request] = []
    for what, size in steps:
        match what:
            case "come":
                waiter = Request(size)
                if bounds.try_acquire(size):
                    assert queue == []
                    running.append(size)
                elif bounds.enqueue(waiter):
                    queue.append(waiter)
            case "end" if running:
                bounds.release(running.pop(size % len(running)))
            case "leave" if queue:
                bounds.leave(queue.pop(size % len(queue)))
            case "lower" if tokens is not None:
                bounds.settings = bounds.settings._replace(tokens=size)
                over = bounds.hopeless()
                assert over == [waiter for waiter in queue if waiter.tokens > size]
                queue = [waiter for waiter in queue if waiter not in over]
                bounds.settings = bounds.settings._replace(tokens=tokens)
        while (admitted := bounds.admit()) is not None:
            assert admitted is queue.pop(0)
            running.append(admitted.tokens)
        assert bounds.requests == len(running) <= requests
        assert bounds.tokens == sum(running)
        assert tokens is None or bounds.tokens <= tokens
        assert bounds.pending == len(queue) <= pending
