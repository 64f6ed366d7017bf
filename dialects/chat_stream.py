"""Streams of chat completions, read while they pass.

A stream goes down as it came, but for the usage event that only we have asked for, and a comment of ours before
`[DONE]`. It is read for `usage`, `finish_reason` of every choice, `error`, `[DONE]`, and for how much text there was.
Chunks that differ from one before in their text alone need no decoding (chunk_shape.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..proxy.dialect import StreamReader
from ..proxy.stateful import NOTHING
from .chat_chunk import ABSENT, UNREADABLE, choice_bytes, decode_chunk, text_bytes, usage_of
from .chunk_shape import find_shape
from .objects import read_id
from .sse import BOM, EventSplitter, has_id, parse_event

if TYPE_CHECKING:
    from .chat_chunk import Chunk
    from .chunk_shape import Shape

_DONE = b"[DONE]"
_TEXTS = ("content", "reasoning_content", "reasoning")
_NO_TEXT: tuple[object, ...] = (None, "", [], {})
_LF = 0x0A
_MOST_CHOICES = 1024
"""Indexes that a stream may make us remember."""
_SHAPES_TRIED = 3
"""How many chunks of a stream are taken for a model of the others before it is given up."""


class ChatStream(StreamReader):
    """One streamed chat completion."""

    __slots__ = ("_choices", "_ended", "_hide_usage", "_ids", "_seen", "_shape", "_shapes_left", "_splitter")

    def __init__(self, *, hide_usage: bool, choices: int) -> None:
        super().__init__()
        self._splitter = EventSplitter()
        self._hide_usage = hide_usage
        self._choices = choices
        self._seen: set[int] = set()
        self._ended: set[int] = set()
        self._ids = False
        self._shape: Shape | None = None
        self._shapes_left = _SHAPES_TRIED

    @property
    def mid_event(self) -> bool:
        """Part of an oversized event has passed raw."""
        return self._splitter.mid_event

    def passes(self, data: bytes) -> bool:
        """A chunk of the shape that others had before it."""
        shape, splitter = self._shape, self._splitter
        if shape is None or splitter.tail or splitter.mid_event:
            return False
        size = shape.measure(data)
        if size > 0:
            self.text_bytes += size
            self.text_events += 1
        return size >= 0

    def feed(self, data: bytes) -> bytes:
        """Complete events; the hidden usage event left out, our comment put before `[DONE]`, nothing after it."""
        splitter = self._splitter
        if (
            data.startswith(b"data: {")
            and data.find(b"\n") == len(data) - 2
            and data[-1] == _LF
            and not (splitter.tail or splitter.mid_event or self.finished or self.rewrite is not None)
        ):
            # One event of one line and nothing before it: what nearly every read of a stream is. A CR in it may end
            # lines, too; then this is not JSON.
            try:
                chunk = decode_chunk(data[6:])
            except UNREADABLE:
                pass
            else:
                if self._shapes_left and self.committed:
                    self._find_shape(data, chunk)
                return data if self._take(chunk) else b""
        goes_on = splitter.mid_event
        pieces = splitter.feed(data)
        whole = len(pieces) - splitter.mid_event
        relayed = []
        for at, piece in enumerate(pieces):
            if self.finished:
                break
            relayed.append(self._part(piece) if goes_on or at >= whole else self._event(piece))
            goes_on = False
        return b"".join(relayed)

    def end(self) -> tuple[bytes, bool]:
        """An unterminated last event whose data parses counts; whole if every choice has its finish_reason."""
        in_parts = self.mid_event
        tail = self._splitter.flush()
        last = b""
        if in_parts:
            last = self._part(tail)
        elif tail and not self.finished:
            data = parse_event(tail)[1]
            if data is not None and (data.strip() == _DONE or _parses(data)):
                last = self._event(tail)
        return last, self.finished or (len(self._seen) >= self._choices and self._seen == self._ended)

    def _find_shape(self, event: bytes, chunk: Chunk) -> None:
        """Make a chunk the model of those that follow, where nothing but text is in it and its choice is known."""
        choice = chunk.choices[0] if chunk.choices and len(chunk.choices) == 1 else None
        delta = choice.delta if choice is not None else None
        if choice is None or delta is None or choice.finish_reason or delta.audio not in _NO_TEXT:
            return
        if choice.index.__class__ is not int or choice.index not in self._seen:
            return
        if chunk.error or chunk.usage != ABSENT or chunk.x_groq is not None:
            return
        key = next((key for key in _TEXTS if getattr(delta, key)), _TEXTS[0])
        text = getattr(delta, key)
        if not isinstance(text, str) or not text:
            return

        def proves(other: bytes, text_there: str) -> bool:
            try:
                found = decode_chunk(other[6:])
            except UNREADABLE:
                return False
            there = found.choices[0].delta if found.choices else None
            if there is None or getattr(there, key) != text_there or text_bytes(there) != len(text_there):
                return False
            setattr(there, key, text)
            return found == chunk

        self._shapes_left -= 1
        self._shape = find_shape(event, key.encode(), text, proves) or self._shape

    def _event(self, event: bytes) -> bytes:
        """Take in one event; what of it may be relayed, our comment before the terminal one."""
        if not self._ids and (event.startswith((b"id", BOM)) or b"\nid" in event or b"\rid" in event):
            self._ids = has_id(event)
        kind, data = parse_event(event)
        comment = b""
        if data is not None:
            if data.startswith(_DONE) and data.strip() == _DONE:
                self.finished = True
                self._shape = None
                if self.before_terminal is not None and not self._ids:
                    comment = self.before_terminal()
            elif not self._chunk(kind, data):
                return b""
        return comment + (event if self.rewrite is None else self.rewrite(event))

    def _part(self, piece: bytes) -> bytes:
        """Part of an event that is too large to be held, and so to be read: all of it counts as text."""
        self.committed = True
        self.text_bytes += len(piece)
        self.text_events += 1
        return piece if self.rewrite is None else self.rewrite(piece)

    def _chunk(self, kind: bytes | None, data: bytes) -> bool:
        """Take in the data of an event. Whether it goes down."""
        try:
            chunk = decode_chunk(data)
        except UNREADABLE:
            self.failed = self.failed or kind == b"error"
            return True
        return self._take(chunk, kind)

    def _take(self, chunk: Chunk, kind: bytes | None = None) -> bool:
        """Take in a chunk. Whether it goes down: all but usage that only we have asked for."""
        choices = chunk.choices
        asked_by_us = False
        if chunk.error or kind == b"error":
            self.failed = True
        elif choices:
            for choice in choices:
                delta = choice.delta
                text = text_bytes(delta) if delta is not None else choice_bytes(choice)
                if text or (delta is not None and delta.audio not in _NO_TEXT):
                    self.text_bytes += text
                    self.text_events += 1
                    self.committed = True
                index = choice.index if choice.index.__class__ is int else 0
                if index not in self._seen and len(self._seen) < _MOST_CHOICES:
                    self._seen.add(index)
                if choice.finish_reason and isinstance(choice.finish_reason, str) and index in self._seen:
                    self._ended.add(index)
                    self.committed = True
        else:
            asked_by_us = self._hide_usage and choices is not None
        if chunk.usage != ABSENT or chunk.x_groq is not None:
            usage = usage_of(chunk)
            if usage is not None:
                self.report(usage)
            return not (asked_by_us and chunk.usage != ABSENT)
        return True


class StoredChat(ChatStream):
    """A completion that the provider keeps: every chunk carries its id."""

    __slots__ = ("_id_seen",)

    def __init__(self, *, hide_usage: bool, choices: int) -> None:
        super().__init__(hide_usage=hide_usage, choices=choices)
        self._id_seen = False

    def feed(self, data: bytes) -> bytes:
        """As any other."""
        ready = super().feed(data)
        if not self._id_seen:
            for line in ready.splitlines():
                said = read_id(line[5:]) if line.startswith(b"data:") else NOTHING
                if said.id:
                    self.named, self._id_seen = said, True
                    break
        return ready


def _parses(data: bytes) -> bool:
    try:
        decode_chunk(data)
    except UNREADABLE:
        return False
    return True
