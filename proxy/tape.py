"""An answer that is given more than once: what a cache keeps, and how it is played.

A `Recorded` is whole, as it stood at the cache's place in the chain: after the filters below, before those above. A
`Tape` is what players read: one that is being written while the provider speaks, or one made of a `Recorded`. Both hold
the provider's bytes and nothing that belongs to one exchange: ids, times and our comment are put in for each anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from .dialect import StreamReader
from .ring import Ring
from .upstream.call import ResponseHead

if TYPE_CHECKING:
    from .errors import GatewayError

OVERHEAD_BYTES: Final = 512
"""What keeping an answer costs beside its bytes."""
_KEPT: Final = frozenset(
    (
        b"content-type",
        b"content-language",
        b"content-disposition",
        b"content-encoding",
        b"openai-model",
        b"openai-version",
    )
)
_BLANK: Final = (b"\n\n", b"\r\r", b"\n\r\n", b"\r\r\n")


class Recorded(msgspec.Struct, frozen=True):
    """A whole, successful answer. `at` is Unix seconds, `by` the exchange that it was made for."""

    by: str
    at: float
    provider: str
    model: str
    headers: list[tuple[bytes, bytes]]
    pieces: tuple[bytes, ...]
    """The body; of a stream each piece ends with an event."""
    stream: bool
    comment_at: int | None = None
    """Where our comment goes; None: nowhere."""

    @property
    def size(self) -> int:
        """Bytes it counts as."""
        fields = sum(len(name) + len(value) for name, value in self.headers)
        return OVERHEAD_BYTES + fields + sum(map(len, self.pieces))


def kept_fields(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The fields of a head that describe the body. The others speak of one call: its id, its time, what is left."""
    return [field for field in headers if field[0] in _KEPT]


class Tape:
    """`head` is None until there is one. `body`: a whole answer in one piece; else the bytes are in `ring`."""

    __slots__ = (
        "body", "comment_at", "error", "failed", "head", "model", "over", "provider", "request_id", "ring", "status",
        "stream",
    )  # fmt: skip

    def __init__(self) -> None:
        self.ring = Ring()
        self.head: ResponseHead | None = None
        self.body: bytes | None = None
        self.stream = False
        """A stream of events that is understood."""
        self.comment_at: int | None = None
        self.over = False
        """There will be no more: whole, unless there is an `error`."""
        self.failed = False
        """The provider has said itself, in its stream, that it failed."""
        self.error: GatewayError | None = None
        self.provider = ""
        self.model = ""
        self.request_id = ""
        """The provider's, for those who wait for this very call."""

    @classmethod
    def of(cls, recorded: Recorded) -> Tape:
        """A tape to play what was recorded."""
        tape = cls()
        tape.provider, tape.model = recorded.provider, recorded.model
        tape.comment_at, tape.stream, tape.over = recorded.comment_at, recorded.stream, True
        tape.head = ResponseHead(200, list(recorded.headers))
        if recorded.stream:
            tape.ring = Ring.of(recorded.pieces)
        else:
            tape.body = b"".join(recorded.pieces)
        return tape


class TapeReader(StreamReader):
    """Follows the bytes of a tape, which another reader has understood before: puts our comment in its place."""

    __slots__ = ("_at", "_last", "_tape")

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape
        self._at = 0
        self._last = b""

    @property
    def mid_event(self) -> bool:
        """An event larger than what is held passes in parts; all else ends with a blank line."""
        return bool(self._last) and not self._last.endswith(_BLANK)

    def passes(self, data: bytes) -> bool:
        """Whether it goes down as it is: all but where our comment is due."""
        at = self._at
        place = self._tape.comment_at
        if not self.committed or (place is not None and at <= place):
            return False
        self._at = at + len(data)
        self._last = data[-4:]
        return True

    def feed(self, data: bytes) -> bytes:
        """All of it."""
        tape, begin = self._tape, self._at
        self._at = end = begin + len(data)
        self._last = data[-4:]
        self.committed = True
        self.failed = tape.failed
        place = tape.comment_at
        if place is not None and begin <= place <= end and self.before_terminal is not None:
            comment, self.before_terminal = self.before_terminal(), None
            return data[: place - begin] + comment + data[place - begin :]
        return data

    def end(self) -> tuple[bytes, bool]:
        """The other reader has said so."""
        self.failed = self._tape.failed
        return b"", True
