"""The portable edge of a WebSocket: one session over ASGI, under whatever server the application runs on.

ASGI knows messages where the tunnel knows frames. So what a client sends becomes one masked frame each, and of what the
provider sends messages are put together, of 16 MiB at most: a longer one ends the session with 1009. No ping crosses:
the server answers the client's, this module the provider's. wsproto does the putting together, because a frame may come
in pieces, a message in frames, and text must be UTF-8 across both; what it is given has passed the tunnel's own rules.

A session that cannot go on ends with 1011 where a socket would be cut: what was not whole was never sent.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from typing import TYPE_CHECKING, Any

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from ..clock import NEVER
from ..websocket.frames import BINARY, BROKEN, NO_CODE, NORMAL, PONG, TEXT, TOO_BIG, encode_close, encode_frame
from .asgi import attend
from .downstream import Downstream, WebSocketRequestHead

if TYPE_CHECKING:
    from collections.abc import Sequence

    import anyio

    from .asgi import Message, Receive, Send
    from .context import EdgeContext
    from .downstream import BodyListener

MESSAGE_BYTES = 16 * 1024 * 1024
REFUSAL = "websocket.http.response"
"""The extension by which a server lets an application answer before the 101; without it the client sees 403."""
_VANISHED = 1006
_PROTOCOLS = b"sec-websocket-protocol"
_POLICY = 1008


async def serve_session(context: EdgeContext, scope: Message, receive: Receive, send: Send) -> None:
    """Serve one `websocket` scope: returns when the session is over or refused.

    Cancelled, it tells the acceptor that the client has left.
    """
    if (await receive())["type"] != "websocket.connect":
        return
    await attend(context, AsgiWebSocket(context, scope), receive, send)


class AsgiWebSocket(Downstream):
    """See the top. `take` and `give` are its two tasks."""

    __slots__ = (
        "_behind", "_closed", "_context", "_frames", "_now", "_over", "_pieces", "_queue", "_refuses", "_sending",
        "_size", "_to", "_unsent", "_wake", "_wanted", "deadline", "scope",
    )  # fmt: skip

    def __init__(self, context: EdgeContext, scope: Message) -> None:
        self.head = _head(scope)
        self.deadline = NEVER
        self.scope: anyio.CancelScope | None = None
        self._context = context
        self._now = context.clock.monotonic
        self._refuses = REFUSAL in (scope.get("extensions") or {})
        self._frames = Connection(ConnectionType.CLIENT)
        self._pieces: list[Any] = []
        """Of the message under way."""
        self._size = 0
        self._to: BodyListener | None = None
        """Who takes what the client sends, once there is a session."""
        self._wanted = asyncio.Event()
        self._queue: deque[tuple[Message, int]] = deque()
        self._unsent = 0
        self._wake = asyncio.Event()
        self._behind = self._closed = self._sending = self._over = False

    # What the acceptor calls

    def read_body(self, limit: int) -> None:
        """A session has none."""
        raise NotImplementedError

    def stream_body(self, limit: int, to: BodyListener) -> None:
        """A session has none."""
        raise NotImplementedError

    def pause_body(self) -> None:
        self._wanted.clear()

    def resume_body(self) -> None:
        if self._to is not None:
            self._wanted.set()

    def charge_body(self, size: int) -> None:
        """A session has none."""

    def start(self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None) -> None:
        if self._refuses and not self._over:
            fields = list(headers) if length is None else [*headers, (b"content-length", b"%d" % length)]
            self._put({"type": f"{REFUSAL}.start", "status": status, "headers": fields})

    def switch(self, headers: Sequence[tuple[bytes, bytes]], to: BodyListener) -> None:
        if self._over:
            return
        chosen = next((value.decode("ascii") for name, value in headers if name == _PROTOCOLS), None)
        own = [field for field in headers if field[0] != b"upgrade" and not field[0].startswith(b"sec-websocket-")]
        self._put({"type": "websocket.accept", "subprotocol": chosen, "headers": own})
        self._to = to
        self._wanted.set()

    def write(self, data: bytes) -> bool:
        if self._over:
            return True
        if self._to is None:
            if self._refuses:
                self._put({"type": f"{REFUSAL}.body", "body": data, "more_body": True}, len(data))
            return True
        self._frames.receive_data(data)
        for event in self._frames.events():
            if self._over:
                break
            if isinstance(event, TextMessage | BytesMessage):
                self._take_piece(event)
            elif isinstance(event, Ping):
                self._say(encode_frame(PONG, bytes(event.payload), _mask()))
            elif isinstance(event, CloseConnection):
                self._close(NORMAL if event.code == NO_CODE else event.code, event.reason or "")
                self._say(encode_close(event.code, "", _mask()))
        self._behind = self._unsent > self._context.limits.write_buffer
        return not self._behind

    def end(self) -> None:
        if self._over:
            return
        if self._to is None:
            if self._refuses:
                self._put({"type": f"{REFUSAL}.body", "body": b"", "more_body": False})
            else:
                self._close(_POLICY, "")
        self._let_go()

    def abort(self) -> None:
        if not self._over:
            self._close(BROKEN, "The session broke off.")
            self._let_go()

    # Its two tasks, its deadline and its end

    async def take(self, receive: Receive) -> None:
        """Receive what the client sends, as fast as it is wanted."""
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self._disconnected(message.get("code", NO_CODE))
                return
            await self._wanted.wait()
            if self._to is None or self._over:
                continue
            said = message.get("text")
            if said is not None:
                self._to.on_body_data(encode_frame(TEXT, said.encode(), _mask()))
            else:
                self._to.on_body_data(encode_frame(BINARY, message.get("bytes") or b"", _mask()))

    async def give(self, send: Send) -> None:
        """Send what is written until the session is over and all of it has gone, or the client has left."""
        stall = self._context.limits.write_stall
        while True:
            while self._queue:
                message, size = self._queue.popleft()
                self._sending = True
                self.deadline = self._now() + stall
                try:
                    await send(message)
                except OSError:  # the word of ASGI 2.4 for a client that has left
                    self.lost()
                    return
                self._sending = False
                self.deadline = NEVER
                self._unsent -= size
                if self._behind and self._unsent <= self._context.limits.write_buffer // 4:
                    self._behind = False
                    if not self._over:
                        self.listener.on_resume()
            if self._over:
                return
            self._wake.clear()
            await self._wake.wait()

    def on_deadline(self) -> None:
        self.deadline = NEVER
        if self._sending:
            self._context.stats.write_stalls += 1
            self.lost()
            if self.scope is not None:
                self.scope.cancel()

    def lost(self) -> None:
        """The client left; harmless when the session is over."""
        if not self._over:
            self._let_go()
            self._queue.clear()
            self.listener.on_gone()

    def _disconnected(self, code: int) -> None:
        """The client is gone; a code says that it has closed the session before."""
        if self._to is not None and not self._over and code != _VANISHED:
            self._to.on_body_data(encode_close(code, "", _mask()))
        self.lost()

    def _take_piece(self, event: TextMessage | BytesMessage) -> None:
        self._pieces.append(event.data)
        self._size += len(event.data)
        if self._size > MESSAGE_BYTES:
            self._close(TOO_BIG, "A message of more than 16 MiB.")
            self._let_go()
            asyncio.get_running_loop().call_soon(self.listener.on_gone)
        elif event.message_finished:
            pieces, self._pieces = self._pieces, []
            size, self._size = self._size, 0
            if isinstance(event, TextMessage):
                self._put({"type": "websocket.send", "text": "".join(pieces)}, size)
            else:
                self._put({"type": "websocket.send", "bytes": b"".join(pieces)}, size)

    def _say(self, frame: bytes) -> None:
        """To the provider, in the client's place, once the tunnel has come back."""
        asyncio.get_running_loop().call_soon(self._pass_on, frame)

    def _pass_on(self, frame: bytes) -> None:
        if self._to is not None and not self._over:
            self._to.on_body_data(frame)

    def _close(self, code: int, reason: str) -> None:
        """To the client, once: servers take a second one for a bug."""
        if not self._closed:
            self._closed = True
            self._put({"type": "websocket.close", "code": code, "reason": reason})

    def _put(self, message: Message, size: int = 0) -> None:
        self._queue.append((message, size))
        self._unsent += size
        self._wake.set()

    def _let_go(self) -> None:
        self._over = True
        self._to = None
        self._wanted.set()
        self._wake.set()


def _mask() -> bytes:
    return secrets.token_bytes(4)


def _head(scope: Message) -> WebSocketRequestHead:
    client = scope.get("client")
    headers = [(bytes(name), bytes(value)) for name, value in scope["headers"] if name != _PROTOCOLS]
    offered = scope.get("subprotocols")
    if offered:
        headers.append((_PROTOCOLS, ", ".join(offered).encode("latin-1")))
    return WebSocketRequestHead(
        "GET",
        scope["path"],
        headers,
        target=scope.get("raw_path") or b"",
        query=scope["query_string"],
        http_version=scope.get("http_version", "1.1"),
        client=client[0] if client else "",
        scheme=scope.get("scheme", "ws"),
    )
