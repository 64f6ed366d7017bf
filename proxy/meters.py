"""What an answer used that is not read on its way: a document too large to be collected, or anything encoded.

A meter sees a copy of the bytes and holds a bounded part of it. Of a large document that is its head and its tail: a
`usage` in them counts where it is a member of the document itself, which the bytes around it prove. Encoded bytes are
inflated first, up to a bound (inflate.py), and only so much at a time: a meter may be `behind` what it was fed.

Pure. Not here: what the bytes mean (the operation).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

import msgspec

from .dialect import AnswerFacts
from .headers import is_document
from .inflate import open_inflater
from .json_splice import value_end

if TYPE_CHECKING:
    from .dialect import Operation, RequestFacts, StreamReader
    from .inflate import Inflater
    from .upstream.call import ResponseHead

END_BYTES = 16 * 1024
"""Held of either end of a large document."""
WHOLE_BYTES = 8 * 1024 * 1024
"""A document up to this size is read whole, where its bytes are not held anyway."""
SLICE_BYTES = 512 * 1024
"""Inflated at a time, that is in one turn of the loop: 1 to 4 ms."""
_USAGE = re.compile(rb'([{,])\s*("usage"\s*:\s*)(?=\{)')
_MOST_TRIES = 8
_is_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Meter(Protocol):
    """Fed with what goes down; asked once."""

    @property
    def behind(self) -> bool:
        """It has not read all that it was fed: `feed` it nothing, in another turn of the loop."""

    def feed(self, data: bytes) -> None:
        """The next bytes. Never raises."""

    def facts(self) -> AnswerFacts:
        """What has been said so far, as far as it was read."""


def open_meter(head: ResponseHead, operation: Operation, facts: RequestFacts) -> Meter | None:
    """For a good answer that goes down unread; None where nothing can be known of it."""
    kind = (head.header(b"content-type") or b"").lower()
    encoding = head.header(b"content-encoding")
    inflater = None
    if encoding not in (None, b"identity"):
        inflater = open_inflater(encoding or b"")
        if inflater is None:
            return None
    if kind.startswith(b"text/event-stream"):
        reader = operation.open_stream(facts) if inflater is not None else None
        return Inflated(inflater, StreamMeter(reader)) if inflater is not None and reader is not None else None
    if not is_document(kind):
        return None
    if inflater is not None:
        return Inflated(inflater, DocumentMeter(operation, whole=WHOLE_BYTES))
    return DocumentMeter(operation)


class DocumentMeter:
    """A JSON document, of which at most `whole` bytes are held in one piece, and of a larger one its two ends."""

    __slots__ = ("_end", "_head", "_operation", "_size", "_whole")
    behind = False

    def __init__(self, operation: Operation, *, whole: int = 0) -> None:
        self._operation = operation
        self._whole = whole
        self._size = 0
        self._head = b""
        self._end = bytearray()

    def feed(self, data: bytes) -> None:
        self._size += len(data)
        if len(self._head) < END_BYTES:
            self._head += data[: END_BYTES - len(self._head)]
        keep = self._whole if self._size <= self._whole else END_BYTES
        self._end += data[-keep:]
        if len(self._end) > 2 * keep:
            del self._end[:-keep]

    def facts(self) -> AnswerFacts:
        if self._size <= len(self._end):
            return self._operation.read_answer(bytes(self._end))
        for found in self._candidates():
            facts = self._operation.read_answer(found)
            if facts.usage is not None:
                return facts
        return AnswerFacts()

    def _candidates(self) -> list[bytes]:
        """Documents of `usage` and what stands behind it, each of which is one only where it is the document's own."""
        end = bytes(self._end[-END_BYTES:])
        found = [b"{" + end[match.start(2) :] for match in list(_USAGE.finditer(end))[-_MOST_TRIES:]]
        for match in list(_USAGE.finditer(self._head))[:_MOST_TRIES]:
            before = self._head[: match.start()] + (b"}" if match[1] == b"," else b"{}")
            stop = value_end(self._head, match.end())
            if stop < len(self._head) and _reads(before):
                found.append(b"{" + self._head[match.start(2) : stop] + b"}")
        return found


class StreamMeter:
    """Events that pass unread, read beside."""

    __slots__ = ("_reader",)
    behind = False

    def __init__(self, reader: StreamReader) -> None:
        self._reader = reader

    def feed(self, data: bytes) -> None:
        if not self._reader.finished:
            self._reader.feed(data)

    def facts(self) -> AnswerFacts:
        return self._reader.facts()


class Inflated:
    """A meter of what the bytes are without their encoding."""

    __slots__ = ("_inflater", "_meter")

    def __init__(self, inflater: Inflater, meter: Meter) -> None:
        self._inflater = inflater
        self._meter = meter

    @property
    def behind(self) -> bool:
        return self._inflater.behind

    def feed(self, data: bytes) -> None:
        if plain := self._inflater.feed(data, SLICE_BYTES):
            self._meter.feed(plain)

    def facts(self) -> AnswerFacts:
        return self._meter.facts()


def _reads(document: bytes) -> bool:
    try:
        _is_object(document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True
