"""The ASGI app beside the engine: serves what the acceptor does not take (health, admin, …) on the same `Downstream`.

So the limits, deadlines and refusals of the edge hold for both alike. Bodies are collected whole and bounded before
the app sees them, and an app that fails is answered for in JSON. One task per request, owned here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import structlog

from ..errors import GatewayError
from ..replies import error_reply, internal_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from .downstream import Downstream, RequestHead

    Message = MutableMapping[str, Any]
    ASGIApp = Callable[
        [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
    ]

BODY_LIMIT = 1024 * 1024
_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"connection", b"keep-alive"))

_log = structlog.get_logger("headgate.edge")


class AsgiApp:
    """`app` as an acceptor of every path."""

    __slots__ = ("_app", "_body_limit", "_new_id", "_tasks")

    def __init__(self, app: ASGIApp, *, new_id: Callable[[], str], body_limit: int = BODY_LIMIT) -> None:
        self._app = app
        self._new_id = new_id
        self._body_limit = body_limit
        self._tasks: set[asyncio.Task[None]] = set()

    def accepts(self, path: str) -> bool:
        return True

    def accept(self, downstream: Downstream) -> None:
        cycle = _Cycle(downstream, self._body_limit)
        task = asyncio.get_running_loop().create_task(cycle.run(self._app, self._new_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Cancel what still runs, and wait for it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Cycle:
    """One run of the app."""

    __slots__ = ("_answered", "_body", "_body_limit", "_downstream", "_head", "_over", "_resumed")

    def __init__(self, downstream: Downstream, body_limit: int) -> None:
        downstream.listener = self
        loop = asyncio.get_running_loop()
        self._downstream = downstream
        self._body_limit = body_limit
        self._body: asyncio.Future[bytes | GatewayError | None] | None = None
        self._resumed: asyncio.Future[None] | None = None
        self._over: asyncio.Future[None] = loop.create_future()
        """The client left, or the answer is whole: what ASGI calls disconnected."""
        self._head: Message | None = None
        self._answered = False

    def on_body(self, body: bytes) -> None:
        self._resolve_body(body)

    def on_body_error(self, error: GatewayError) -> None:
        self._resolve_body(error)

    def on_resume(self) -> None:
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)

    def on_gone(self) -> None:
        self._over.set_result(None)
        self._resolve_body(None)
        self.on_resume()

    async def run(self, app: ASGIApp, new_id: Callable[[], str]) -> None:
        """Let `app` answer, and answer for it where it does not."""
        error: GatewayError | None = None
        request_id = new_id()
        try:
            await app(_scope(self._downstream.head), self._receive, self._send)
        except GatewayError as failure:
            error = failure
        except Exception:
            _log.exception("app failed", request_id=request_id, path=self._downstream.head.path)
            error = internal_error()
        if self._answered:
            self._downstream.abort()
        elif not self._over.done():
            reply = error_reply(error or internal_error(), request_id)
            id_value = request_id.encode()
            headers = [*reply.headers, (b"x-request-id", id_value), (b"x-headgate-request-id", id_value)]
            self._downstream.reply(reply.status, headers, reply.body)

    async def _receive(self) -> Message:
        if self._body is None:
            self._body = asyncio.get_running_loop().create_future()
            self._downstream.read_body(self._body_limit)
            body = await self._body
            if isinstance(body, GatewayError):
                raise body
            if body is not None:
                return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.shield(self._over)
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._over.done():
            return
        if message["type"] == "http.response.start":
            self._head = message
            return
        downstream = self._downstream
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._head is not None:
            fields = [(name.lower(), value) for name, value in self._head.get("headers", ())]
            announced = dict(fields).get(b"content-length")
            length = len(body) if not more else int(announced) if announced is not None else None
            headers = [field for field in fields if field[0] not in _FRAMING]
            downstream.start(self._head["status"], headers, length)
            self._head = None
            self._answered = True
        if body and not downstream.write(body) and more:
            self._resumed = asyncio.get_running_loop().create_future()
            await self._resumed
        if not more and not self._over.done():
            self._answered = False
            self._over.set_result(None)
            downstream.end()

    def _resolve_body(self, outcome: bytes | GatewayError | None) -> None:
        if self._body is None:
            self._body = asyncio.get_running_loop().create_future()
        if not self._body.done():
            self._body.set_result(outcome)


def _scope(head: RequestHead) -> Message:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": head.http_version,
        "method": head.method,
        "scheme": head.scheme,
        "path": head.path,
        "raw_path": head.target,
        "query_string": head.query,
        "root_path": "",
        "headers": head.headers,
        "client": (head.client, 0) if head.client else None,
        "server": None,
        "state": {},
    }
