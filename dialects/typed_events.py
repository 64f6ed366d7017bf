"""Streams of typed events without `[DONE]`: OpenAI's responses, images, speech and transcriptions.

Every event names its type; one of a few types ends the answer. Some providers add a `[DONE]` all the same, so a stream
is followed to the end of its message, and is whole from its terminal event on. A type that is not known passes, and
counts as content: there are dozens, and more every month.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ..proxy.accounting.usage import Usage, parse_responses_usage
from ..proxy.dialect import StreamReader
from .sse import EventSplitter, has_id, parse_event

if TYPE_CHECKING:
    from ..proxy.errors import GatewayError

_ABSENT = msgspec.Raw(b"null")
_SILENT = frozenset(("ping", "keepalive"))
_encode = msgspec.json.encode


class EventTypes(NamedTuple):
    """What the types of a stream mean: `terminal` ends it, `failed` says it went wrong, `silent` comes before
    content."""

    terminal: frozenset[str]
    failed: frozenset[str] = frozenset(("error",))
    silent: frozenset[str] = frozenset()


class _Answer(msgspec.Struct):
    usage: msgspec.Raw = _ABSENT
    service_tier: Any = None


class _Event(msgspec.Struct):
    type: Any = None
    response: _Answer | None = None
    usage: msgspec.Raw = _ABSENT
    delta: Any = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


class TypedStream(StreamReader):
    """One streamed answer of typed events."""

    __slots__ = ("_ids", "_splitter", "_types")

    def __init__(self, types: EventTypes) -> None:
        super().__init__()
        self._types = types
        self._splitter = EventSplitter()
        self._ids = False

    @property
    def mid_event(self) -> bool:
        """Part of an oversized event has passed raw."""
        return self._splitter.mid_event

    def feed(self, data: bytes) -> bytes:
        """Complete events, our comment after the terminal one."""
        relayed = []
        for event in self._splitter.feed(data):
            kept = self._event(event)
            relayed.append(kept if self.rewrite is None else self.rewrite(kept))
        return b"".join(relayed)

    def end(self) -> tuple[bytes, bool]:
        """An unterminated last event counts if its data parses; whole if the terminal event was seen."""
        tail = self._splitter.flush()
        data = parse_event(tail)[1] if tail else None
        last = self._event(tail) if data is not None and _read(data) is not None else b""
        return last, self.whole

    def _event(self, event: bytes) -> bytes:
        if not self._ids and (event.startswith(b"id") or b"\nid" in event):
            self._ids = has_id(event)
        kind, data = parse_event(event)
        parsed = _read(data) if data is not None else None
        if parsed is None:
            return event
        what = parsed.type if isinstance(parsed.type, str) else (kind or b"").decode("latin-1")
        if (usage := _usage(parsed)) is not None:
            self.usage = usage
        if what in self._types.failed or parsed.error:
            self.failed = True
        if what in self._types.terminal:
            return self._terminal(event)
        if not (what in self._types.silent or what in _SILENT or self.failed or self.whole):
            self.committed = True
            self._count(parsed.delta)
        return event

    def _terminal(self, event: bytes) -> bytes:
        self.committed = self.committed or not self.failed
        first, self.whole = not self.whole, True
        if first and self.before_terminal is not None and not self._ids:
            return event + self.before_terminal()
        return event

    def _count(self, delta: object) -> None:
        if delta:
            self.text_events += 1
            self.text_bytes += len(delta.encode()) if isinstance(delta, str) else len(_encode(delta))


def error_event(error: GatewayError) -> bytes:
    """An `error` event in the shape of the responses endpoint, which the SDKs raise."""
    content = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
    return b"event: error\ndata: %b\n\n" % _encode(content)


def _read(data: bytes) -> _Event | None:
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _usage(event: _Event) -> Usage | None:
    if event.usage != _ABSENT:
        return parse_responses_usage(event.usage, None)
    response = event.response
    if response is None or response.usage == _ABSENT:
        return None
    return parse_responses_usage(response.usage, response.service_tier)
