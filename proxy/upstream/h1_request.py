"""The bytes of an HTTP/1.1 request head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import GatewayError

if TYPE_CHECKING:
    from .call import UpstreamRequest

_SPACE = 0x20
_NO_CONTENT = frozenset((b"GET", b"HEAD", b"DELETE", b"OPTIONS"))
"""Methods where an empty body needs no length to say so."""


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
