"""The bytes of an HTTP/1.1 request head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import GatewayError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .call import UpstreamRequest

_SPACE = 0x20
_REMEMBERED = 256
_REMEMBERED_BYTES = 200
_NO_CONTENT = frozenset((b"GET", b"HEAD", b"DELETE", b"OPTIONS"))
"""Methods where an empty body needs no length to say so."""


class HeadEncoder:
    """The heads of requests to one endpoint, below its `base` path. `fixed` is ` HTTP/1.1` and its own field lines,
    without the last line end.

    Where the lines of a request are ready, nothing is left but its first line, which is remembered with the endpoint's
    own: clients name the same few targets. A query is not remembered: it may hold anything.
    """

    __slots__ = ("_base", "_fixed", "_starts")

    def __init__(self, base: bytes, fixed: bytes) -> None:
        self._base = base
        self._fixed = fixed
        self._starts: dict[tuple[bytes, bytes], bytes] = {}

    def encode(self, request: UpstreamRequest) -> bytes:
        """The head of `request`. Raises GatewayError as `encode_head`."""
        if not (request.lines and request.body) or request.lined != len(request.headers):
            return encode_head(request, self._base, self._fixed)
        start = self._starts.get((request.method, request.target))
        if start is None:
            head = encode_head(request, self._base, self._fixed)
            self._remember(request)
            return head
        return b"%b%b\r\ncontent-length: %d\r\n\r\n" % (start, request.lines, len(request.body))

    def _remember(self, request: UpstreamRequest) -> None:
        """How the head of a request begins, of which `encode_head` has found nothing to refuse."""
        if len(request.target) <= _REMEMBERED_BYTES and b"?" not in request.target:
            if len(self._starts) >= _REMEMBERED:
                self._starts.clear()
            start = b"".join((request.method, b" ", self._base, request.target, self._fixed, b"\r\n"))
            self._starts[request.method, request.target] = start


def ready_lines(fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Field lines, each after a line end, to follow those of an `UpstreamRequest`; empty where a line break or NUL
    hides in one."""
    lines = b"".join([b"\r\n%b: %b" % field for field in fields])
    return lines if len(lines) - len(lines.translate(None, b"\r\n\0")) == 2 * len(fields) else b""


def encode_head(request: UpstreamRequest, base: bytes, fixed: bytes) -> bytes:
    """Request line and fields. `fixed` is ` HTTP/1.1` and the endpoint's own field lines, without the last line end.

    Raises GatewayError when a line break or NUL hides in any part. The finished head must hold exactly the line ends
    that were put there: one look over it for all three is cheaper than one into every field, and forgets none. Lines
    that were ready have been looked at (proxy/headers.py).
    """
    headers, lines = request.headers, request.lines
    if lines:
        headers = headers[request.lined :]
    source = request.source
    length = len(request.body) if source is None else source.length
    breaks = fixed.count(b"\n") + len(headers) + 2
    if request.upgrade:
        ending = b"\r\n\r\n"
    elif length is None:
        breaks += 1
        ending = b"\r\ntransfer-encoding: chunked\r\n\r\n"
    elif length or request.method not in _NO_CONTENT:
        breaks += 1
        ending = b"\r\ncontent-length: %d\r\n\r\n" % length
    else:
        ending = b"\r\n\r\n"
    start = b"".join((request.method, b" ", base, request.target, fixed))
    between = b"\r\n" if headers else b""
    rest = b"".join((between, b"\r\n".join(map(b": ".join, headers)), ending))
    head = start + rest
    if len(head) - len(head.translate(None, b"\r\n\0")) != 2 * breaks or _SPACE in request.target:
        message = "The request holds a field that cannot be sent."
        raise GatewayError(message, detail="a line break or NUL in a field, or a space in the target")
    return b"%b\r\n%b%b" % (start, lines, rest) if lines else head
