"""gradient: the limit finds what a provider can take; neither long prompts, noise nor a slower model pull it down."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from random import Random
from statistics import fmean, median
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.upstream.gradient import MAX_SAMPLES, Gradient, GradientSettings

if TYPE_CHECKING:
    from collections.abc import Callable

PROMPT = 1000
GENERATION = 5.0
"""Mean seconds of an answer, so that a provider of n places ends n / 5 requests a second."""


class Second(NamedTuple):
    """What was so at one second of a simulation."""

    limit: int
    busy: int
    waiting: int
    first_tokens: list[float]


def simulate(
    gradient: Gradient,
    seconds: int,
    places: Callable[[float], int],
    rate: float,
    *,
    seed: int = 1,
    spread: float = 0.4,
    prompt: Callable[[float, Random], int] = lambda now, rng: int(rng.lognormvariate(6, 1)) + 1,
    slower: Callable[[float, int], float] = lambda now, in_flight: 1.0,
) -> list[Second]:
    """A provider that works on `places` requests at once and queues the rest, behind a gateway that lets in `limit`.

    Requests come at random, `rate` each second. A first token takes 50 ms and 0.2 ms for each token of the prompt,
    times what `slower` says.
    """
    rng = Random(seed)
    events: list[tuple[float, int, str, tuple[float, int]]] = []
    queue: deque[tuple[float, int]] = deque()
    now, number, waiting, in_flight, busy = 0.0, 0, 0, 0, 0
    nothing = (0.0, 0)
    report = [Second(gradient.limit(), 0, 0, [])]

    def after(wait: float, what: str, about: tuple[float, int] = nothing) -> None:
        nonlocal number
        number += 1
        heappush(events, (now + wait, number, what, about))

    after(rng.expovariate(rate), "arrival")
    while now < seconds:
        now, _, what, about = heappop(events)
        while len(report) <= now:
            report.append(Second(gradient.limit(), busy, waiting, []))
        if what == "arrival":
            waiting = min(waiting + 1, 500)
            after(rng.expovariate(rate), "arrival")
        elif what == "first":
            sent, tokens = about
            report[-1].first_tokens.append(now - sent)
            gradient.on_sample(now - sent, tokens, in_flight, now)
        else:
            busy -= 1
            in_flight -= 1
        while waiting and in_flight < gradient.limit():
            waiting -= 1
            in_flight += 1
            queue.append((now, prompt(now, rng)))
        while queue and busy < places(now):
            sent, tokens = queue.popleft()
            busy += 1
            first = slower(now, in_flight) * (0.05 + tokens * 0.0002) * rng.lognormvariate(0, spread)
            after(first, "first", (sent, tokens))
            after(first + rng.expovariate(1 / GENERATION), "end")
    return report


def gradient(**settings: float) -> Gradient:
    return Gradient(GradientSettings(**settings))  # type: ignore[arg-type]


def busy(report: list[Second]) -> float:
    return fmean(second.busy for second in report)


def first_token(report: list[Second]) -> float:
    return median(seconds for second in report for seconds in second.first_tokens)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("spread", [0.3, 0.8])
@pytest.mark.parametrize("places", [16, 100])
def test_under_more_than_it_can_take_a_provider_is_kept_busy_without_a_queue(
    places: int, spread: float, seed: int
) -> None:
    report = simulate(gradient(), 600, lambda now: places, places / 2, spread=spread, seed=seed)[200:]
    assert busy(report) >= 0.85 * places
    assert 0.8 * places <= median(second.limit for second in report) <= 1.2 * places
    assert first_token(report) < 1.0  # alone 0.13; with a queue as long as the provider is wide it would be 5


def test_nothing_pins_the_limit_low_in_an_hour_of_load() -> None:
    report = simulate(gradient(), 3600, lambda now: 32, 10)[300:]
    assert min(second.limit for second in report) >= 16
    assert busy(report) >= 0.9 * 32
    assert max(second.limit for second in report[-600:]) <= 1.5 * 32


def test_a_provider_that_slows_by_degrees_does_not_lure_the_limit_up() -> None:
    report = simulate(gradient(), 2400, lambda now: 1000, 20, slower=lambda now, in_flight: max(1.0, in_flight / 40))
    early, late = report[200:600], report[-400:]
    assert median(second.limit for second in late) <= 1.1 * median(second.limit for second in early) <= 100


def test_long_prompts_do_not_look_like_a_queue() -> None:
    report = simulate(
        gradient(),
        900,
        lambda now: 100,
        rate=10,
        prompt=lambda now, rng: int(rng.lognormvariate(9 if now > 300 and rng.random() < 0.5 else 5, 1)) + 1,
    )
    before, after = report[100:300], report[320:]
    assert first_token(after) > 3 * first_token(before)
    assert fmean(second.waiting for second in after) < 1
    assert min(second.limit for second in after) > 50


def test_an_overload_from_the_first_moment_is_found_too() -> None:
    report = simulate(gradient(initial=64), 900, lambda now: 6, rate=10)[400:]
    assert first_token(report) < 1.5
    assert busy(report) >= 0.85 * 6


def test_the_limit_follows_a_provider_that_loses_places_and_gets_them_back() -> None:
    report = simulate(gradient(), 900, lambda now: 20 if 300 <= now < 600 else 100, rate=50)
    lost, back = report[460:600], report[720:]
    assert 14 <= median(second.limit for second in lost) <= 26
    assert first_token(lost) < 1.0
    assert busy(back) >= 85


@pytest.mark.parametrize("until", [500, 10_000])
def test_a_provider_that_becomes_slower_is_not_taken_for_one_with_a_queue(until: int) -> None:
    limiter = gradient()
    report = simulate(limiter, 800, lambda now: 100, rate=50, slower=lambda now, _: 3 if 300 < now < until else 1)
    assert limiter.relearned >= 1
    assert busy(report[400:]) >= 85


def feed(
    limiter: Gradient, first: float, *, since: float, seconds: int, in_flight: int = 100, prompt: int = PROMPT
) -> float:
    """40 first tokens a second, all alike; returns when the last came."""
    now = since
    for _ in range(40 * seconds):
        now += 1 / 40
        limiter.on_sample(first, prompt, in_flight, now)
    return now


def test_a_late_window_cuts_to_no_less_than_half_of_what_was_in_flight() -> None:
    limiter = gradient(initial=100)
    now = feed(limiter, 0.1, since=0.0, seconds=10)
    settled = limiter.limit()
    now = feed(limiter, 0.5, since=now + 1, seconds=2)
    assert 0.5 * settled < limiter.limit() < settled
    feed(limiter, 50.0, since=now + 50, seconds=5)
    assert limiter.limit() >= 50
    assert limiter.cuts >= 2


def test_late_windows_at_that_half_change_nothing() -> None:
    limiter = gradient(initial=60, maximum=60)
    now = feed(limiter, 0.1, since=0.0, seconds=10, in_flight=110)
    assert limiter.limit() == 60
    feed(limiter, 1.0, since=now + 1, seconds=5, in_flight=110)
    assert limiter.limit() == 55
    assert (limiter.cuts, limiter.relearned) == (1, 0)


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    limiter = gradient(initial=100)
    feed(limiter, 0.1, since=0.0, seconds=30, in_flight=10)
    assert limiter.limit() == 100
    feed(limiter, 0.1, since=30.0, seconds=30, in_flight=100)
    assert limiter.limit() > 150


def test_the_maximum_is_not_passed() -> None:
    limiter = gradient(maximum=120)
    feed(limiter, 0.1, since=0.0, seconds=60, in_flight=1000)
    assert limiter.limit() == 120


def test_a_window_takes_both_its_time_and_its_samples() -> None:
    limiter = gradient(initial=10)
    for number in range(30):  # the first fills the limit, ten make the size known, nineteen are one too few to judge
        limiter.on_sample(0.1, PROMPT, 10, float(number))
    assert limiter.limit() == 10
    limiter.on_sample(0.1, PROMPT, 10, 30.0)
    assert limiter.limit() == 5  # to see whether fewer are faster
    frequent = gradient(initial=10, window=10.0)
    for number in range(5 * MAX_SAMPLES):
        frequent.on_sample(0.1, PROMPT, 10, number / MAX_SAMPLES)
    assert frequent.limit() == 10


def test_prompts_unlike_all_before_do_not_hold_the_limit_where_it_is() -> None:
    limiter = gradient(initial=100, maximum=120)
    now = feed(limiter, 0.1, since=0.0, seconds=10)
    now = feed(limiter, 0.5, since=now + 1, seconds=2)
    held = limiter.limit()
    now = feed(limiter, 20.0, since=now + 20, prompt=100 * PROMPT, seconds=10)
    assert limiter.limit() == held
    feed(limiter, 20.0, since=now, prompt=100 * PROMPT, seconds=400)
    assert limiter.limit() > held


@given(
    samples=st.lists(
        st.tuples(st.floats(0, 100), st.integers(0, 10**7), st.integers(0, 2000), st.floats(0, 5)), max_size=300
    ),
    initial=st.integers(3, 1000),
)
def test_the_limit_stays_within_its_bounds_whatever_is_seen(
    samples: list[tuple[float, int, int, float]], initial: int
) -> None:
    limiter, now = gradient(initial=initial, window=0.1, samples=5), 0.0
    for first, tokens, in_flight, wait in samples:
        now += wait
        limiter.on_sample(first, tokens, in_flight, now)
        assert 3 <= limiter.limit() <= 1000
        assert len(limiter._lateness) <= MAX_SAMPLES
    assert len(limiter._usual) <= 25
