"""What the guard knows by name: e-mail addresses, payment cards, IBANs, telephone numbers, API keys.

An expression finds a candidate, a check sum or a table settles it and says where it ends. Each expression is linear: it
begins only where the character before cannot be part of a match, its repeats are possessive or cannot be split in two
ways. What it looks at is at most one character before and one behind its `width`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Known(NamedTuple):
    """`end` says where a candidate really ends, or that it is none; None: where the expression ends. One character of
    the text that suits it least costs about `ways` steps of an expression."""

    pattern: re.Pattern[str]
    width: int
    outside: re.Pattern[str] | None
    end: Callable[[str, re.Match[str]], int | None] | None = None
    ways: int = 16


_CARDS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|"
    r"3(?:0[0-5]|[68]\d)\d{11}|6(?:011|4[4-9]\d|5\d\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}",
    re.ASCII,
)
_CARD_LENGTHS = {"2": (16,), "3": (16, 15, 14), "4": (19, 16, 13), "5": (16,), "6": (19, 18, 17, 16)}
"""By their first digit, the longest first."""
_ZERO = ord("0")
_DOUBLED = bytes.maketrans(b"0123456789", b"0246813579")
_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29,
    "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29,
    "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28,
    "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28,
    "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MN": 20,
    "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29, "PT": 25,
    "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27,
    "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}  # fmt: skip
"""Characters of an IBAN by country (the SWIFT registry)."""
_IBAN_DIGITS = {ord(char): str(int(char, 36)) for char in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def is_luhn(digits: str) -> bool:
    """The check digit of ISO/IEC 7812: every second digit counts double, with its own digits added up."""
    codes = digits.encode()
    return (sum(codes[::-2]) + sum(codes[-2::-2].translate(_DOUBLED)) - _ZERO * len(codes)) % 10 == 0


def _card_end(text: str, match: re.Match[str]) -> int | None:
    """The longest beginning of the candidate that is a card's number, where no digit follows it."""
    digits = match[0].replace(" ", "").replace("-", "")
    for length in _CARD_LENGTHS[digits[0]]:
        number = digits[:length]
        if len(number) == length and _CARDS.fullmatch(number) and is_luhn(number):
            end = match.start()
            for digit in number:
                end = text.index(digit, end) + 1
            if not text[end : end + 1].isdigit():
                return end
    return None


def _iban_end(text: str, match: re.Match[str]) -> int | None:
    """As many characters as the country has, where the check digits hold (ISO 13616: modulo 97 is 1)."""
    wanted = _IBAN_LENGTHS.get(match[0][:2])
    found = match[0].replace(" ", "")[:wanted]
    if wanted is None or len(found) < wanted or int((found[4:] + found[:4]).translate(_IBAN_DIGITS)) % 97 != 1:
        return None
    at = match.start()
    for char in found:
        at = text.index(char, at) + 1
    return None if text[at : at + 1].isalnum() else at


KNOWN: Mapping[str, Known] = {
    "email": Known(
        re.compile(
            r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}+@[A-Za-z0-9][A-Za-z0-9-]{0,62}+"
            r"(?:\.[A-Za-z0-9][A-Za-z0-9-]{0,62}+){1,4}+"
        ),
        384,
        re.compile(r"[^A-Za-z0-9._%+@-]"),
        ways=32,
    ),
    "credit_card": Known(
        re.compile(r"(?<![0-9])[2-6][0-9]{3}(?:[ -]?[0-9]){9,15}"), 34, re.compile(r"[^0-9 -]"), _card_end, 192
    ),
    "iban": Known(
        re.compile(r"(?<![A-Z0-9a-z])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}"),
        64,
        re.compile(r"[^A-Z0-9 ]"),
        _iban_end,
        128,
    ),
    "phone": Known(
        re.compile(
            r"(?<![0-9A-Za-z+])(?:\+[1-9](?:[ .()-]{0,2}[0-9]){7,14}"
            r"|(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4})(?![0-9])"
        ),
        44,
        re.compile(r"[^0-9 .()+-]"),
    ),
    "api_key": Known(
        re.compile(
            r"(?<![A-Za-z0-9_-])(?:sk-[A-Za-z0-9_-]{16,240}+|(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,120}+|"
            r"github_pat_[A-Za-z0-9_]{22,120}+|xox[abposr]-[A-Za-z0-9-]{10,200}+|AIza[0-9A-Za-z_-]{35}|"
            r"glpat-[A-Za-z0-9_-]{20,64}+|hf_[A-Za-z0-9]{30,64}+|(?:sk|rk)_live_[A-Za-z0-9]{20,120}+)"
        ),
        244,
        re.compile(r"[^A-Za-z0-9_-]"),
    ),
}
