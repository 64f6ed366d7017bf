"""An ASGI application called by hand, and one served by uvicorn.

answer = await ask(app, "POST", "/v1/chat/completions", body)
async with Lifespan(app) as lifespan: ...
async with served(app) as url: ...
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import uvicorn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, MutableMapping

WITHIN = 15.0
App = Any


def http_scope(
    method: str, path: str, headers: Iterable[tuple[str, str]] = (), *, query: bytes = b"", root_path: str = ""
) -> dict[str, Any]:
    """The scope of a request, as uvicorn makes it; `path` as it stands on the wire."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(root_path + path),
        "raw_path": (root_path + path).encode(),
        "query_string": query,
        "root_path": root_path,
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 80),
        "state": {},
    }


class AsgiAnswer:
    """What an application sent. `whole`: it said that its body is complete."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.pieces: list[bytes] = []
        self.whole = False

    @property
    def body(self) -> bytes:
        """The body so far."""
        return b"".join(self.pieces)

    def header(self, name: str) -> str | None:
        """The first value of `name`."""
        return next((value for key, value in self.headers if key == name), None)


async def ask(
    app: App,
    method: str,
    path: str,
    body: bytes = b"",
    headers: Iterable[tuple[str, str]] = (),
    *,
    leave_when: Callable[[bytes], bool] | None = None,
    **scope: Any,
) -> AsgiAnswer:
    """One request to its end, or until `leave_when` says of the body so far that the client has enough."""
    answer = AsgiAnswer()
    left = asyncio.Event()
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if unread:
            return unread.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = [(name.decode(), value.decode("latin-1")) for name, value in message["headers"]]
            return
        answer.pieces.append(message.get("body", b""))
        answer.whole = not message.get("more_body", False)
        if leave_when is not None and leave_when(answer.body):
            left.set()

    async with asyncio.timeout(WITHIN):
        await app(http_scope(method, path, headers, **scope), receive, send)
    return answer


class Lifespan:
    """The server's side of an application's lifespan. `said` are the messages it has sent."""

    def __init__(self, app: App) -> None:
        self.said: list[dict[str, Any]] = []
        self._app = app
        self._orders: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._spoken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> str:
        """The word that answers `lifespan.startup`, or how the application ended."""
        self._task = asyncio.create_task(self._app({"type": "lifespan", "state": {}}, self._orders.get, self._send))
        return await self.order("startup")

    async def order(self, what: str) -> str:
        """Say `lifespan.<what>` and wait for the answer."""
        assert self._task is not None
        self._spoken.clear()
        self._orders.put_nowait({"type": f"lifespan.{what}"})
        speaking = asyncio.ensure_future(self._spoken.wait())
        try:
            await asyncio.wait([speaking, self._task], timeout=WITHIN, return_when=asyncio.FIRST_COMPLETED)
        finally:
            speaking.cancel()
        if self._spoken.is_set():
            return str(self.said[-1]["type"])
        assert self._task.done(), f"no answer to lifespan.{what}"
        return f"ended: {self._task.exception()!r}"

    async def _send(self, message: dict[str, Any]) -> None:
        self.said.append(message)
        self._spoken.set()

    async def __aenter__(self) -> Lifespan:
        assert await self.startup() == "lifespan.startup.complete"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        if not self._task.done() and self.said[-1]["type"] == "lifespan.startup.complete":
            assert await self.order("shutdown") == "lifespan.shutdown.complete"
        async with asyncio.timeout(WITHIN):
            await self._task


@asynccontextmanager
async def served(app: App, **settings: Any) -> AsyncIterator[str]:
    """The application under uvicorn, on a port of its own; gives its URL."""
    sock = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", **{"lifespan": "on", **settings}))
    task = asyncio.create_task(server.serve([sock]))
    try:
        async with asyncio.timeout(WITHIN):
            while not server.started:
                assert not task.done(), "the server did not start"
                await asyncio.sleep(0.005)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        sock.close()
