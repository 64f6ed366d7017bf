"""What a provider's language must say about itself, so that the engine can carry it without knowing it.

A `Dialect` is a set of `Operation`s ("chat", later "responses", "embeddings"). An operation reads a request once,
writes the body each target gets, and follows the answer: as a whole, or as a stream through a `StreamReader`. The
engine asks only: which model, is it a stream, when has the answer really begun, is it whole, and what did it use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import msgspec

from .accounting.usage import Usage
from .stateful import NOTHING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .catalog import ListedModel
    from .edge.downstream import Headers, RequestHead
    from .errors import GatewayError
    from .stateful import Ref, Said

Splice = tuple[int, int, bytes]
"""Replace the bytes from the first place to the second by these."""


class RequestFacts:
    """What the engine knows of a request body. `body` is the client's own bytes; operations keep more in subclasses.

    `max_tokens`, from 1 up, limits each of `n` answers, from 1 up; None: nothing does."""

    __slots__ = ("body", "max_tokens", "model", "n", "stores", "stream", "wants_usage")

    verbatim: ClassVar[bool] = False
    """The body goes up under the client's own content-type."""
    characters: int = 0
    """Of text to be spoken."""

    def __init__(
        self, body: bytes, model: str, *, stream: bool, wants_usage: bool, max_tokens: int | None, n: int
    ) -> None:
        self.body = body
        self.model = model
        self.stream = stream
        self.wants_usage = wants_usage
        self.max_tokens = max_tokens
        self.n = n
        self.stores = False
        """The answer may say that the provider keeps something: its ids are written down."""

    def encode(self, model: str) -> bytes:
        """The body for a target that calls the model `model`; the client's own bytes where nothing has to change."""
        return self.body

    def limit_output(self, tokens: int) -> bool:
        """Have the body say that an answer may have so many tokens, where it says nothing of the kind; False where it
        does, or this kind of request cannot."""
        return False

    def respell(self, body: bytes) -> bool:
        """Let another body take the place of the one that was read, which differs in the texts of other fields than
        `model` alone; False where that cannot be done."""
        return False

    def splices(self, model: str) -> list[Splice]:
        """What to replace in a body that is passed on while it arrives; places count from its first byte."""
        return []


class BodyReader(ABC):
    """Looks at a request body while it arrives, before and after it is passed on."""

    __slots__ = ("facts",)

    facts: RequestFacts
    """What is known by now; `body` is empty."""

    @property
    @abstractmethod
    def knows_model(self) -> bool:
        """The model was seen, or there is none to look for."""

    @abstractmethod
    def feed(self, data: bytes) -> None:
        """The next bytes. Raises DownstreamError, which ends the exchange even if they are already on their way."""

    @abstractmethod
    def end(self) -> None:
        """That was all. Raises DownstreamError."""

    @abstractmethod
    def whole(self, body: bytes) -> RequestFacts:
        """The facts of a body that was held whole, after `end`. Raises DownstreamError."""


class AnswerFacts(msgspec.Struct, gc=False):
    """What an answer has said. Made for each: by a constructor in C."""

    usage: Usage | None = None
    error: bool = False
    """A provider's error in a 200."""
    text_bytes: int = 0
    """Of generated text, for an estimate where `usage` is none or not final."""
    text_events: int = 0
    """Those that carried some."""
    usage_is_final: bool = True
    """Nothing was generated after it."""
    unreadable: bool = False
    """What should be a JSON object cannot be read as one."""


class StreamReader(ABC):
    """Follows one streamed answer: bytes in, bytes that may be relayed out, and what became of it.

    It is fed until `finished`; then the rest of the message is nobody's. Bytes given out end at an event boundary
    unless `mid_event`.
    """

    __slots__ = (
        "_reported_at",
        "before_terminal",
        "committed",
        "failed",
        "finished",
        "named",
        "rewrite",
        "text_bytes",
        "text_events",
        "usage",
        "whole",
    )

    def __init__(self) -> None:
        self.committed = False
        """An event with content, reasoning, refusal, audio, a tool call or a finish was seen."""
        self.finished = False
        """The dialect's own last event was seen: the answer is whole and nothing of the message is read any more."""
        self.whole = False
        """The answer is whole, however the message ends; something may still follow (dialects without `[DONE]`)."""
        self.failed = False
        """The provider sent an error event of its own."""
        self.usage: Usage | None = None
        """The latest report; set by `report`."""
        self.text_bytes = 0
        self.text_events = 0
        """Of generated text so far, and the events it came in: for an estimate where nobody reports usage."""
        self._reported_at = 0
        self.named: Said | None = None
        """What the bytes that were given out last say of objects that the provider keeps."""
        self.before_terminal: Callable[[], bytes] | None = None
        """Asked once, for bytes to put before the terminal event (after it, in a dialect without `[DONE]`)."""
        self.rewrite: Callable[[bytes], bytes] | None = None
        """Filters that rewrite events; None keeps the byte path."""

    def report(self, usage: Usage) -> None:
        """The provider says what it has used up to here."""
        self.usage = usage
        self._reported_at = self.text_events

    def facts(self) -> AnswerFacts:
        """What has been said so far."""
        return AnswerFacts(
            self.usage,
            error=self.failed,
            text_bytes=self.text_bytes,
            text_events=self.text_events,
            usage_is_final=self._reported_at >= self.text_events,
        )

    @property
    @abstractmethod
    def mid_event(self) -> bool:
        """Part of an unfinished event has been given out: nothing may be added to the stream."""

    def passes(self, data: bytes) -> bool:
        """Whether this is more text and nothing else, so that it goes down as it is. Then it is counted, and not for
        `feed`; no other attribute has changed."""
        return False

    @abstractmethod
    def feed(self, data: bytes) -> bytes:
        """What of `data`, and of what was held before, may go down now."""

    @abstractmethod
    def end(self) -> tuple[bytes, bool]:
        """At a *clean* end of the message: the last bytes to relay, and whether the answer is whole without a
        terminal event."""


class SessionReader(ABC):
    """Follows the provider's text messages of one session over a WebSocket, in pieces as they come."""

    __slots__ = ("reports",)

    def __init__(self) -> None:
        self.reports: list[Usage] = []
        """What was used since somebody took the last ones out."""

    @abstractmethod
    def piece(self, data: bytes, start: int, end: int) -> None:
        """`data[start:end]` is more of the message under way."""

    @abstractmethod
    def end(self) -> None:
        """That message is complete."""

    @abstractmethod
    def close(self) -> None:
        """There will be no more, whole or not: the last reports."""


class Operation(ABC):
    """One endpoint of a dialect."""

    name: str
    verbatim: ClassVar[bool] = False
    """Method, path and query go up as the client sent them, and its facts are `verbatim`, too."""

    def open_body(self, head: RequestHead, model: str = "", *, tracks: bool, divided: bool) -> BodyReader | None:
        """A reader for a body that is passed on while it arrives; None: it is collected, for `read`. `model`: the path
        names it, and the body is not believed. `tracks`: the objects that it names will be asked for;
        `divided`: and none of them may escape notice.

        Asked only of faces that stream. Raises DownstreamError."""
        return None

    def references(self, facts: RequestFacts) -> Sequence[Ref]:
        """The objects that a request names in its body. Asked only where it matters. Raises InvalidRequestError for
        more than anybody could mean."""
        return ()

    def read_objects(self, body: bytes) -> Said:
        """What a good answer, or the beginning of one, says of objects that the provider keeps; never raises. Asked
        only of requests that `stores`."""
        return NOTHING

    def read_for(self, model: str, body: bytes, *, max_depth: int) -> RequestFacts:
        """As `read`, for a path that names the model; the body need not, and is not believed."""
        raise NotImplementedError(self.name)

    def read_head(self, head: RequestHead) -> RequestFacts:
        """As `read`, for a session: its head says all. Raises DownstreamError."""
        raise NotImplementedError(self.name)

    def session_target(self, facts: RequestFacts, model: str) -> bytes:
        """Path and query below the provider's base URL of a session with the model `model`."""
        raise NotImplementedError(self.name)

    def open_session(self, facts: RequestFacts) -> SessionReader:
        """A reader for one session."""
        raise NotImplementedError(self.name)

    @abstractmethod
    def read(self, body: bytes, *, max_depth: int) -> RequestFacts:
        """Understand a request; raises DownstreamError with the code that says what is wrong."""

    @abstractmethod
    def encode(self, facts: RequestFacts, model: str) -> bytes:
        """The body for a target that calls the model `model`; the client's own bytes where nothing has to change."""

    @abstractmethod
    def target(self, query: bytes) -> bytes:
        """Path and query below the provider's base URL."""

    @abstractmethod
    def open_stream(self, facts: RequestFacts) -> StreamReader | None:
        """A reader for one streamed answer; None relays it as it is."""

    @abstractmethod
    def read_answer(self, body: bytes) -> AnswerFacts:
        """Read a whole answer; never raises: what cannot be read says nothing but that."""

    @abstractmethod
    def error_event(self, error: GatewayError) -> bytes:
        """One complete event that every SDK of the dialect raises as an API error."""


class Dialect(ABC):
    """A provider's language."""

    name: ClassVar[str]
    models_target: ClassVar[bytes]
    """Where a provider lists its models, below its base URL."""
    operations: Mapping[str, Operation]

    @abstractmethod
    def credential(self, key: str) -> Headers:
        """The fields that carry a provider's key."""

    @abstractmethod
    def read_models(self, body: bytes) -> list[ListedModel]:
        """The answer from `models_target`. Raises ValueError for what is none."""
