"""Faults of the provider behind sound HTTP: it refuses, answers something else, or takes too long."""

from __future__ import annotations

import gzip
import json
from functools import cache
from typing import TYPE_CHECKING

from .fault import BODY, DONE, STATUS, TIME, begun, body, good, head, is_stream, of, rest, start
from .steps import END, RST, Data, Head, Step, Wait

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ...dialects.mock import MockAnswer
    from .fault import Script

_JSON = (b"content-type", b"application/json")
_HTML = (b"content-type", b"text/html")
_SSE = (b"content-type", b"text/event-stream")
_LATE = 30.0
"""Seconds: longer than most clients wait for a next event, shorter than they wait for all."""
_MIB = 1 << 20


_COMPLETION = json.dumps(
    {
        "id": "chatcmpl-mock",
        "object": "chat.completion",
        "created": 0,
        "model": "mock",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}],
    }
).encode()


def _whole(
    content: bytes, *fields: tuple[bytes, bytes], status: int = 200, kind: tuple[bytes, bytes] = _JSON
) -> Script:
    """The same whole answer whatever was asked."""
    steps: list[Step] = [Head(status, (kind, *fields), len(content)), *([Data(content)] if content else []), END]
    return lambda _: steps


def _refusal(status: int, message: str, *fields: tuple[bytes, bytes], code: str | None = None) -> Script:
    """An error in the shape of the OpenAI API."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return _whole(json.dumps(error).encode(), *fields, status=status)


def _limited(*wait: bytes) -> Script:
    fields = [(b"retry-after", value) for value in wait]
    return _refusal(429, "Rate limit reached for requests.", *fields, code="rate_limit_exceeded")


def _zipped(answer: MockAnswer, *pieces: bytes) -> list[Step]:
    return [Head(answer.status, (*answer.headers, (b"content-encoding", b"gzip"))), *map(Data, pieces), END]


@cache
def _bomb() -> list[bytes]:
    """64 MiB in 64 KiB."""
    packed = gzip.compress(b" " * (64 * _MIB), 9, mtime=0)
    return [packed[at : at + 16384] for at in range(0, len(packed), 16384)]


def _other_kind(answer: MockAnswer) -> list[Step]:
    if is_stream(answer):
        return [Head(200, (_JSON,), len(_COMPLETION)), Data(_COMPLETION), END]
    return [Head(200, (_SSE,)), Data(b"data: %b\n\n" % answer.pieces[0]), Data(DONE), END]


def _unsized(answer: MockAnswer, pieces: Iterable[bytes], *then: Step) -> list[Step]:
    """With a head that leaves open how long the body is."""
    return [Head(answer.status, tuple(answer.headers)), *map(Data, pieces), *then]


def _untyped(answer: MockAnswer) -> list[Step]:
    return [Head(answer.status, ()), *map(Data, answer.pieces), END]


def _mislabelled(answer: MockAnswer) -> list[Step]:
    kind = b"text/event-stream" if is_stream(answer) else b"application/json"
    return [Head(answer.status, ((b"content-type", kind + b"; charset=utf-16"),)), *map(Data, answer.pieces), END]


def _slowly(answer: MockAnswer, pieces: Iterable[bytes], seconds: float, *then: Step) -> Iterator[Step]:
    yield head(answer)
    for piece in pieces:
        yield Wait(seconds)
        yield Data(piece)
    yield from then


def _bytes(data: bytes) -> list[bytes]:
    return [bytes((byte,)) for byte in data]


def _slow_then_fast(answer: MockAnswer) -> Iterator[Step]:
    yield from _slowly(answer, start(answer), 5.0)
    yield from map(Data, rest(answer))
    yield END


STATUSES = of(
    STATUS,
    {
        "400": ("the request is refused", _refusal(400, "Invalid value.", code="invalid_value")),
        "401": ("the key is refused", _refusal(401, "Incorrect API key provided.", code="invalid_api_key")),
        "403": ("the key may not do this", _refusal(403, "You are not allowed to use this model.")),
        "404": ("the model does not exist", _refusal(404, "The model does not exist.", code="model_not_found")),
        "408": ("the provider waited too long", _refusal(408, "Request timeout.")),
        "429": ("rate limited, with retry-after: 1", _limited(b"1")),
        "429-date": ("rate limited until a date that is past", _limited(b"Wed, 21 Oct 2015 07:28:00 GMT")),
        "429-forever": ("rate limited for 30 years", _limited(b"1000000000")),
        "429-garbage": ("rate limited, with a retry-after in words", _limited(b"soon")),
        "429-silent": ("rate limited, and nothing said of when", _limited()),
        "500": ("an error of the provider", _refusal(500, "The server had an error.")),
        "502-html": (
            "a proxy's error page",
            _whole(b"<html><h1>502 Bad Gateway</h1></html>", status=502, kind=_HTML),
        ),
        "503": ("overloaded, with retry-after: 1", _refusal(503, "Overloaded.", (b"retry-after", b"1"))),
        "529": ("overloaded, as Anthropic says it", _refusal(529, "Overloaded.")),
        "redirect": (
            "302 to an address inside the network",
            _whole(b"", (b"location", b"http://169.254.169.254/latest/"), status=302),
        ),
        "error-in-200": ("an error under a good status", _refusal(200, "The server had an error.")),
    },
)

BODIES = of(
    BODY,
    {
        "not-json": ("text in the place of JSON", _whole(b"hello")),
        "half-body": ("half of it, ended in good order", lambda a: _unsized(a, start(a), END)),
        "html": ("a page with status 200", _whole(b"<html>Please log in</html>", kind=_HTML)),
        "deep-json": ("JSON 100 000 levels deep", _whole(b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}")),
        "not-utf8": ("a byte that is not UTF-8", _whole(b'{"choices": [], "x": "\xff"}')),
        "wrong-charset": ("UTF-8 that says it is UTF-16", _mislabelled),
        "huge-json": ("a body of 16 MiB", lambda a: _whole(b'{"choices": [], "x": "' + b"y" * (16 * _MIB) + b'"}')(a)),
        "gzip": ("gzip that nobody asked for", lambda a: _zipped(a, gzip.compress(body(a), mtime=0))),
        "gzip-bomb": ("64 MiB in 64 KiB of gzip", lambda a: _zipped(a, *_bomb())),
        "no-content-type": ("a body that does not say what it is", _untyped),
        "other-kind": ("JSON in the place of a stream, a stream in the place of JSON", _other_kind),
    },
)

TIMES = of(
    TIME,
    {
        "stall-before-head": ("takes the request, and says nothing", lambda _: []),
        "stall-after-head": ("the head, then nothing", lambda a: [head(a)]),
        "stall-in-body": ("nothing more from the middle on", lambda a: begun(a)),
        "stall-before-end": (
            "everything but the end of the message",
            lambda a: _unsized(a, a.pieces),
        ),
        "late-head": (f"{_LATE:g} s before the head", lambda a: [Wait(_LATE), *good(a)]),
        "late-reset": (f"reset after {_LATE:g} s", lambda _: [Wait(_LATE), RST]),
        "late-body": (f"the head, then {_LATE:g} s", lambda a: [head(a), Wait(_LATE), *good(a)[1:]]),
        "pause-in-body": (f"{_LATE:g} s in the middle", lambda a: begun(a, Wait(_LATE), *map(Data, rest(a)), END)),
        "drip": ("one byte a second", lambda a: _slowly(a, _bytes(body(a)), 1.0, END)),
        "slow": ("a second before every event", lambda a: _slowly(a, a.pieces, 1.0, END)),
        "slow-then-fast": ("five seconds before each of the first events", _slow_then_fast),
    },
)

ANSWER_FAULTS = [*STATUSES, *BODIES, *TIMES]
