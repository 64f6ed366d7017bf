"""The portable edge: one exchange over ASGI, under whatever server the application runs on.

The same seam as http_protocol.py at a higher price: a task that receives, because ASGI tells that a client left only
to those who wait for it, and a queue between the engine's plain calls and `send`. Framing, heads and keep-alive are
the server's; the bounds on bodies and unsent bytes, the body's deadline and the write stall hold here as well.

An answer that cannot be made whole ends with the application returning early: servers then close the connection.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

import anyio

from ..clock import NEVER
from ..errors import BodyTimeoutError, BodyTooLargeError, GatewayError
from .body import HeldBytes
from .downstream import Downstream, RequestHead
from .response_head import BODILESS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping, Sequence

    from .asgi_websocket import AsgiWebSocket
    from .context import EdgeContext
    from .downstream import BodyListener

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]


_NOT_ASKED = -1


async def serve_exchange(context: EdgeContext, scope: Message, receive: Receive, send: Send) -> None:
    """Serve one `http` scope: returns when the answer is whole or cut, or the client has left.

    Cancelled, it tells the acceptor that the client has left.
    """
    await attend(context, AsgiDownstream(context, _head(scope)), receive, send)


async def attend(context: EdgeContext, client: AsgiDownstream | AsgiWebSocket, receive: Receive, send: Send) -> None:
    """Hand a client to the acceptor, and run its two tasks until everything has been said to it."""
    context.stats.requests += 1
    context.acceptor.accept(client)
    context.deadlines.add(client)
    try:
        async with anyio.create_task_group() as group:
            client.scope = group.cancel_scope
            group.start_soon(client.take, receive)
            await client.give(send)
            group.cancel_scope.cancel()
    finally:
        context.deadlines.discard(client)
        client.lost()


class AsgiDownstream(Downstream):
    """See `Downstream`. `take` and `give` are its two tasks."""

    __slots__ = (
        "_announced", "_asked", "_behind", "_body", "_body_error", "_body_whole", "_context", "_kept", "_limit",
        "_mark", "_mute", "_now", "_over", "_paused", "_queue", "_received", "_sending", "_start", "_started",
        "_streams", "_unsent", "_unwanted", "_wake", "deadline", "scope",
    )  # fmt: skip

    def __init__(self, context: EdgeContext, head: RequestHead) -> None:
        self.head = head
        self.deadline = NEVER
        self.scope: anyio.CancelScope | None = None
        self._context = context
        self._now = context.clock.monotonic
        self._limit = _NOT_ASKED
        self._asked = asyncio.Event()
        self._body = HeldBytes(context.budget)
        self._body_error: GatewayError | None = None
        self._kept = HeldBytes(context.budget)
        """What the acceptor keeps of a streamed body; only counted."""
        self._streams: BodyListener | None = None
        self._body_whole = self._unwanted = self._paused = False
        self._received = 0
        self._mark = 0
        self._start: Message | None = None
        self._started = self._mute = self._behind = self._sending = self._over = False
        self._announced: int | None = None
        self._queue: deque[Message] = deque()
        self._unsent = 0
        self._wake = asyncio.Event()

    # What the acceptor calls

    def read_body(self, limit: int) -> None:
        if self._over:
            return
        self._limit = limit
        self._asked.set()
        announced = self.head.header(b"content-length")
        if announced is not None and announced.isdigit() and int(announced) > limit:
            self._body_error = BodyTooLargeError(f"The body is larger than {limit} bytes.")
        self.deadline = self._now() + self._context.limits.body_idle
        asyncio.get_running_loop().call_soon(self._deliver)

    def stream_body(self, limit: int, to: BodyListener) -> None:
        self._streams = to
        self.read_body(limit)

    def pause_body(self) -> None:
        if self._limit != _NOT_ASKED:
            self._paused = True
            self._asked.clear()
            self.deadline = NEVER

    def resume_body(self) -> None:
        if self._paused and not self._over:
            self._paused = False
            self._asked.set()
            self.deadline = self._now() + self._context.limits.body_idle
            asyncio.get_running_loop().call_soon(self._deliver)

    def charge_body(self, size: int) -> None:
        if not self._over:
            self._kept.charge(size)

    def start(self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None) -> None:
        if self._over:
            return
        self._refuse_body()
        self.deadline = NEVER
        without_body = status in BODILESS
        self._mute = without_body or self.head.method == "HEAD"
        self._announced = None if self._mute else length
        fields = list(headers)
        if length is not None and not without_body:
            fields.append((b"content-length", b"%d" % length))
        self._start = {"type": "http.response.start", "status": status, "headers": fields}
        self._started = True

    def write(self, data: bytes) -> bool:
        if self._over or self._mute or not data:
            return True
        if self._announced is not None:
            self._announced -= len(data)
            if self._announced < 0:
                self.abort()
                return True
        self._unsent += len(data)
        self._put(data, more=True)
        if self._unsent > self._context.limits.write_buffer:
            self._behind = True
            return False
        return True

    def end(self) -> None:
        if self._over:
            return
        if self._announced or not self._started:
            self.abort()
            return
        self._put(b"", more=False)
        self._let_go()

    def abort(self) -> None:
        if not self._over:
            if self._start is not None:
                # Where nothing was begun, servers answer for the application, with a page of their own.
                self._queue.append(self._start)
                self._start = None
            self._let_go()

    # Its two tasks, its deadline and its end

    async def take(self, receive: Receive) -> None:
        """Receive the body, as far as it is wanted or small, and then wait for the client to leave."""
        limits = self._context.limits
        while (message := await receive())["type"] != "http.disconnect":
            if self._body_whole:
                continue
            if not self._unwanted:
                self._keep(message.get("body", b""))
            self._body_whole = not message.get("more_body", False)
            self._deliver()
            if not self._unwanted and (self._paused or (self._limit == _NOT_ASKED and self._body.size > limits.unread)):
                await self._asked.wait()
        self.lost()

    async def give(self, send: Send) -> None:
        """Send what is written until the answer is whole, cut, or the client has left."""
        stall = self._context.limits.write_stall
        while True:
            while self._queue:
                message = self._queue.popleft()
                self._sending = True
                self.deadline = self._now() + stall
                try:
                    await send(message)
                except OSError:  # the word of ASGI 2.4 for a client that has left
                    self.lost()
                    return
                self._sending = False
                self.deadline = NEVER
                self._unsent -= len(message.get("body", b""))
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
        elif self._limit != _NOT_ASKED:
            self._context.stats.body_timeouts += 1
            self._body_error = BodyTimeoutError(f"The body stopped arriving for {self._context.limits.body_idle:g} s.")
            self._deliver()

    def lost(self) -> None:
        """The client left; harmless when the exchange is over."""
        if not self._over:
            self._let_go()
            self._queue.clear()
            self.listener.on_gone()

    def _keep(self, piece: bytes) -> None:
        try:
            self._body.keep(
                piece, sys.maxsize if self._streams is not None or self._limit == _NOT_ASKED else self._limit
            )
        except GatewayError as error:
            self._body_error = error
            self._unwanted = True
            self._body.release()
            return
        self._received += len(piece)
        if self._limit != _NOT_ASKED and self._received - self._mark >= self._context.limits.body_progress:
            self._mark = self._received
            self.deadline = self._now() + self._context.limits.body_idle

    def _deliver(self) -> None:
        """Tell the acceptor about the body if it asked, and if there is something to tell."""
        limit = self._limit
        if limit == _NOT_ASKED:
            return
        if self._body_error is None and self._received > limit:
            self._body_error = BodyTooLargeError(f"The body is larger than {limit} bytes.")
        if self._body_error is not None:
            self._refuse_body()
            self.listener.on_body_error(self._body_error)
        elif self._streams is not None:
            self._pass_on(self._streams)
        elif self._body_whole:
            self._limit = _NOT_ASKED
            self.deadline = NEVER
            self.listener.on_body(self._body.content())

    def _pass_on(self, to: BodyListener) -> None:
        """Hand on what is here; the acceptor may pause, answer or leave from inside."""
        while not self._paused and self._limit != _NOT_ASKED:
            if self._body.size:
                piece = self._body.content()
                self._body.release()
                to.on_body_data(piece)
            elif self._body_whole:
                self._limit = _NOT_ASKED
                self.deadline = NEVER
                to.on_body_end()
            else:
                return

    def _refuse_body(self) -> None:
        self._limit = _NOT_ASKED
        self._unwanted = True
        self._paused = False
        self._body.release()
        self._asked.set()

    def _put(self, data: bytes, *, more: bool) -> None:
        if self._start is not None:
            self._queue.append(self._start)
            self._start = None
        self._queue.append({"type": "http.response.body", "body": data, "more_body": more})
        self._wake.set()

    def _let_go(self) -> None:
        self._over = True
        self._refuse_body()
        self._kept.release()
        self._streams = None
        self._wake.set()


def _head(scope: Message) -> RequestHead:
    client = scope.get("client")
    return RequestHead(
        scope["method"],
        scope["path"],
        [(bytes(name), bytes(value)) for name, value in scope["headers"]],
        target=scope.get("raw_path") or b"",
        query=scope["query_string"],
        http_version=scope["http_version"],
        client=client[0] if client else "",
        scheme=scope.get("scheme", "http"),
    )
