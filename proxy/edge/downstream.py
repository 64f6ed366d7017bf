"""The client's side of one exchange, as a seam: the engine does not know whether a socket or an ASGI server is below.

Two implementations: the hardened uvicorn protocol calls the engine directly from the parser, with no task in between
(http_protocol.py); the portable ASGI form pays for a receive task and runs anywhere (asgi.py).

The seam is made of plain callbacks because it carries every event of every stream: a callback is 0.1 µs, an await that
really waits is 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..errors import GatewayError

Headers = list[tuple[bytes, bytes]]
"""Field lines in the order they came; names in lower case; values without CR, LF or NUL."""


class RepeatedHead(Protocol):
    """What heads of one connection have in common: all but the values of a few fields, which are `changing`; and what
    was found out of the rest of them once for all, for whoever did."""

    changing: frozenset[bytes]
    guard: object
    """Who has let them in, to the acceptor; another one is asked again (http_protocol.py)."""
    faces: object
    face: Any
    """In this table they are for this face, and nothing else in them is for the gateway itself (proxy/run.py)."""
    fewer: int
    """They are by so many fewer than those they were rewritten from."""
    upward: Any
    """What was made of the others for a provider (proxy/headers.py)."""

    def rewrite(self, headers: Headers, rules: RewritingRules) -> tuple[Headers, RepeatedHead]:
        """What `rules` make of these, which nobody has changed since they came, and what that has in common with the
        next ones. The rules are asked once, and of values that change anyway they are not told."""


class RewritingRules(Protocol):
    """Which fields pass under which names, and what is added: by names alone, and every time the same."""

    def apply(self, fields: Headers) -> Headers:
        """Other fields instead of these, which stay as they are."""


class RequestHead:
    """What is known of a request before its body. `path` is percent-decoded, `target` the raw path without query."""

    __slots__ = ("came", "client", "headers", "http_version", "known", "method", "path", "query", "scheme", "target")

    came: Headers
    """`headers` as they came, where they are known: filters may change the others."""
    websocket: bool = False
    """It asks for a WebSocket."""
    names_fields: bool = True
    """Its `connection` may name fields that are for this hop only."""

    def __init__(
        self,
        method: str,
        path: str,
        headers: Headers,
        *,
        target: bytes = b"",
        query: bytes = b"",
        http_version: str = "1.1",
        client: str = "",
        scheme: str = "http",
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.target = target or path.encode("utf-8", "surrogateescape")
        self.query = query
        self.http_version = http_version
        self.client = client
        self.scheme = scheme
        self.known: RepeatedHead | None = None
        """What its fields have in common with others of its connection, where that is known."""

    def header(self, name: bytes) -> bytes | None:
        """The first value of `name` (lower case), or None."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def __repr__(self) -> str:
        return f"<RequestHead {self.method} {self.path}>"


class WebSocketRequestHead(RequestHead):
    """A head that asks for a WebSocket, from an edge that knows it by other means."""

    __slots__ = ()

    websocket = True


class DownstreamListener(Protocol):
    """What the engine hears from the client's side. None of these is ever called from inside a call to `Downstream`."""

    def on_body(self, body: bytes) -> None:
        """The whole body, once, after `read_body`."""

    def on_body_error(self, error: GatewayError) -> None:
        """The body is too large, too slow, or more than the memory for bodies. The client still hears an answer."""

    def on_resume(self) -> None:
        """The client reads again after `write` had returned False."""

    def on_gone(self) -> None:
        """The client left before `end`. Nothing that is written from now on goes anywhere; nothing else is called."""


class BodyListener(Protocol):
    """Who takes a body, or what a client sends over a WebSocket, while it arrives. What goes wrong with it is told to
    the `DownstreamListener`."""

    def on_body_data(self, data: bytes) -> None:
        """More of it; never while it is paused."""

    def on_body_end(self) -> None:
        """It is whole; never told while it is paused, and never of a WebSocket."""


class NobodyListens:
    """The listener of an exchange that is over: what the client does from now on concerns nobody."""

    __slots__ = ()

    def on_body(self, body: bytes) -> None: ...
    def on_body_error(self, error: GatewayError) -> None: ...
    def on_resume(self) -> None: ...
    def on_gone(self) -> None: ...


NOBODY = NobodyListens()


class Downstream(ABC):
    """One request, and its answer. Used in the order `read_body` or `stream_body`?, `start` or `switch`, `write`*,
    `end`; or `abort` at any point."""

    __slots__ = ("head", "listener")

    head: RequestHead
    listener: DownstreamListener

    @abstractmethod
    def read_body(self, limit: int) -> None:
        """Collect the body, at most `limit` bytes; `on_body` or `on_body_error` follows, never before this returns."""

    @abstractmethod
    def stream_body(self, limit: int, to: BodyListener) -> None:
        """Pass the body on while it arrives, at most `limit` bytes: `on_body_data`*, then `on_body_end` or
        `on_body_error`, never before this returns. `start` drops what has not arrived by then."""

    @abstractmethod
    def pause_body(self) -> None:
        """Hand nothing on, and stop reading from the client; its deadline rests. May be called from `on_body_data`."""

    @abstractmethod
    def resume_body(self) -> None:
        """Go on; never delivers before it returns."""

    @abstractmethod
    def charge_body(self, size: int) -> None:
        """Count `size` bytes that the engine keeps of a streamed body among all bodies that are held, until the
        exchange is over. Raises OverloadError."""

    @abstractmethod
    def start(self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None) -> None:
        """The head of the answer. `length` None means unknown: chunked (HTTP/1.1) or ended by close (1.0).

        It leaves together with the first body bytes, or at `end`, so that a whole answer is one segment. `headers`
        holds neither framing nor connection fields.
        """

    def switch(self, headers: Sequence[tuple[bytes, bytes]], to: BodyListener) -> None:
        """Answer 101 to a `head.websocket`. From now on `write` takes frames, of any length in all, and `on_body_data`
        hands on frames, never before this returns. `headers` holds the whole handshake but `connection`."""
        raise NotImplementedError

    @abstractmethod
    def write(self, data: bytes) -> bool:
        """Body bytes. False: the client is behind, stop until `on_resume`; the bytes were taken all the same."""

    @abstractmethod
    def end(self) -> None:
        """The answer is whole."""

    @abstractmethod
    def abort(self) -> None:
        """The answer cannot be made whole: close the connection so that the client cannot take it for whole."""

    def reply(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """A whole answer at once."""
        self.start(status, headers, len(body))
        if body:
            self.write(body)
        self.end()


class AnswerSink(Downstream):
    """A client whose request was read before: nobody asks for its body."""

    __slots__ = ()

    def read_body(self, limit: int) -> None:
        raise NotImplementedError

    def stream_body(self, limit: int, to: BodyListener) -> None:
        raise NotImplementedError

    def pause_body(self) -> None:
        raise NotImplementedError

    def resume_body(self) -> None:
        raise NotImplementedError

    def charge_body(self, size: int) -> None:
        raise NotImplementedError


class Acceptor(Protocol):
    """The engine, as an edge sees it."""

    def accepts(self, path: str) -> bool:
        """Whether requests to this path are exchanges; the others go to the Starlette app beside it."""

    def accept(self, downstream: Downstream) -> None:
        """Take over: sets `downstream.listener` before it returns, and answers sooner or later, whatever happens."""
