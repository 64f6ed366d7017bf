"""MemoryAnswers: bounded by bytes and by age; the least recently used goes first."""

from __future__ import annotations

import pytest

from headgate.filters.stores.answers import MemoryAnswers
from headgate.proxy.tape import OVERHEAD_BYTES, Recorded
from tests_support.clock import FakeClock


def answer(size: int = 1000, by: str = "hg_1") -> Recorded:
    return Recorded(by, 0.0, "mock", "m", [], (b"x" * (size - OVERHEAD_BYTES),), stream=False)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_what_is_put_in_comes_out_as_it_was(clock: FakeClock) -> None:
    answers = MemoryAnswers(size=10_000, max_entry=5000, ttl=60, monotonic=clock.monotonic)
    kept = answer()
    assert answers.put(b"k", kept)
    assert answers.get(b"k") is kept
    assert answers.get(b"other") is None
    assert (len(answers), answers.size) == (1, 1000)


def test_an_answer_is_not_given_out_once_it_is_too_old(clock: FakeClock) -> None:
    answers = MemoryAnswers(size=10_000, max_entry=5000, ttl=60, monotonic=clock.monotonic)
    answers.put(b"k", answer())
    clock.advance(59.9)
    assert answers.get(b"k") is not None
    clock.advance(0.1)
    assert answers.get(b"k") is None
    assert answers.evicted == 0


def test_a_new_answer_under_the_same_key_is_young_again(clock: FakeClock) -> None:
    answers = MemoryAnswers(size=10_000, max_entry=5000, ttl=60, monotonic=clock.monotonic)
    answers.put(b"k", answer(by="hg_1"))
    clock.advance(50)
    answers.put(b"k", answer(by="hg_2"))
    clock.advance(50)
    kept = answers.get(b"k")
    assert kept is not None
    assert kept.by == "hg_2"


def test_an_answer_above_the_bound_of_one_is_not_kept(clock: FakeClock) -> None:
    answers = MemoryAnswers(size=10_000, max_entry=2000, ttl=60, monotonic=clock.monotonic)
    assert not answers.put(b"k", answer(2001))
    assert answers.put(b"k", answer(2000))


def test_the_least_recently_used_goes_first_and_is_counted(clock: FakeClock) -> None:
    answers = MemoryAnswers(size=3000, max_entry=3000, ttl=60, monotonic=clock.monotonic)
    for key in (b"a", b"b", b"c"):
        answers.put(key, answer())
    answers.get(b"a")
    answers.put(b"d", answer())
    assert answers.get(b"b") is None
    assert all(answers.get(key) is not None for key in (b"a", b"c", b"d"))
    assert answers.evicted == 1
    answers.put(b"e", answer(3000))
    assert (len(answers), answers.size, answers.evicted) == (1, 3000, 4)


def test_what_was_too_old_anyway_is_not_counted_as_evicted(clock: FakeClock) -> None:
    answers = MemoryAnswers(size=1000, max_entry=1000, ttl=60, monotonic=clock.monotonic)
    answers.put(b"a", answer())
    clock.advance(61)
    answers.put(b"b", answer())
    assert answers.evicted == 0
