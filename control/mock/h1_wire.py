"""Steps as bytes of HTTP/1.1, in the framing that their head announced."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from .steps import Data, Frame, Head, Interim

if TYPE_CHECKING:
    from .steps import Fields, Say

_BODILESS = (204, 304)


class H1Encoder:
    """One answer after the other, on one connection."""

    __slots__ = ("_chunked",)

    def __init__(self) -> None:
        self._chunked = False

    def encode(self, step: Say) -> bytes:
        """What a step says."""
        match step:
            case Interim():
                return _head(step.status, step.fields)
            case Head():
                self._chunked = step.length is None and step.status not in _BODILESS
                framing: Fields = ()
                if self._chunked:
                    framing = ((b"transfer-encoding", b"chunked"),)
                elif step.length is not None:
                    framing = ((b"content-length", b"%d" % step.length),)
                return _head(step.status, (*step.fields, *framing))
            case Data() if self._chunked:
                return b"%x\r\n%b\r\n" % (len(step.data), step.data) if step.data else b""
            case Frame():
                return b""  # of HTTP/2: nobody plays it here
        return step.data

    def end(self) -> bytes:
        """What tells that the message is whole, where its length has not."""
        chunked, self._chunked = self._chunked, False
        return b"0\r\n\r\n" if chunked else b""


def _head(status: int, fields: Fields) -> bytes:
    lines = [b"%b: %b\r\n" % field for field in fields]
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, _phrase(status), b"".join(lines))


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:  # 529, which is nobody's standard
        return b"Overloaded"
