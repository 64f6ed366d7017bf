"""The OpenAI dialect: chat completions.

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
from ..proxy.dialect import AnswerFacts, Dialect, Operation, RequestFacts, StreamReader
from ..proxy.errors import (
    DuplicateFieldError,
    GatewayError,
    InvalidJsonError,
    InvalidRequestError,
    JsonTooDeepError,
    MissingModelError,
)
from ..proxy.json_splice import deeper_than, find_members, value_end
from ..proxy.replies import error_body
from .sse import EventSplitter, has_id, parse_event

if TYPE_CHECKING:
    from ..proxy.edge.downstream import Headers

_DONE = b"[DONE]"
_ABSENT = msgspec.Raw(b"null")
_NO_TEXT: tuple[object, ...] = (None, "", [], {})


class _StreamOptions(msgspec.Struct):
    include_usage: Any = None


class _ChatRequest(msgspec.Struct):
    model: Any = None
    stream: Any = None
    stream_options: Any = msgspec.UNSET
    max_tokens: Any = None
    max_completion_tokens: Any = None
    n: Any = None


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None
    audio: Any = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: Any = None


class _GroqExtra(msgspec.Struct):
    usage: msgspec.Raw = _ABSENT


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _ABSENT
    error: Any = None
    x_groq: _GroqExtra | None = None
    service_tier: Any = None


_decode_request = msgspec.json.Decoder(_ChatRequest).decode
_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_encode = msgspec.json.encode


class ChatFacts(RequestFacts):
    """A chat request, and where its `model` and `stream_options` stand in the body."""

    __slots__ = ("_encoded", "model_at", "stream_options")

    def __init__(self, body: bytes, request: _ChatRequest, model_at: tuple[int, int]) -> None:
        options = request.stream_options
        limit = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
        super().__init__(
            body,
            request.model,
            stream=request.stream is True,
            wants_usage=isinstance(options, dict) and options.get("include_usage") is True,
            max_tokens=limit if type(limit) is int and limit > 0 else None,
            n=request.n if type(request.n) is int and request.n > 0 else 1,
        )
        self.model_at = model_at
        self.stream_options = options
        self._encoded: tuple[str, bytes] | None = None


class Chat(Operation):
    """POST /chat/completions."""

    name = "chat"

    def read(self, body: bytes, *, max_depth: int) -> ChatFacts:
        """Check what must be checked here: JSON, depth, one `model`. All else is the provider's to judge."""
        try:
            if not body.isascii():
                body.decode()  # the decoder does not look into strings it skips
            request = _decode_request(body)
        except RecursionError:
            raise JsonTooDeepError(f"The body is nested deeper than {max_depth} levels.") from None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InvalidJsonError(f"The body must be one JSON object: {error}.") from None
        if deeper_than(body, max_depth):
            raise JsonTooDeepError(f"The body is nested deeper than {max_depth} levels.")
        model = request.model
        if not isinstance(model, str) or not model:
            raise MissingModelError("You must provide a model: a non-empty string.", param="model")
        if not model.isprintable() or len(model) > 256:
            raise MissingModelError("The model must be at most 256 printable characters.", param="model")
        if request.stream is not None and not isinstance(request.stream, bool):
            raise InvalidRequestError("'stream' must be true or false.", param="stream")
        places = find_members(body, b"model")
        if len(places) != 1:
            raise DuplicateFieldError("The body names 'model' twice.", param="model")
        return ChatFacts(body, request, (places[0], value_end(body, places[0])))

    def encode(self, facts: RequestFacts, model: str) -> bytes:
        """Splice the model's name in, and the wish for usage into a stream that lacks it."""
        assert isinstance(facts, ChatFacts)  # noqa: S101 - narrows for the type checker: this operation made them
        if facts._encoded is not None and facts._encoded[0] == model:
            return facts._encoded[1]
        splices: list[tuple[int, int, bytes]] = []
        start, end = facts.model_at
        if model != facts.model:
            splices.append((start, end, _encode(model)))
        if facts.stream and not facts.wants_usage:
            splices.append(_include_usage(facts, end))
        body = facts.body
        if splices:
            parts: list[bytes] = []
            done = 0
            for start, end, value in sorted(splices):
                parts += (body[done:start], value)
                done = end
            parts.append(body[done:])
            body = b"".join(parts)
        facts._encoded = (model, body)
        return body

    def target(self, query: bytes) -> bytes:
        """`/chat/completions`."""
        return b"/chat/completions?" + query if query else b"/chat/completions"

    def open_stream(self, facts: RequestFacts) -> ChatStream:
        """A reader that hides the usage event where the client did not ask for it."""
        return ChatStream(hide_usage=not facts.wants_usage, choices=facts.n)

    def read_answer(self, body: bytes) -> AnswerFacts:
        """Usage and error of a whole completion."""
        try:
            answer = _decode_chunk(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return AnswerFacts()
        text = sum(_text_bytes(choice.message) for choice in answer.choices or () if choice.message is not None)
        return AnswerFacts(_usage(answer), error=bool(answer.error), text_bytes=text)

    def error_event(self, error: GatewayError) -> bytes:
        """`data: {"error": …}`, which openai-python, openai-node and the AI SDK raise."""
        return b"data: %b\n\n" % error_body(error)


def _include_usage(facts: ChatFacts, model_end: int) -> tuple[int, int, bytes]:
    """The splice that asks for usage: into `stream_options` where there is one, else right after the model."""
    if facts.stream_options is msgspec.UNSET:
        return model_end, model_end, b',"stream_options":{"include_usage":true}'
    start = find_members(facts.body, b"stream_options")[-1]
    end = value_end(facts.body, start)
    options = facts.stream_options if isinstance(facts.stream_options, dict) else {}
    return start, end, _encode({**options, "include_usage": True})


def _usage(chunk: _Chunk) -> Usage | None:
    raw = chunk.usage
    if raw == _ABSENT and chunk.x_groq is not None:
        raw = chunk.x_groq.usage
    usage = None if raw == _ABSENT else parse_chat_usage(raw)
    if usage is not None and usage.service_tier is None and isinstance(chunk.service_tier, str):
        return msgspec.structs.replace(usage, service_tier=chunk.service_tier)
    return usage


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
            and not (splitter.tail or splitter.mid_event or self.finished or self.rewrite is not None)
        ):
            # One event of one line and nothing before it: what nearly every read of a stream is.
            return self._chunk(data, None, data[6:])
        events = splitter.feed(data)
        relayed = []
        for event in events:
            if self.finished:
                break
            kept = self._event(event)
            relayed.append(kept if self.rewrite is None or not kept else self.rewrite(kept))
        return b"".join(relayed)

    def end(self) -> tuple[bytes, bool]:
        """An unterminated last event whose data parses counts; whole if every choice has its finish_reason."""
        tail = self._splitter.flush()
        last = b""
        if tail and not self.finished:
            data = parse_event(tail)[1]
            if data is not None and (data.strip() == _DONE or _parses(data)):
                last = self._event(tail)
        whole = self.finished or (len(self._seen | self._ended) >= self._choices and self._seen <= self._ended)
        return last, whole

    def _event(self, event: bytes) -> bytes:
        if not self._ids and (event.startswith(b"id") or b"\nid" in event):
            self._ids = has_id(event)
        kind, data = parse_event(event)
        if data is None:
            return event
        if data.startswith(_DONE) and data.strip() == _DONE:
            self.finished = True
            if self.before_terminal is not None and not self._ids:
                return self.before_terminal() + event
            return event
        return self._chunk(event, kind, data)

    def _chunk(self, event: bytes, kind: bytes | None, data: bytes) -> bytes:
        """Take in an event with data; what of it may be relayed."""
        try:
            chunk = _decode_chunk(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return event
        usage = None if chunk.usage == _ABSENT and chunk.x_groq is None else _usage(chunk)
        if usage is not None:
            self.usage = usage
        if chunk.error or kind == b"error":
            self.failed = True
            return event
        choices = chunk.choices
        if not choices:
            return b"" if choices is not None and usage is not None and self._hide_usage else event
        for choice in choices:
            delta = choice.delta
            if delta is not None:
                text = _text_bytes(delta)
                if text or delta.audio not in _NO_TEXT:
                    self.text_bytes += text
                    self.committed = True
            self._seen.add(choice.index)
            if choice.finish_reason is not None and isinstance(choice.finish_reason, str) and choice.finish_reason:
                self._ended.add(choice.index)
                self.committed = True
        return event


def _parses(data: bytes) -> bool:
    try:
        _decode_chunk(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


class OpenAI(Dialect):
    """The language most providers speak."""

    name = "openai"

    def __init__(self) -> None:
        self.operations = {"chat": Chat()}

    def credential(self, key: str) -> Headers:
        """A bearer token."""
        return [(b"authorization", b"Bearer " + key.encode())]
