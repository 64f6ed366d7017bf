"""The head of a plain answer: HTTP/1.1, one content-length, and nothing that two readers could read differently.

It decides nothing about odd answers: whatever is not surely plain is None, and goes to the parser that judges all. So
it may be strict where that is lenient, and must never be lenient where that is strict. Lines are remembered with their
meaning, a pure function of them, as in edge/request_head.py: a provider sends the same ones every time.
tests/proxy/upstream/test_plain_head.py holds it against the parser.
"""

from __future__ import annotations

import re

from ..edge.request_head import FIELD_LINE
from .call import ResponseHead

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2}) [\t -~]*")
_FIELD_LINE = re.compile(FIELD_LINE)
_BODILESS = frozenset((204, 205, 304))
_ODD = frozenset((b"transfer-encoding", b"upgrade", b"proxy-connection", b"trailer"))
_FRAMING = (b"content-length", b"connection")
_KEPT = {b"keep-alive": True, b"Keep-Alive": True, b"close": False, b"Close": False}
"""By the value of `connection`."""
_MAX_FIELDS = 100
_MAX_BYTES = 16 * 1024
_REMEMBERED = 1024
_REMEMBERED_BYTES = 200


class _OddError(Exception):
    """The parser must judge it."""


class _Lines(dict[bytes, tuple[bytes, bytes]]):
    """line -> name and value, for the lines a plain head may have."""

    def __missing__(self, line: bytes) -> tuple[bytes, bytes]:
        match = _FIELD_LINE.fullmatch(line)
        if match is None or line.endswith((b" ", b"\t")):
            raise _OddError
        name = match[1].lower()
        if name in _ODD:
            raise _OddError
        field = (name, match[2])
        if len(line) <= _REMEMBERED_BYTES and name != b"set-cookie":
            if len(self) >= _REMEMBERED:
                self.clear()
            self[line] = field
        return field


class _StatusLines(dict[bytes, int]):
    """line -> status, for those that have a body."""

    def __missing__(self, line: bytes) -> int:
        match = _STATUS_LINE.fullmatch(line)
        if match is None or (status := int(match[1])) in _BODILESS:
            raise _OddError
        if len(line) <= _REMEMBERED_BYTES:
            if len(self) >= _REMEMBERED:
                self.clear()
            self[line] = status
        return status


_lines = _Lines()
_field = _lines.__getitem__
_status_lines = _StatusLines()


def read_plain_head(data: bytes) -> tuple[ResponseHead, int, int, bool] | None:
    """The head at the start of `data`, if it is whole and plain; where its body begins, how long that is, and whether
    the connection is kept after it."""
    end = data.find(b"\r\n\r\n", 0, _MAX_BYTES)
    if end < 0:
        return None
    first, *lines = data[:end].split(b"\r\n")
    try:
        status, headers = _status_lines[first], [*map(_field, lines)]
    except _OddError:
        return None
    fields = dict(headers)
    length = fields.get(b"content-length", b"")
    keep_alive = _KEPT.get(fields.get(b"connection", b"keep-alive"))
    if keep_alive is None or not length.isdigit() or len(length) > 15 or len(lines) > _MAX_FIELDS:
        return None
    if len(fields) == len(lines):
        return ResponseHead(status, headers, fields), end + 4, int(length), keep_alive
    if sum(name in _FRAMING for name, _ in headers) > 1 + (b"connection" in fields):
        return None
    return ResponseHead(status, headers), end + 4, int(length), keep_alive
