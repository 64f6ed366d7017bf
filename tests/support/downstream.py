"""A client without a socket: a `Downstream` that records, and that complains when the engine breaks the seam's rules.

The test plays the client: `deliver()` hands over the body once it was asked for, `resume()` reads again, `leave()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headgate.proxy.edge.downstream import Downstream, RequestHead, WebSocketRequestHead

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headgate.proxy.edge.downstream import BodyListener
    from headgate.proxy.errors import GatewayError

CHAT = "/v1/chat/completions"


class FakeDownstream(Downstream):
    """`room`: how many bytes `write` takes before it says False; None for ever. Everything written is kept."""

    __slots__ = (
        "aborted",
        "asked",
        "body",
        "body_paused",
        "body_to",
        "charged",
        "ended",
        "gone",
        "headers",
        "length",
        "room",
        "status",
        "switched",
        "writes",
    )

    def __init__(
        self,
        body: bytes = b"",
        *,
        method: str = "POST",
        path: str = CHAT,
        query: bytes = b"",
        websocket: bool = False,
        headers: Sequence[tuple[bytes, bytes]] = ((b"host", b"localhost"), (b"content-type", b"application/json")),
        room: int | None = None,
    ) -> None:
        kind = WebSocketRequestHead if websocket else RequestHead
        self.head = kind(method, path, list(headers), query=query, client="127.0.0.1")
        self.body = body
        self.room = room
        self.asked: int | None = None
        self.body_to: BodyListener | None = None
        self.body_paused = False
        self.charged = 0
        self.status: int | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.length: int | None = None
        self.writes: list[bytes] = []
        self.ended = False
        self.aborted = False
        self.gone = False
        self.switched = False

    def __repr__(self) -> str:
        state = "gone" if self.gone else "aborted" if self.aborted else "ended" if self.ended else "open"
        return f"<FakeDownstream {self.status} {len(self.received)} bytes, {state}>"

    @property
    def received(self) -> bytes:
        """The body so far."""
        return b"".join(self.writes)

    @property
    def finished(self) -> bool:
        """Nothing more can come."""
        return self.ended or self.aborted or self.gone

    def header(self, name: bytes) -> bytes | None:
        """The first value of an answer's field."""
        return next((value for key, value in self.headers if key.lower() == name), None)

    def deliver(self) -> None:
        """The client's body has arrived."""
        assert self.asked is not None, "the engine did not ask for the body"
        self.listener.on_body(self.body)

    def fail_body(self, error: GatewayError) -> None:
        """The client's body will not arrive."""
        assert self.asked is not None, "the engine did not ask for the body"
        self.listener.on_body_error(error)

    def resume(self, room: int | None = None) -> None:
        """The client reads again."""
        self.room = room
        self.listener.on_resume()

    def leave(self) -> None:
        """The client goes away before the end."""
        assert not self.finished
        self.gone = True
        self.listener.on_gone()

    def stream_body(self, limit: int, to: BodyListener) -> None:
        self.read_body(limit)
        self.body_to = to

    def pause_body(self) -> None:
        self.body_paused = True

    def resume_body(self) -> None:
        self.body_paused = False

    def charge_body(self, size: int) -> None:
        self.charged += size

    def feed(self, data: bytes) -> None:
        """More of a streamed body has arrived."""
        assert not self.body_paused, "the engine wants nothing now"
        assert self.body_to is not None, "the engine did not ask for a stream"
        self.body_to.on_body_data(data)

    def finish_body(self) -> None:
        """A streamed body is whole."""
        assert not self.body_paused, "the engine wants nothing now"
        assert self.body_to is not None, "the engine did not ask for a stream"
        self.body_to.on_body_end()

    def read_body(self, limit: int) -> None:
        assert self.asked is None, "read_body twice"
        assert self.status is None, "read_body after start"
        self.asked = limit

    def start(self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None) -> None:
        if self.gone:
            return
        assert self.status is None, "start twice"
        assert not self.aborted, "start after abort"
        for name, value in headers:
            assert name.lower() not in {b"content-length", b"transfer-encoding", b"connection", b"keep-alive"}, name
            assert not set(b"\r\n\0") & set(name + value), (name, value)
        self.status, self.headers, self.length = status, list(headers), length

    def switch(self, headers: Sequence[tuple[bytes, bytes]], to: BodyListener) -> None:
        assert self.head.websocket, "nobody asked for a WebSocket"
        self.start(101, headers, None)
        self.switched = True
        self.body_to = to

    def write(self, data: bytes) -> bool:
        if self.gone:
            return True
        assert self.status is not None, "write before start"
        assert not self.finished, "write after the end"
        assert data, "an empty write"
        self.writes.append(bytes(data))
        assert self.length is None or len(self.received) <= self.length, "more than was announced"
        if self.room is None:
            return True
        self.room -= len(data)
        return self.room > 0

    def end(self) -> None:
        if self.gone:
            return
        assert self.status is not None, "end before start"
        assert not self.finished, "end twice"
        assert self.length in (None, len(self.received)), "less than was announced"
        self.ended = True

    def abort(self) -> None:
        assert not self.ended, "abort after end"
        self.aborted = True
