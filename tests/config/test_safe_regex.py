"""safe_regex: what could run for ever is refused; what is left is measured truly."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.config.safe_regex import MAX_WAYS, MAX_WIDTH, measure

ALLOWED = [
    (r"PRJ-[0-9]{4,8}", 12),
    (r"\bACME\b", 4),
    (r"(?i)secret[:= ]{1,3}\w{8,32}", 41),
    (r"(?:foo|barre){2}", None),
    (r"a.b", 3),
    (r"(?P<x>abc)d?", 4),
    (r"[^a-c\d]{3}", 3),
    (r"€{3,5}", 5),
    (r"(?>abc)++x", None),
    (r"a{3,64}+b", 65),
    (r"\s\S\W", 3),
]


@pytest.mark.parametrize(("source", "width"), ALLOWED)
def test_a_bounded_expression_is_taken_with_its_width(source: str, width: int | None) -> None:
    if width is None:
        with pytest.raises(ValueError, match=r"must|may"):
            measure(source)
    else:
        assert measure(source).width == width


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (r"(a+)+$", "bound every repeat"),
        (r"[a-z]+@x", "bound every repeat"),
        (r"a{3,}", "bound every repeat"),
        (r"(a{1,9}){1,9}b", "in several ways"),
        (r"(?:a|a){1,9}b", "in several ways"),
        (r"(abc)\1", "nothing else"),
        (r"(abc)(?(1)d|e)", "nothing else"),
        (r"(?<=abc)def", "nothing else"),
        (r"abc(?=def)", "nothing else"),
        (r"^abc", "nothing else"),
        (r"abc$", "nothing else"),
        (r"abc\B", "nothing else"),
        (r"ab", "at least 3"),
        (r"a{0,9}", "at least 3"),
        (r"[a-z]{3,250}[0-9]{1,20}", "more than 256|ways"),
        (r"a{1,64}a{1,64}a{1,64}b", "ways"),
        (r"(?s)a.b", "no flag"),
        (r"(?i:abc)", "no flag within"),
        (r"(abc", "no regular expression"),
        (r"a{3}" * 200, "512 characters"),
        ("(" * 250 + "abc" + ")" * 250, ""),
    ],
)
def test_what_could_run_for_ever_or_look_far_is_refused(source: str, said: str) -> None:
    if not said:
        assert measure(source).width == 3
        return
    with pytest.raises(ValueError, match=said):
        measure(source)


PIECES = st.sampled_from(
    ["a", "b", "-", r"\d", "[a-c]", "[^a-c]", "[0-9a]{1,3}", "(?:ab|c)", "b?", ".", r"\w{2}", r"\b", "é"]
)


@given(st.lists(PIECES, min_size=1, max_size=8), st.text("ab0c-é \n", max_size=60), st.booleans())
def test_no_match_is_wider_than_it_says_and_none_holds_a_character_from_outside(
    pieces: list[str], text: str, ignore_case: bool
) -> None:
    try:
        measured = measure(("(?i)" if ignore_case else "") + "".join(pieces))
    except ValueError:
        return
    for match in measured.pattern.finditer(text + text.upper()):
        assert 3 <= len(match[0]) <= measured.width <= MAX_WIDTH
        assert measured.outside is None or not measured.outside.search(match[0])


def test_the_bound_on_ways_is_one_that_a_loop_can_bear() -> None:
    measured = measure(r"a{1,30}a{1,30}b")
    assert MAX_WAYS >= 30 * 30
    assert measured.pattern.search("a" * 2000) is None
    assert re.fullmatch(measured.pattern, "aab")
