"""usual: a first token is late or early against prompts of its own size, and only good windows teach what is usual."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.upstream.usual import FIXED, KNOWN, Usual


def known(seconds: float = 1.0, tokens: int = 1000) -> Usual:
    usual = Usual()
    for _ in range(KNOWN):
        assert usual.lateness(seconds, tokens, learn=True) is None
    return usual


def test_a_size_is_known_after_ten_first_tokens() -> None:
    assert known(2.0).lateness(3.0, 1000, learn=True) == pytest.approx(1.5)


def test_sizes_are_compared_with_their_own() -> None:
    usual = known(0.1, tokens=100)
    for _ in range(KNOWN):
        usual.lateness(10.0, 100_000, learn=True)
    assert usual.lateness(0.1, 70, learn=True) == pytest.approx(1)
    assert usual.lateness(10.0, 120_000, learn=True) == pytest.approx(1)
    assert usual.lateness(10.0, 1, learn=True) is None
    assert len(usual) == 3


def test_nothing_is_learned_of_a_new_size_when_told_so() -> None:
    usual = Usual()
    for _ in range(5 * KNOWN):
        assert usual.lateness(1.0, 1000, learn=False) is None


def test_only_a_good_window_teaches() -> None:
    usual = known(1.0)
    for good, expected in ((False, 4.0), (True, 2.0)):
        for _ in range(KNOWN):
            usual.lateness(4.0, 1000, learn=True)
        usual.end(good=good)
        assert usual.lateness(4.0, 1000, learn=True) == pytest.approx(expected, rel=0.05)


def test_what_is_usual_stays_after_a_hundred() -> None:
    usual = known(1.0)
    for _ in range(FIXED):
        usual.lateness(1.0, 1000, learn=True)
    usual.end(good=True)
    for _ in range(FIXED):
        usual.lateness(4.0, 1000, learn=True)
    usual.end(good=True)
    assert usual.lateness(4.0, 1000, learn=True) == pytest.approx(4)


def test_cleared_nothing_is_known() -> None:
    usual = known()
    usual.clear()
    assert usual.lateness(1.0, 1000, learn=True) is None


@given(values=st.lists(st.floats(0.001, 600), min_size=KNOWN, max_size=KNOWN), tokens=st.integers(0, 10**9))
def test_what_is_usual_lies_among_what_was_seen(values: list[float], tokens: int) -> None:
    usual = Usual()
    for value in values:
        usual.lateness(value, tokens, learn=True)
    assert (usual.lateness(min(values), tokens, learn=True) or 0) <= 1.0001
    assert (usual.lateness(max(values), tokens, learn=True) or 0) >= 0.9999
