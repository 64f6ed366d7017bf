"""asgi: what the portable edge owes to its server, beyond the contract of test_downstream_contract.py."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from headgate.proxy.clock import Deadlines
from headgate.proxy.edge.asgi import serve_exchange
from headgate.proxy.edge.body import BodyBudget
from headgate.proxy.edge.context import EdgeContext, EdgeLimits
from headgate.proxy.edge.guard import Guard
from tests_support.clock import FakeClock
from tests_support.edge import JSON, EchoAcceptor, Recorder
from tests_support.raw import CHAT

if TYPE_CHECKING:
    from collections.abc import Callable

SCOPE: dict[str, Any] = {
    "type": "http",
    "http_version": "2",
    "method": "POST",
    "path": CHAT,
    "query_string": b"a=b",
    "headers": [(b"content-type", b"application/json")],
}


class Server:
    """An ASGI server that the test plays: `inbox` is what it will say, `sent` what it was told."""

    def __init__(self, acceptor: EchoAcceptor, *, budget: int = 1 << 20, **limits: Any) -> None:
        self.clock = FakeClock()
        self.context = EdgeContext(
            acceptor,
            clock=self.clock,
            deadlines=Deadlines(self.clock),
            guard=Guard(open_to_all=False),
            limits=EdgeLimits(**limits),
            budget=BodyBudget(budget),
        )
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[Any] = []
        self.stuck = asyncio.Event()
        self.stuck.set()
        self.broken = False

    async def receive(self) -> dict[str, Any]:
        """The next message."""
        return await self.inbox.get()

    async def send(self, message: Any) -> None:
        """Take a message, late while `stuck` is not set."""
        if self.broken:
            raise OSError("the client has left")
        await self.stuck.wait()
        self.sent.append(message)

    def body(self, data: bytes, *, more: bool = False) -> None:
        """The client sends."""
        self.inbox.put_nowait({"type": "http.request", "body": data, "more_body": more})

    def leave(self) -> None:
        """The client leaves."""
        self.inbox.put_nowait({"type": "http.disconnect"})

    async def run(self, scope: dict[str, Any] = SCOPE) -> None:
        """Serve one exchange to its end; nothing may be left of it."""
        async with asyncio.timeout(5):
            await serve_exchange(self.context, scope, self.receive, self.send)
        assert len(self.context.deadlines) == 0
        assert self.context.budget.used == 0


def nothing(recorder: Recorder) -> None:
    """An engine that takes its time."""


async def turns() -> None:
    """Let tasks run until they wait."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_head_needs_only_what_asgi_requires() -> None:
    acceptor = EchoAcceptor()
    server = Server(acceptor)
    server.body(b"{}")
    await server.run()
    head = acceptor.seen[0].downstream.head
    assert (head.client, head.scheme, head.target, head.query, head.http_version) == (
        "",
        "http",
        CHAT.encode(),
        b"a=b",
        "2",
    )
    assert server.sent[0] == {
        "type": "http.response.start",
        "status": 200,
        "headers": [JSON, (b"content-length", b"2")],
    }
    assert server.sent[1:] == [
        {"type": "http.response.body", "body": b"{}", "more_body": True},
        {"type": "http.response.body", "body": b"", "more_body": False},
    ]


async def test_a_send_that_fails_is_a_client_that_left() -> None:
    acceptor = EchoAcceptor()
    server = Server(acceptor)
    server.broken = True
    server.body(b"{}")
    acceptor.act = lambda recorder: recorder.downstream.start(200, [JSON], None)
    running = asyncio.create_task(server.run())
    recorder = await acceptor.next()
    recorder.downstream.write(b"x")
    await running
    assert recorder.gone == 1


async def test_an_unasked_body_is_received_only_so_far() -> None:
    acceptor = EchoAcceptor(nothing)
    server = Server(acceptor, unread=1000)
    for _ in range(10):
        server.body(b"x" * 600, more=True)
    server.body(b"")
    running = asyncio.create_task(server.run())
    recorder = await acceptor.next()
    await turns()
    assert server.inbox.qsize() == 9
    assert server.context.budget.used == 1200
    recorder.downstream.read_body(10_000)
    await running
    assert recorder.bodies == [b"x" * 6000]


async def test_an_unasked_body_that_does_not_fit_is_refused_when_asked_for() -> None:
    acceptor = EchoAcceptor(nothing)
    server = Server(acceptor, budget=1000)
    server.body(b"x" * 1001)
    running = asyncio.create_task(server.run())
    recorder = await acceptor.next()
    await turns()
    recorder.downstream.read_body(10_000)
    await running
    assert [error.status for error in recorder.errors] == [503]


async def test_an_unasked_body_that_is_too_large_is_refused_when_asked_for() -> None:
    acceptor = EchoAcceptor(nothing)
    server = Server(acceptor)
    server.body(b"x" * 1001)
    running = asyncio.create_task(server.run())
    recorder = await acceptor.next()
    await turns()
    recorder.downstream.read_body(1000)
    await running
    assert [error.status for error in recorder.errors] == [413]


async def test_a_reply_before_the_body_throws_the_body_away() -> None:
    acceptor = EchoAcceptor(nothing)
    server = Server(acceptor, unread=1000)
    for _ in range(10):
        server.body(b"x" * 600, more=True)
    running = asyncio.create_task(server.run())
    recorder = await acceptor.next()
    await turns()
    recorder.downstream.start(401, [JSON], None)
    await turns()
    assert server.inbox.qsize() == 0
    assert server.context.budget.used == 0
    recorder.downstream.end()
    await running


async def test_a_send_that_takes_too_long_is_cut() -> None:
    acceptor = EchoAcceptor()
    server = Server(acceptor)
    server.stuck.clear()
    server.body(b"{}")
    acceptor.act = lambda recorder: recorder.downstream.start(200, [JSON], None)
    running = asyncio.create_task(server.run())
    recorder = await acceptor.next()
    recorder.downstream.write(b"x")
    await turns()
    server.clock.advance(29)
    await turns()
    assert not running.done()
    server.clock.advance(2)
    await running
    assert recorder.gone == 1
    assert server.context.stats.write_stalls == 1


async def test_a_cancelled_exchange_is_a_client_that_left() -> None:
    acceptor = EchoAcceptor(nothing)
    server = Server(acceptor)
    running = asyncio.create_task(server.run())
    recorder = await acceptor.next()
    await turns()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert recorder.gone == 1


@pytest.mark.parametrize("act", [lambda downstream: downstream.abort(), lambda downstream: downstream.end()])
async def test_an_answer_that_never_began_ends_the_exchange(act: Callable[[Any], Any]) -> None:
    acceptor = EchoAcceptor(nothing)
    server = Server(acceptor)
    running = asyncio.create_task(server.run())
    act((await acceptor.next()).downstream)
    await running
    assert server.sent == []


@pytest.mark.parametrize("act", [lambda downstream: downstream.abort(), lambda downstream: downstream.end()])
async def test_an_answer_that_broke_before_its_first_byte_is_begun_and_not_ended(act: Callable[[Any], Any]) -> None:
    """A server would answer in its place, where nothing was begun."""
    acceptor = EchoAcceptor(nothing)
    server = Server(acceptor)
    running = asyncio.create_task(server.run())
    downstream = (await acceptor.next()).downstream
    downstream.start(200, [JSON], 5)
    act(downstream)
    await running
    assert [message["type"] for message in server.sent] == ["http.response.start"]


async def test_a_client_that_leaves_twice_left_once() -> None:
    acceptor = EchoAcceptor(nothing)
    server = Server(acceptor)
    server.body(b"{}")
    server.inbox.put_nowait({"type": "http.request", "body": b"late"})
    server.leave()
    server.leave()
    await server.run()
    assert acceptor.seen[0].gone == 1
