"""Server-sent events as bytes: where an event ends, and what it carries.

A stream is relayed byte for byte, so nothing here re-serialises. `EventSplitter` cuts what arrives at event boundaries
and holds the unfinished tail, because an error event written after half an event is a JSON error in every SDK. It is
indifferent to how the network cut the stream: the events that come out depend on the bytes alone.

Lines end in LF, CRLF or CR; U+2028, U+2029 and U+0085 are text. A CR that is the last byte received may be half of a
CRLF, so it ends nothing until the next byte is known.

Not here: what an event means (openai.py).
"""

from __future__ import annotations

import re

MAX_TAIL = 256 * 1024
"""An event larger than this passes raw until it ends: memory stays bounded, and the event is not looked into."""

_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?=[^\n]))(?:\r\n|\n|\r(?=[^\n]))")
_LINE_END = re.compile(rb"\r\n|\n|\r")
BOM = b"\xef\xbb\xbf"


class EventSplitter:
    """Cuts a byte stream at event boundaries.

    `tail` is what has not ended yet (at most `MAX_TAIL` bytes). `mid_event` says that part of an event has already been
    given out raw: until it ends, nothing else may be put into the stream.
    """

    __slots__ = ("mid_event", "tail")

    def __init__(self) -> None:
        self.tail = b""
        self.mid_event = False

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces that are complete now, in order, each with its blank line; joined with `tail` they are the
        input."""
        looked_at = 0
        if self.tail:
            # What ends the event may begin in the last three bytes of the tail, and nowhere before.
            looked_at = max(0, len(self.tail) - 3)
            data = self.tail + data
        elif (
            not self.mid_event and data.endswith(b"\n\n") and b"\r" not in data and data.find(b"\n\n") == len(data) - 2
        ):
            return [data]
        pieces: list[bytes] = []
        start = 0
        for match in _BLANK_LINE.finditer(data, looked_at):
            end = match.end()
            pieces.append(data[start:end])
            start = end
            self.mid_event = False
        rest = data[start:] if start else data
        if (self.mid_event or len(rest) > MAX_TAIL) and len(rest) > 3:
            # The last three bytes may begin the blank line that ends it.
            pieces.append(rest[:-3])
            self.mid_event = True
            rest = rest[-3:]
        self.tail = rest
        return pieces

    def flush(self) -> bytes:
        """What is left when the stream has ended; the splitter is empty afterwards."""
        tail, self.tail = self.tail, b""
        return tail


def parse_event(event: bytes) -> tuple[bytes | None, bytes | None]:
    """`(event type, data)` of one event; None for a field that is not there. Several data lines are joined by LF."""
    end = len(event) - 2  # of a line that an empty line follows
    if event.startswith(b"data: ") and event.find(b"\n") == end and event[-1:] == b"\n" and b"\r" not in event:
        return None, event[6:end]
    if event.startswith(b"event: ") and event[-1:] == b"\n" and b"\r" not in event:
        at = event.find(b"\n")
        if event.startswith(b"data: ", at + 1) and event.find(b"\n", at + 7) == end:
            return event[7:at], event[at + 7 : end]
    kind: bytes | None = None
    data: list[bytes] = []
    for line in _LINE_END.split(event.removeprefix(BOM)):
        name, colon, value = line.partition(b":")
        if not name:
            continue
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            data.append(value)
        elif name == b"event" and colon:
            kind = value
    return kind, b"\n".join(data) if data else None


def has_id(event: bytes) -> bool:
    """Whether a line of the event sets the last-event id; a comment block between such events breaks openai-python."""
    lines = _LINE_END.split(event.removeprefix(BOM))
    return any(line.startswith(b"id") and line[2:3] in (b":", b"") for line in lines)
