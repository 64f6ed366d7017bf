"""A request as an HPACK block (RFC 7541) that needs no state.

Every field goes out as a literal that neither side indexes, names from the static table where it has them. So a block
is a function of its request: it costs a tenth of what the usual encoder takes, a peer that changes its table size
changes nothing, and no client can learn from the size of its requests what others send over the same connection. The
price is a few hundred bytes, as many as HTTP/1.1 takes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from hpack.table import HeaderTable

from ..errors import GatewayError
from ..headers import LONG_NAME

if TYPE_CHECKING:
    from .call import UpstreamRequest
    from .negotiate import Destination

NO_TABLE: Final = b"\x20"
"""Sets the size of the dynamic table to 0. Once, at the start of a connection's first block; whatever table the peer
allows later is larger."""

CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"host", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade")
)
"""Fields of HTTP/1.1's framing; here they would make the message malformed (RFC 9113, 8.2.2)."""

_SECRET = frozenset((b"authorization", b"proxy-authorization", b"cookie", b"x-api-key", b"api-key", b"x-goog-api-key"))
"""Fields that nobody on the way may put into a table either (RFC 7541, 7.1.3)."""

_NEVER_INDEXED = 0x10
_NO_CONTENT = frozenset((b"GET", b"HEAD", b"DELETE", b"OPTIONS"))
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_REMEMBERED = 4096
_STATIC: dict[bytes, int] = {}
for _index, (_name, _) in enumerate(HeaderTable.STATIC_TABLE, 1):
    _STATIC.setdefault(_name, _index)


def _integer(number: int, prefix_bits: int, pattern: int) -> bytes:
    """RFC 7541, 5.1."""
    limit = (1 << prefix_bits) - 1
    if number < limit:
        return bytes((pattern | number,))
    encoded = [pattern | limit]
    number -= limit
    while number >= 128:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_LENGTHS = [_integer(length, 7, 0) for length in range(512)]


def _string(value: bytes) -> bytes:
    length = len(value)
    return (_LENGTHS[length] if length < 512 else _integer(length, 7, 0)) + value


def _name_of(name: bytes, pattern: int) -> bytes:
    index = _STATIC.get(name)
    return _integer(index, 4, pattern) if index is not None else bytes((pattern,)) + _string(name)


class _Names(dict[bytes, bytes]):
    """Name -> how a literal of it begins, empty for one that must not be sent; bounded, for names come from outside."""

    def __missing__(self, name: bytes) -> bytes:
        if not _TOKEN.fullmatch(name):
            raise _refused("a field name")
        start = b"" if name in CONNECTION_SPECIFIC else _name_of(name, _NEVER_INDEXED if name in _SECRET else 0)
        if len(self) < _REMEMBERED and len(name) <= LONG_NAME:
            self[name] = start
        return start


_names = _Names()
_METHODS = {b"GET": b"\x82", b"POST": b"\x83"}
_PATH = _name_of(b":path", 0)
_LENGTH = _name_of(b"content-length", 0)


class Common(NamedTuple):
    """What every request to one endpoint has in common, encoded once."""

    target: bytes
    """`:scheme` and `:authority`."""
    base: bytes
    """Path that precedes every target, as it is."""
    fields: bytes
    """The credential: marked as never to be indexed, not even by who passes it on."""


def encode_common(to: Destination) -> Common:
    """For one connection or all of an endpoint."""
    target = (b"\x87" if to.scheme == b"https" else b"\x86") + _name_of(b":authority", 0) + _string(to.authority)
    fields = b"".join(_name_of(name, _NEVER_INDEXED) + _string(value) for name, value in to.credential)
    return Common(target, to.base, fields)


def encode_block(request: UpstreamRequest, to: Common) -> bytes:
    """The header block of a request. Raises GatewayError when a line break or NUL hides in any part."""
    source = request.source
    length = len(request.body) if source is None else source.length
    path = to.base + request.target
    values = [value for _, value in request.headers]
    text = b"".join((*values, path, request.method))
    if b"\r" in text or b"\n" in text or b"\0" in text or b" " in path or not path.startswith((b"/", b"*")):
        raise _refused("a line break or NUL in a field, or a target that is none")
    names = _names
    parts = [_METHODS.get(request.method) or _name_of(b":method", 0) + _string(request.method)]
    parts += (to.target, _PATH, _string(path), to.fields)
    parts += [start + _string(value) for name, value in request.headers if (start := names[name])]
    if length is not None and (length or request.method not in _NO_CONTENT):
        parts += (_LENGTH, _string(b"%d" % length))
    return b"".join(parts)


def _refused(detail: str) -> GatewayError:
    return GatewayError("The request holds a field that cannot be sent.", detail=detail)
