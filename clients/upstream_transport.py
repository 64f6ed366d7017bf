"""The upstream engine alone, as a transport of `httpx` or `httpx2`: pools, keep-alive, time-outs and cancellation, no
chain.

    AsyncClient(transport=UpstreamTransport())

For side calls that want the engine's behaviour, and for comparing it with other clients. Redirects, cookies and
authentication stay the client's; HTTP/1.1, certificates verified.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from ..proxy.clock import Deadlines, LoopClock
from ..proxy.errors import ConnectError, ConnectTimeoutError, GatewayError
from ..proxy.upstream.call import CallReceiver, UpstreamRequest
from ..proxy.upstream.http_endpoint import HttpEndpoint
from .http_classes import HttpClasses, classes_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Self

    from ..proxy.edge.downstream import Headers
    from ..proxy.upstream.call import Call, Endpoint, ResponseHead

WAITING_BYTES = 256 * 1024
MAX_ORIGINS = 256
_FRAMING = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection"))


class UpstreamTransport:
    """A transport for `AsyncClient`. Endpoints are made per origin and kept, `MAX_ORIGINS` at the most."""

    def __init__(self) -> None:
        self._clock: LoopClock | None = None
        self._deadlines: Deadlines | None = None
        self._endpoints: dict[str, Endpoint] = {}

    async def handle_async_request(self, request: Any) -> Any:
        """One call. Raises the client's own ConnectError, ConnectTimeout, ReadTimeout and RemoteProtocolError."""
        classes = classes_of(request)
        endpoint = await self._endpoint(request)
        headers: Headers = [
            (name.lower(), value) for name, value in request.headers.raw if name.lower() not in _FRAMING
        ]
        body = await request.aread()
        heard = _Heard()
        heard.call = endpoint.start(
            UpstreamRequest(request.method.encode(), request.url.raw_path, headers, body), heard
        )
        try:
            async with asyncio.timeout(_read_timeout(request)):
                head = await heard.head()
        except TimeoutError:
            heard.leave()
            raise classes.read_timeout(request) from None
        except GatewayError as error:
            raise classes.failed(request, error.message, _kind(error)) from error
        except asyncio.CancelledError:
            heard.leave()
            raise
        return classes.async_response(request, head.status, head.headers, _body(classes, request, heard), heard.leave)

    async def _endpoint(self, request: Any) -> Endpoint:
        if self._clock is None or self._deadlines is None:
            self._clock = LoopClock()
            self._deadlines = Deadlines(self._clock)
        url = request.url
        origin = f"{url.scheme}://{url.netloc.decode('ascii')}"
        endpoint = self._endpoints.get(origin)
        if endpoint is None:
            if len(self._endpoints) >= MAX_ORIGINS:
                oldest = next(iter(self._endpoints))
                await self._endpoints.pop(oldest).aclose()
            endpoint = self._endpoints[origin] = HttpEndpoint(origin, clock=self._clock, deadlines=self._deadlines)
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


class _Heard(CallReceiver):
    """What a call said, for whoever awaits it."""

    call: Call

    def __init__(self) -> None:
        self._head: ResponseHead | None = None
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._over = False
        self._error: GatewayError | None = None
        self._changed = asyncio.Event()

    def on_sent(self, call: Call) -> None:
        """Nothing waits for it."""

    def on_head(self, call: Call, head: ResponseHead) -> None:
        """The answer begins."""
        self._head = head
        self._changed.set()

    def on_data(self, call: Call, data: bytes) -> None:
        """Kept until it is read; above a bound the provider waits."""
        self._pieces.append(data)
        self._waiting += len(data)
        if self._waiting > WAITING_BYTES:
            call.pause()
        self._changed.set()

    def on_end(self, call: Call, clean: bool) -> None:
        """Whole: a client of HTTP may also take the end of the connection for the end of the body (RFC 9112, 6.3)."""
        self._over = True
        self._changed.set()

    def on_error(self, call: Call, error: GatewayError) -> None:
        """Not whole."""
        self._error = error
        self._over = True
        self._changed.set()

    async def head(self) -> ResponseHead:
        """The head. Raises GatewayError."""
        while self._head is None:
            if self._error is not None:
                raise self._error
            await self._wait()
        return self._head

    async def read(self) -> bytes | None:
        """The next bytes, None at the end. Raises GatewayError."""
        while not self._pieces and not self._over:
            await self._wait()
        if self._pieces:
            piece = b"".join(self._pieces)
            self._pieces.clear()
            if self._waiting > WAITING_BYTES and not self._over:
                self.call.resume()
            self._waiting = 0
            return piece
        if self._error is not None:
            raise self._error
        return None

    def leave(self) -> None:
        """Nobody reads on."""
        if not self._over:
            self._over = True
            self.call.cancel()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


async def _body(classes: HttpClasses, request: Any, heard: _Heard) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(_read_timeout(request)):
                piece = await heard.read()
        except TimeoutError:
            raise classes.read_timeout(request) from None
        except GatewayError as error:
            raise classes.failed(request, error.message, _kind(error)) from error
        if piece is None:
            return
        yield piece


def _kind(error: GatewayError) -> str:
    if isinstance(error, ConnectTimeoutError):
        return "ConnectTimeout"
    return "ConnectError" if isinstance(error, ConnectError) else "RemoteProtocolError"


def _read_timeout(request: Any) -> float | None:
    timeout = request.extensions.get("timeout", {}).get("read")
    return None if timeout is None else float(timeout)
