"""The OpenAI dialect, and its chat completions.

Bodies pass byte for byte. Of a request one value changes (`model`), and a stream that did not ask for usage gets
`stream_options.include_usage` spliced in, because metering needs it; the usage event that answers it is taken out
again. Of an answer nothing changes; it is only read: `usage`, `finish_reason` of every choice, `error`, `[DONE]`.

Every event is decoded into a struct of the few fields that matter: 0.3 µs, and exact, where searching for substrings
would be right only most of the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ..proxy.accounting.usage import Usage, parse_chat_usage
from ..proxy.dialect import AnswerFacts, Dialect, Operation, StreamReader
from ..proxy.json_splice import find_members, value_end
from ..proxy.replies import error_body
from ..proxy.stateful import NOTHING
from .forms import FORMS
from .json_request import JsonFacts, find_model, name_model, positive, read_object, read_stream
from .listed_models import read_models
from .objects import read_id
from .one_shot import ONE_SHOT
from .pass_through import METERED, VERBATIM, PassThrough
from .realtime import Realtime
from .references import files_in
from .responses import Responses
from .sse import BOM, EventSplitter, has_id, parse_event

if TYPE_CHECKING:
    from ..proxy.catalog import ListedModel
    from ..proxy.dialect import RequestFacts, Splice
    from ..proxy.edge.downstream import Headers
    from ..proxy.errors import GatewayError
    from ..proxy.stateful import Ref, Said

_DONE = b"[DONE]"
_ABSENT = msgspec.Raw(b"null")
_NO_TEXT: tuple[object, ...] = (None, "", [], {})
_LF = 0x0A
_MOST_CHOICES = 1024
"""Indexes that a stream may make us remember."""
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _StreamOptions(msgspec.Struct):
    include_usage: Any = None


class _ChatRequest(msgspec.Struct):
    model: Any = None
    stream: Any = None
    stream_options: Any = msgspec.UNSET
    max_tokens: Any = None
    max_completion_tokens: Any = None
    n: Any = None
    store: Any = None


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None
    audio: Any = None


class _Choice(msgspec.Struct):
    index: Any = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    text: Any = None
    finish_reason: Any = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _ABSENT
    error: Any = None
    x_groq: Any = None
    service_tier: Any = None


_decode_request = msgspec.json.Decoder(_ChatRequest).decode
_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_encode = msgspec.json.encode


class ChatFacts(JsonFacts):
    """A chat request, and the `stream_options` it has."""

    __slots__ = ("stream_options",)

    def __init__(self, body: bytes, request: _ChatRequest, model_at: tuple[int, int]) -> None:
        options = request.stream_options
        limit = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
        super().__init__(
            body,
            request.model,
            model_at,
            stream=request.stream is not None and read_stream(request.stream),
            wants_usage=isinstance(options, dict) and options.get("include_usage") is True,
            max_tokens=positive(limit) if limit is not None else None,
            n=(positive(request.n) or 1) if request.n is not None else 1,
        )
        self.stream_options = options
        self.stores = request.store is True


class Chat(Operation):
    """POST /chat/completions, and the older /completions, whose chunks carry `text` instead of a delta."""

    def __init__(self, name: str = "chat", path: bytes = b"/chat/completions") -> None:
        self.name = name
        self._path = path

    def read(self, body: bytes, *, max_depth: int) -> ChatFacts:
        """Check JSON, depth and model."""
        request = read_object(body, _decode_request, max_depth=max_depth)
        return ChatFacts(body, request, find_model(body, request.model))

    def read_for(self, model: str, body: bytes, *, max_depth: int) -> ChatFacts:
        """The same with the model of the path put in."""
        request = read_object(body, _decode_request, max_depth=max_depth)
        request.model = model
        body = name_model(body, model)
        return ChatFacts(body, request, find_model(body, model))

    def encode(self, facts: RequestFacts, model: str) -> bytes:
        """Splice the model's name in, and the wish for usage into a stream that lacks it."""
        if isinstance(facts, ChatFacts) and facts.stream and not facts.wants_usage:
            return facts.encode(model, [_include_usage(facts)])
        return facts.encode(model)

    def target(self, query: bytes) -> bytes:
        """The path of this operation."""
        return self._path + b"?" + query if query else self._path

    def open_stream(self, facts: RequestFacts) -> ChatStream:
        """A reader that hides the usage event where the client did not ask for it."""
        kind = StoredChat if facts.stores else ChatStream
        return kind(hide_usage=facts.stream and not facts.wants_usage, choices=facts.n)

    def references(self, facts: RequestFacts) -> list[Ref]:
        """Files."""
        return files_in(facts.body)

    def read_objects(self, body: bytes) -> Said:
        """The completion's id."""
        return read_id(body)

    def read_answer(self, body: bytes) -> AnswerFacts:
        """Usage and error of a whole completion."""
        try:
            answer = _decode_chunk(body)
        except _UNREADABLE:
            return AnswerFacts(unreadable=True)
        text = 0
        for choice in answer.choices or ():
            text += _choice_bytes(choice)
        return AnswerFacts(_usage(answer), error=bool(answer.error), text_bytes=text)

    def error_event(self, error: GatewayError) -> bytes:
        """`data: {"error": …}`, which openai-python, openai-node and the AI SDK raise."""
        return b"data: %b\n\n" % error_body(error)


def _include_usage(facts: ChatFacts) -> Splice:
    """The splice that asks for usage: into `stream_options` where there is one, else right after the model."""
    if facts.stream_options is msgspec.UNSET:
        end = facts.model_at[1] if facts.model_at is not None else 0
        return end, end, b',"stream_options":{"include_usage":true}'
    start = find_members(facts.body, b"stream_options")[-1]
    end = value_end(facts.body, start)
    options = facts.stream_options if isinstance(facts.stream_options, dict) else {}
    return start, end, _encode({**options, "include_usage": True})


def _usage(chunk: _Chunk) -> Usage | None:
    raw: bytes | msgspec.Raw = chunk.usage
    if raw == _ABSENT and isinstance(chunk.x_groq, dict) and "usage" in chunk.x_groq:
        raw = _encode(chunk.x_groq["usage"])
    usage = None if raw == _ABSENT else parse_chat_usage(raw)
    if usage is not None and usage.service_tier is None and isinstance(chunk.service_tier, str):
        return msgspec.structs.replace(usage, service_tier=chunk.service_tier)
    return usage


def _choice_bytes(choice: _Choice) -> int:
    if choice.message is not None:
        return _text_bytes(choice.message)
    return len(choice.text.encode()) if isinstance(choice.text, str) else 0


def _text_bytes(delta: _Delta) -> int:
    """Bytes of generated text, rounded up where it is not plain text: the base of an estimate that never
    undercharges."""
    content = delta.content
    if (
        isinstance(content, str)
        and delta.tool_calls is None
        and delta.reasoning is None
        and delta.reasoning_content is None
        and delta.refusal is None
        and delta.function_call is None
    ):
        return len(content) if content.isascii() else len(content.encode())
    total = 0
    for part in (delta.content, delta.reasoning or delta.reasoning_content, delta.refusal):
        if part:
            total += (
                (len(part) if part.isascii() else len(part.encode())) if isinstance(part, str) else len(_encode(part))
            )
    for part in (delta.tool_calls, delta.function_call):
        if part:
            total += len(_encode(part))
    return total


class ChatStream(StreamReader):
    """One streamed chat completion."""

    __slots__ = ("_choices", "_ended", "_hide_usage", "_ids", "_seen", "_splitter")

    def __init__(self, *, hide_usage: bool, choices: int) -> None:
        super().__init__()
        self._splitter = EventSplitter()
        self._hide_usage = hide_usage
        self._choices = choices
        self._seen: set[int] = set()
        self._ended: set[int] = set()
        self._ids = False

    @property
    def mid_event(self) -> bool:
        """Part of an oversized event has passed raw."""
        return self._splitter.mid_event

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
                chunk = _decode_chunk(data[6:])
            except _UNREADABLE:
                pass
            else:
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

    def _event(self, event: bytes) -> bytes:
        """Take in one event; what of it may be relayed, our comment before the terminal one."""
        if not self._ids and (event.startswith((b"id", BOM)) or b"\nid" in event or b"\rid" in event):
            self._ids = has_id(event)
        kind, data = parse_event(event)
        comment = b""
        if data is not None:
            if data.startswith(_DONE) and data.strip() == _DONE:
                self.finished = True
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
            chunk = _decode_chunk(data)
        except _UNREADABLE:
            self.failed = self.failed or kind == b"error"
            return True
        return self._take(chunk, kind)

    def _take(self, chunk: _Chunk, kind: bytes | None = None) -> bool:
        """Take in a chunk. Whether it goes down: all but usage that only we have asked for."""
        choices = chunk.choices
        asked_by_us = False
        if chunk.error or kind == b"error":
            self.failed = True
        elif choices:
            for choice in choices:
                delta = choice.delta
                text = _text_bytes(delta) if delta is not None else _choice_bytes(choice)
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
        if chunk.usage != _ABSENT or chunk.x_groq is not None:
            usage = _usage(chunk)
            if usage is not None:
                self.report(usage)
            return not (asked_by_us and chunk.usage != _ABSENT)
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
        _decode_chunk(data)
    except _UNREADABLE:
        return False
    return True


class OpenAI(Dialect):
    """The language most providers speak."""

    name = "openai"
    models_target = b"/models"

    def __init__(self) -> None:
        operations = (
            Chat(),
            Chat("completions", b"/completions"),
            Responses(),
            Realtime(),
            *ONE_SHOT,
            *FORMS,
            PassThrough(VERBATIM, meters=False),
            PassThrough(METERED, meters=True),
        )
        self.operations = {operation.name: operation for operation in operations}

    def credential(self, key: str) -> Headers:
        """A bearer token."""
        return [(b"authorization", b"Bearer " + key.encode())]

    def read_models(self, body: bytes) -> list[ListedModel]:
        """`{"data": [{"id": …}]}`, or the bare list."""
        return read_models(body)
