"""What a fault is: a name, and what it does to a good answer.

Given the mock's own answer to a request, a fault says in which steps it is played instead. So it fits whatever was
asked, streamed or not, and knows no sockets, clocks or frames. Times are those of real life; whoever plays it may go
faster.

The faults themselves: wire_faults.py, answer_faults.py, stream_faults.py; all of them: catalogue.py.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from .steps import END, Data, Head, Raw, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ...dialects.mock import MockAnswer

    Script: TypeAlias = Callable[[MockAnswer], Iterable[Step]]

CONNECTION = "connection"
HEAD = "head"
STATUS = "status"
FRAMING = "framing"
BODY = "body"
TIME = "time"
STREAM = "stream"
HTTP2 = "http2"
GROUPS = {
    CONNECTION: "the connection ends, or nobody reads from it",
    HEAD: "the head of the answer does not come, or is none",
    STATUS: "the provider refuses",
    FRAMING: "where the body ends is a lie, or cannot be known",
    BODY: "the body is whole, and not what was asked for",
    TIME: "too slow, at one place or another",
    STREAM: "the events of a stream are wrong; an answer that is not streamed stays good",
    HTTP2: "what only HTTP/2 can do wrong; over HTTP/1.1 the answer stays good",
}

DONE = b"data: [DONE]\n\n"
_RAW_BY = 2
"""A script of bytes of HTTP/1.1 has some among its first steps, or has none."""
BEGUN = 5
"""Events after which an answer has begun for whoever reads it: the role and some words."""


class Fault(NamedTuple):
    """`steps` gives what is played in place of a good answer."""

    name: str
    group: str
    what: str
    steps: Script
    at_accept: bool = False
    """Played as soon as the connection is open, before anything is read of a request."""

    def play(self, answer: MockAnswer, *, http2: bool = False) -> Iterable[Step]:
        """The steps in place of `answer`."""
        return self.steps(answer) if self.changes(answer, http2=http2) else good(answer)

    def changes(self, answer: MockAnswer, *, http2: bool = False) -> bool:
        """Whether it does anything to this answer over this version of HTTP."""
        if self.group == HTTP2:
            return http2
        if self.group == STREAM:
            return is_stream(answer)
        return not (http2 and any(isinstance(step, Raw) for step in islice(self.steps(answer), _RAW_BY)))


def of(group: str, faults: dict[str, tuple[str, Script]], *, at_accept: bool = False) -> list[Fault]:
    """The faults of a group, by name."""
    return [Fault(name, group, what, steps, at_accept) for name, (what, steps) in faults.items()]


def is_stream(answer: MockAnswer) -> bool:
    """Whether the mock streams it."""
    return len(answer.pieces) > 1


def good(answer: MockAnswer) -> list[Step]:
    """The answer as it should be."""
    return [head(answer), *map(Data, answer.pieces), END]


def head(answer: MockAnswer, *more: tuple[bytes, bytes], length: int | None = None) -> Head:
    """Its head with fields added; `length` lies about the body."""
    size = None if is_stream(answer) else len(answer.pieces[0])
    return Head(answer.status, (*answer.headers, *more), size if length is None else length)


def body(answer: MockAnswer) -> bytes:
    """All of its body."""
    return b"".join(answer.pieces)


def start(answer: MockAnswer) -> list[bytes]:
    """The first events, or half of a plain body."""
    if is_stream(answer):
        return answer.pieces[:BEGUN]
    return [answer.pieces[0][: len(answer.pieces[0]) // 2]]


def rest(answer: MockAnswer) -> list[bytes]:
    """What `start` leaves."""
    if is_stream(answer):
        return answer.pieces[BEGUN:]
    return [answer.pieces[0][len(answer.pieces[0]) // 2 :]]


def begun(answer: MockAnswer, *then: Step) -> list[Step]:
    """An answer under way, and what comes instead of the rest."""
    return [head(answer), *map(Data, start(answer)), *then]


def always(*steps: bytes | Step) -> Script:
    """The same whatever was asked; bytes go out as they are."""
    made = raw(*steps)
    return lambda _: made


def raw(*steps: bytes | Step) -> list[Step]:
    """Bytes as steps that send them as they are."""
    return [Raw(step) if isinstance(step, bytes) else step for step in steps]
