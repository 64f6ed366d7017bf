"""The upstream engine alone, as a transport of `httpx` or `httpx2`: pools, keep-alive, time-outs and cancellation, no
chain.

    AsyncClient(transport=UpstreamTransport())

For side calls that want the engine's behaviour, and for comparing it with other clients. Redirects, cookies and
authentication stay the client's; HTTP/1.1, certificates verified. It belongs to the loop of its first request.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ..proxy.clock import Deadlines, LoopClock
from ..proxy.errors import ConnectError, ConnectTimeoutError, GatewayError, PoolOverflowError, UpstreamError
from ..proxy.upstream.call import CallReceiver, UpstreamRequest
from ..proxy.upstream.http_endpoint import HttpEndpoint
from .http_classes import AsyncTransport, HttpClasses, classes_of
from .pieces import Pieces

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Self

    from ..proxy.edge.downstream import Headers
    from ..proxy.upstream.call import Call, Endpoint, ResponseHead

UNREAD_BYTES = 256 * 1024
MAX_ORIGINS = 256
_KINDS = (
    (ConnectTimeoutError, "ConnectTimeout"),
    (ConnectError, "ConnectError"),
    (PoolOverflowError, "PoolTimeout"),
    (UpstreamError, "RemoteProtocolError"),
)
_FRAMING = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection"))


class UpstreamTransport(AsyncTransport):
    """A transport for `AsyncClient`. Endpoints are made per origin and kept, `MAX_ORIGINS` at the most."""

    def __init__(self) -> None:
        self._clock: LoopClock | None = None
        self._deadlines: Deadlines | None = None
        self._endpoints: dict[str, Endpoint] = {}

    async def handle_async_request(self, request: Any) -> Any:
        """One call. Raises the client's own ConnectError, ConnectTimeout, ReadTimeout and RemoteProtocolError."""
        classes = classes_of(request)
        if request.url.scheme not in ("http", "https"):
            raise classes.error("UnsupportedProtocol", request, f"'{request.url.scheme}' is not spoken here.")
        body = await request.aread()
        headers: Headers = [
            (name.lower(), value) for name, value in request.headers.raw if name.lower() not in _FRAMING
        ]
        sent = UpstreamRequest(request.method.encode(), request.url.raw_path, headers, body)
        heard = Heard()
        heard.call = (await self._endpoint(request)).start(sent, heard)
        try:
            head = await classes.within_read_timeout(request, heard.head())
        except GatewayError as error:
            raise classes.error(_kind(error), request, error.message) from error
        return classes.async_response(request, head.status, head.headers, _body(classes, request, heard), heard.leave)

    async def _endpoint(self, request: Any) -> Endpoint:
        if self._clock is None or self._deadlines is None:
            self._clock = LoopClock()
            self._deadlines = Deadlines(self._clock)
        url = request.url
        origin = f"{url.scheme}://{url.netloc.decode('ascii')}"
        endpoint = self._endpoints.pop(origin, None)
        if endpoint is None:
            if len(self._endpoints) >= MAX_ORIGINS:
                longest_unused = next(iter(self._endpoints))
                await self._endpoints.pop(longest_unused).aclose()
            endpoint = HttpEndpoint(origin, clock=self._clock, deadlines=self._deadlines)
        self._endpoints[origin] = endpoint
        return endpoint

    async def aclose(self) -> None:
        """Close idle connections; calls under way end on their own."""
        endpoints, self._endpoints = self._endpoints, {}
        for endpoint in endpoints.values():
            await endpoint.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Heard(CallReceiver):
    """What a call said, for whoever awaits it."""

    call: Call

    def __init__(self) -> None:
        self._head: ResponseHead | None = None
        self._pieces = Pieces(UNREAD_BYTES, lambda: self.call.resume())

    async def head(self) -> ResponseHead:
        """The head. Raises GatewayError. Cancelled, it leaves."""
        pieces = self._pieces
        try:
            while self._head is None and not pieces.over:
                await pieces.change()
        except asyncio.CancelledError:
            self.leave()
            raise
        if self._head is None:
            raise pieces.error or UpstreamError("There was no answer.")
        return self._head

    async def read(self) -> bytes | None:
        """The next bytes, None at the end. Raises GatewayError. Cancelled, it leaves."""
        try:
            return await self._pieces.read()
        except asyncio.CancelledError:
            self.leave()
            raise

    def leave(self) -> None:
        """Nobody reads on; harmless when the answer is whole."""
        left = not self._pieces.over
        self._pieces.drop(UpstreamError("The answer was left."))
        if left:
            self.call.cancel()

    # What the call says

    def on_sent(self, call: Call) -> None:
        """Nothing waits for it."""

    def on_head(self, call: Call, head: ResponseHead) -> None:
        """The answer begins."""
        self._head = head
        self._pieces.wake()

    def on_data(self, call: Call, data: bytes) -> None:
        """Kept until it is read; above a bound the provider waits."""
        if not self._pieces.put(data):
            call.pause()

    def on_end(self, call: Call, clean: bool) -> None:
        """Whole: a client of HTTP may also take the end of the connection for the end of the body (RFC 9112, 6.3)."""
        self._pieces.end()

    def on_error(self, call: Call, error: GatewayError) -> None:
        """Not whole."""
        self._pieces.end(error)


async def _body(classes: HttpClasses, request: Any, heard: Heard) -> AsyncIterator[bytes]:
    while True:
        try:
            piece = await classes.within_read_timeout(request, heard.read())
        except GatewayError as error:
            raise classes.error(_kind(error), request, error.message) from error
        if piece is None:
            return
        yield piece


def _kind(error: GatewayError) -> str:
    return next((name for kind, name in _KINDS if isinstance(error, kind)), "LocalProtocolError")
