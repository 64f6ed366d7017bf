"""canaries: a secret is found whole and in pieces, in every coding, wherever it stands; and nothing else is."""

from __future__ import annotations

import base64
import urllib.parse
from random import Random

import pytest

from tests_support.canaries import WINDOW, Canaries

SECRETS = {"key": "kQ7m2xV9sLd4TzKpR8wN1cYb", "password": "hT/5@xW;8qPm+2Zr", "pem": "MIIEvQIBADANBg\nkqhkiG9w0BAQ"}
WHOLE = SECRETS["key"]
PIECE = WHOLE[3 : 3 + WINDOW]


def around(text: str | bytes, before: int, after: int = 5) -> bytes:
    """The text among others."""
    return b"." * before + (text if isinstance(text, bytes) else text.encode()) + b"." * after


@pytest.mark.parametrize("before", range(27))
@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        PIECE,
        PIECE.upper(),
        WHOLE[-WINDOW:],
        WHOLE[:WINDOW],
        base64.b64encode(f"user:{WHOLE}".encode()),
        base64.urlsafe_b64encode(f"us:{WHOLE}x".encode()),
        base64.b64encode(WHOLE.encode()),
        WHOLE.encode().hex(),
        PIECE.encode().hex().upper(),
        "".join(f"%{byte:02X}" for byte in PIECE.encode()),
    ],
)
def test_it_is_found_in_every_coding_and_place(text: str | bytes, before: int) -> None:
    assert Canaries(SECRETS).found(around(text, before)) == ["key"]


@pytest.mark.parametrize("text", [SECRETS["password"], urllib.parse.quote(SECRETS["password"], safe="")])
def test_one_with_other_characters_is_found_as_it_is_and_url_encoded(text: str) -> None:
    assert Canaries(SECRETS).found(around(text, 3)) == ["password"]


def test_each_line_of_one_is_a_secret() -> None:
    assert Canaries(SECRETS).found(b"xkqhkiG9w0B") == ["pem"]


def test_a_piece_that_is_too_short_gives_nothing_away() -> None:
    assert Canaries(SECRETS).found(around(PIECE[:-1], 4)) == []


def test_what_is_allowed_is_not_told() -> None:
    assert Canaries(SECRETS).found(f"{WHOLE} {SECRETS['password']}".encode(), allowed=["key"]) == ["password"]


def test_nothing_is_found_where_nothing_is() -> None:
    rng = Random(5)
    noise = bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789%/+=", k=200_000))
    assert Canaries(SECRETS).found(noise) == []


def test_a_secret_that_is_too_short_is_refused() -> None:
    with pytest.raises(AssertionError, match="too short"):
        Canaries({"short": "abc"})
