"""The response, stream and error classes of `httpx` or `httpx2`, whichever made a request.

The two have the same shapes and different classes, and a client accepts only its own. They are reached through the
request's own package, which is loaded already.
"""

from __future__ import annotations

import asyncio
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    import httpx
    import httpx2

    from ..proxy.edge.downstream import Headers

    class AsyncTransport(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport):  # type: ignore[misc]
        """What a type checker knows as a transport of both packages."""

    class Transport(AsyncTransport, httpx.BaseTransport, httpx2.BaseTransport):  # type: ignore[misc]
        """The same, for sync clients as well."""
else:
    AsyncTransport = Transport = object

T = TypeVar("T")


class HttpClasses:
    """Makes what a client of one package understands."""

    def __init__(self, package: Any) -> None:
        self._package = package

        class AsyncBody(package.AsyncByteStream):  # type: ignore[misc]
            def __init__(self, pieces: AsyncIterator[bytes], leave: Callable[[], None]) -> None:
                self._pieces = pieces
                self._leave = leave

            async def __aiter__(self) -> AsyncIterator[bytes]:
                async for piece in self._pieces:
                    yield piece

            async def aclose(self) -> None:
                self._leave()

        class SyncBody(package.SyncByteStream):  # type: ignore[misc]
            def __init__(self, pieces: Iterator[bytes], leave: Callable[[], None]) -> None:
                self._pieces = pieces
                self._leave = leave

            def __iter__(self) -> Iterator[bytes]:
                yield from self._pieces

            def close(self) -> None:
                self._leave()

        self._async_body = AsyncBody
        self._sync_body = SyncBody

    def async_response(
        self, request: Any, status: int, headers: Headers, pieces: AsyncIterator[bytes], leave: Callable[[], None]
    ) -> Any:
        """A response whose body is read with `await`; `leave` is called when nobody wants the rest."""
        body = self._async_body(pieces, leave)
        return self._package.Response(status, headers=headers, stream=body, request=request)

    def sync_response(
        self, request: Any, status: int, headers: Headers, pieces: Iterator[bytes], leave: Callable[[], None]
    ) -> Any:
        """A response whose body is read without."""
        body = self._sync_body(pieces, leave)
        return self._package.Response(status, headers=headers, stream=body, request=request)

    async def within_read_timeout(self, request: Any, work: Awaitable[T]) -> T:
        """What `work` gives. Where the client's own patience ends before it does, it is cancelled: ReadTimeout."""
        seconds = request.extensions.get("timeout", {}).get("read")
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError:
            raise self.error("ReadTimeout", request, "The answer did not come in time.") from None

    def error(self, kind: str, request: Any, message: str) -> Exception:
        """The client's own error of that name."""
        error: Exception = getattr(self._package, kind)(message, request=request)
        return error


def classes_of(request: Any) -> HttpClasses:
    """By the package of the request's class, or of the one it is derived from."""
    return _classes(type(request).__mro__[-2].__module__.partition(".")[0])


@cache
def _classes(package: str) -> HttpClasses:
    return HttpClasses(sys.modules[package])
