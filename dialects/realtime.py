"""OpenAI's realtime sessions: a WebSocket whose query names the model, and whose text messages are JSON events.

Nothing of a message is changed. Of the provider's, `response.done` tells what a response has used, and it counts as one
answer: a session is charged for the sum of its responses. What a response has said when its session breaks off is
estimated. The usage of an input transcription counts only in a session that does nothing else: elsewhere another model
made it, at another price.

Of each message only the first bytes are looked at where they tell its type, which they do in every provider's order of
keys; else it is kept, up to a bound, and read as a whole.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote_plus

import msgspec

from ..proxy.accounting.estimate import delivered_tokens
from ..proxy.accounting.usage import Usage, parse_duration_usage, parse_responses_usage
from ..proxy.dialect import AnswerFacts, Operation, RequestFacts, SessionReader
from ..proxy.errors import DuplicateFieldError, MissingModelError
from ..proxy.stateful import Ref
from .typed_events import error_event

if TYPE_CHECKING:
    from ..proxy.edge.downstream import RequestHead
    from ..proxy.errors import GatewayError

MESSAGE_BYTES: Final = 1024 * 1024
"""What is kept of one message to be read."""
HEAD_BYTES: Final = 512
"""Where a type is looked for without reading all."""
RESPONSES: Final = 64
"""Responses under way at the same time whose text is counted."""
_TYPE = re.compile(rb'\s*+\{\s*+(?:"event_id"\s*+:\s*+"[^"\\]*+"\s*+,\s*+)?+"type"\s*+:\s*+"([^"\\]*+)"')
_DONE = "response.done"
_TRANSCRIBED = "conversation.item.input_audio_transcription.completed"
_DELTAS = frozenset(
    (
        "response.output_text.delta",
        "response.output_audio_transcript.delta",
        "response.function_call_arguments.delta",
        "response.text.delta",
        "response.audio_transcript.delta",
    )
)
_READ = frozenset(kind.encode() for kind in (_DONE, _TRANSCRIBED, *_DELTAS))
_ABSENT = msgspec.Raw(b"null")
_MODEL = "model"
_CALL = "call_id"
_INSTEAD = frozenset(("intent", _CALL))
"""With one of these, what is asked for is not a model: a transcription, or a call that has begun elsewhere."""
_AZURE = "/openai/"
_DEPLOYMENT = "deployment"
_VERSION = "api-version"
_KEY = "api-key"
"""Where Azure's client puts its key in a browser. It is the gateway's, so it goes no further; nor does it let in."""


class _Response(msgspec.Struct):
    id: Any = None
    usage: msgspec.Raw = _ABSENT


class _Event(msgspec.Struct):
    type: Any = None
    response_id: Any = None
    delta: Any = None
    response: _Response | None = None
    usage: msgspec.Raw = _ABSENT


_decode = msgspec.json.Decoder(_Event).decode


class RealtimeFacts(RequestFacts):
    """The query of a session. `parts`: its parameters as they came, None in the place of the model's value."""

    __slots__ = ("parts", "transcribes", "written")

    def __init__(self, parts: list[bytes | None], model: str, written: bytes, *, transcribes: bool) -> None:
        super().__init__(b"", model, stream=False, wants_usage=True, max_tokens=None, n=1)
        self.parts = parts
        self.written = written
        """The client's own spelling of the model."""
        self.transcribes = transcribes


class Realtime(Operation):
    """GET /realtime, as a WebSocket."""

    name = "realtime"

    def references(self, facts: RequestFacts) -> list[Ref]:
        """The call that a session joins."""
        parts = facts.parts if isinstance(facts, RealtimeFacts) else []
        pairs = [part.partition(b"=") for part in parts if part is not None]
        return [Ref("realtime/calls", _text(value), _CALL) for name, _, value in pairs if _text(name) == _CALL]

    def read_head(self, head: RequestHead) -> RealtimeFacts:
        """Model and intent of the query. Raises MissingModelError, DuplicateFieldError."""
        azure = head.path.startswith(_AZURE)
        wanted = _DEPLOYMENT if azure else _MODEL
        parts: list[bytes | None] = []
        models: list[bytes] = []
        others: dict[str, str] = {}
        for part in filter(None, head.query.split(b"&")):
            raw_name, _, value = part.partition(b"=")
            name = _text(raw_name)
            if name in (_MODEL, _DEPLOYMENT):
                if name == wanted:
                    parts.append(None)
                models.append(value if name == wanted else b"")
            elif name != _KEY and not (azure and name == _VERSION):
                parts.append(part)
                others[name] = _text(value)
        if len(models) > 1:
            raise DuplicateFieldError(f"The query names '{wanted}' twice.", param=wanted)
        written = models[0] if models else b""
        if not written and _INSTEAD.isdisjoint(others):
            raise MissingModelError(f"The query must name the model: ?{wanted}=…", param=wanted)
        return RealtimeFacts(
            parts if written else [part for part in parts if part is not None],
            _text(written),
            written,
            transcribes=others.get("intent") == "transcription",
        )

    def session_target(self, facts: RequestFacts, model: str) -> bytes:
        """Path and query for a target that calls the model `model`."""
        assert isinstance(facts, RealtimeFacts)  # noqa: S101 - what `read_head` gave
        value = facts.written if model == facts.model else quote(model, safe="").encode()
        query = b"&".join([b"model=" + value if part is None else part for part in facts.parts])
        return b"/realtime?" + query if query else b"/realtime"

    def open_session(self, facts: RequestFacts) -> RealtimeSession:
        """A reader for one session."""
        return RealtimeSession(transcribes=isinstance(facts, RealtimeFacts) and facts.transcribes)

    def read(self, body: bytes, *, max_depth: int) -> RequestFacts:
        """Never asked: a session has no body."""
        raise NotImplementedError

    def encode(self, facts: RequestFacts, model: str) -> bytes:
        """No body."""
        return b""

    def target(self, query: bytes) -> bytes:
        """Never asked: see `session_target`."""
        raise NotImplementedError

    def open_stream(self, facts: RequestFacts) -> None:
        """What answers instead of a session is no stream."""

    def read_answer(self, body: bytes) -> AnswerFacts:
        """It used nothing."""
        return AnswerFacts()

    def error_event(self, error: GatewayError) -> bytes:
        """Not part of any session: what we have to say is in the Close."""
        return error_event(error)


class RealtimeSession(SessionReader):
    """Follows what the provider says in one session."""

    __slots__ = ("_held", "_kind", "_skips", "_spoken", "_transcribes")

    def __init__(self, *, transcribes: bool = False) -> None:
        super().__init__()
        self._transcribes = transcribes
        self._held = bytearray()
        self._kind = b""
        """Type of the message under way, where its first bytes tell."""
        self._skips = False
        """Nothing more of it is kept."""
        self._spoken: dict[object, tuple[int, int]] = {}
        """Response -> bytes of text so far, and the events they came in."""

    def piece(self, data: bytes, start: int, end: int) -> None:
        """More of a text message."""
        if self._skips:
            return
        held = self._held
        if not self._kind and len(held) < HEAD_BYTES:
            if held:
                held += data[start : min(end, start + HEAD_BYTES)]
                found = _TYPE.match(held, 0, HEAD_BYTES)
                start = min(end, start + HEAD_BYTES)
            else:
                found = _TYPE.match(data, start, min(end, start + HEAD_BYTES))
            if found is not None:
                self._kind = bytes(found[1])
                if self._kind not in _READ:
                    self._skip()
                    return
        if len(held) + end - start > MESSAGE_BYTES:
            self._skip()
        else:
            held += data[start:end]

    def end(self) -> None:
        """It is complete: take in what it says."""
        skips, kind = self._skips, self._kind
        message = bytes(self._held)
        self._held.clear()
        self._skips, self._kind = False, b""
        if not skips:
            self._read(message)
        elif kind == _DONE.encode():  # too large to be read: whatever was said is estimated
            self._charge_spoken()

    def close(self) -> None:
        """The session is over: what was said and not yet reported is estimated."""
        self._charge_spoken()

    def _skip(self) -> None:
        self._skips = True
        self._held.clear()

    def _read(self, message: bytes) -> None:
        try:
            event = _decode(message)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        if event.type == _DONE and event.response is not None:
            spoken = self._spoken.pop(_key(event.response.id), None)
            usage = parse_responses_usage(event.response.usage)
            if usage is not None:
                self.reports.append(usage)
            elif spoken is not None:
                self.reports.append(_estimate(*spoken))
        elif event.type in _DELTAS:
            self._speak(_key(event.response_id), event.delta)
        elif event.type == _TRANSCRIBED and self._transcribes:
            usage = parse_responses_usage(event.usage) or parse_duration_usage(event.usage)
            if usage is not None:
                self.reports.append(usage)

    def _speak(self, response: object, delta: object) -> None:
        if isinstance(delta, str) and delta and (response in self._spoken or len(self._spoken) < RESPONSES):
            size, events = self._spoken.get(response, (0, 0))
            self._spoken[response] = (size + len(delta.encode()), events + 1)

    def _charge_spoken(self) -> None:
        self.reports += [_estimate(*spoken) for spoken in self._spoken.values()]
        self._spoken.clear()


def _estimate(size: int, events: int) -> Usage:
    return Usage(0, delivered_tokens(size, events), source="estimated")


def _key(response: object) -> str:
    return response if isinstance(response, str) else ""


def _text(raw: bytes) -> str:
    return unquote_plus(raw.decode("ascii"), errors="replace")
