"""plain_head: an answer taken in one read means what the parser makes of it; what is odd is left to the parser."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.errors import GatewayError
from headgate.proxy.upstream.h1_answer import AnswerReader
from headgate.proxy.upstream.plain_head import _lines, read_plain_head

if TYPE_CHECKING:
    from headgate.proxy.upstream.call import Call, ResponseHead

STATUS_LINES = [b"HTTP/1.1 200 OK", b"HTTP/1.1 404 Not Found", b"HTTP/1.1 503 ", b"HTTP/1.1 429 a\tb"]
ODD_STATUS_LINES = [
    b"HTTP/1.0 200 OK", b"HTTP/1.1 200", b"HTTP/1.1 100 Continue", b"HTTP/1.1 101 Switching", b"HTTP/1.1 204 None",
    b"HTTP/1.1 304 Same", b"HTTP/1.1 600 ?", b"HTTP/1.1  200 OK", b"http/1.1 200 OK", b"HTTP/1.1 200 \xff", b"",
]  # fmt: skip
FIELDS = [
    b"content-type: application/json",
    b"X-Request-Id:req_1",
    b"date: \t now",
    b"Set-Cookie: a=b",
    b"x: \xc3\xa9",
    b"e:",
]
FRAMING = [b"connection: keep-alive", b"Connection: Close", b"connection:close"]
ODD_FIELDS = [
    b"connection: keep-alive, x", b"connection: upgrade", b"upgrade: h2c", b"transfer-encoding: chunked",
    b"transfer-encoding: gzip", b"content-length: 2", b"content-length: +5", b"content-length: 5 ", b"content-length: ",
    b"x: y ", b"x : y", b" folded", b"x: a\rb", b"x: a\nb", b"x: a\0b", b"\xff: y", b"no colon", b": empty", b"x: \x7f",
    b"proxy-connection: close", b"trailer: x",
]  # fmt: skip


class Heard:
    """A receiver that writes down what it hears."""

    takes_wholes = False

    def __init__(self) -> None:
        self.heard: list[object] = []

    def on_head(self, call: Call, head: ResponseHead) -> None:
        self.heard.append((head.status, head.headers))

    def on_data(self, call: Call, data: bytes) -> None:
        if self.heard and isinstance(self.heard[-1], bytes):
            data = self.heard.pop() + data  # type: ignore[operator]
        self.heard.append(data)


def outcome(*pieces: bytes, content_expected: bool = True) -> tuple[object, ...]:
    """What a receiver hears of an answer that comes so, and what becomes of the connection."""
    reader, receiver = AnswerReader(), Heard()
    call = SimpleNamespace(receiver=receiver, content_expected=content_expected, upgrade=False)
    reader.start(cast("Any", call))
    try:
        for piece in pieces:
            reader.feed(piece)
    except GatewayError as error:
        return (type(error), *receiver.heard)
    return (reader.head_seen, reader.whole, reader.whole and reader.keep_alive, *receiver.heard)


def answer(status: bytes, fields: list[bytes], body: bytes) -> bytes:
    return b"\r\n".join([status, *fields, b"", body])


def test_a_plain_answer_is_read() -> None:
    plain = read_plain_head(answer(STATUS_LINES[0], [*FIELDS, b"content-length: 2"], b"{}"))
    assert plain is not None
    head, end, length, keep_alive = plain
    assert (head.status, length, keep_alive) == (200, 2, True)
    assert answer(STATUS_LINES[0], [*FIELDS, b"content-length: 2"], b"{}")[end:] == b"{}"
    assert head.header(b"x-request-id") == b"req_1"
    assert head.headers[:2] == [(b"content-type", b"application/json"), (b"x-request-id", b"req_1")]
    closed = read_plain_head(answer(STATUS_LINES[0], [b"content-length: 2", b"connection: close"], b"{}"))
    assert closed is not None
    assert not closed[3]


@pytest.mark.parametrize("status", ODD_STATUS_LINES)
def test_an_odd_status_line_is_left_to_the_parser(status: bytes) -> None:
    assert read_plain_head(answer(status, [b"content-length: 2"], b"{}")) is None


@pytest.mark.parametrize("field", ODD_FIELDS)
def test_an_odd_field_is_left_to_the_parser(field: bytes) -> None:
    assert read_plain_head(answer(STATUS_LINES[0], [b"content-length: 2", field], b"{}")) is None


def test_a_head_without_length_or_end_or_bound_is_left_to_the_parser() -> None:
    assert read_plain_head(answer(STATUS_LINES[0], FIELDS, b"")) is None
    assert read_plain_head(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n") is None
    assert read_plain_head(answer(STATUS_LINES[0], [b"x: y"] * 101 + [b"content-length: 2"], b"{}")) is None
    assert read_plain_head(answer(STATUS_LINES[0], [b"x: " + b"y" * 20_000, b"content-length: 2"], b"{}")) is None


def test_cookies_and_long_lines_are_not_remembered_and_the_memory_is_bounded() -> None:
    for number in range(3000):
        fields = [b"x-n: %d" % number, b"set-cookie: %d" % number, b"x-long: " + b"y" * 300, b"content-length: 2"]
        assert read_plain_head(answer(STATUS_LINES[0], fields, b"{}")) is not None
    assert len(_lines) <= 1024
    assert not any(line.startswith((b"set-cookie", b"x-long")) for line in _lines)


def test_the_answer_to_head_has_no_body_whatever_it_says() -> None:
    data = answer(STATUS_LINES[0], [b"content-length: 2"], b"")
    assert outcome(data, content_expected=False) == outcome(data[:1], data[1:], content_expected=False)


@given(
    status=st.sampled_from(STATUS_LINES * 4 + ODD_STATUS_LINES),
    fields=st.lists(st.sampled_from(FIELDS * 4 + FRAMING * 4 + ODD_FIELDS), max_size=6),
    length=st.sampled_from([b"content-length: %d", b"Content-Length:%d", b"content-length: 00%d", b"x-length: %d"]),
    at=st.integers(0, 6),
    body=st.sampled_from([b"", b"hello", b"{}"]),
    more=st.sampled_from([b"", b"", b"", b"\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]),
    cut=st.integers(0, 3),
    cut_at=st.integers(1, 400),
)
def test_one_read_means_the_same_as_two(
    status: bytes, fields: list[bytes], length: bytes, at: int, body: bytes, more: bytes, cut: int, cut_at: int
) -> None:
    fields.insert(at, length % len(body))
    data = answer(status, fields, body) + more
    data = data[: len(data) - cut]
    place = min(cut_at, max(1, data.find(b"\r\n\r\n")))  # within the head: so the parser has to read it
    assert outcome(data) == outcome(data[:place], data[place:])
