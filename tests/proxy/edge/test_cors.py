"""cors: pages of listed origins are told that they may, and nobody else is told anything."""

from __future__ import annotations

import pytest

from headgate.proxy.edge.cors import Cors

CORS = Cors(["https://chat.example", "HTTP://localhost:3000"])


def test_a_listed_origin_is_named_and_no_other() -> None:
    assert (b"access-control-allow-origin", b"https://chat.example") in CORS.fields(b"https://Chat.example")
    assert (b"vary", b"origin") in CORS.fields(b"http://localhost:3000")
    assert CORS.fields(b"https://evil.example") == ()


def test_a_preflight_says_what_may_be_sent() -> None:
    said = CORS.preflight(
        {
            b"origin": b"https://chat.example",
            b"access-control-request-method": b"POST",
            b"access-control-request-headers": b"authorization,content-type",
        }
    )
    assert said is not None
    assert dict(said)[b"access-control-allow-headers"] == b"authorization,content-type"
    assert b"POST" in dict(said)[b"access-control-allow-methods"]
    assert b"access-control-allow-credentials" not in dict(said)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {b"origin": b"https://chat.example"},
        {b"access-control-request-method": b"POST"},
        {b"origin": b"https://evil.example", b"access-control-request-method": b"POST"},
    ],
)
def test_what_is_no_preflight_of_a_listed_page_is_not_answered(fields: dict[bytes, bytes]) -> None:
    assert CORS.preflight(fields) is None


def test_no_headers_are_allowed_that_were_not_asked_for() -> None:
    said = CORS.preflight({b"origin": b"https://chat.example", b"access-control-request-method": b"GET"})
    assert said is not None
    assert b"access-control-allow-headers" not in dict(said)
