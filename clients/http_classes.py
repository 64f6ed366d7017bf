"""The response, stream and error classes of `httpx` or `httpx2`, whichever made a request.

The two have the same shapes and different classes, and a client accepts only its own. They are reached through the
request's own package, which is loaded already.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from ..proxy.edge.downstream import Headers


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

    def read_timeout(self, request: Any) -> Exception:
        """The client's own patience has ended."""
        error: Exception = self._package.ReadTimeout("The gateway did not answer in time.", request=request)
        return error

    def broken(self, request: Any) -> Exception:
        """The answer was cut."""
        return self.failed(request, "The answer was cut short.", "RemoteProtocolError")

    def failed(self, request: Any, message: str, kind: str) -> Exception:
        """The client's own error of that name."""
        error: Exception = getattr(self._package, kind)(message, request=request)
        return error


def classes_of(request: Any) -> HttpClasses:
    """By the package of the request's class."""
    return _classes(type(request).__module__.partition(".")[0])


@cache
def _classes(package: str) -> HttpClasses:
    return HttpClasses(sys.modules[package])
