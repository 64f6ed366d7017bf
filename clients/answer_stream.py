"""An exchange without a socket: the request is a value, the answer is an iterator. What `GatewayTransport` stands on.

Back-pressure is kept: what the reader has not taken is bounded, and the provider is paused above that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from ..proxy.edge.downstream import Downstream, RequestHead
from ..proxy.errors import BodyTooLargeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..proxy.edge.downstream import Acceptor, Headers

WAITING_BYTES = 64 * 1024


class CutError(Exception):
    """The answer ended before it was whole."""


class AnswerStream(Downstream):
    """One exchange. `accept` begins it; then `head` and `read`; `leave` at any time."""

    __slots__ = ("_behind", "_body", "_changed", "_cut", "_loop", "_over", "_pieces", "_waiting", "headers", "status")

    def __init__(self, head: RequestHead, body: bytes) -> None:
        self.head = head
        self.status = 0
        self.headers: Headers = []
        self._body = body
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._behind = self._over = self._cut = False

    async def answer(self, acceptor: Acceptor) -> None:
        """Run the exchange until the head of its answer is there. Cancelled, it leaves."""
        acceptor.accept(self)
        try:
            while not self.status and not self._over:
                await self._wait()
        except asyncio.CancelledError:
            self.leave()
            raise
        if not self.status:
            raise CutError

    async def read(self) -> bytes | None:
        """The next bytes of the body, None at its end. Raises CutError. Cancelled, it leaves."""
        try:
            while not self._pieces and not self._over:
                await self._wait()
        except asyncio.CancelledError:
            self.leave()
            raise
        if self._pieces:
            piece = b"".join(self._pieces)
            self._pieces.clear()
            self._waiting = 0
            if self._behind:
                self._behind = False
                if not self._over:
                    self._loop.call_soon(self._resume)
            return piece
        if self._cut:
            raise CutError
        return None

    def leave(self) -> None:
        """The reader wants no more; harmless when the answer is whole."""
        if not self._over:
            self._over = True
            self._pieces.clear()
            self.listener.on_gone()

    # What the acceptor calls

    def read_body(self, limit: int) -> None:
        self._loop.call_soon(self._deliver, limit)

    def start(self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None) -> None:
        if self._over:
            return
        self.status = status
        self.headers = list(headers)
        if length is not None:
            self.headers.append((b"content-length", b"%d" % length))
        self._changed.set()

    def write(self, data: bytes) -> bool:
        if self._over or not data or self.head.method == "HEAD":
            return True
        self._pieces.append(data)
        self._waiting += len(data)
        self._changed.set()
        self._behind = self._waiting > WAITING_BYTES
        return not self._behind

    def end(self) -> None:
        self._over = True
        self._changed.set()

    def abort(self) -> None:
        if self._over:
            return
        self._cut = self._over = True
        self._changed.set()

    def _deliver(self, limit: int) -> None:
        if self._over:
            return
        if len(self._body) > limit:
            self.listener.on_body_error(BodyTooLargeError(f"The body is larger than {limit} bytes."))
        else:
            self.listener.on_body(self._body)

    def _resume(self) -> None:
        if not self._over:
            self.listener.on_resume()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()
