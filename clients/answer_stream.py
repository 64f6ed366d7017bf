"""An exchange without a socket: the request is a value, the answer is an iterator. What `GatewayTransport` stands on.

Back-pressure is kept: what the reader has not taken is bounded, and the provider is paused above that.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..proxy.edge.downstream import Downstream
from ..proxy.edge.response_head import BODILESS
from .body_feed import BodyFeed
from .pieces import Pieces

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Sequence

    from ..proxy.edge.body import BodyBudget
    from ..proxy.edge.downstream import Acceptor, BodyListener, Headers, RequestHead

UNREAD_BYTES = 64 * 1024


class CutError(Exception):
    """The answer ended before it was whole."""


class AnswerStream(Downstream):
    """One exchange: `answer`, then `read` until it gives None; `leave` at any time.

    `status` and `headers` are those of the answer, once `answer` has returned.
    """

    __slots__ = ("_body", "_loop", "_mute", "_pieces", "headers", "status")

    def __init__(self, head: RequestHead, body: bytes | AsyncIterable[bytes], budget: BodyBudget) -> None:
        self.head = head
        self.status = 0
        self.headers: Headers = []
        self._body = BodyFeed(body, budget)
        self._loop = asyncio.get_running_loop()
        self._mute = head.method == "HEAD"
        self._pieces = Pieces(UNREAD_BYTES, self._resume_soon)

    async def answer(self, acceptor: Acceptor) -> None:
        """Run the exchange until the first bytes of its answer are there. Raises CutError. Cancelled, it leaves."""
        acceptor.accept(self)
        pieces = self._pieces
        try:
            while not pieces and not pieces.over:
                await pieces.change()
        except asyncio.CancelledError:
            self.leave()
            raise
        if not pieces and pieces.error is not None:
            raise pieces.error

    async def read(self) -> bytes | None:
        """The next bytes of the body, None at its end. Raises CutError. Cancelled, it leaves."""
        try:
            return await self._pieces.read()
        except asyncio.CancelledError:
            self.leave()
            raise

    def leave(self) -> None:
        """The reader wants no more; harmless when the answer is whole."""
        left = not self._pieces.over
        self._pieces.drop(CutError())
        self._body.release()
        if left:
            self.listener.on_gone()

    # What the acceptor calls

    def read_body(self, limit: int) -> None:
        self._body.collect(limit, self.listener)

    def stream_body(self, limit: int, to: BodyListener) -> None:
        self._body.stream(limit, to, self.listener)

    def pause_body(self) -> None:
        self._body.pause()

    def resume_body(self) -> None:
        self._body.resume()

    def charge_body(self, size: int) -> None:
        self._body.charge(size)

    def start(self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None) -> None:
        self._body.stop()
        self.status = status
        self.headers = list(headers)
        self._mute = self._mute or status in BODILESS
        if length is not None and status not in BODILESS:
            self.headers.append((b"content-length", b"%d" % length))

    def write(self, data: bytes) -> bool:
        return self._mute or not data or self._pieces.put(data)

    def end(self) -> None:
        self._body.release()
        self._pieces.end()

    def abort(self) -> None:
        self._body.release()
        self._pieces.end(CutError())

    def _resume_soon(self) -> None:
        self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        if not self._pieces.over:
            self.listener.on_resume()
