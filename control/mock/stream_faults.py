"""Faults inside a stream of events, behind sound HTTP: what is missing, doubled, cut, or spelled another way."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

from .fault import DONE, STREAM, begun, body, head, of, rest
from .steps import END, FIN, RST, Data, Step, Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ...dialects.mock import MockAnswer
    from .fault import Script

_PING = b": ping\n\n"
_MIB = 1 << 20


def _event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _delta(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return _event(id="chatcmpl-mock", object="chat.completion.chunk", created=0, model="mock", choices=[choice])


def _error(code: str) -> bytes:
    return _event(error={"message": "The server had an error.", "type": "server_error", "param": None, "code": code})


@cache
def _big() -> bytes:
    return _delta("y" * (5 * _MIB))


_RUNE = _delta(" 漢字 🚀")


def _instead(*pieces: bytes, then: Iterable[Step] = (END,)) -> Script:
    """The beginning, then this and nothing else."""
    return lambda answer: begun(answer, *map(Data, pieces), *then)


def _between(*pieces: bytes) -> Script:
    """This in the middle of a stream that then goes on."""
    return lambda answer: begun(answer, *map(Data, pieces), *map(Data, rest(answer)), END)


def _before(*pieces: bytes) -> Script:
    """This before the first event."""
    return lambda answer: [head(answer), *map(Data, (*pieces, *answer.pieces)), END]


def _after(*pieces: bytes) -> Script:
    """This after the last one."""
    return lambda answer: [head(answer), *map(Data, (*answer.pieces, *pieces)), END]


def _only(keep: Callable[[bytes], bool], *then: Step) -> Script:
    """The events that `keep` keeps, and an end."""
    return lambda answer: [head(answer), *(Data(piece) for piece in answer.pieces if keep(piece)), *then]


def _spelled(change: Callable[[bytes], bytes]) -> Script:
    """Every event in another spelling."""
    return lambda answer: [head(answer), *(Data(change(piece)) for piece in answer.pieces), END]


def _says_nothing_of_the_end(piece: bytes) -> bool:
    return piece != DONE and b'"finish_reason":"' not in piece


def _is_not_done(piece: bytes) -> bool:
    return piece != DONE


def _in_half(answer: MockAnswer, *then: Step) -> list[Step]:
    """The beginning, and half of the next event."""
    cut = rest(answer)[0]
    return begun(answer, Data(cut[: len(cut) // 2]), *then)


def _by_bytes(data: bytes) -> list[Step]:
    return [Data(bytes((byte,))) for byte in data]


def _numbered(answer: MockAnswer) -> Iterator[Step]:
    yield head(answer)
    for number, piece in enumerate(answer.pieces):
        yield Data(b"id: %d\n" % number + piece)
    yield END


def _pinging(answer: MockAnswer) -> Iterator[Step]:
    yield from begun(answer)
    for _ in range(600):
        yield Data(_PING)
        yield Wait(5.0)


def _endless(answer: MockAnswer) -> Iterator[Step]:
    yield head(answer)
    word = Data(answer.pieces[1])
    while True:
        yield word
        yield Wait(1.0)


def _mixed_ends(piece: bytes) -> bytes:
    return (piece.replace(b"\n", b"\r\n"), piece.replace(b"\n", b"\r"), piece)[len(piece) % 3]


STREAM_FAULTS = of(
    STREAM,
    {
        "no-done": ("a finish, but no [DONE]", _only(_is_not_done, END)),
        "no-finish": ("neither a finish nor [DONE], in good order", _only(_says_nothing_of_the_end, END)),
        "only-done": ("[DONE] and nothing before it", _only(lambda piece: piece == DONE, END)),
        "empty-stream": ("no event at all", _only(lambda _: False, END)),
        "done-twice": ("[DONE] two times", _after(DONE)),
        "events-after-done": ("an event after [DONE]", _after(_delta("more"))),
        "finish-then-close": ("closed between the finish and [DONE]", _only(_is_not_done, FIN)),
        "finish-then-reset": ("reset between the finish and [DONE]", _only(_is_not_done, RST)),
        "close-in-event": ("closed in the middle of an event", lambda a: _in_half(a, FIN)),
        "reset-in-event": ("reset in the middle of an event", lambda a: _in_half(a, RST)),
        "stall-in-event": ("half an event, then nothing", lambda a: _in_half(a)),
        "end-in-event": ("half an event, then the end in good order", lambda a: _in_half(a, END)),
        "error-event": ("an error event in the middle, and the end", _instead(_error("server_error"))),
        "error-first": ("an error event before anything else", lambda a: [head(a), Data(_error("overloaded")), END]),
        "error-then-done": ("an error event, then [DONE]", _instead(_error("server_error"), DONE)),
        "error-then-more": ("an error event, and then on as if nothing was", _between(_error("server_error"))),
        "error-then-stall": ("an error event, then nothing", _instead(_error("server_error"), then=())),
        "bad-event": ("an event that is not JSON", _between(b"data: {\n\n")),
        "bad-utf8": ("an event that is not UTF-8", _between(b'data: {"x":"\xff\xfe"}\n\n')),
        "nul-in-event": ("a NUL inside an event", _between(b'data: {"x":"\x00"}\n\n')),
        "big-event": ("an event of 5 MiB", lambda a: _between(_big())(a)),
        "big-event-cut": ("5 MiB of an event, then closed", lambda a: _instead(_big()[:-3], then=(FIN,))(a)),
        "split-bytes": ("every byte in a segment of its own", lambda a: [head(a), *_by_bytes(body(a)), END]),
        "split-rune": (
            "characters split between segments",
            lambda a: begun(a, *_by_bytes(_RUNE), *map(Data, rest(a)), END),
        ),
        "one-segment": ("everything in one segment", lambda a: [head(a), Data(body(a)), END]),
        "crlf": ("lines that end in CR LF", _spelled(lambda piece: piece.replace(b"\n", b"\r\n"))),
        "mixed-line-ends": ("lines that end in CR LF, CR and LF", _spelled(_mixed_ends)),
        "no-space": ("no space after data:", _spelled(lambda piece: piece.replace(b"data: ", b"data:"))),
        "bom": ("a byte order mark before the first event", _before(b"\xef\xbb\xbf")),
        "comments": ("comments between the events", _spelled(lambda piece: _PING + piece)),
        "ids": ("events with an id", _numbered),
        "pings-only": ("a comment every 5 s instead of the rest", _pinging),
        "endless": ("a word every second, without end", _endless),
    },
)
