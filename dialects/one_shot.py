"""OpenAI's endpoints that take one JSON object and give one answer: embeddings, moderations, rerank, images, speech.

They share one shape: a `model`, which some may leave out; an answer that is JSON with a usage object somewhere, or
bytes, or a stream of typed events where the request asks for one. What is particular to each is a row of a table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ..proxy.accounting.usage import Usage, parse_chat_usage, parse_duration_usage, parse_responses_usage
from ..proxy.dialect import AnswerFacts, Operation
from .json_request import JsonFacts, find_model, find_optional_model, name_model, read_object
from .typed_events import EventTypes, TypedStream, error_event

if TYPE_CHECKING:
    from ..proxy.dialect import RequestFacts
    from ..proxy.errors import GatewayError

_ABSENT = msgspec.Raw(b"null")
_encode = msgspec.json.encode


class _Request(msgspec.Struct):
    model: Any = None
    stream: Any = None
    stream_format: Any = None


class _Answer(msgspec.Struct):
    usage: msgspec.Raw = _ABSENT
    error: Any = None


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_counts = msgspec.json.Decoder(dict[str, Any]).decode


class OneShot(Operation):
    """One row. `needs_model` False: without one the provider takes its default."""

    def __init__(self, name: str, path: bytes, events: EventTypes | None = None, *, needs_model: bool = True) -> None:
        self.name = name
        self._path = path
        self._events = events or EventTypes()
        self._needs_model = needs_model

    def read(self, body: bytes, *, max_depth: int) -> JsonFacts:
        """Check JSON, depth and model."""
        request = read_object(body, _decode_request, max_depth=max_depth)
        stream = request.stream is True or request.stream_format == "sse"
        find = find_model if self._needs_model else find_optional_model
        model_at = find(body, request.model)
        return JsonFacts(body, request.model or "", model_at, stream=stream)

    def read_for(self, model: str, body: bytes, *, max_depth: int) -> JsonFacts:
        """The same with the model of the path put in."""
        read_object(body, _decode_request, max_depth=max_depth)
        return self.read(name_model(body, model), max_depth=max_depth)

    def encode(self, facts: RequestFacts, model: str) -> bytes:
        """Splice the model's name in."""
        return facts.encode(model)

    def target(self, query: bytes) -> bytes:
        """The path of the row."""
        return self._path + b"?" + query if query else self._path

    def open_stream(self, facts: RequestFacts) -> TypedStream:
        """A reader of typed events."""
        return TypedStream(self._events)

    def read_answer(self, body: bytes) -> AnswerFacts:
        """Usage and error of a whole answer."""
        try:
            answer = _decode_answer(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return AnswerFacts(unreadable=True)
        return AnswerFacts(_usage(answer.usage), error=bool(answer.error))

    def error_event(self, error: GatewayError) -> bytes:
        """An `error` event, which the SDKs raise."""
        return error_event(error)


def _usage(raw: msgspec.Raw) -> Usage | None:
    """Chat's names (embeddings), those of responses (images), seconds (transcriptions), or a lone total (rerank), which
    is all input."""
    usage = parse_chat_usage(raw) or parse_responses_usage(raw) or parse_duration_usage(raw)
    if usage is not None:
        return usage
    try:
        counts = _decode_counts(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if counts.keys() != {"total_tokens"}:
        return None
    return parse_chat_usage(_encode({"prompt_tokens": counts["total_tokens"]}))


class _SpeechRequest(msgspec.Struct):
    input: Any = None


_decode_speech = msgspec.json.Decoder(_SpeechRequest).decode


class SpeechFacts(JsonFacts):
    """A text to be spoken, and how long it is: some charge by that, and report nothing."""

    __slots__ = ("characters",)


class Speech(OneShot):
    """Text to sound: bytes, or a stream of events."""

    def read(self, body: bytes, *, max_depth: int) -> SpeechFacts:
        """Check JSON, depth and model."""
        plain = super().read(body, max_depth=max_depth)
        facts = SpeechFacts(body, plain.model, plain.model_at, stream=plain.stream)
        text = _decode_speech(body).input
        facts.characters = len(text) if isinstance(text, str) else 0
        return facts


ONE_SHOT = (
    OneShot("embeddings", b"/embeddings"),
    OneShot("moderations", b"/moderations", needs_model=False),
    OneShot("rerank", b"/rerank"),
    OneShot(
        "images",
        b"/images/generations",
        EventTypes(terminal=frozenset(("image_generation.completed",))),
        needs_model=False,
    ),
    Speech("speech", b"/audio/speech", EventTypes(terminal=frozenset(("speech.audio.done",)), ends_with_done=True)),
)
