"""Which field sections of an HTTP/2 answer are a head (RFC 9113, section 8).

What only frames HTTP/1.1 is taken out, so that whoever reads an answer need not know which version carried it. What
would change its meaning once it is written in HTTP/1.1 is refused: a line break, a NUL, a name that is no token.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..errors import ProtocolError
from ..headers import LONG_NAME
from .call import ResponseHead
from .h1_answer import MAX_FIELDS
from .h2_request import CONNECTION_SPECIFIC

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..edge.downstream import Headers

NOT_HTTP = "The provider's answer is not valid HTTP."
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_REMEMBERED = 4096


class _Verdicts(dict[bytes, bool]):
    """Name -> is kept; names that are none raise. Bounded, because names come from outside."""

    def __missing__(self, name: bytes) -> bool:
        if not _NAME.fullmatch(name):
            raise ProtocolError(NOT_HTTP, detail=f"field name {name[:50]!r}")
        kept = name not in CONNECTION_SPECIFIC
        if len(self) < _REMEMBERED and len(name) <= LONG_NAME:
            self[name] = kept
        return kept


_kept = _Verdicts()


def read_head(fields: Iterable[tuple[bytes, bytes]]) -> ResponseHead:
    """A head, interim ones included. Raises ProtocolError."""
    pairs = iter(fields)
    name, status = next(pairs, (b"", b""))
    if name != b":status" or len(status) != 3 or not status.isdigit() or not b"100" <= status <= b"599":
        raise ProtocolError(NOT_HTTP, detail=f"no status, but {name[:50]!r}: {status[:50]!r}")
    headers = _fields(pairs)
    return ResponseHead(int(status), headers)


def check_trailers(fields: Iterable[tuple[bytes, bytes]]) -> None:
    """Trailers are dropped, but they must be some. Raises ProtocolError."""
    _fields(fields)


def content_length(head: ResponseHead) -> int | None:
    """What the answer says of its length. Raises ProtocolError where it says two things, or none that is a number."""
    values = {value for name, value in head.headers if name == b"content-length"}
    if not values:
        return None
    value = values.pop()
    if values or not value.isdigit() or len(value) > 18:
        raise ProtocolError(NOT_HTTP, detail=f"content-length {value[:50]!r} and {len(values)} others")
    return int(value)


def _fields(pairs: Iterable[tuple[bytes, bytes]]) -> Headers:
    kept = _kept
    headers = [(name, value) for name, value in pairs if kept[name]]
    text = b"".join([value for _, value in headers])
    if b"\r" in text or b"\n" in text or b"\0" in text:
        raise ProtocolError(NOT_HTTP, detail="a line break or NUL in a field")
    if len(headers) > MAX_FIELDS:
        raise ProtocolError(NOT_HTTP, detail=f"a head of {len(headers)} fields")
    return headers
