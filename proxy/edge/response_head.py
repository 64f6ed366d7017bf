"""The head of an answer, as bytes: one join, a status line made ahead, and no way to smuggle a line in.

Most answers are whole when they begin, on a connection that is kept: `whole_answer` is for them, and does no more than
that takes.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

BODILESS = frozenset((204, 304))


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


_STATUS_LINES = {status: _status_line(status) for status in (101, *range(200, 1000))}
_field = b": ".join


def whole_answer(status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bytes:
    """An answer of known length, on a connection that is kept. Raises as `response_head` does."""
    head = b"\r\n".join((*map(_field, headers), b"content-length: %d" % len(body)))
    if len(head) - len(head.translate(None, b"\r\n\0")) != 2 * len(headers):
        raise ValueError("a header of an answer holds CR, LF or NUL")
    return b"%b%b\r\n\r\n%b" % (_STATUS_LINES[status], head, body)


def response_head(
    status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None, *, chunked: bool, connection: bytes = b""
) -> bytes:
    """`length` None and not `chunked`: no framing field at all. `connection` is a whole field line, or nothing.

    Raises ValueError where a name or value holds CR, LF or NUL, and KeyError for what is neither 101 nor final.
    """
    lines = b"\r\n".join(map(_field, headers))
    # What only line ends may hold, is there as often as there are line ends: one look for all three.
    if len(lines) - len(lines.translate(None, b"\r\n\0")) != 2 * max(len(headers) - 1, 0):
        raise ValueError("a header of an answer holds CR, LF or NUL")
    if chunked:
        ending = b"transfer-encoding: chunked\r\n\r\n"
    elif length is not None:
        ending = b"content-length: %d\r\n\r\n" % length
    else:
        ending = b"\r\n"
    return b"".join((_STATUS_LINES[status], lines, b"\r\n" if lines else b"", connection, ending))
