"""Request heads: the grammar of RFC 9112, with no leniency at all.

Smuggling lives where two readers of the same bytes disagree. So a head is not parsed and then checked: it is cut into
lines at CR LF and nowhere else, every line matches one expression whole or the head is refused, and what is read of
it is what has matched. On top come the rules that take two fields at a time: one Host, one framing, and a target that
names no other host. Lines are remembered with their meaning, a pure function of them, which makes this as fast as a
parser in C that calls back for every field. tests/proxy/edge/test_request_head.py holds it against llhttp and h11:
what passes here means the same there.

Not here: whether a body is complete (body.py), whether host and origin are allowed (guard.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from ..errors import HeadersTooLargeError, InvalidRequestError, MethodNotAllowedError
from .downstream import RequestHead

if TYPE_CHECKING:
    from collections.abc import Callable

    from .context import EdgeLimits
    from .downstream import Headers

CHUNKED = -1
"""`HttpRequestHead.length` of a body whose length is not known ahead."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
FIELD_LINE = rb"(" + _TOKEN + rb"++):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*+)"
_FIELD_LINE = re.compile(FIELD_LINE)
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb"++) ([!-~]++) HTTP/1\.([01])")
_HOST = re.compile(rb"(?:[0-9A-Za-z._~-]++|\[[0-9A-Fa-f:.]++\])(?::([0-9]{1,5}))?")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*+)(.*+)", re.IGNORECASE)
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_NOT_TEXT = re.compile(rb"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\xff]")
CONTENT_LENGTH = b"content-length"
LENGTH_DIGITS = 18

METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
_SINGLE = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"authorization", b"content-type", b"origin", b"expect")
)
NOT_REMEMBERED = frozenset(
    (b"authorization", b"proxy-authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"x-headgate-key",
     b"cookie", b"x-request-id", b"traceparent", b"tracestate", b"idempotency-key",
     b"sec-websocket-key", b"sec-websocket-protocol")
)  # fmt: skip
_REMEMBERED = 1024
_REMEMBERED_BYTES = 200


class _FieldLines(dict[bytes, tuple[bytes, bytes]]):
    """line -> name and value. Remembers those without a secret: a client sends the same twenty every time."""

    def __missing__(self, line: bytes) -> tuple[bytes, bytes]:
        match = _FIELD_LINE.fullmatch(line)
        if match is None:
            raise InvalidRequestError("A header line is malformed.")
        name = match[1].lower()
        # After `chunked`, a tab is white space to some readers and an unknown coding to others.
        field = (name, match[2].rstrip(b" " if name == b"transfer-encoding" else b" \t"))
        if len(line) <= _REMEMBERED_BYTES and name not in NOT_REMEMBERED:
            if len(self) >= _REMEMBERED:
                self.clear()
            self[line] = field
        return field


class _RequestLine:
    """A first line, read. `path` is None for a target that is more than a path: a whole URL, or `*`."""

    __slots__ = ("http_version", "method", "path", "query", "target")

    def __init__(self, line: bytes) -> None:
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            raise InvalidRequestError("This is not an HTTP/1.1 request line.")
        method, self.target, minor = match.groups()
        if method not in METHODS:
            raise MethodNotAllowedError("Not a method that is served here.")
        self.method = method.decode()
        self.http_version = "1.1" if minor == b"1" else "1.0"
        self.path: str | None = None
        self.query = b""
        if self.target.startswith(b"/"):
            self._split()

    def with_host(self, host: bytes | None) -> None:
        """Find the path in a target that is more than one. Raises where it names another host than `host`."""
        match = _ABSOLUTE.fullmatch(self.target)
        if match is not None:
            authority, rest = match.groups()
            if host is None or authority.lower() != host.lower():
                raise InvalidRequestError("The request target names another host than the Host header.")
            self.target = rest if rest.startswith(b"/") else b"/" + rest
            self._split()
        elif self.target == b"*" and self.method == "OPTIONS":
            self.path = "*"
        else:
            raise InvalidRequestError("The request target is not a path.")

    def _split(self) -> None:
        if b"#" in self.target:
            raise InvalidRequestError("The request target is not a path.")
        self.target, _, self.query = self.target.partition(b"?")
        self.path = decode_path(self.target)


_field_lines = _FieldLines()
_request_lines: dict[bytes, _RequestLine] = {}
_hosts: dict[bytes, bool] = {}


class HttpRequestHead(RequestHead):
    """A head as it came over HTTP/1, with what its connection must know. `length` is CHUNKED, or the body's bytes."""

    __slots__ = ("expects_continue", "fields", "header", "keep_alive", "length", "names_fields", "websocket")

    header: Callable[[bytes], bytes | None]  # type: ignore[assignment]  # asked often: the look-up itself, no method
    is_plain: bool = False
    """Known to be of HTTP/1.1, no HEAD, and of a connection that is to be kept."""

    def __init__(
        self, line: _RequestLine, path: str, headers: Headers, fields: dict[bytes, bytes], client: str
    ) -> None:
        self.method = line.method
        self.target = line.target
        self.path = path
        self.query = line.query
        self.http_version = line.http_version
        self.headers = headers
        self.fields = fields
        self.header = fields.get
        self.client = client
        self.scheme = "http"
        self.length = 0
        self.keep_alive = self.http_version == "1.1"
        self.expects_continue = False
        self.websocket = False
        self.names_fields = False
        self.known = None


def read_head(data: bytes, limits: EdgeLimits, client: str) -> tuple[HttpRequestHead, int] | None:
    """The head at the start of `data` and where it ends; None while it is not whole. Raises what the client is told."""
    end = data.find(b"\r\n\r\n", 0, limits.head_bytes)
    if end < 0:
        _complain(data, limits)
        return None
    lines = data[:end].split(b"\r\n")
    first = lines.pop(0) or (lines.pop(0) if lines else b"")  # one empty line before a request is forgiven
    if len(first) > limits.request_line:
        raise InvalidRequestError(f"The request line is longer than {limits.request_line} bytes.")
    if len(lines) > limits.head_fields:
        raise HeadersTooLargeError(f"More than {limits.head_fields} header fields.")
    line = _request_lines.get(first) or _read_request_line(first)
    headers = list(map(_field_lines.__getitem__, lines))
    fields = dict(headers)
    if len(fields) != len(headers):
        fields = _first_of_each(headers)
    host = fields.get(b"host")
    path = line.path
    if path is None:
        line.with_host(host)
        path = line.path or "/"
    if host is None:
        if line.http_version == "1.1":
            raise InvalidRequestError("The Host header is missing.")
    elif host not in _hosts and not is_host(host):
        raise InvalidRequestError("The Host header is not a host and port.")
    head = HttpRequestHead(line, path, headers, fields, client)
    _read_framing(head, fields)
    return head, end + 4


def may_be_whole(data: bytes | bytearray, new: bytes, limits: EdgeLimits) -> bool:
    """Whether reading `data` again is worth it now that `new` came: a head that drips in must not cost its square."""
    size = len(data)
    return b"\n" in new or size >= limits.head_bytes or (size > limits.request_line and b"\n" not in data)


def is_host(value: bytes) -> bool:
    """Whether `value` is `host` or `host:port`. Verdicts are remembered: the same few come with every request."""
    match = _HOST.fullmatch(value)
    valid = match is not None and 0 < int(match[1] or 1) < 65536
    if valid and len(value) <= _REMEMBERED_BYTES:
        if len(_hosts) >= _REMEMBERED:
            _hosts.clear()
        _hosts[value] = True
    return valid


def decode_path(target: bytes) -> str:
    """A raw path, percent-decoded once; what is not UTF-8 becomes surrogates. Raises for what no client means."""
    if b"%" not in target:
        return target.decode("ascii")
    decoded = unquote_to_bytes(target)
    if _BAD_ESCAPE.search(target) or _CONTROL.search(decoded):
        raise InvalidRequestError("The path is not percent-encoded as it should be.")
    return decoded.decode("utf-8", "surrogateescape")


def _read_framing(head: HttpRequestHead, fields: dict[bytes, bytes]) -> None:
    length = fields.get(b"content-length")
    encoding = fields.get(b"transfer-encoding")
    if encoding is not None:
        if length is not None:
            raise InvalidRequestError("Both content-length and transfer-encoding: where the body ends is ambiguous.")
        if head.http_version == "1.0":
            raise InvalidRequestError("Transfer-encoding does not exist in HTTP/1.0.")
        if encoding.lower() != b"chunked":
            raise InvalidRequestError("The only transfer-encoding taken is chunked.")
        head.length = CHUNKED
    elif length is not None:
        if not length.isdigit() or len(length) > LENGTH_DIGITS:
            raise InvalidRequestError("The content-length is not a number.")
        head.length = int(length)
    connection = fields.get(b"connection")
    if connection is not None:
        if connection == b"keep-alive" and len(fields) == len(head.headers):
            head.keep_alive = True
        else:
            head.names_fields = True
            lists = [value.lower().split(b",") for name, value in head.headers if name == b"connection"]
            tokens = {token.strip() for tokens in lists for token in tokens}
            head.keep_alive = b"close" not in tokens and (head.keep_alive or b"keep-alive" in tokens)
    upgrade = fields.get(b"upgrade")
    if upgrade is not None and b"websocket" in upgrade.lower():
        head.websocket = True
        head.keep_alive = False  # where it is refused, frames may already follow, which are no requests
    expect = fields.get(b"expect")
    if expect is not None and expect.lower() == b"100-continue":
        head.expects_continue = head.http_version == "1.1" and head.length != 0


def _first_of_each(headers: Headers) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in fields and name in _SINGLE:
            raise InvalidRequestError(f"More than one {name.decode()} header.")
        fields.setdefault(name, value)
    return fields


def _read_request_line(first: bytes) -> _RequestLine:
    line = _RequestLine(first)
    if line.path is not None and not line.query and len(first) <= _REMEMBERED_BYTES:
        if len(_request_lines) >= _REMEMBERED:
            _request_lines.clear()
        _request_lines[first] = line
    return line


def _complain(data: bytes, limits: EdgeLimits) -> None:
    """Say what is wrong with a head that is not whole yet, where it can never become one."""
    start = 2 if data.startswith(b"\r\n") else 0
    line_end = data.find(b"\n", start)
    if line_end < 0:
        if len(data) > limits.request_line:
            raise InvalidRequestError(f"The request line is longer than {limits.request_line} bytes.")
        if _NOT_TEXT.search(data):
            raise InvalidRequestError("This is not an HTTP/1.1 request line.")
        return
    if line_end > limits.request_line + start:
        raise InvalidRequestError(f"The request line is longer than {limits.request_line} bytes.")
    if not data.endswith(b"\r\n", start, line_end + 1):
        raise InvalidRequestError("This is not an HTTP/1.1 request line.")
    _RequestLine(data[start : line_end - 1])
    if len(data) >= limits.head_bytes:
        raise HeadersTooLargeError(f"The header is longer than {limits.head_bytes} bytes.")
    if data.count(b"\n") > limits.head_fields + 2:
        raise HeadersTooLargeError(f"More than {limits.head_fields} header fields.")
    if data.count(b"\n") != data.count(b"\r\n"):
        raise InvalidRequestError("A header line is malformed.")
