"""Request heads: the grammar of RFC 9112, as one expression that takes nothing else.

Smuggling lives where two readers of the same bytes disagree. So the head is not parsed and then checked: one
expression either matches it whole, with no leniency at all, or it is refused, and the fields are read from what has
matched. On top come the rules that take two fields at a time: one Host, one framing, and a target that names no other
host. The hot path is one match and one findall, as fast as a parser in C with a callback for each field (1.4 + 2.4 µs
for an SDK's 18 fields). Its verdicts are held against llhttp and h11 by tests/proxy/edge/test_request_head.py: what
passes here means the same there.

Not here: whether a body is complete (body.py), whether host and origin are allowed (guard.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from ..errors import HeadersTooLargeError, InvalidRequestError, MethodNotAllowedError
from .downstream import RequestHead

if TYPE_CHECKING:
    from .context import EdgeLimits
    from .downstream import Headers

CHUNKED = -1
"""`HttpRequestHead.length` of a body whose length is not known ahead."""

METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
_SINGLE = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"authorization", b"content-type", b"origin", b"expect")
)
_CONTENT_LENGTH_DIGITS = 18

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
FIELD_LINE = _TOKEN + rb"++:[^\x00-\x08\x0a-\x1f\x7f]*+\r\n"
_REQUEST_LINE = rb"(" + _TOKEN + rb"++) ([!-~]++) HTTP/1\.([01])\r\n"
_HEAD = re.compile(rb"(?:\r\n)?" + _REQUEST_LINE + rb"((?:" + FIELD_LINE + rb")*+)\r\n")
_FIELD = re.compile(rb"([^:]++):[ \t]*+([^\r]*+)\r\n")
_FIRST_LINE = re.compile(rb"(?:\r\n)?" + _REQUEST_LINE)
_HOST = re.compile(rb"(?:[0-9A-Za-z._~-]++|\[[0-9A-Fa-f:.]++\])(?::([0-9]{1,5}))?")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*+)(.*+)", re.IGNORECASE)
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_NOT_TEXT = re.compile(rb"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\xff]")
_known_hosts: dict[bytes, bool] = {}
_KNOWN_HOSTS = 1024


class HttpRequestHead(RequestHead):
    """A head as it came over HTTP/1, with what its connection must know. `length` is CHUNKED, or the body's bytes."""

    __slots__ = ("expects_continue", "fields", "keep_alive", "length")

    def __init__(
        self, method: str, target: bytes, headers: Headers, fields: dict[bytes, bytes], http_version: str, client: str
    ) -> None:
        self.method = method
        self.target, _, self.query = target.partition(b"?")
        self.path = decode_path(self.target)
        self.headers = headers
        self.fields = fields
        self.http_version = http_version
        self.client = client
        self.scheme = "http"
        self.length = 0
        self.keep_alive = http_version == "1.1"
        self.expects_continue = False

    def header(self, name: bytes) -> bytes | None:
        return self.fields.get(name)


def read_head(data: bytes | bytearray, limits: EdgeLimits, client: str) -> tuple[HttpRequestHead, int] | None:
    """The head at the start of `data` and where it ends; None while it is not whole. Raises what the client is told."""
    match = _HEAD.match(data, 0, limits.head_bytes)
    if match is None:
        _complain(data, limits)
        return None
    method, target, minor, _ = match.groups()
    if len(target) > limits.request_line - len(method) - 11:
        raise InvalidRequestError(f"The request line is longer than {limits.request_line} bytes.")
    at, end = match.span(4)
    headers = [(name.lower(), value) for name, value in _FIELD.findall(data, at, end)]
    if len(headers) > limits.head_fields:
        raise HeadersTooLargeError(f"More than {limits.head_fields} header fields.")
    fields = dict(headers)
    if len(fields) != len(headers):
        fields = _first_of_each(headers)
    if data.find(b" \r\n", at, end) >= 0 or data.find(b"\t\r\n", at, end) >= 0:
        headers = [(name, value.rstrip(b" \t")) for name, value in headers]
        fields = {name: value.rstrip(b" \t") for name, value in fields.items()}
    if method not in METHODS:
        raise MethodNotAllowedError("Not a method that is served here.")
    host = fields.get(b"host")
    if target[0] != 0x2F or b"#" in target:
        target = _origin_form(method, target, host)
    head = HttpRequestHead(method.decode(), target, headers, fields, "1.1" if minor == b"1" else "1.0", client)
    if host is None:
        if minor == b"1":
            raise InvalidRequestError("The Host header is missing.")
    elif not (_known_hosts.get(host) or is_host(host)):
        raise InvalidRequestError("The Host header is not a host and port.")
    _read_framing(head, fields)
    return head, match.end()


def may_be_whole(data: bytes | bytearray, new: bytes, limits: EdgeLimits) -> bool:
    """Whether reading `data` again is worth it now that `new` came: a head that drips in must not cost its square."""
    size = len(data)
    return b"\n" in new or size >= limits.head_bytes or (size > limits.request_line and b"\n" not in data)


def is_host(value: bytes) -> bool:
    """Whether `value` is `host` or `host:port`. Verdicts are remembered: the same few come with every request."""
    match = _HOST.fullmatch(value)
    valid = match is not None and 0 < int(match[1] or 1) < 65536
    if valid:
        if len(_known_hosts) >= _KNOWN_HOSTS:
            _known_hosts.clear()
        _known_hosts[value] = True
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
        if not length.isdigit() or len(length) > _CONTENT_LENGTH_DIGITS:
            raise InvalidRequestError("The content-length is not a number.")
        head.length = int(length)
    connection = fields.get(b"connection")
    if connection is not None:
        if connection == b"keep-alive" and len(fields) == len(head.headers):
            head.keep_alive = True
        else:
            lists = [value.lower().split(b",") for name, value in head.headers if name == b"connection"]
            tokens = {token.strip() for tokens in lists for token in tokens}
            head.keep_alive = b"close" not in tokens and (head.keep_alive or b"keep-alive" in tokens)
    upgrade = fields.get(b"upgrade")
    if upgrade is not None and b"websocket" in upgrade.lower():
        raise InvalidRequestError("WebSockets are not served here.")
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


def _origin_form(method: bytes, target: bytes, host: bytes | None) -> bytes:
    """The path of a target that is not simply one: a whole URL, or the `*` of OPTIONS."""
    match = _ABSOLUTE.fullmatch(target)
    if match is not None and b"#" not in target:
        authority, rest = match.groups()
        if host is None or authority.lower() != host.lower():
            raise InvalidRequestError("The request target names another host than the Host header.")
        return rest if rest.startswith(b"/") else b"/" + rest
    if target == b"*" and method == b"OPTIONS":
        return target
    raise InvalidRequestError("The request target is not a path.")


def _complain(data: bytes | bytearray, limits: EdgeLimits) -> None:
    """Say what is wrong with a head that does not match; silent while it may still become one."""
    first_line = _FIRST_LINE.match(data)
    if first_line is None:
        line_end = data.find(b"\n", 2)
        if (line_end < 0 and len(data) > limits.request_line) or line_end > limits.request_line:
            raise InvalidRequestError(f"The request line is longer than {limits.request_line} bytes.")
        if line_end >= 0 or _NOT_TEXT.search(data):
            raise InvalidRequestError("This is not an HTTP/1.1 request line.")
        return
    end = data.find(b"\r\n\r\n", first_line.end() - 2, limits.head_bytes)
    if end < 0:
        if len(data) >= limits.head_bytes:
            raise HeadersTooLargeError(f"The header is longer than {limits.head_bytes} bytes.")
        if data.count(b"\n") > limits.head_fields + 2:
            raise HeadersTooLargeError(f"More than {limits.head_fields} header fields.")
        if data.count(b"\n") == data.count(b"\r\n"):
            return
    raise InvalidRequestError("A header line is malformed.")
