"""request_head: what it takes means the same to llhttp and to h11; what is ambiguous it does not take."""

from __future__ import annotations

import re

import h11
import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headgate.proxy.edge import request_head
from headgate.proxy.edge.context import EdgeLimits
from headgate.proxy.edge.request_head import CHUNKED, HttpRequestHead, decode_path, is_host, may_be_whole, read_head
from headgate.proxy.errors import DownstreamError, HeadersTooLargeError, InvalidRequestError

LIMITS = EdgeLimits()


def read(data: bytes, limits: EdgeLimits = LIMITS) -> HttpRequestHead:
    """The head of `data`, which must be whole and end where `data` does."""
    found = read_head(data, limits, "192.0.2.1")
    assert found is not None
    head, end = found
    assert end == len(data)
    return head


def head(*lines: str, first: str = "POST /v1/x HTTP/1.1", host: str = "localhost") -> bytes:
    """A head with a Host and these lines."""
    return "\r\n".join([first, f"Host: {host}", *lines, "", ""]).encode("latin-1")


def test_a_head_is_read() -> None:
    found = read(
        head("X-Thing:  one \t", "x-OTHER:two", "X-Empty:", "x-thing: three", first="POST /v1/x?a=1&b HTTP/1.1")
    )
    assert (found.method, found.path, found.target, found.query) == ("POST", "/v1/x", b"/v1/x", b"a=1&b")
    assert (found.http_version, found.client, found.scheme, found.length) == ("1.1", "192.0.2.1", "http", 0)
    assert found.headers == [
        (b"host", b"localhost"),
        (b"x-thing", b"one"),
        (b"x-other", b"two"),
        (b"x-empty", b""),
        (b"x-thing", b"three"),
    ]
    assert found.header(b"x-thing") == b"one"
    assert repr(found) == "<RequestHead POST /v1/x>"


def test_what_follows_the_head_is_left_alone() -> None:
    data = head("Content-Length: 4")
    found = read_head(data + b"\r\n\r\n", LIMITS, "")
    assert found is not None
    assert found[1] == len(data)


@pytest.mark.parametrize(
    ("target", "path", "raw"),
    [
        ("/", "/", b"/"),
        ("//", "//", b"//"),
        ("//evil.example/v1", "//evil.example/v1", b"//evil.example/v1"),
        ("/v1/%63hat", "/v1/chat", b"/v1/%63hat"),
        ("/v1/models/a%2Fb:c", "/v1/models/a/b:c", b"/v1/models/a%2Fb:c"),
        ("/v1/../admin", "/v1/../admin", b"/v1/../admin"),
        ("/v1/..;/admin", "/v1/..;/admin", b"/v1/..;/admin"),
        ("/%E2%82%AC", "/€", b"/%E2%82%AC"),
        ("/%ff", "/\udcff", b"/%ff"),
        ("/a%252f", "/a%2f", b"/a%252f"),
        ("/a?b?c=%zz", "/a", b"/a"),
        ("http://localhost/a?b", "/a", b"/a"),
        ("HTTP://LOCALHOST", "/", b"/"),
        ("https://localhost?q", "/", b"/"),
    ],
)
def test_paths_are_decoded_once_and_never_resolved(target: str, path: str, raw: bytes) -> None:
    found = read(head(first=f"GET {target} HTTP/1.1"))
    assert (found.path, found.target) == (path, raw)


def test_options_may_ask_for_the_whole_server() -> None:
    assert read(head(first="OPTIONS * HTTP/1.1")).path == "*"


def test_one_empty_line_before_a_request_is_forgiven() -> None:
    assert read(b"\r\n" + head()).path == "/v1/x"


def test_http_1_0_needs_no_host() -> None:
    found = read(b"GET / HTTP/1.0\r\n\r\n")
    assert (found.http_version, found.keep_alive) == ("1.0", False)


@pytest.mark.parametrize(
    ("version", "lines", "kept"),
    [
        ("1.1", [], True),
        ("1.1", ["Connection: keep-alive"], True),
        ("1.1", ["Connection: close"], False),
        ("1.1", ["Connection: Keep-Alive, CLOSE"], False),
        ("1.1", ["Connection: keep-alive", "Connection: close"], False),
        ("1.1", ["Connection: x-thing"], True),
        ("1.0", [], False),
        ("1.0", ["Connection: keep-alive"], True),
        ("1.0", ["Connection: Keep-Alive"], True),
        ("1.0", ["Connection: close, keep-alive"], False),
    ],
)
def test_whether_the_connection_is_kept(version: str, lines: list[str], kept: bool) -> None:
    assert read(head(*lines, first=f"GET / HTTP/{version}")).keep_alive is kept


@pytest.mark.parametrize(
    ("lines", "length"),
    [
        ([], 0),
        (["Content-Length: 0"], 0),
        (["Content-Length: 007"], 7),
        (["content-LENGTH: 12 "], 12),
        (["Content-Length: 999999999999999999"], 999999999999999999),
        (["Transfer-Encoding: chunked"], CHUNKED),
        (["Transfer-Encoding: Chunked"], CHUNKED),
    ],
)
def test_where_the_body_ends(lines: list[str], length: int) -> None:
    assert read(head(*lines)).length == length


@pytest.mark.parametrize(
    ("first", "lines", "expected"),
    [
        ("POST / HTTP/1.1", ["Expect: 100-Continue", "Content-Length: 1"], True),
        ("POST / HTTP/1.1", ["Expect: 100-continue", "Transfer-Encoding: chunked"], True),
        ("POST / HTTP/1.1", ["Expect: 100-continue"], False),
        ("POST / HTTP/1.1", ["Expect: something", "Content-Length: 1"], False),
        ("POST / HTTP/1.0", ["Expect: 100-continue", "Content-Length: 1"], False),
    ],
)
def test_whether_the_client_waits_for_a_continue(first: str, lines: list[str], expected: bool) -> None:
    assert read(head(*lines, first=first)).expects_continue is expected


def test_an_upgrade_to_http_2_is_ignored() -> None:
    assert read(head("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAA")).keep_alive


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8070", "127.0.0.1:1", "[::1]", "[::1]:65535", "a_b.example-x.org"]
)
def test_hosts_that_are_hosts(host: str) -> None:
    assert read(head(host=host)).header(b"host") == host.encode()


def test_the_limits_are_exact() -> None:
    limits = EdgeLimits(request_line=100, head_bytes=300, head_fields=5)
    read(head(first=f"GET /{'a' * 86} HTTP/1.1"), limits)
    with pytest.raises(InvalidRequestError, match="100 bytes"):
        read(head(first=f"GET /{'a' * 87} HTTP/1.1"), limits)
    read(head(*(f"x-{number}: 1" for number in range(4))), limits)
    with pytest.raises(HeadersTooLargeError, match="5 header fields"):
        read(head(*(f"x-{number}: 1" for number in range(5))), limits)
    fill = 300 - len(head("x: "))
    read(head("x: " + "a" * fill), limits)
    with pytest.raises(HeadersTooLargeError, match="300 bytes"):
        read(head("x: " + "a" * (fill + 1)), limits)


def test_a_head_that_drips_in_is_not_read_at_every_byte() -> None:
    data = head("x: " + "a" * 5000)
    assert sum(may_be_whole(data[: at + 1], data[at : at + 1], LIMITS) for at in range(len(data))) == data.count(b"\n")


def test_what_is_remembered_is_bounded_and_holds_no_secret() -> None:
    for number in range(3000):
        read(head(f"x-thing-{number}: {number}", first=f"GET /{number} HTTP/1.1", host=f"host-{number}"))
        read(head("Authorization: Bearer secret", "x-api-key: secret", "cookie: secret", f"x-long: {'secret' * 99}"))
        read(head(first="GET /?key=secret HTTP/1.1"))
    for memory in (request_head._field_lines, request_head._request_lines, request_head._hosts):
        assert len(memory) <= 1024
        assert not any(b"secret" in line for line in memory)


def test_is_host_takes_no_more_than_a_port_number() -> None:
    assert is_host(b"a:65535")
    assert not is_host(b"a:65536")
    assert not is_host(b"a:0")


@given(st.binary(max_size=40))
def test_decode_path_is_total(raw: bytes) -> None:
    target = bytes(byte for byte in raw if 0x21 <= byte <= 0x7E)
    try:
        path = decode_path(target)
    except InvalidRequestError:
        return
    assert not set(map(chr, range(32))) & set(path)


LINES = st.sampled_from(
    [
        b"Host: localhost", b"Host: a/b", b"Host:localhost:80", b"host: b", b"Content-Length: 5", b"Content-Length: 0",
        b"content-length:5", b"Content-Length: +5", b"Content-Length: 5, 5", b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding : chunked", b"transfer-encoding: CHUNKED",
        b"Transfer-Encoding: identity", b"Connection: close", b"Connection: keep-alive", b"Connection: upgrade",
        b"Upgrade: h2c", b"Upgrade: websocket", b"Expect: 100-continue", b"X-A: 1", b"X-A:\t1\t", b"x_b: \xff",
        b" fold", b"X-C: a\x00b", b"no-colon", b": no name", b"X-D:", b"", b"X-E: a\rb", b"X-F: a\nb", b"X\x80: 1",
        b"Proxy-Connection: close", b"Trailer: x",
    ]
)  # fmt: skip
FIRST = st.sampled_from(
    [
        b"GET / HTTP/1.1", b"POST /v1/chat/completions HTTP/1.1", b"POST /v1/x?y=z HTTP/1.0",
        b"GET http://localhost/a HTTP/1.1", b"HEAD /%41 HTTP/1.1", b"GET //a HTTP/1.1", b"GET /a b HTTP/1.1",
        b"GET /", b"OPTIONS * HTTP/1.1",
        b"CONNECT a:1 HTTP/1.1", b"GET /\x7f HTTP/1.1", b"PRI * HTTP/2.0", b"DELETE /x HTTP/1.2",
        b"get / HTTP/1.1", b"",
    ]
)  # fmt: skip
BREAKS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"\n\r\n"])


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Nearly well-formed heads."""
    lines = [draw(FIRST), *draw(st.lists(LINES, max_size=6))]
    if draw(st.booleans()):
        lines.insert(1, b"Host: localhost")
    data = b"".join(line + draw(BREAKS) for line in lines) + b"\r\n"
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + draw(st.binary(max_size=2)) + data[at + draw(st.integers(0, 2)) :]
    return data


class Llhttp:
    """What llhttp makes of bytes."""

    def __init__(self, data: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.url = b""
        self.body = b""
        self.begun = self.ended = 0
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.ended += 1


@settings(max_examples=600, deadline=None)
@given(heads())
@example(b"\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nHost: localhost\r\ntransfer-encoding: CHUNKED\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nHost: localhost\r\ntransfer-encoding: chunked \r\n\r\n")
@example(b"GET / HTTP/1.1\r\nHost: localhost\r\ntransfer-encoding: chunked\t\r\n\r\n")
@example(b"GET /a? HTTP/1.1\r\nHost: localhost\r\n\r\n")
@example(b"GET http://localhost HTTP/1.1\r\nHost: localhost\r\n\r\n")
@example(b"GET HTTP://localhost?b HTTP/1.1\r\nHost: localhost\r\n\r\n")
def test_what_is_taken_means_the_same_to_llhttp_and_h11(data: bytes) -> None:
    try:
        found = read_head(data, LIMITS, "")
    except DownstreamError:
        return
    if found is None:
        return
    ours, end = found
    head = data[:end]
    body = {0: b"", CHUNKED: b"5\r\nhello\r\n0\r\n\r\n"}.get(ours.length, b"x" * ours.length)
    content = b"hello" if ours.length == CHUNKED else body

    if not any(name == b"upgrade" for name, _ in ours.headers):  # llhttp stops where an upgrade may begin
        theirs = Llhttp(head + body)
        assert (theirs.begun, theirs.ended, theirs.body) == (1, 1, content)
        assert theirs.headers == ours.headers
        assert theirs.parser.get_method().decode() == ours.method
        assert theirs.parser.get_http_version() == ours.http_version
        path, _, query = re.sub(rb"(?i)^https?://[^/?]*", b"", theirs.url).partition(b"?")
        assert (path or b"/", query) == (ours.target, ours.query)  # a URL without a path asks for `/`

    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 17)
    connection.receive_data(head.removeprefix(b"\r\n") + body)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    lowered = [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in ours.headers]
    assert [(bytes(name), bytes(value)) for name, value in event.headers] == lowered  # h11 lowers that one
    assert event.method.decode() == ours.method
    received = b""
    while isinstance(piece := connection.next_event(), h11.Data):
        received += piece.data
    assert isinstance(piece, h11.EndOfMessage)
    assert received == content
