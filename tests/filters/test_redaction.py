"""redaction: a text that comes in pieces is redacted exactly as the whole, and what is held back is bounded."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headgate.config import GuardRule
from headgate.filters.redaction import Rule, Window, redact, search

SECRETS = (
    "ann@example.com", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "+49 30 901820",
    "sk-proj-AbCdEf0123456789", "PRJ-123456", "secret: hunter22", "a1b2",
)  # fmt: skip
PIECES = st.one_of(st.sampled_from(SECRETS), st.text("ab @.-+4 1DEsk_:\n€", max_size=12), st.text(max_size=5))
TEXTS = st.lists(PIECES, max_size=12).map("".join)
RULES = [
    Rule(GuardRule.model_validate({"name": name, "action": "redact", **what}))
    for name, what in (
        ("email", {"pattern": "email"}),
        ("card", {"pattern": "credit_card"}),
        ("iban", {"pattern": "iban"}),
        ("phone", {"pattern": "phone"}),
        ("key", {"pattern": "api_key"}),
        ("project", {"regex": r"\bPRJ-[0-9]{4,8}\b"}),
        ("word", {"regex": r"(?i)secret.{1,12}[a-z0-9]{4,20}"}),
        ("any", {"regex": "a1b[^x]"}),
    )
]
SOME = st.lists(st.sampled_from(RULES), min_size=1, max_size=8, unique=True)


def in_pieces(rules: list[Rule], text: str, cuts: list[int]) -> tuple[str, int]:
    window, found = Window(rules), list[Rule]()
    places = sorted({min(cut, len(text)) for cut in cuts})
    out, most = "", 0
    for start, end in zip([0, *places], [*places, len(text)], strict=True):
        out += window.feed(text[start:end], found)
        most = max(most, window.held)
    return out + window.feed("", found, last=True), most


@given(TEXTS, st.lists(st.integers(0, 200), max_size=30), SOME)
def test_however_a_text_is_cut_the_result_is_that_of_the_whole(text: str, cuts: list[int], rules: list[Rule]) -> None:
    assert in_pieces(rules, text, cuts)[0] == redact(rules, text, [])


@given(TEXTS, SOME)
def test_byte_by_byte_it_is_the_same_and_little_is_held(text: str, rules: list[Rule]) -> None:
    out, most = in_pieces(rules, text, list(range(len(text))))
    assert out == redact(rules, text, [])
    assert most <= 384


@given(TEXTS, SOME)
def test_it_takes_out_what_is_found_and_nothing_else(text: str, rules: list[Rule]) -> None:
    parts, done = [], 0
    for found in search(rules, text):
        parts += [text[done : found.start], found.rule.placeholder]
        done = found.end
    assert redact(rules, text, []) == "".join([*parts, text[done:]])


@given(st.sampled_from(SECRETS[:7]), st.text("ab .\n", max_size=20), st.text(" .\nx", max_size=20), st.integers(1, 7))
def test_a_secret_never_comes_out_however_it_is_cut(secret: str, before: str, after: str, size: int) -> None:
    text = f"{before} {secret} {after}"
    out, _ = in_pieces(RULES, text, list(range(0, len(text), size)))
    assert secret not in out
    assert before in out
    assert any(rule.placeholder in out for rule in RULES)


def test_ordinary_words_are_held_only_until_the_next_begins() -> None:
    window = Window(RULES[:5])
    out = "".join([window.feed(word, []) for word in ("Hello ", "there, ", "how ", "are ", "you", "?")])
    assert out.startswith("Hello there, how are")


def test_what_was_found_is_told() -> None:
    found: list[Rule] = []
    assert redact(RULES, "ann@example.com or PRJ-12345", found) == "[email] or [project]"
    assert [rule.name for rule in found] == ["email", "project"]


def test_of_two_that_begin_at_one_place_the_longer_wins() -> None:
    def made(name: str, regex: str) -> Any:
        return Rule(GuardRule(name=name, regex=regex, action="redact"))

    assert redact([made("short", "abc"), made("long", "abcdef")], "xabcdefx", []) == "x[long]x"
    assert redact([made("late", "cdefg"), made("early", "abcd")], "xabcdefgx", []) == "x[early]efgx"
