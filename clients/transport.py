"""The gateway as a transport of `httpx` or `httpx2`: an OpenAI SDK runs the whole chain in its own process.

    OpenAI(http_client=httpx.Client(transport=GatewayTransport("gateway.yaml")))
    AsyncOpenAI(http_client=httpx.AsyncClient(transport=GatewayTransport("gateway.yaml")))

One class serves both packages and both ways of calling. It answers with the classes of whoever asks, found through the
request, so neither package is imported here. An async client runs the gateway on its own loop; a sync one gets a loop
in a thread of its own, which ends with `close`.

Not here: the upstream engine alone (upstream_transport.py).
"""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from ..proxy.edge.downstream import RequestHead
from .answer_stream import AnswerStream, CutError
from .embedded import Embedded
from .http_classes import HttpClasses, classes_of

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Coroutine, Iterator
    from typing import Self

    from ..config import GatewayConfig

STOP_SECONDS = 60.0


class GatewayTransport:
    """A transport for `Client` and `AsyncClient` alike. The gateway starts with the first request.

    `config` is a path, a loaded config, or None for what an empty file means. Read time-outs of the client are
    kept; its pool limits mean nothing here.
    """

    def __init__(self, config: GatewayConfig | str | os.PathLike[str] | None = None) -> None:
        self._embedded = Embedded(config)
        self._thread: _LoopThread | None = None
        self._lock = threading.Lock()

    # -- async

    async def handle_async_request(self, request: Any) -> Any:
        """One exchange. Raises the client's own ReadTimeout and RemoteProtocolError."""
        await self._embedded.start()
        classes = classes_of(request)
        stream = AnswerStream(_head(request), await request.aread())
        await self._answer(classes, request, stream)
        return classes.async_response(
            request, stream.status, stream.headers, _async_body(classes, request, stream), stream.leave
        )

    async def _answer(self, classes: HttpClasses, request: Any, stream: AnswerStream) -> None:
        try:
            async with asyncio.timeout(_read_timeout(request)):
                await stream.answer(self._embedded.gateway.engine)
        except TimeoutError:
            raise classes.read_timeout(request) from None
        except CutError:
            raise classes.broken(request) from None

    async def aclose(self) -> None:
        """Finish what runs and write every record."""
        await self._embedded.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # -- sync

    def handle_request(self, request: Any) -> Any:
        """The same, from a thread that has no loop."""
        request.read()
        loop = self._loop_thread()
        classes = classes_of(request)
        stream: AnswerStream = loop.call(self._begin(classes, request))
        return classes.sync_response(
            request,
            stream.status,
            stream.headers,
            _sync_body(classes, request, stream, loop),
            lambda: loop.post(stream.leave),
        )

    async def _begin(self, classes: HttpClasses, request: Any) -> AnswerStream:
        await self._embedded.start()
        stream = AnswerStream(_head(request), request.content)
        await self._answer(classes, request, stream)
        return stream

    def _loop_thread(self) -> _LoopThread:
        with self._lock:
            if self._thread is None:
                self._thread = _LoopThread()
            return self._thread

    def close(self) -> None:
        """Finish what runs, write every record, end the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.call(self._embedded.aclose())
            thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _LoopThread:
    """An event loop in a daemon thread, so that a program that forgets `close` still ends."""

    def __init__(self) -> None:
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="headgate", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run `work` there and wait for its result. Interrupted, it cancels the work."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def post(self, fn: Any) -> None:
        """Run `fn` there some time soon; harmless when the loop has ended."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(fn)

    def stop(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_SECONDS)
        self._loop.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


async def _async_body(classes: HttpClasses, request: Any, stream: AnswerStream) -> AsyncIterator[bytes]:
    while (piece := await _piece(classes, request, stream)) is not None:
        yield piece


def _sync_body(classes: HttpClasses, request: Any, stream: AnswerStream, loop: _LoopThread) -> Iterator[bytes]:
    while (piece := loop.call(_piece(classes, request, stream))) is not None:
        yield piece


async def _piece(classes: HttpClasses, request: Any, stream: AnswerStream) -> bytes | None:
    try:
        async with asyncio.timeout(_read_timeout(request)):
            return await stream.read()
    except TimeoutError:
        raise classes.read_timeout(request) from None
    except CutError:
        raise classes.broken(request) from None


def _read_timeout(request: Any) -> float | None:
    timeout = request.extensions.get("timeout", {}).get("read")
    return None if timeout is None else float(timeout)


def _head(request: Any) -> RequestHead:
    target, _, query = request.url.raw_path.partition(b"?")
    return RequestHead(
        request.method,
        unquote_to_bytes(target).decode("utf-8", "surrogateescape"),
        [(name.lower(), value) for name, value in request.headers.raw],
        target=target,
        query=query,
        client="in-process",
        scheme=request.url.scheme,
    )
