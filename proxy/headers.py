"""Which fields cross the gateway, in which direction.

Unknown fields pass: providers and SDKs invent new ones every month. What never passes: hop-by-hop fields and those that
`connection` names, credentials and cookies, what describes the client's own hop, and everything in the gateway's own
name space. The verdict on a name is remembered, because the same twenty names come with every request.
"""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

from .errors import GatewayError

if TYPE_CHECKING:
    from .edge.downstream import Headers, RequestHead
    from .upstream.call import ResponseHead

_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"trailers",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
        b"content-length",
    )
)
NEVER_UP = _HOP | frozenset(
    (
        b"host",
        b"expect",
        b"authorization",
        b"x-api-key",
        b"api-key",
        b"x-goog-api-key",
        b"cookie",
        b"accept-encoding",
        b"content-type",
        b"content-encoding",
        b"forwarded",
        b"x-real-ip",
        b"via",
        b"origin",
        b"referer",
        b"x-request-id",
    )
)
REQUEST_ID = b"x-request-id"
LEAVE_ME = b"x-envoy-immediate-health-check-fail"
"""On an answer, whatever its value: its endpoint is to be left alone from now on. It is said to us; a proxy before the
gateway would take it for a word about the gateway."""
_NOT_DOWN = _HOP | frozenset((b"set-cookie", b"server", b"alt-svc", b"strict-transport-security", LEAVE_ME))
_OURS = b"x-headgate-"
_REMEMBERED = 4096
LONG_NAME = 64
"""Bytes of a field's name above which nothing is remembered of it: names come from outside, and no known one is as
long."""
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class _Verdicts(dict[bytes, bool]):
    """name -> passes; filled on demand and bounded, because names come from outside."""

    def __init__(self, refused: frozenset[bytes], prefixes: tuple[bytes, ...]) -> None:
        super().__init__()
        self._refused = refused
        self._prefixes = prefixes

    def __missing__(self, name: bytes) -> bool:
        passes = name not in self._refused and not name.startswith(self._prefixes)
        if len(self) < _REMEMBERED and len(name) <= LONG_NAME:
            self[name] = passes
        return passes


_up = _Verdicts(NEVER_UP, (_OURS, b"x-forwarded-", b"proxy-", b"sec-websocket-"))
_down = _Verdicts(_NOT_DOWN, (_OURS, b"proxy-"))


_CONTENT = frozenset((b"content-type", b"content-encoding"))


def to_upstream(head: RequestHead, request_id: bytes, own: frozenset[bytes], *, verbatim: bool = False) -> Headers:
    """The client's fields that go to the provider. `own` names further fields of ours, such as a configured key
    header. `verbatim`: the body is described as the client did, and not as JSON."""
    up = _up
    fields = [field for field in head.headers if up[field[0]]]
    if head.names_fields:
        own = own.union(named_by_connection(head.headers))
    if own:
        fields = [field for field in fields if field[0] not in own]
    if verbatim:
        fields += [field for field in head.headers if field[0] in _CONTENT]
    else:
        fields.append((b"content-type", b"application/json"))
    fields.append((b"accept-encoding", b"identity"))
    fields.append((b"x-request-id", request_id))
    return fields


class Upward(NamedTuple):
    """Fields for a provider that do not change from request to request, and the same as lines."""

    own: frozenset[bytes]
    fields: Headers
    lines: bytes


def lines_upstream(head: RequestHead, request_id: bytes, own: frozenset[bytes]) -> tuple[Headers, bytes]:
    """As `to_upstream`, and the same as the lines of a head; empty where each request of the client is another."""
    known = head.known
    if known is None or head.headers != head.came:
        return to_upstream(head, request_id, own), b""
    made: Upward | None = known.upward
    if made is None or made.own is not own:
        fields = to_upstream(head, request_id, own)[:-1]
        lines = b"" if known.changing & {name for name, _ in fields} else field_lines(fields)
        made = known.upward = Upward(own, fields, lines)
    if not made.lines:
        return to_upstream(head, request_id, own), b""
    return [*made.fields, (b"x-request-id", request_id)], b"%b\r\nx-request-id: %b" % (made.lines, request_id)


def field_lines(fields: Headers) -> bytes:
    """The lines of a head. Raises GatewayError when a line break or NUL hides in any part, which is looked for as in
    upstream/h1_request.py and edge/response_head.py; there in line, for a call would run for every request."""
    lines = b"\r\n".join(map(b": ".join, fields))
    if len(lines) - len(lines.translate(None, b"\r\n\0")) != 2 * max(len(fields) - 1, 0):
        message = "The request holds a field that cannot be sent."
        raise GatewayError(message, detail="a line break or NUL in a field")
    return lines


def below_v1(head: RequestHead) -> bytes:
    """Path and query as the client wrote them, below `/v1`, where a provider's base URL ends."""
    target = head.target.removeprefix(b"/v1")
    return target + b"?" + head.query if head.query else target


AZURE = "/openai/"
"""Where the paths of Azure's clients begin."""


def without_version(query: bytes) -> bytes:
    """A query without Azure's `api-version`, which belongs to the path the client used."""
    return b"&".join([part for part in query.split(b"&") if not part.startswith(b"api-version=")])


def to_downstream(head: ResponseHead) -> Headers:
    """The provider's fields that go to the client."""
    down = _down
    fields = [field for field in head.headers if down[field[0]]]
    if head.header(b"connection") is not None and (named := named_by_connection(head.headers)):
        fields = [field for field in fields if field[0] not in named]
    return fields


def client_request_id(head: RequestHead) -> bytes | None:
    """The client's `x-request-id` where it is one: at most 128 visible ASCII characters."""
    value = head.header(REQUEST_ID)
    return value if value is not None and _REQUEST_ID.fullmatch(value) else None


def named_by_connection(headers: Headers) -> frozenset[bytes] | tuple[()]:
    """The fields that belong to the client's, or the provider's, own connection by their word."""
    for name, value in headers:
        if name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            return frozenset(
                token.strip().lower() for key, tokens in headers if key == b"connection" for token in tokens.split(b",")
            )
    return ()


def retry_after(headers: Headers, wall: float) -> float | None:
    """Seconds a provider asks to wait: `retry-after-ms`, or `retry-after` in seconds or as a date; None when none of
    them is usable. `wall` is now, for a date."""
    fields = dict(headers)
    for name, read in ((b"retry-after-ms", _milliseconds), (b"retry-after", _seconds)):
        value = fields.get(name)
        if value is None:
            continue
        try:
            seconds = read(value.decode("latin-1").strip(), wall)
        except (ValueError, TypeError, OverflowError):
            continue
        if isfinite(seconds):
            return max(0.0, seconds)
    return None


def _milliseconds(text: str, wall: float) -> float:
    return float(text) / 1000


def _seconds(text: str, wall: float) -> float:
    try:
        return float(text)
    except ValueError:
        date = parsedate_to_datetime(text)
    if date.tzinfo is None:  # "-0000": UTC, of an unknown place
        date = date.replace(tzinfo=UTC)
    return date.timestamp() - wall


_NO_TEXT = (b"audio/", b"image/", b"video/")


def passes_unread(head: ResponseHead) -> bool:
    """Whether a body holds sounds or pictures, or nothing at all: there is no text in it to look for."""
    kind = (head.header(b"content-type") or b"").lower()
    return kind.startswith(_NO_TEXT) or head.status in (101, 204, 304) or head.header(b"content-length") == b"0"


def is_document(kind: bytes) -> bool:
    """Whether a body of this content type is one thing, and not a sequence of lines or events."""
    if b"json" in kind:
        return b"ndjson" not in kind and b"jsonl" not in kind and b"json-seq" not in kind and b"stream" not in kind
    return kind.startswith(b"text/") and not kind.startswith(b"text/event-stream")
