"""A request body that the application already has, or makes while it is asked for more, as an exchange wants it.

Pieces are asked for by a task that ends with the exchange, one at a time and none while the provider is behind. How
long the application may take for a piece is its own client's read time-out to say.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..proxy.edge.body import HeldBytes
from ..proxy.errors import BodyTooLargeError, GatewayError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator

    from ..proxy.edge.body import BodyBudget
    from ..proxy.edge.downstream import BodyListener, DownstreamListener

PIECE = 256 * 1024


class BodyFeed:
    """One body. `stop` it when the answer begins or nobody wants it any more; `release` when the exchange is over."""

    __slots__ = ("_body", "_flow", "_held", "_loop", "_stopped", "_task")

    def __init__(self, body: bytes | AsyncIterable[bytes], budget: BodyBudget) -> None:
        self._body = body
        self._held = HeldBytes(budget)
        self._loop = asyncio.get_running_loop()
        self._flow = asyncio.Event()
        self._flow.set()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def collect(self, limit: int, listener: DownstreamListener) -> None:
        """The whole body in one piece, from the next turn of the loop."""
        if self._stopped:
            return
        if isinstance(self._body, bytes):
            self._loop.call_soon(self._deliver, self._body, limit, listener)
        else:
            self._task = self._loop.create_task(self._collect(self._body, limit, listener))

    def stream(self, limit: int, to: BodyListener, listener: DownstreamListener) -> None:
        """Piece by piece."""
        if not self._stopped:
            pieces = _slices(self._body) if isinstance(self._body, bytes) else aiter(self._body)
            self._task = self._loop.create_task(self._stream(pieces, limit, to, listener))

    def pause(self) -> None:
        """No more for now."""
        self._flow.clear()

    def resume(self) -> None:
        """Go on."""
        self._flow.set()

    def charge(self, size: int) -> None:
        """See `Downstream.charge_body`."""
        if not self._stopped:
            self._held.charge(size)

    def stop(self) -> None:
        """Nobody wants the rest; what it would have said is said to nobody."""
        self._stopped = True
        self._flow.set()
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task(self._loop):
            task.cancel()

    def release(self) -> None:
        """Nothing is kept of it any more."""
        self.stop()
        self._held.release()

    def _deliver(self, body: bytes, limit: int, listener: DownstreamListener) -> None:
        if self._stopped:
            return
        if len(body) > limit:
            listener.on_body_error(_too_large(limit))
        else:
            listener.on_body(body)

    async def _collect(self, pieces: AsyncIterable[bytes], limit: int, listener: DownstreamListener) -> None:
        error: GatewayError | None = None
        try:
            async for piece in pieces:
                self._held.keep(piece, limit)
        except GatewayError as failure:
            error = failure
        except Exception as failure:
            error = _broken(failure)
        if self._stopped:
            return
        if error is not None:
            listener.on_body_error(error)
        else:
            listener.on_body(self._held.content())

    async def _stream(
        self, pieces: AsyncIterator[bytes], limit: int, to: BodyListener, listener: DownstreamListener
    ) -> None:
        received = 0
        while True:
            await self._flow.wait()
            error: GatewayError | None = None
            piece: bytes | None = None
            try:
                piece = await anext(pieces, None)
            except Exception as failure:
                error = _broken(failure)
            received += len(piece or b"")
            if received > limit:
                error = _too_large(limit)
            await self._flow.wait()
            if self._stopped:
                return
            if error is not None:
                listener.on_body_error(error)
                return
            if piece is None:
                to.on_body_end()
                return
            if piece:
                to.on_body_data(piece)


async def _slices(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]


def _too_large(limit: int) -> GatewayError:
    return BodyTooLargeError(f"The body is larger than {limit} bytes.")


def _broken(failure: Exception) -> GatewayError:
    """What the application's own iterator raised."""
    return InvalidRequestError("The request's body could not be read.", detail=repr(failure))
