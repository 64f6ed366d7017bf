"""callers: whoever is someone else is spelled another way, in plain characters that may stand beside others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.filters.callers import named, spelled


def test_a_plain_name_is_spelled_as_it_is() -> None:
    assert spelled("tweb") == "tweb"
    assert spelled("mopenai/gpt-4o mini") == "mopenai/gpt-4o mini"
    assert spelled("tm\xfcller & co") == "tm\\xfcller \\x26 co"
    assert len(spelled("t" + "x" * 5000)) == 33


@given(st.text(st.characters(codec=None), max_size=300), st.text(st.characters(codec=None), max_size=300))
def test_two_are_never_spelled_alike(one: str, other: str) -> None:
    assert (spelled(one) == spelled(other)) == (one == other)


@given(st.text(st.characters(codec=None), max_size=300))
def test_every_spelling_is_plain_and_short(name: str) -> None:
    text = spelled(name)
    assert text.isascii()
    assert "&" not in text
    assert text.isprintable()
    assert len(text) <= 1300


@pytest.mark.parametrize(
    ("per", "caller", "words"),
    [
        ("team", "tweb", "team web"),
        ("team", "t", "team -"),
        ("user", "uann", "owner ann"),
        ("user", "kann", "key ann"),
        ("key", "a127.0.0.1", "address 127.0.0.1"),
        ("team+model", "tweb & up/gpt-4o", "team web & model up/gpt-4o"),
        ("model", "k/m", "model k/m"),
        ("model+key", "? & #5f0c", "model ? & key #5f0c"),
    ],
)
def test_people_read_whose_name_it_is(per: str, caller: str, words: str) -> None:
    assert named(per, caller) == words
