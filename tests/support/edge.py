"""A listener in this process, with an acceptor that the test plays.

    async with running_edge(EchoAcceptor()) as edge:
        async with RawClient(edge.port) as client:
            await client.send(post(b"{}"))
            answer = await client.answer()

Leaving `running_edge` checks what must hold whatever happened: no connection, no holder of a deadline and no body byte
is left, each listener heard at most one ending, and nothing was raised into the event loop.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvicorn

from headgate.proxy.clock import Deadlines, LoopClock
from headgate.proxy.edge.asgi import serve_exchange
from headgate.proxy.edge.body import BodyBudget
from headgate.proxy.edge.context import EdgeContext, EdgeLimits
from headgate.proxy.edge.guard import Guard
from headgate.proxy.edge.listen import EdgeServer, bind, serve

from .raw import CHAT, RawClient, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from headgate.proxy.edge.downstream import Downstream
    from headgate.proxy.errors import GatewayError

    from .raw import Answer

JSON = (b"content-type", b"application/json")
WAIT = 5.0


class Recorder:
    """A listener that writes down what it hears and, by default, echoes the body."""

    def __init__(self, downstream: Downstream, *, echo: bool = True) -> None:
        downstream.listener = self
        self.downstream = downstream
        self.echo = echo
        self.bodies: list[bytes] = []
        self.errors: list[GatewayError] = []
        self.resumed = 0
        self.gone = 0
        self.changed = asyncio.Event()

    def on_body(self, body: bytes) -> None:
        self.bodies.append(body)
        self.changed.set()
        if self.echo:
            self.downstream.reply(200, [JSON], body)

    def on_body_error(self, error: GatewayError) -> None:
        self.errors.append(error)
        self.changed.set()
        if self.echo:
            self.downstream.reply(error.status, [JSON], json.dumps({"error": {"code": error.code}}).encode())

    def on_resume(self) -> None:
        self.resumed += 1
        self.changed.set()

    def on_gone(self) -> None:
        self.gone += 1
        self.changed.set()

    def forget_resumes(self) -> None:
        """Count `on_resume` from 0 again."""
        self.resumed = 0

    async def until(self, done: Callable[[Recorder], object]) -> None:
        """Wait until `done(self)`."""
        async with asyncio.timeout(WAIT):
            while not done(self):
                self.changed.clear()
                await self.changed.wait()


class EchoAcceptor:
    """Takes the chat path. `act` does what an engine would; by default the body is read and echoed."""

    def __init__(
        self, act: Callable[[Recorder], None] | None = None, *, limit: int = 1 << 20, echo: bool = True
    ) -> None:
        self.act = act or (lambda recorder: recorder.downstream.read_body(limit))
        self.echo = echo
        self.seen: list[Recorder] = []
        self.given = 0
        self.taken = CHAT
        self.arrived = asyncio.Event()

    def accepts(self, path: str) -> bool:
        return path == self.taken

    def accept(self, downstream: Downstream) -> None:
        recorder = Recorder(downstream, echo=self.echo)
        self.seen.append(recorder)
        self.arrived.set()
        self.act(recorder)

    async def next(self) -> Recorder:
        """The newest exchange that nobody was given before."""
        async with asyncio.timeout(WAIT):
            while len(self.seen) <= self.given:
                self.arrived.clear()
                await self.arrived.wait()
        self.given = len(self.seen)
        return self.seen[-1]


@dataclass
class Edge:
    """A running listener."""

    context: EdgeContext
    server: EdgeServer

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return self.server.port

    async def ask(self, data: bytes) -> Answer:
        """One answer on a connection of its own; fails unless the server closes where it said so."""
        async with RawClient(self.port) as client:
            await client.send(data)
            answer = await client.answer(bodiless=data.startswith(b"HEAD"))
            if answer.header("connection") == "close":
                assert await client.closed()
            return answer

    async def settle(self, connections: int) -> None:
        """Wait until so many are accepted."""
        for _ in range(1000):
            if len(self.context.connections) == connections:
                return
            await asyncio.sleep(WAIT / 1000)
        raise AssertionError(f"not {connections}: {self.context.connections}")

    async def quiet(self) -> None:
        """Wait until no connection is left."""
        for _ in range(1000):
            if not self.context.connections:
                return
            await asyncio.sleep(WAIT / 1000)
        raise AssertionError(f"left: {self.context.connections}")


class FakeTransport(asyncio.Transport):
    """A transport whose client takes everything at once, or nothing while `stuck`; keeps what was written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.written = b""
        self.writes = 0
        self.stuck = False
        self.unsent = 0
        self.reading = True
        self.ended = self.closed = self.aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Ignored."""

    def get_write_buffer_size(self) -> int:
        """What waits while `stuck`."""
        return self.unsent

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep."""
        assert not self.closed
        self.written += data
        self.writes += 1
        self.unsent += len(data) if self.stuck else 0

    def can_write_eof(self) -> bool:
        """As TCP."""
        return True

    def write_eof(self) -> None:
        """FIN."""
        self.ended = True

    def is_closing(self) -> bool:
        """Closed or aborted."""
        return self.closed

    def close(self) -> None:
        """Close."""
        self.closed = True

    def abort(self) -> None:
        """Reset."""
        self.closed = self.aborted = True

    def pause_reading(self) -> None:
        """Close the tap."""
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        """Open the tap."""
        assert not self.reading
        self.reading = True


async def plain_app(scope: Any, receive: Any, send: Any) -> None:
    """The app beside the acceptor: says which path it was asked for, and echoes."""
    message = await receive()
    body = scope["path"].encode("utf-8", "surrogateescape") + b" " + message["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [JSON]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def running_edge(
    acceptor: EchoAcceptor,
    *,
    app: Any = plain_app,
    limits: EdgeLimits | None = None,
    guard: Guard | None = None,
    budget: int = 1 << 26,
    sweep: float = 0.01,
) -> AsyncIterator[Edge]:
    """Serve on a free port until the block is left."""
    loop = asyncio.get_running_loop()
    raised: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: raised.append(context))
    clock = LoopClock()
    context = EdgeContext(
        acceptor,
        clock=clock,
        deadlines=Deadlines(clock, sweep),
        guard=guard or Guard(open_to_all=True),
        limits=limits,
        budget=BodyBudget(budget),
    )
    server = await serve(app, context, [bind("127.0.0.1", 0)])
    try:
        yield Edge(context, server)
    finally:
        await server.aclose()
        loop.set_exception_handler(None)
    assert not raised, raised
    _check_nothing_is_left(context, acceptor)


@asynccontextmanager
async def running_asgi(
    acceptor: EchoAcceptor, *, limits: EdgeLimits | None = None, budget: int = 1 << 26, sweep: float = 0.01
) -> AsyncIterator[Edge]:
    """The portable form of the same, under uvicorn as it comes."""
    clock = LoopClock()
    context = EdgeContext(
        acceptor,
        clock=clock,
        deadlines=Deadlines(clock, sweep),
        guard=Guard(open_to_all=False),
        limits=limits,
        budget=BodyBudget(budget),
    )

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await serve_exchange(context, scope, receive, send)

    config = uvicorn.Config(app, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    sock = bind("127.0.0.1", 0)
    await server.startup(sockets=[sock])
    try:
        yield Edge(context, EdgeServer(server, context, [sock]))
    finally:
        for listener in server.servers:
            listener.close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        while server.server_state.tasks:
            await asyncio.wait(server.server_state.tasks, timeout=WAIT)
    _check_nothing_is_left(context, acceptor)


def _check_nothing_is_left(context: EdgeContext, acceptor: EchoAcceptor) -> None:
    assert not context.connections
    assert len(context.deadlines) == 0
    assert context.budget.used == 0
    for recorder in acceptor.seen:
        assert len(recorder.bodies) + len(recorder.errors) <= 1
        assert recorder.gone <= 1


def post(body: bytes = b"{}", *headers: tuple[str, str], path: str = CHAT) -> bytes:
    """A well-formed POST."""
    return request("POST", path, body, headers)
