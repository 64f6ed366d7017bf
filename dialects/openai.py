"""The OpenAI dialect, and its chat completions.

Bodies pass byte for byte. Of a request one value changes (`model`), and a stream that did not ask for usage gets
`stream_options.include_usage` spliced in, because metering needs it; the usage event that answers it is taken out
again. Of an answer nothing changes; it is only read (chat_chunk.py, chat_stream.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from ..proxy.accounting.usage import MOST_TOKENS
from ..proxy.dialect import AnswerFacts, Dialect, Operation
from ..proxy.json_splice import find_members, value_end
from ..proxy.replies import error_body
from .chat_chunk import UNREADABLE, choice_bytes, decode_chunk, usage_of
from .chat_stream import ChatStream, StoredChat
from .forms import FORMS
from .json_request import JsonFacts, allowance, find_model, name_model, read_object, read_stream
from .listed_models import read_models
from .objects import read_id
from .one_shot import ONE_SHOT
from .pass_through import METERED, VERBATIM, PassThrough
from .realtime import Realtime
from .references import files_in
from .responses import Responses

if TYPE_CHECKING:
    from ..proxy.catalog import ListedModel
    from ..proxy.dialect import RequestFacts, Splice
    from ..proxy.edge.downstream import Headers
    from ..proxy.errors import GatewayError
    from ..proxy.stateful import Ref, Said


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


_decode_request = msgspec.json.Decoder(_ChatRequest).decode
_encode = msgspec.json.encode


class ChatFacts(JsonFacts):
    """A chat request, and the `stream_options` it has."""

    __slots__ = ("stream_options",)

    output_fields: ClassVar[tuple[bytes, ...]] = (b"max_completion_tokens", b"max_tokens")

    def __init__(self, body: bytes, request: _ChatRequest, model_at: tuple[int, int]) -> None:
        # All that the base classes do, without a call: this runs for every request.
        self.body = body
        self.model = request.model
        self.model_at = model_at
        self.stream_options = options = request.stream_options
        self.wants_usage = isinstance(options, dict) and options.get("include_usage") is True
        stream, limit, n = request.stream, request.max_completion_tokens, request.n
        self.stream = stream is not None and read_stream(stream)
        if limit is None:
            limit = request.max_tokens
        plain = limit is None or (type(limit) is int and 0 < limit <= MOST_TOKENS)
        self.max_tokens = limit if plain else allowance(limit)
        self.n = 1 if n is None else allowance(n) or 1
        self.stores = request.store is True
        self._encoded = None
        self._limited = False

    def encode(self, model: str, splices: list[Splice] | None = None) -> bytes:
        """The wish for usage goes into a stream that lacks it."""
        if self.stream and not self.wants_usage:
            splices = [_include_usage(self)]
        elif model == self.model and not self._limited:
            return self.body
        return super().encode(model, splices)


class CompletionFacts(ChatFacts):
    """A request of the older endpoint."""

    __slots__ = ()

    output_fields = (b"max_tokens",)


class Chat(Operation):
    """POST /chat/completions, and the older /completions, whose chunks carry `text` instead of a delta."""

    def __init__(
        self, name: str = "chat", path: bytes = b"/chat/completions", facts: type[ChatFacts] = ChatFacts
    ) -> None:
        self.name = name
        self._path = path
        self._facts = facts

    def read(self, body: bytes, *, max_depth: int) -> ChatFacts:
        """Check JSON, depth and model."""
        request = read_object(body, _decode_request, max_depth=max_depth)
        return self._facts(body, request, find_model(body, request.model))

    def read_for(self, model: str, body: bytes, *, max_depth: int) -> ChatFacts:
        """The same with the model of the path put in."""
        request = read_object(body, _decode_request, max_depth=max_depth)
        request.model = model
        body = name_model(body, model)
        return self._facts(body, request, find_model(body, model))

    def encode(self, facts: RequestFacts, model: str) -> bytes:
        """Splice the model's name in, and the wish for usage into a stream that lacks it."""
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
        """Usage and error of a whole completion; its text where it does not say its usage."""
        try:
            answer = decode_chunk(body)
        except UNREADABLE:
            return AnswerFacts(unreadable=True)
        usage, text = usage_of(answer), 0
        if usage is None:
            for choice in answer.choices or ():
                text += choice_bytes(choice)
        return AnswerFacts(usage, error=bool(answer.error), text_bytes=text)

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


class OpenAI(Dialect):
    """The language most providers speak."""

    name = "openai"
    models_target = b"/models"

    def __init__(self) -> None:
        operations = (
            Chat(),
            Chat("completions", b"/completions", CompletionFacts),
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
