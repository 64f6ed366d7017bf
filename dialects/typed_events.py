"""Streams of typed events without `[DONE]`: OpenAI's responses, images and speech.

Every event names its type; one of a few types ends the answer. Some providers add a `[DONE]` all the same, so a stream
is followed to the end of its message, and is whole from its terminal event on. A `[DONE]` that comes without one is
held back, because clients stop reading there and would take a cut answer for a whole one. A type that is not known
passes, and counts as content: there are dozens, and more every month.

An event larger than `sse.MAX_TAIL` goes by in parts and is never held whole, though it may be the one that matters: the
last event of a streamed image holds the image. Its type is read from its first part and its usage from its last bytes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ..proxy.accounting.usage import Usage, parse_duration_usage, parse_responses_usage
from ..proxy.dialect import StreamReader
from ..proxy.json_splice import value_end
from .sse import EventSplitter, has_id, parse_event

if TYPE_CHECKING:
    from ..proxy.errors import GatewayError

LAST_BYTES = 16 * 1024
"""What is remembered of an event that is not read whole."""

_DONE = b"[DONE]"
_ABSENT = msgspec.Raw(b"null")
_SILENT = frozenset(("ping", "keepalive"))
_EVENT_LINE = re.compile(rb"(?:\A|[\r\n])event: ?([^\r\n]*)")
_TYPE_FIRST = re.compile(rb'(?:\A|[\r\n])data: ?\{\s*"type"\s*:\s*"([^"\\]*)"')
_USAGE = re.compile(rb'[{,]\s*"usage"\s*:\s*(?=\{)')
_encode = msgspec.json.encode


class EventTypes(NamedTuple):
    """What the types of a stream mean: `terminal` ends it, `failed` says it went wrong, `silent` comes before content.
    `ends_with_done`: so does `[DONE]`, where the terminal event brings nothing that a client must have."""

    terminal: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset(("error",))
    silent: frozenset[str] = frozenset()
    ends_with_done: bool = False


class _Event(msgspec.Struct):
    type: Any = None
    response: msgspec.Raw = _ABSENT
    usage: msgspec.Raw = _ABSENT
    delta: Any = None
    error: Any = None


class _Response(msgspec.Struct):
    usage: msgspec.Raw = _ABSENT
    service_tier: Any = None


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_response = msgspec.json.Decoder(_Response).decode


class TypedStream(StreamReader):
    """One streamed answer of typed events."""

    __slots__ = ("_ids", "_last_bytes", "_large", "_splitter", "_types")

    def __init__(self, types: EventTypes) -> None:
        super().__init__()
        self._types = types
        self._splitter = EventSplitter()
        self._ids = False
        self._large = ""
        """Type of the event that is not read whole."""
        self._last_bytes = b""

    @property
    def mid_event(self) -> bool:
        """Part of an oversized event has passed."""
        return self._splitter.mid_event

    def feed(self, data: bytes) -> bytes:
        """Complete events, our comment after the terminal one."""
        splitter = self._splitter
        goes_on = splitter.mid_event
        pieces = splitter.feed(data)
        if len(pieces) == 1 and self.rewrite is None and not goes_on and not splitter.mid_event:
            return self._event(pieces[0])
        whole = len(pieces) - 1 if splitter.mid_event else len(pieces)
        relayed = []
        for at, piece in enumerate(pieces):
            if goes_on or at >= whole:
                kept = self._part(piece, first=not goes_on, last=at < whole)
            else:
                kept = self._event(piece)
            goes_on = False
            relayed.append(kept if self.rewrite is None else self.rewrite(kept))
        return b"".join(relayed)

    def end(self) -> tuple[bytes, bool]:
        """An unterminated last event counts if its data parses; whole if the terminal event was seen."""
        tail = self._splitter.flush()
        data = parse_event(tail)[1] if tail else None
        if data is None or _read(data) is None:
            return b"", self.whole
        self.before_terminal = None  # it would become part of an event that has no end
        last = self._event(tail)
        return last if self.rewrite is None else self.rewrite(last), self.whole

    def _event(self, event: bytes) -> bytes:
        if not self._ids and (event.startswith(b"id") or b"\nid" in event):
            self._ids = has_id(event)
        kind, data = parse_event(event)
        if data is None:
            return event
        parsed = _read(data)
        if parsed is None:
            return self._done(event) if data.strip() == _DONE else self._part(event, first=True, last=True)
        what = parsed.type if isinstance(parsed.type, str) else (kind or b"").decode("latin-1")
        if (usage := _usage(parsed)) is not None:
            self.report(usage)
        self._begin(what, parsed.error)
        if what in self._types.terminal:
            return self._terminal(event)
        if parsed.delta and not self.whole:
            self.text_events += 1
            self.text_bytes += _size(parsed.delta)
        return event

    def _part(self, piece: bytes, *, first: bool, last: bool) -> bytes:
        """Part of an event that is too large to hold, or all of one that is no JSON (recorded: a brace too few)."""
        if first:
            head = _EVENT_LINE.search(piece) or _TYPE_FIRST.search(piece)
            self._large = head[1].decode("latin-1") if head is not None else ""
            self._last_bytes = b""
            if self._large:
                self._begin(self._large)
        self._last_bytes = (self._last_bytes + piece)[-LAST_BYTES:]
        if not last:
            return piece
        if (usage := _last_usage(self._last_bytes)) is not None:
            self.report(usage)
        return self._terminal(piece) if self._large in self._types.terminal else piece

    def _done(self, event: bytes) -> bytes:
        if self.whole or self.failed:
            return event
        if not self._types.ends_with_done:
            return b""
        self.whole = True
        return event if self.before_terminal is None or self._ids else self.before_terminal() + event

    def _begin(self, what: str, error: object = None) -> None:
        """What the type of an event says by itself."""
        if error or what in self._types.failed:
            self.failed = True
        elif not (self.committed or self.failed or what in self._types.silent or what in _SILENT):
            self.committed = True

    def _terminal(self, event: bytes) -> bytes:
        first, self.whole = not self.whole, True
        if first and self.before_terminal is not None and not self._ids:
            return event + self.before_terminal()
        return event


def error_event(error: GatewayError) -> bytes:
    """An event that the SDKs raise: they look for `error`, the readers of typed events for the fields beside it.

    The spec wants a `sequence_number`; what is not of the provider's sequence has none but 0.
    """
    what = {"code": error.code, "message": error.message, "param": error.param}
    content = {"type": "error", "sequence_number": 0, **what, "error": {"type": error.type, **what}}
    return b"event: error\ndata: %b\n\n" % _encode(content)


def _read(data: bytes) -> _Event | None:
    try:
        return _decode_event(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _usage(event: _Event) -> Usage | None:
    if event.usage != _ABSENT:
        return parse_responses_usage(event.usage) or parse_duration_usage(event.usage)
    if event.response == _ABSENT:
        return None
    try:
        response = _decode_response(event.response)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return parse_responses_usage(response.usage, response.service_tier)


def _last_usage(text: bytes) -> Usage | None:
    """The last usage object in the last bytes of an event. Inside a JSON string its quotes would be escaped."""
    found = None
    for match in _USAGE.finditer(text):
        found = parse_responses_usage(text[match.end() : value_end(text, match.end())]) or found
    return found


def _size(delta: object) -> int:
    return len(delta.encode()) if isinstance(delta, str) else len(_encode(delta))
