"""One whole answer, awaited: for what the gateway asks a provider on its own behalf.

Not here: exchanges, which never wait in a task of their own (proxy/attempt.py).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..errors import BrokenAnswerError
from .call import CallReceiver

if TYPE_CHECKING:
    from ..errors import GatewayError
    from .call import Call, Endpoint, ResponseHead, UpstreamRequest


async def fetch(
    endpoint: Endpoint, request: UpstreamRequest, *, most: int, seconds: float
) -> tuple[ResponseHead, bytes]:
    """The answer, of `most` bytes at the most, within `seconds`.

    Raises GatewayError, BrokenAnswerError among them where it is larger or cut, and TimeoutError. Cancelled, it leaves
    nothing under way.
    """
    heard = _Heard(most)
    call = endpoint.start(request, heard)
    try:
        async with asyncio.timeout(seconds):
            error = await heard.over
    finally:
        call.cancel()
    if error is not None:
        raise error
    return heard.head, bytes(heard.body)


class _Heard(CallReceiver):
    """Collects the body; `over` has what kept it from being whole, or None."""

    def __init__(self, most: int) -> None:
        self.head: ResponseHead
        self.body = bytearray()
        self.over: asyncio.Future[GatewayError | None] = asyncio.get_running_loop().create_future()
        self._most = most

    def on_sent(self, call: Call) -> None:
        """Nothing waits for it."""

    def on_head(self, call: Call, head: ResponseHead) -> None:
        """The answer begins."""
        self.head = head

    def on_data(self, call: Call, data: bytes) -> None:
        """More of the body, up to its bound."""
        if len(self.body) <= self._most:
            self.body += data
        if len(self.body) > self._most:
            self._end(BrokenAnswerError(f"The answer is larger than {self._most} bytes."))

    def on_end(self, call: Call, clean: bool) -> None:
        """A length or a last chunk says that it is whole; the end of the connection does so where there is neither."""
        self._end(None)

    def on_error(self, call: Call, error: GatewayError) -> None:
        """Not whole."""
        self._end(error)

    def _end(self, error: GatewayError | None) -> None:
        if not self.over.done():
            self.over.set_result(error)
