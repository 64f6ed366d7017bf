"""Faults of HTTP itself: connections that end, heads that are none, and lies about where a body ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .fault import CONNECTION, FRAMING, HEAD, always, begun, body, good, head, is_stream, of, raw, rest, start
from .steps import DEAF, END, FIN, RST, Data, Head, Interim, Raw, Step, Wait

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...dialects.mock import MockAnswer
    from .fault import Script

_HALF_HEAD = b"HTTP/1.1 200 OK\r\ncontent-ty"
_EMPTY = b"content-length: 2\r\n\r\n{}"
_HINTS = Interim(103, ((b"link", b"</style.css>; rel=preload"),))
_MIB = 1 << 20


def _dripping(data: bytes, seconds: float) -> Iterator[Step]:
    for byte in data:
        yield Raw(bytes((byte,)))
        yield Wait(seconds)


def _fields(*more: tuple[bytes, bytes]) -> Script:
    """A good answer with more in its head."""
    return lambda answer: [head(answer, *more), *map(Data, answer.pieces), END]


def _line(line: bytes) -> Script:
    """A head with a line that must not be there; what follows would be a whole answer."""
    return always(b"HTTP/1.1 200 OK\r\n" + line + _EMPTY)


def _framed(answer: MockAnswer, *fields: bytes) -> Raw:
    """A head with its framing fields as given."""
    return Raw(b"\r\n".join((b"HTTP/1.1 200 OK", b"content-type: " + _kind(answer), *fields, b"", b"")))


def _kind(answer: MockAnswer) -> bytes:
    return b"text/event-stream" if is_stream(answer) else b"application/json"


def _under(*fields: bytes) -> Script:
    """The whole body under these framing fields, then the end of the connection."""
    return lambda answer: [_framed(answer, *fields), Raw(body(answer)), FIN]


def _chunks(pieces: list[bytes]) -> list[Step]:
    return [Raw(b"%x\r\n%b\r\n" % (len(piece), piece)) for piece in pieces]


def _in_chunks(*then: bytes | Step) -> Script:
    """The beginning in good chunks, and what comes instead of the next."""
    return lambda answer: [_framed(answer, b"transfer-encoding: chunked"), *_chunks(start(answer)), *raw(*then)]


def _whole_chunks(*end: bytes | Step) -> Script:
    """All of it in good chunks, and what comes instead of the last."""
    return lambda answer: [*_in_chunks()(answer), *_chunks(rest(answer)), *raw(*end)]


def _after_end(extra: bytes) -> Script:
    return lambda answer: [_framed(answer, b"content-length: %d" % len(body(answer))), Raw(body(answer) + extra)]


_SECOND = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 16\r\n\r\n{"another": "1"}'

AT_ACCEPT = of(
    CONNECTION,
    {
        "accept-close": ("closed as soon as it is open", always(FIN)),
        "accept-reset": ("reset as soon as it is open", always(RST)),
        "accept-stall": ("open, but nothing is ever said", always()),
        "deaf": ("open, but nothing is read or said", always(DEAF)),
    },
    at_accept=True,
)

CONNECTIONS = of(
    CONNECTION,
    {
        "close-before-head": ("closed without a word", always(FIN)),
        "reset-before-head": ("reset without a word", always(RST)),
        "close-in-head": ("closed in the middle of the head", always(_HALF_HEAD, FIN)),
        "reset-in-head": ("reset in the middle of the head", always(_HALF_HEAD, RST)),
        "close-in-body": ("closed in the middle of the body", lambda a: begun(a, FIN)),
        "reset-in-body": ("reset in the middle of the body", lambda a: begun(a, RST)),
    },
)

HEADS = of(
    HEAD,
    {
        "drip-head": (
            "one byte a second, without end",
            lambda _: _dripping(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 4096, 1.0),
        ),
        "garbage": ("bytes that are no HTTP", always(b"\x00\x01\x02\xff garbage\r\n\r\n", FIN)),
        "other-protocol": ("an SMTP greeting", always(b"220 mail.example ESMTP\r\n", FIN)),
        "http2-frames": (
            "frames of HTTP/2 on HTTP/1.1",
            always(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + b"\0" * 18, FIN),
        ),
        "no-status": ("a status line without a status", always(b"HTTP/1.1 \r\n\r\n", FIN)),
        "status-words": ("a status in words", always(b"HTTP/1.1 two hundred\r\n\r\n", FIN)),
        "interim": ("100 and 103 before the answer", lambda a: [Interim(100), _HINTS, *good(a)]),
        "interim-flood": ("fifty times 103 before the answer", lambda a: [*[_HINTS] * 50, *good(a)]),
        "switch-protocols": (
            "101 that nobody asked for",
            always(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", b"\x81\x05hello"),
        ),
        "big-field": ("a field of 128 KiB", _fields((b"x-big", b"y" * 131072))),
        "many-fields": ("five hundred fields", _fields(*((b"x-%d" % n, b"1") for n in range(500)))),
        "bare-cr": ("a CR inside a field", _line(b"x: a\rset-cookie: b\r\n")),
        "nul-in-field": ("a NUL inside a field", _line(b"x: a\x00b\r\n")),
        "folded-field": ("a field over two lines", _line(b"x: a\r\n b\r\n")),
        "space-in-name": ("a space before the colon", _line(b"x : a\r\n")),
        "no-colon": ("a line that is no field", _line(b"not a field\r\n")),
    },
)

FRAMINGS = of(
    FRAMING,
    {
        "length-too-long": (
            "content-length above the body, then closed",
            lambda a: [head(a, length=len(body(a)) + 100), Data(body(a)), FIN],
        ),
        "length-too-short": (
            "content-length below the body",
            lambda a: [head(a, length=len(body(a)) // 2), Data(body(a))],
        ),
        "two-lengths": ("two different content-lengths", _under(b"content-length: 2", b"content-length: 3")),
        "negative-length": ("content-length: -1", _under(b"content-length: -1")),
        "length-and-chunks": ("content-length and chunks", _under(b"content-length: 2", b"transfer-encoding: chunked")),
        "coded-twice": ("transfer-encoding: gzip, chunked", _under(b"transfer-encoding: gzip, chunked")),
        "bad-chunk-size": ("a chunk size that is no number", _in_chunks(b"xyz\r\n", FIN)),
        "negative-chunk-size": ("a chunk size below zero", _in_chunks(b"-1\r\n{}\r\n", FIN)),
        "endless-chunk-size": ("a chunk size of 40 digits", _in_chunks(b"f" * 40, FIN)),
        "huge-chunk-size": ("a chunk of 2^64 bytes", _in_chunks(b"ffffffffffffffff\r\nabc", FIN)),
        "chunk-too-long": ("a chunk longer than its size", _in_chunks(b"2\r\nabcdef\r\n", FIN)),
        "no-last-chunk": ("all chunks but the last, then closed", _whole_chunks(FIN)),
        "chunk-extension": (
            "a chunk extension of 1 MiB",
            lambda a: _in_chunks(b"2;x=" + b"y" * _MIB + b"\r\n{}\r\n")(a),
        ),
        "trailers": ("a field after the last chunk", _whole_chunks(b"0\r\nx-trailer: 1\r\n\r\n", END)),
        "trailer-flood": (
            "1 MiB of fields after the last chunk",
            lambda a: _whole_chunks(b"0\r\n" + b"x: yyyyyyyyyyy\r\n" * 65536)(a),
        ),
        "bytes-after-end": ("bytes after the whole answer", _after_end(b"garbage")),
        "second-answer": ("two answers to one request", _after_end(_SECOND)),
        "until-close": ("no length: the body ends with the connection", _under()),
        "http-1.0": (
            "HTTP/1.0, the body ends with the connection",
            lambda a: [Raw(b"HTTP/1.0 200 OK\r\ncontent-type: %b\r\n\r\n" % _kind(a)), Raw(body(a)), FIN],
        ),
        "empty-answer": ("200 without a body", lambda a: [Head(200, tuple(a.headers), 0), END]),
        "no-content": ("204, and so no body", always(Head(204, ()), END)),
    },
)

WIRE_FAULTS = [*AT_ACCEPT, *CONNECTIONS, *HEADS, *FRAMINGS]
