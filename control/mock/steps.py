"""The steps an answer is played in, good or bad: what is said, how long nothing is, and how it ends.

A step says what is meant wherever every wire has a form for it, so that one script is played over any of them; only
`Raw` and `Frame` are of one wire. A script that comes to its end without `END`, `FIN`, `RST` or `Reset` says nothing
more and leaves it to the other side to give up: a stall. Only after `END` can the connection carry another request.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

Fields: TypeAlias = "tuple[tuple[bytes, bytes], ...]"


@dataclass(frozen=True, slots=True)
class Interim:
    """A head of 1xx, before the one that counts."""

    status: int
    fields: Fields = ()


@dataclass(frozen=True, slots=True)
class Head:
    """The head. `length`: bytes of the body, as it claims; None: whoever reads learns it at the end."""

    status: int
    fields: Fields
    length: int | None = None


@dataclass(frozen=True, slots=True)
class Data:
    """A piece of the body, in a segment of its own."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes as they stand, outside any framing: of HTTP/1.1, but in faults that are of HTTP/2."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of HTTP/2, `times` over: of the answer's own stream, or of the `connection`."""

    kind: int
    flags: int
    payload: bytes
    connection: bool = False
    times: int = 1


@dataclass(frozen=True, slots=True)
class Wait:
    """Say nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reset:
    """The stream of HTTP/2 ends with this error code, and the connection does not. The last step of a script."""

    code: int


class Act(Enum):
    """What is done to the connection. The first three are the last step of a script."""

    END = "the message is whole, and another may follow it"
    FIN = "close the connection in order"
    RST = "reset the connection"
    DEAF = "read no more from it"


END, FIN, RST, DEAF = Act.END, Act.FIN, Act.RST, Act.DEAF
Say: TypeAlias = Interim | Head | Data | Raw | Frame
Step: TypeAlias = Say | Wait | Act | Reset
