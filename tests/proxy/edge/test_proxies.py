"""proxies: the word of a trusted proxy counts, and what a client made up does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.edge.proxies import TrustedProxies

PROXIES = TrustedProxies(["10.0.0.0/8", "127.0.0.1", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.1.2.3", b"203.0.113.7", "203.0.113.7"),
        ("10.1.2.3", b"198.51.100.1, 203.0.113.7", "203.0.113.7"),
        ("10.1.2.3", b"203.0.113.7, 10.9.9.9", "203.0.113.7"),
        ("127.0.0.1", b"203.0.113.7:4711", "203.0.113.7"),
        ("127.0.0.1", b"[2001:db8::1]:4711", "2001:db8::1"),
        ("fd00::1", b"2001:db8::1", "2001:db8::1"),
        ("10.1.2.3", b"10.4.4.4, 10.5.5.5", "10.4.4.4"),
        ("10.1.2.3", b"made up", "10.1.2.3"),
        ("10.1.2.3", b"made up, 203.0.113.7", "203.0.113.7"),
        ("10.1.2.3", b"203.0.113.7, made up", "10.1.2.3"),
        ("10.1.2.3", b"", "10.1.2.3"),
        ("10.1.2.3", None, "10.1.2.3"),
        ("192.0.2.1", b"203.0.113.7", "192.0.2.1"),
        ("", b"203.0.113.7", ""),
    ],
)
def test_whose_address_counts(peer: str, forwarded: bytes | None, client: str) -> None:
    assert PROXIES.client(peer, forwarded) == client


@given(st.binary(max_size=60))
def test_nobody_becomes_another_by_what_a_stranger_sends(forwarded: bytes) -> None:
    assert PROXIES.client("192.0.2.1", forwarded) == "192.0.2.1"


@given(st.binary(max_size=60))
def test_what_stands_before_the_proxys_own_word_means_nothing(made_up: bytes) -> None:
    assert PROXIES.client("10.0.0.1", made_up + b", 203.0.113.7") == "203.0.113.7"
