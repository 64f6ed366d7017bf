"""bounds: any text becomes a harmless label, and no number of names needs more than its places."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headgate.control.telemetry.bounds import LABEL_BYTES, Places, clean
from headgate.proxy.stats import OTHER

NAMES = st.lists(st.tuples(st.sampled_from("abcdefgh")), max_size=40)


def test_a_plain_name_stays_as_it_is() -> None:
    assert clean("anthropic/claude-haiku-4-5:beta é") == "anthropic/claude-haiku-4-5:beta é"


def test_control_characters_and_lone_surrogates_are_replaced() -> None:
    assert clean("a\nb\x00c\ud800d\u2028") == "a�b�c�d�"


def test_a_long_name_is_cut_between_characters() -> None:
    assert clean("x" * 99 + "é") == "x" * 99
    assert clean("\x00" * 500) == "�" * 33


@given(st.text(max_size=300))
def test_every_label_is_printable_short_utf8_and_stays_the_same_when_cleaned_again(text: str) -> None:
    label = clean(text)
    assert label.isprintable()
    assert len(label.encode()) <= LABEL_BYTES
    assert clean(label) == label


def test_places_go_to_those_who_come_first_and_the_last_one_is_shared() -> None:
    places = Places(3)
    assert [places.place((name,)) for name in "abcdab"] == [("a",), ("b",), (OTHER,), (OTHER,), ("a",), ("b",)]


@given(NAMES, st.integers(1, 6))
def test_a_place_is_kept_and_their_number_is_never_passed(names: list[tuple[str]], size: int) -> None:
    places = Places(size)
    first = {name: places.place(name) for name in reversed(names)}
    again = {name: places.place(name) for name in names}
    assert first == again
    assert len(set(again.values())) <= size
