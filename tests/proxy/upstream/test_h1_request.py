"""encode_head: the bytes of a request, and that no field can become two."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from headgate.proxy.errors import GatewayError
from headgate.proxy.upstream.call import UpstreamRequest
from headgate.proxy.upstream.h1_request import HeadEncoder, encode_head, ready_lines

if TYPE_CHECKING:
    from headgate.proxy.edge.downstream import Headers

FIXED = b" HTTP/1.1\r\nhost: h\r\nauthorization: Bearer k"


def encoded(method: bytes = b"POST", target: bytes = b"/t", body: bytes = b"", headers: Headers | None = None) -> bytes:
    return encode_head(UpstreamRequest(method, target, headers or [], body), b"/v1", FIXED)


def test_the_head_holds_the_base_path_the_own_fields_the_callers_fields_and_the_length() -> None:
    head = encoded(body=b"abc", headers=[(b"a", b"1"), (b"b", b"")])
    assert head == (
        b"POST /v1/t HTTP/1.1\r\nhost: h\r\nauthorization: Bearer k\r\na: 1\r\nb: \r\ncontent-length: 3\r\n\r\n"
    )


def test_a_request_without_a_body_has_a_length_only_where_a_body_is_expected() -> None:
    assert encoded(b"GET").endswith(b"Bearer k\r\n\r\n")
    assert encoded(b"DELETE").endswith(b"Bearer k\r\n\r\n")
    assert encoded(b"POST").endswith(b"\r\ncontent-length: 0\r\n\r\n")
    assert encoded(b"DELETE", body=b"x").endswith(b"\r\ncontent-length: 1\r\n\r\n")


def test_a_line_end_that_hides_in_a_pair_of_halves_is_refused() -> None:
    for headers in ([(b"a\r", b"\nb")], [(b"a", b"b\r"), (b"c", b"\nd")], [(b"a", b"b\r\nc: d")], [(b"a", b"\0")]):
        with pytest.raises(GatewayError):
            encoded(headers=headers)


def test_no_cr_lf_or_nul_leaves_in_any_part() -> None:
    rng = random.Random(20_000)
    refused = 0
    for _ in range(20_000):
        name, value, target, method = (rng.randbytes(rng.randrange(24)) for _ in range(4))
        headers = [(b"x-before", b"1"), (name, value), (b"x-after", b"2")]
        try:
            head = encoded(method, target, headers=headers)
        except GatewayError:
            assert any(byte in b"\r\n\0" for byte in name + value + target + method) or b" " in target
            refused += 1
            continue
        lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        assert not any(byte in line for line in lines for byte in b"\r\n\0")
        own = [b"host: h", b"authorization: Bearer k"]
        assert lines[1:] == [*own, b"x-before: 1", name + b": " + value, b"x-after: 2", b"content-length: 0"]
    assert 2_000 < refused < 18_000


@pytest.mark.parametrize("place", ["name", "value", "target", "method"])
def test_each_of_the_three_bytes_is_refused_at_every_place_and_every_other_byte_passes(place: str) -> None:
    for byte in range(256):
        bad = b"a" + bytes([byte]) + b"b"
        parts = {"name": b"n", "value": b"v", "target": b"/t", "method": b"POST", place: bad}
        refused = byte in b"\r\n\0" or (place == "target" and byte == 0x20)
        try:
            encoded(parts["method"], parts["target"], headers=[(parts["name"], parts["value"])])
        except GatewayError:
            assert refused
        else:
            assert not refused


KEY = [(b"authorization", b"Bearer sk-1")]


def ready(target: bytes = b"/t", method: bytes = b"POST", body: bytes = b"{}") -> UpstreamRequest:
    """A request whose lines are ready, its key's included."""
    request = UpstreamRequest(method, target, [(b"a", b"1"), (b"b", b"2")], body, lines=b"a: 1\r\nb: 2")
    request.headers += KEY
    request.lines += ready_lines(KEY)
    request.lined += len(KEY)
    return request


def test_ready_lines_leave_as_they_are_and_come_to_the_same_head() -> None:
    encoder = HeadEncoder(b"/v1", FIXED)
    for _ in range(2):  # the second one finds the first line
        for request in (ready(), ready(b"/u"), ready(method=b"PUT"), ready(body=b"x" * 70_000), ready(body=b"")):
            assert encoder.encode(request) == encode_head(request, b"/v1", FIXED)
    assert encoder.encode(ready()) == (
        b"POST /v1/t HTTP/1.1\r\nhost: h\r\nauthorization: Bearer k\r\n"
        b"a: 1\r\nb: 2\r\nauthorization: Bearer sk-1\r\ncontent-length: 2\r\n\r\n"
    )


def test_a_field_behind_the_ready_lines_is_looked_at() -> None:
    encoder = HeadEncoder(b"/v1", FIXED)
    request = ready()
    request.headers.append((b"c", b"3"))
    assert encoder.encode(request).endswith(b"Bearer sk-1\r\nc: 3\r\ncontent-length: 2\r\n\r\n")
    request.headers.append((b"c", b"3\r\nd: 4"))
    with pytest.raises(GatewayError):
        encoder.encode(request)


def test_a_target_that_is_refused_is_refused_again_and_only_so_many_are_remembered() -> None:
    encoder = HeadEncoder(b"/v1", FIXED)
    for _ in range(2):
        with pytest.raises(GatewayError):
            encoder.encode(ready(b"/a b"))
    for number in range(1000):
        encoder.encode(ready(b"/%d" % number))
    for target in (b"/" + b"x" * 300, b"/t?key=secret"):
        for _ in range(2):
            assert encoder.encode(ready(target)) == encode_head(ready(target), b"/v1", FIXED)
    assert 0 < len(encoder._starts) <= 256
    assert all(len(target) <= 200 and b"?" not in target for _, target in encoder._starts)


def test_a_key_that_would_break_the_line_has_no_ready_lines() -> None:
    for field in ((b"a", b"b\r\nc: d"), (b"a\n", b"b"), (b"a", b"\0")):
        assert ready_lines([*KEY, field]) == b""
