"""OpenAI's responses endpoint.

Its stream is made of typed events (typed_events.py) and ends after `response.completed`, `response.failed` or
`response.incomplete`, which holds the whole response once more, and its usage, unasked.

Unless a request says `"store": false`, the provider keeps the response under its id, which stands in the first event.

Not here: the requests that ask for what was kept by its path (pass_through.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ..proxy.accounting.usage import parse_responses_usage
from ..proxy.dialect import AnswerFacts, Operation
from ..proxy.stateful import NOTHING, Said
from .json_request import JsonFacts, allowance, find_optional_model, read_object, read_stream
from .objects import ResponseWatch, read_response
from .references import references
from .typed_events import EventTypes, TypedStream, error_event

if TYPE_CHECKING:
    from ..proxy.dialect import RequestFacts
    from ..proxy.errors import GatewayError
    from ..proxy.stateful import Ref

_ABSENT = msgspec.Raw(b"null")
_EVENTS = EventTypes(
    terminal=frozenset(("response.completed", "response.failed", "response.incomplete")),
    failed=frozenset(("response.failed", "error")),
    silent=frozenset(
        (
            "response.created",
            "response.queued",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.reasoning_summary_part.added",
        )
    ),
)


class _Request(msgspec.Struct):
    model: Any = None
    stream: Any = None
    store: Any = None
    max_output_tokens: Any = None


class _Response(msgspec.Struct):
    usage: msgspec.Raw = _ABSENT
    error: Any = None
    output: msgspec.Raw = _ABSENT
    service_tier: Any = None


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_response = msgspec.json.Decoder(_Response).decode


class ResponseFacts(JsonFacts):
    """A request for a response."""

    __slots__ = ()

    output_fields = (b"max_output_tokens",)


class StoredStream(TypedStream):
    """A stream of which something is kept."""

    __slots__ = ("_watch",)

    def __init__(self, types: EventTypes) -> None:
        super().__init__(types)
        self._watch = ResponseWatch()

    def _event(self, event: bytes) -> bytes:
        self._look(event)
        return super()._event(event)

    def _part(self, piece: bytes, *, first: bool, last: bool) -> bytes:
        if first:
            self._look(piece)
        return super()._part(piece, first=first, last=last)

    def _look(self, event: bytes) -> None:
        said = self._watch.look(event)
        if said is not None:
            before = self.named or NOTHING
            self.named = Said(before.id or said.id, before.others + said.others)


class Responses(Operation):
    """POST /responses."""

    name = "responses"

    def read(self, body: bytes, *, max_depth: int) -> JsonFacts:
        """Check JSON, depth and model. What the provider stored (a prompt, a conversation) may bring a model, so it is
        the provider that says whether one is missing."""
        request = read_object(body, _decode_request, max_depth=max_depth)
        model_at = find_optional_model(body, request.model)
        facts = ResponseFacts(
            body,
            request.model or "",
            model_at,
            stream=read_stream(request.stream),
            max_tokens=allowance(request.max_output_tokens),
        )
        facts.stores = request.store is not False
        return facts

    def references(self, facts: RequestFacts) -> list[Ref]:
        """The earlier response or conversation that it goes on from, files, vector stores, containers."""
        return references(facts.body)

    def encode(self, facts: RequestFacts, model: str) -> bytes:
        """Splice the model's name in."""
        return facts.encode(model)

    def target(self, query: bytes) -> bytes:
        """`/responses`."""
        return b"/responses?" + query if query else b"/responses"

    def open_stream(self, facts: RequestFacts) -> TypedStream:
        """A reader of typed events, which finds the id of a response that is kept."""
        return StoredStream(_EVENTS) if facts.stores else TypedStream(_EVENTS)

    def read_objects(self, body: bytes) -> Said:
        """The response, and the containers it has used."""
        return read_response(body)

    def read_answer(self, body: bytes) -> AnswerFacts:
        """Usage and error of a whole response."""
        try:
            response = _decode_response(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return AnswerFacts(unreadable=True)
        text = 0 if response.output == _ABSENT else len(response.output)
        usage = parse_responses_usage(response.usage, response.service_tier)
        return AnswerFacts(usage, error=bool(response.error), text_bytes=text)

    def error_event(self, error: GatewayError) -> bytes:
        """An `error` event, which the SDKs raise."""
        return error_event(error)
