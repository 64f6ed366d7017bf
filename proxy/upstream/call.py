"""One attempt at a provider, as a handle: started, paused, resumed, cancelled; it answers through callbacks.

A handle costs no task and no future, so that one exchange can hold two of them (a hedge) and decide between them. What
belongs to the way there (connect, TLS, waiting for a free connection) is bounded below this seam; what belongs to the
answer (first token, silence, total) is the dispatcher's, who knows what a token is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from ..edge.downstream import Headers
    from ..errors import GatewayError


class BodySink(Protocol):
    """Where a `BodySource` gives its bytes: one connection. It may pause the source from inside `put`."""

    def put(self, data: bytes) -> None:
        """The next bytes, never empty."""

    def finish(self) -> None:
        """That was all of them."""


class BodySource(ABC):
    """A request body that arrives while it is sent. The sink drives it; what fails on the client's side is told by
    cancelling the call."""

    __slots__ = ("begun", "length")

    length: int | None
    """Bytes in all; None: nobody knows, so it goes out in chunks. Fixed once `start` was called."""
    begun: bool
    """A byte was given away: it can be sent to nobody else."""

    @abstractmethod
    def start(self, sink: BodySink) -> None:
        """Give to `sink` from now on. After a `cancel` another sink may be started, unless it has `begun`."""

    @abstractmethod
    def pause(self) -> None:
        """The provider is behind: give nothing until `resume`."""

    @abstractmethod
    def resume(self) -> None:
        """Go on."""

    @abstractmethod
    def cancel(self) -> None:
        """The sink takes nothing more; idempotent."""


class UpstreamRequest:
    """What is sent. `target` is path and query as they go on the wire, below the endpoint's base path.

    `headers` holds neither `host`, framing, connection nor credential fields: the endpoint adds its own.
    """

    __slots__ = ("body", "headers", "lined", "lines", "method", "source", "target", "upgrade")

    def __init__(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes,
        source: BodySource | None = None,
        *,
        upgrade: bool = False,
        lines: bytes = b"",
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.lines = lines
        """The first `lined` of `headers` as the lines of a head in HTTP/1.1, where somebody had them ready."""
        self.lined = len(headers) if lines else 0
        self.body = body
        self.source = source
        """Gives the body instead of `body`, while it is sent."""
        self.upgrade = upgrade
        """101 is a good answer to it: `source` is started then, and its bytes go out as they are, as do those that come
        back. `headers` then holds `connection` and `upgrade`, too."""


class ResponseHead:
    """Status and field lines of an answer; names in lower case, framing fields still in."""

    __slots__ = ("fields", "headers", "status")

    def __init__(self, status: int, headers: Headers, fields: dict[bytes, bytes] | None = None) -> None:
        self.status = status
        self.headers = headers
        self.fields = fields
        """The same once more, where every name is there once and nobody changes `headers`."""

    def header(self, name: bytes) -> bytes | None:
        """The first value of `name` (lower case), or None."""
        if self.fields is not None:
            return self.fields.get(name)
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def __repr__(self) -> str:
        return f"<ResponseHead {self.status}>"


class CallReceiver(Protocol):
    """Who started the call. From inside `start` nothing is called but `on_sent`; from inside `pause`, `resume` and
    `cancel`, and after `cancel`, nothing at all.

    Order: `on_sent`? `on_head`? `on_data`* and then exactly one of `on_end` and `on_error`; or `on_sent`, `on_whole`.
    """

    takes_wholes: ClassVar[bool] = False
    """It hears `on_whole`, too."""

    def on_sent(self, call: Call) -> None:
        """Connected, and the whole request was handed to the transport."""

    def on_head(self, call: Call, head: ResponseHead) -> None:
        """The final head; 1xx were skipped, but for the 101 that an `upgrade` asked for."""

    def on_data(self, call: Call, data: bytes) -> None:
        """Body bytes, unframed, as they came."""

    def on_end(self, call: Call, clean: bool) -> None:
        """The message ended. `clean`: by its own framing (content-length, last chunk); False: by the end of the
        connection, which is how bytes after a 101 end."""

    def on_error(self, call: Call, error: GatewayError) -> None:
        """It will not be whole: ConnectError and PoolOverflowError before anything was sent, ResetError before a byte
        of the answer was seen, BrokenAnswerError or ProtocolError after."""

    def on_whole(self, call: Call, head: ResponseHead, body: bytes) -> None:
        """In place of `on_head`, `on_data` and a clean `on_end` where one read has brought all of a plain answer, and
        the receiver `takes_wholes`. The call is over by then. Raises nothing."""
        self.on_head(call, head)
        if body:
            self.on_data(call, body)
        self.on_end(call, True)


class Call(ABC):
    """One attempt under way."""

    __slots__ = ()

    @abstractmethod
    def pause(self) -> None:
        """Stop reading the answer: back-pressure reaches the provider. Bytes already read may still arrive once."""

    @abstractmethod
    def resume(self) -> None:
        """Read on."""

    @abstractmethod
    def cancel(self) -> None:
        """Nobody waits for it any more: its connection is closed, unless the answer was already whole. Idempotent."""


class Endpoint(ABC):
    """One place that answers. The in-process mock is one, too."""

    __slots__ = ("name",)

    name: str
    """For rows and metrics: scheme, host and port; never a credential."""

    @abstractmethod
    def start(self, request: UpstreamRequest, receiver: CallReceiver) -> Call:
        """Begin an attempt and return at once."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close idle connections and let running calls end on their own."""
