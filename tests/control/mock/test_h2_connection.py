"""h2_connection: the mock over HTTP/2, spoken to by the gateway's own client and by the judge of the h2 package."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    InformationalResponseReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)

from headgate.control.mock.catalogue import FAULTS
from headgate.control.mock.provider import MockProvider
from headgate.control.mock.schedule import Schedule
from headgate.control.mock.server import MockServer, serve
from headgate.proxy.clock import LoopClock
from headgate.proxy.edge.listen import bind
from tests_support.caller import eventually
from tests_support.raw import CHAT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.usefixtures("no_leaks")
WITHIN = 15.0


@asynccontextmanager
async def mock(*faults: str, speed: float = 1.0, delay: float = 0.0) -> AsyncIterator[MockServer]:
    provider = MockProvider(Schedule([FAULTS[name] for name in faults]), delay=delay)
    server = await serve(bind("127.0.0.1", 0), provider, LoopClock(), speed=speed)
    try:
        yield server
    finally:
        await server.aclose()


class Client:
    """Requests by hand, and all that came back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, acknowledges: bool) -> None:
        self.reader = reader
        self.writer = writer
        self.acknowledges = acknowledges
        self.h2 = H2Connection(H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.events: list[Event] = []
        self.flush()

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    def ask(self, model: str = "m", *, stream: bool = False, method: str = "POST", path: str = CHAT) -> int:
        """Send one request; its stream's number."""
        id_ = self.h2.get_next_available_stream_id()
        body = json.dumps({"model": model, "stream": stream, "messages": [{"role": "user", "content": "hi"}]}).encode()
        head = [(":method", method), (":scheme", "http"), (":authority", "x"), (":path", path)]
        self.h2.send_headers(id_, head, end_stream=method == "GET")
        if method == "POST":
            self.h2.send_data(id_, body[:10])
            self.h2.send_data(id_, body[10:], end_stream=True)
        self.flush()
        return id_

    async def until(self, done: Callable[[], object]) -> None:
        """Read until it holds, or the connection ends."""
        async with asyncio.timeout(WITHIN):
            while not done():
                data = await self.reader.read(65536)
                if not data:
                    return
                for event in self.h2.receive_data(data):
                    self.events.append(event)
                    if isinstance(event, DataReceived) and self.acknowledges:
                        assert event.flow_controlled_length is not None
                        self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self.flush()

    async def over(self, id_: int) -> tuple[str, bytes]:
        """Status and body of an answer, once it has ended in any way."""
        await self.until(lambda: any(isinstance(one, StreamEnded | StreamReset) for one in self.of(id_)))
        heads = [
            {str(k): str(v) for k, v in one.headers or ()} for one in self.of(id_) if isinstance(one, ResponseReceived)
        ]
        return heads[0][":status"] if heads else "", self.body(id_)

    def of(self, id_: int) -> list[Event]:
        """What happened on a stream."""
        return [one for one in self.events if getattr(one, "stream_id", None) == id_]

    def body(self, id_: int) -> bytes:
        """As far as it has come."""
        return b"".join(one.data or b"" for one in self.of(id_) if isinstance(one, DataReceived))


@asynccontextmanager
async def client(server: MockServer, *, acknowledges: bool = True) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield Client(reader, writer, acknowledges=acknowledges)
    finally:
        writer.transport.abort()


async def test_many_requests_share_a_connection() -> None:
    async with mock() as server, client(server) as one:
        asked = [one.ask(stream=number % 2 == 1) for number in range(20)]
        for number, id_ in enumerate(asked):
            status, body = await one.over(id_)
            assert status == "200"
            assert body.endswith(b"data: [DONE]\n\n") == (number % 2 == 1)
        assert len(server.connections) == 1
        health = one.ask(method="GET", path="/healthz?x=1")
        assert await one.over(health) == ("200", b'{"status":"healthy"}')


async def test_faults_that_know_nothing_of_frames_are_played_in_frames() -> None:
    async with mock() as server, client(server) as one:
        assert (await one.over(one.ask("mock-fault-429")))[0] == "429"
        assert (await one.over(one.ask("mock-fault-garbage")))[0] == "200"
        interim = one.ask("mock-fault-interim")
        assert (await one.over(interim))[0] == "200"
        assert sum(isinstance(event, InformationalResponseReceived) for event in one.of(interim)) == 2
        cut = one.ask("mock-fault-close-in-body", stream=True)
        await one.until(lambda: False)
        assert one.body(cut)
        assert not any(isinstance(event, StreamEnded) for event in one.of(cut))
        assert not server.connections


async def test_a_reset_of_the_connection_is_one() -> None:
    async with mock() as server, client(server) as one:
        one.ask("mock-fault-reset-before-head")
        with pytest.raises(ConnectionResetError):
            await one.until(lambda: False)


async def test_a_stream_may_end_alone() -> None:
    async with mock() as server, client(server) as one:
        refused, good = one.ask("mock-fault-h2-refused"), one.ask()
        assert await one.over(refused) == ("", b"")
        [reset] = [event for event in one.of(refused) if isinstance(event, StreamReset)]
        assert reset.error_code == 7
        assert (await one.over(good))[0] == "200"


async def test_frames_go_out_as_they_stand() -> None:
    async with mock() as server, client(server) as one:
        one.ask("mock-fault-h2-goaway")
        await one.until(lambda: False)
        [last] = [event for event in one.events if isinstance(event, ConnectionTerminated)]
        assert last.last_stream_id == 0


async def test_what_nobody_gives_room_for_waits_and_goes_on() -> None:
    async with mock() as server, client(server, acknowledges=False) as one:
        id_ = one.ask("mock-fault-huge-json")
        await one.until(lambda: len(one.body(id_)) == 65535)
        assert len(server.connections) == 1
        one.acknowledges = True
        one.h2.increment_flow_control_window(2**24)
        one.h2.increment_flow_control_window(2**24, id_)
        one.flush()
        status, body = await one.over(id_)
        assert (status, len(body)) == ("200", 16 * 2**20 + 24)


async def test_a_client_that_leaves_a_stream_or_all_of_them_ends_what_is_played() -> None:
    async with mock() as server, client(server) as one:
        left = one.ask("mock-fault-endless", stream=True)
        await one.until(lambda: one.body(left))
        [connection] = server.connections
        assert connection.spoiled
        one.h2.reset_stream(left)
        one.flush()
        await eventually(lambda: not connection.spoiled)
        one.ask("mock-fault-stall-before-head")
        await eventually(lambda: connection.spoiled)
        one.writer.transport.abort()
        await eventually(lambda: not server.connections)


async def test_a_client_that_breaks_the_rules_is_told_and_left() -> None:
    async with mock() as server, client(server) as one:
        one.writer.write(b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00")  # no room at all
        await one.until(lambda: False)
        assert any(isinstance(event, ConnectionTerminated) for event in one.events)


async def test_nothing_is_read_by_the_deaf() -> None:
    async with mock() as server, client(server) as one:
        one.ask("mock-fault-deaf")
        await eventually(lambda: any(connection.deaf for connection in server.connections))


async def test_a_preface_that_comes_in_pieces_is_one() -> None:
    async with mock() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        h2 = H2Connection(H2Configuration())
        h2.initiate_connection()
        for byte in h2.data_to_send():
            writer.write(bytes((byte,)))
            await writer.drain()
        async with asyncio.timeout(WITHIN):
            assert await reader.readexactly(9)
        await eventually(lambda: "H2" in repr(server.connections))
        writer.transport.abort()
