"""The gateway as a transport of `httpx` or `httpx2`: an OpenAI SDK runs the whole chain in its own process.

    OpenAI(http_client=httpx.Client(transport=GatewayTransport("gateway.yaml")))
    AsyncOpenAI(http_client=httpx.AsyncClient(transport=GatewayTransport("gateway.yaml")))

One class serves both packages and both ways of calling. It answers with the classes of whoever asks, found through the
request, so neither package is imported here. An async client runs the gateway on its own loop; a sync one gets a loop
in a thread of its own, which ends with `close`. The host of a request's URL means nothing here, its path does.

Not here: the upstream engine alone (upstream_transport.py).
"""

from __future__ import annotations

import asyncio
import re
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from ..proxy.edge.downstream import RequestHead
from ..proxy.edge.request_head import FIELD_LINE
from .answer_stream import AnswerStream, CutError
from .embedded import Embedded
from .http_classes import HttpClasses, Transport, classes_of
from .loop_thread import LoopEndedError, LoopThread

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterable, AsyncIterator, Iterator
    from typing import Self

    from ..config import GatewayConfig
    from ..gateway import Gateway
    from .embedded import App

_field_line = re.compile(FIELD_LINE).fullmatch


class GatewayTransport(Transport):
    """A transport for `Client` or `AsyncClient`. The gateway starts with the first request.

    `config` is a path, a loaded config, or None for what an empty file means. Read time-outs of the client are
    kept; its pool limits mean nothing here.
    """

    def __init__(self, config: GatewayConfig | str | os.PathLike[str] | None = None) -> None:
        self._embedded = Embedded(config)
        self._thread: LoopThread | None = None
        self._lock = threading.Lock()

    @property
    def gateway(self) -> Gateway:
        """The gateway inside."""
        return self._embedded.gateway

    @property
    def admin(self) -> App:
        """The admin endpoints, to mount in an application on the loop of an async client."""
        return self._embedded.admin

    # -- async

    async def handle_async_request(self, request: Any) -> Any:
        """One exchange. Raises the client's own ReadTimeout and RemoteProtocolError."""
        classes = classes_of(request)
        stream = await self._answer(classes, request)
        return classes.async_response(
            request, stream.status, stream.headers, _async_body(classes, request, stream), stream.leave
        )

    async def _answer(self, classes: HttpClasses, request: Any) -> AnswerStream:
        server = await self._embedded.start()
        stream = AnswerStream(_head(classes, request), _body_of(request), server.context.budget)
        try:
            await classes.within_read_timeout(request, stream.answer(server.half.engine))
        except CutError:
            raise _cut(classes, request) from None
        return stream

    async def aclose(self) -> None:
        """Leave what still runs, and write every record."""
        for stream in self._embedded.live():
            if isinstance(stream, AnswerStream):
                stream.leave()
        await self._embedded.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # -- sync

    def handle_request(self, request: Any) -> Any:
        """The same, from a thread that has no loop."""
        thread = self._loop_thread()
        classes = classes_of(request)
        stream = thread.call(self._answer(classes, request))
        return classes.sync_response(
            request,
            stream.status,
            stream.headers,
            _sync_body(classes, request, stream, thread),
            lambda: thread.post(stream.leave),
        )

    def _loop_thread(self) -> LoopThread:
        with self._lock:
            if self._thread is None:
                self._thread = LoopThread()
            return self._thread

    def close(self) -> None:
        """Leave what still runs, write every record, end the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            try:
                thread.call(self.aclose())
            finally:
                thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def _async_body(classes: HttpClasses, request: Any, stream: AnswerStream) -> AsyncIterator[bytes]:
    while (piece := await _piece(classes, request, stream)) is not None:
        yield piece


def _sync_body(classes: HttpClasses, request: Any, stream: AnswerStream, thread: LoopThread) -> Iterator[bytes]:
    try:
        while (piece := thread.call(_piece(classes, request, stream))) is not None:
            yield piece
    except LoopEndedError:
        raise _cut(classes, request) from None


async def _piece(classes: HttpClasses, request: Any, stream: AnswerStream) -> bytes | None:
    try:
        return await classes.within_read_timeout(request, stream.read())
    except CutError:
        raise _cut(classes, request) from None


def _body_of(request: Any) -> bytes | AsyncIterable[bytes]:
    """The bytes where the client has them, else what gives them. A sync source is asked in a thread: it may read a
    file."""
    if hasattr(request, "_content"):
        return bytes(request.content)
    stream = request.stream
    return _in_thread(iter(stream)) if hasattr(stream, "__iter__") else aiter(stream)


async def _in_thread(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece


def _cut(classes: HttpClasses, request: Any) -> Exception:
    return classes.error("RemoteProtocolError", request, "The answer was cut short.")


def _head(classes: HttpClasses, request: Any) -> RequestHead:
    target, _, query = request.url.raw_path.partition(b"?")
    headers = [(name.lower(), value) for name, value in request.headers.raw]
    if not all(_field_line(name + b":" + value) for name, value in headers):
        raise classes.error("LocalProtocolError", request, "A header field holds a character that it may not.")
    return RequestHead(
        request.method,
        unquote_to_bytes(target).decode("utf-8", "surrogateescape"),
        headers,
        target=target,
        query=query,
        client="in-process",
        scheme=request.url.scheme,
    )
