"""Faults of HTTP/2: streams that are refused, connections that wind up, floods, and frames that break a rule.

They need a client that speaks HTTP/2, and leave an answer over HTTP/1.1 as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...proxy.upstream.h2_frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    SETTINGS,
    WINDOW_UPDATE,
)
from .fault import HTTP2, always, begun, body, good, head, of, rest
from .steps import END, FIN, Data, Frame, Head, Raw, Reset, Step, Wait

if TYPE_CHECKING:
    from ...dialects.mock import MockAnswer
    from .fault import Script

_MANY = 20_000
_LAST = 2**31 - 1
_MAX_CONCURRENT_STREAMS = 3
_NO_ERROR, _INTERNAL_ERROR, _REFUSED_STREAM, _CANCEL, _ENHANCE_YOUR_CALM = 0, 2, 7, 8, 11


def _long(number: int) -> bytes:
    return number.to_bytes(4, "big")


def _goaway(last: int, code: int = _NO_ERROR) -> Frame:
    return Frame(GOAWAY, 0, _long(last) + _long(code), connection=True)


def _streams(number: int) -> Frame:
    """SETTINGS: how many streams may be open at once."""
    return Frame(SETTINGS, 0, _MAX_CONCURRENT_STREAMS.to_bytes(2, "big") + _long(number), connection=True)


def _string(value: bytes) -> bytes:
    """HPACK, for less than 16 KiB."""
    size = len(value)
    if size < 127:
        return bytes((size,)) + value
    return bytes((127, (size - 127) % 128 + 128, (size - 127) // 128)) + value


def _field(name: bytes, value: bytes, *, indexed: bool = False) -> bytes:
    return (b"\x40" if indexed else b"\x00") + _string(name) + _string(value)


_OK = b"\x88"
"""`:status: 200`, from the static table."""
_NEWEST = b"\xbe"
"""The field that was added to the table last."""


def _head_of(block: bytes) -> Script:
    """A head whose field section is this."""
    return always(Frame(HEADERS, END_HEADERS, block))


def _with(*fields: tuple[bytes, bytes]) -> Script:
    return _head_of(_OK + b"".join(_field(name, value) for name, value in fields))


def _between(*steps: Step) -> Script:
    """This in the middle of an answer that then goes on."""
    return lambda answer: begun(answer, *steps, *map(Data, rest(answer)), END)


def _first(*steps: Step) -> Script:
    """This, and then a good answer."""
    return lambda answer: [*steps, *good(answer)]


def _padded(answer: MockAnswer) -> list[Step]:
    padded = [Frame(DATA, PADDED, b"\x20" + piece + bytes(32)) for piece in answer.pieces]
    return [Head(answer.status, tuple(answer.headers)), *padded, END]


H2_FAULTS = of(
    HTTP2,
    {
        "h2-refused": ("the stream is refused: not looked at", always(Reset(_REFUSED_STREAM))),
        "h2-cancel": ("the stream is cancelled without a word", always(Reset(_CANCEL))),
        "h2-cancel-in-body": ("the stream is cancelled in the middle", lambda a: begun(a, Reset(_CANCEL))),
        "h2-calm": ("the stream is ended with ENHANCE_YOUR_CALM", always(Reset(_ENHANCE_YOUR_CALM))),
        "h2-short-body": ("content-length above the body", lambda a: [
            head(a, length=len(body(a)) + 100), *map(Data, a.pieces), END
        ]),
        "h2-goaway": ("GOAWAY: nothing was looked at", always(_goaway(0), FIN)),
        "h2-goaway-then-answer": ("GOAWAY, and then the answer", _first(_goaway(_LAST))),
        "h2-goaway-in-body": ("GOAWAY disowns an answer under way", lambda a: begun(
            a, _goaway(0, _INTERNAL_ERROR), FIN
        )),
        "h2-no-streams": ("for a second no streams are allowed", _between(_streams(0), Wait(1.0), _streams(100))),
        "h2-settings-flood": ("20 000 SETTINGS", _first(Frame(SETTINGS, 0, b"", connection=True, times=_MANY))),
        "h2-ping-flood": ("20 000 PINGs", _first(Frame(PING, 0, bytes(8), connection=True, times=_MANY))),
        "h2-window-flood": (
            "20 000 WINDOW_UPDATEs",
            _first(Frame(WINDOW_UPDATE, 0, _long(1), connection=True, times=_MANY)),
        ),
        "h2-priority-flood": ("20 000 PRIORITY frames", _first(Frame(PRIORITY, 0, bytes(5), times=_MANY))),
        "h2-empty-data-flood": ("20 000 empty DATA frames", _between(Frame(DATA, 0, b"", times=_MANY))),
        "h2-continuation-flood": (
            "20 000 CONTINUATIONs of a head",
            always(Frame(HEADERS, 0, _OK), Frame(CONTINUATION, 0, _field(b"x", b"y" * 64), times=_MANY)),
        ),
        "h2-half-head": ("a head whose CONTINUATION never comes", always(Frame(HEADERS, 0, _OK))),
        "h2-hpack-bomb": (
            "64 MB of fields in 20 KB",
            _head_of(_OK + _field(b"x", b"y" * 4000, indexed=True) + _NEWEST * 12_000),
        ),
        "h2-bad-hpack": ("a head that cannot be decompressed", _head_of(b"\xff\xff\xff\xff\xff\xff")),
        "h2-no-status": ("a head without a status", _head_of(_field(b"x", b"y"))),
        "h2-upper-case": ("a field name in upper case", _with((b"X-Upper", b"y"))),
        "h2-line-break": ("a line break inside a field", _with((b"x", b"a\r\nset-cookie: b"))),
        "h2-second-head": ("another head in the middle", _between(Frame(HEADERS, END_HEADERS, _OK))),
        "h2-data-first": ("content before the head", _first(Frame(DATA, 0, b"{"))),
        "h2-push": ("a pushed stream", _first(Frame(PUSH_PROMISE, END_HEADERS, _long(2) + _OK))),
        "h2-big-frame": ("a frame of 32 KiB, twice what is allowed", _between(Frame(DATA, 0, b" " * 32768))),
        "h2-not-frames": ("HTTP/1.1 in the place of frames", always(Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"))),
        "h2-lone-continuation": ("CONTINUATION of nothing", _first(Frame(CONTINUATION, END_HEADERS, _OK))),
        "h2-unknown-frame": ("a frame of a kind that nobody knows", _between(Frame(0xFA, 0xFF, b"?" * 100))),
        "h2-padding": ("content with padding", _padded),
    },
)  # fmt: skip
