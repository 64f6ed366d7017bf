"""pii_patterns: what is meant is found with its ends, what only looks like it is not, and nothing takes for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.config import GuardRule
from headgate.filters.pii_patterns import KNOWN, is_luhn
from headgate.filters.redaction import Rule, search

FOUND = {
    "email": [
        "ann@example.com", "ann.b+tag@mail.example.co.uk", "A_B%c-d@x-y.io", "a@b.cd",
    ],
    "credit_card": [
        "4111111111111111", "4111 1111 1111 1111", "4111-1111-1111-1111", "5555 5555 5555 4444", "378282246310005",
        "3782 822463 10005", "6011111111111117", "3530111333300000", "2223003122003222",
    ],
    "iban": [
        "DE89370400440532013000", "DE89 3704 0044 0532 0130 00", "GB29 NWBK 6016 1331 9268 19", "NO9386011117947",
        "FR14 2004 1010 0505 0001 3M02 606",
    ],
    "phone": [
        "+49 30 901820", "+1 (415) 555-2671", "(415) 555-2671", "415-555-2671", "415.555.2671", "+4915112345678",
    ],
    "api_key": [
        "sk-proj-AbCdEf0123456789_xyz", "AKIAIOSFODNN7EXAMPLE", "ghp_" + "a1B2" * 9, "xoxb-123456789012-abcdef",
        "AIza" + "Sy0_-" * 7, "glpat-" + "x" * 20, "hf_" + "Ab12" * 8, "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    ],
}  # fmt: skip
NOT_FOUND = {
    "email": ["ann@example", "@example.com", "ann at example.com", "x@", "a@-b.c"],
    "credit_card": ["4111111111111112", "1234567890123456", "41111111111111111111111", "4111", "0000000000000000"],
    "iban": ["DE89370400440532013001", "XX89370400440532013000", "DE8937040044053201300", "DE893704004405320130000"],
    "phone": ["2026-11-20", "12345678", "1.234.567", "+12", "192.168.100.200", "3.14159265"],
    "api_key": ["sk-short", "task-management-0123456789abcdef", "AKIA123", "ghp_tooshort"],
}


def rule(pattern: str) -> Rule:
    return Rule(GuardRule.model_validate({"name": "r", "pattern": pattern}))


@pytest.mark.parametrize(("pattern", "text"), [(name, one) for name, all_ in FOUND.items() for one in all_])
def test_it_is_found_as_it_stands_and_in_a_sentence(pattern: str, text: str) -> None:
    for before, after in (("", ""), ("see ", "."), ("(", ")"), ("é ", "\nand more"), ('"', '"'), ("no. 12 ", ", 2026")):
        [found] = search([rule(pattern)], before + text + after)
        assert (found.start, found.end) == (len(before), len(before) + len(text))


@pytest.mark.parametrize(("pattern", "text"), [(name, one) for name, all_ in NOT_FOUND.items() for one in all_])
def test_what_only_looks_like_it_is_left_alone(pattern: str, text: str) -> None:
    assert search([rule(pattern)], f"see {text} there") == []


@given(st.text("0123456789", min_size=1, max_size=20))
def test_one_check_digit_of_ten_is_right(digits: str) -> None:
    assert sum(is_luhn(digits + str(last)) for last in range(10)) == 1


UNITS = (
    "a", "4", "4444 ", "4 ", "a@", "a.", "a@a.", "+1 ", "(2", "DE89 ", "A", "sk-", "sk-a ", "-", "415-555-", "A1 ",
)  # fmt: skip


@pytest.mark.parametrize("pattern", KNOWN)
@pytest.mark.parametrize("unit", UNITS)
def test_no_text_makes_it_run_for_ever(pattern: str, unit: str) -> None:
    """Where one place could be matched in many ways, this would not end."""
    text = unit * (64 * 1024 // len(unit))
    assert all(text[found.start : found.end].strip() for found in search([rule(pattern)], text))


@pytest.mark.parametrize("pattern", KNOWN)
@given(text=st.text("aA4@.-+ ()1DE89sk_", max_size=400))
def test_no_match_is_wider_than_it_says_and_none_holds_a_character_from_outside(pattern: str, text: str) -> None:
    known = KNOWN[pattern]
    for match in known.pattern.finditer(text):
        assert len(match[0]) <= known.width
        assert known.outside is not None
        assert not known.outside.search(match[0])
