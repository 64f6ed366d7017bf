"""guard: a web page of another origin, or under a re-bound name, cannot reach the gateway."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.edge.guard import Guard

OPEN = Guard(open_to_all=True)
KEYED = Guard(open_to_all=False)
LISTED = Guard(open_to_all=False, origins=["https://App.example", "http://localhost:3000"])


def verdict(guard: Guard, host: bytes | None, origin: bytes | None = None) -> str | None:
    """The code of the refusal, or None."""
    error = guard.check(host, origin)
    if error is None:
        return None
    assert error.status == 403
    return error.code


@pytest.mark.parametrize(
    "host",
    [
        b"localhost",
        b"LocalHost:8070",
        b"127.0.0.1",
        b"127.0.0.1:8070",
        b"127.255.255.254",
        b"[::1]",
        b"[::1]:8070",
        None,
    ],
)
def test_an_open_gateway_answers_to_this_machine(host: bytes | None) -> None:
    assert verdict(OPEN, host) is None


@pytest.mark.parametrize(
    "host",
    [
        b"example.org", b"localhost.example.org", b"127.0.0.1.example.org", b"127.0.0.1example", b"xlocalhost",
        b"localhost.", b"0.0.0.0", b"127.0.0.256", b"127.1", b"127.0.0.01", b"2130706433", b"0x7f000001", b"[::]",
        b"[::ffff:127.0.0.1]", b"[::1]x", b"::1", b"10.0.0.1", b"localhost:x", b"",
    ],
)  # fmt: skip
def test_an_open_gateway_answers_to_nothing_else(host: bytes) -> None:
    assert verdict(OPEN, host) == "host_not_allowed"
    assert verdict(KEYED, host) is None


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        (b"localhost:8070", b"http://localhost:8070"),
        (b"LOCALHOST:8070", b"http://localhost:8070"),
        (b"gw.example", b"https://gw.example"),
        (b"gw.example", b"http://gw.example:80"),
        (b"gw.example:443", b"https://gw.example"),
        (b"[::1]:8070", b"http://[::1]:8070"),
    ],
)
def test_its_own_origin_may_use_it(host: bytes, origin: bytes) -> None:
    assert verdict(KEYED, host, origin) is None


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        (b"localhost:8070", b"http://localhost:3000"),
        (b"localhost:8070", b"http://localhost"),
        (b"localhost:8070", b"http://127.0.0.1:8070"),
        (b"localhost:8070", b"https://evil.example"),
        (b"localhost:8070", b"null"),
        (b"localhost:8070", b""),
        (b"localhost:8070", b"*"),
        (b"localhost:8070", b"file://localhost:8070"),
        (b"localhost:8070", b"http://localhost:8070/"),
        (b"localhost:8070", b"http://localhost:8070, http://localhost:8070"),
        (b"localhost:8070", b"http://user@localhost:8070"),
        (b"localhost:8070", b"chrome-extension://abcdef"),
        (None, b"http://localhost:8070"),
    ],
)
def test_another_origin_may_not(host: bytes | None, origin: bytes) -> None:
    for guard in (OPEN, KEYED):
        assert verdict(guard, host, origin) == "origin_not_allowed"


def test_a_listed_origin_may() -> None:
    assert verdict(LISTED, b"gw.example", b"https://app.example") is None
    assert verdict(LISTED, b"gw.example", b"http://LOCALHOST:3000") is None
    assert verdict(LISTED, b"gw.example", b"http://app.example") == "origin_not_allowed"


AUTHORITIES = st.from_regex(rb"(a|b\.a|\[::1\]|a@b|)(:80|:443|:1|:|/|)", fullmatch=True)


@given(AUTHORITIES, st.sampled_from([b"http://", b"https://", b"ftp://", b"//", b""]), AUTHORITIES)
def test_an_origin_passes_only_where_its_host_is_the_requests(host: bytes, scheme: bytes, authority: bytes) -> None:
    if verdict(KEYED, host, scheme + authority) is None:
        assert scheme in (b"http://", b"https://")
        assert authority.rsplit(b":8")[0].rsplit(b":4")[0] == host.rsplit(b":8")[0].rsplit(b":4")[0]
    elif authority == host and scheme in (b"http://", b"https://"):
        assert not host or b"@" in host or b"/" in host
