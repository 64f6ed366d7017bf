"""`stream_body` over both edges: what the engine hears of a body that is passed on while it arrives."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from headgate.proxy.edge.context import EdgeLimits
from headgate.proxy.errors import OverloadError
from tests_support.edge import JSON, EchoAcceptor, Recorder, running_asgi, running_edge
from tests_support.raw import CHAT, RawClient, request

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from tests_support.edge import Edge

    Running = Callable[..., AbstractAsyncContextManager[Edge]]

MIB = 1 << 20


@pytest.fixture(params=["raw", "asgi"])
def running(request: pytest.FixtureRequest) -> Running:
    """Either edge."""
    return running_edge if request.param == "raw" else running_asgi


class Taker:
    """Takes the body; `stop_after` bytes it pauses."""

    def __init__(self, recorder: Recorder, stop_after: int | None = None) -> None:
        self.recorder = recorder
        self.stop_after = stop_after
        self.taken = bytearray()
        self.ended = 0
        self.paused = False
        recorder.downstream.stream_body(100 * MIB, self)

    def on_body_data(self, data: bytes) -> None:
        assert data
        assert not self.paused
        self.taken += data
        if self.stop_after is not None and len(self.taken) >= self.stop_after:
            self.paused = True
            self.recorder.downstream.pause_body()
        self.recorder.changed.set()

    def on_body_end(self) -> None:
        assert not self.paused
        self.ended += 1
        self.recorder.changed.set()
        self.recorder.downstream.reply(200, [JSON], b"%d" % len(self.taken))

    def go(self) -> None:
        self.stop_after = None
        self.paused = False
        before = len(self.taken)
        self.recorder.downstream.resume_body()
        assert len(self.taken) == before, "delivered from inside resume_body"


class Acceptor(EchoAcceptor):
    """Streams every body."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.takers: list[Taker] = []
        super().__init__(lambda recorder: self.takers.append(Taker(recorder, stop_after)))


def head(length: int | None) -> bytes:
    framing = ("transfer-encoding", "chunked") if length is None else ("content-length", str(length))
    return request("POST", CHAT, None, [framing])


@pytest.mark.parametrize("size", [0, 1, 70_000, 3 * MIB])
async def test_a_streamed_body_arrives_as_it_was_sent(running: Running, size: int) -> None:
    acceptor = Acceptor()
    body = bytes(range(251)) * (size // 251 + 1)
    async with running(acceptor) as edge, RawClient(edge.port) as client:
        for _ in range(2):
            await client.send(head(size) + body[:size])
            assert (await client.answer()).body == b"%d" % size
    assert [bytes(taker.taken) for taker in acceptor.takers] == [body[:size]] * 2
    assert [taker.ended for taker in acceptor.takers] == [1, 1]


async def test_pieces_arrive_before_the_body_is_whole_and_without_chunks(running: Running) -> None:
    acceptor = Acceptor()
    async with running(acceptor) as edge, RawClient(edge.port) as client:
        await client.send(head(None) + b"5\r\nhello\r\n")
        recorder = await acceptor.next()
        await recorder.until(lambda _: acceptor.takers[0].taken == b"hello")
        await client.send(b"1\r\n!\r\n0\r\n\r\n")
        assert (await client.answer()).body == b"6"


async def test_a_paused_body_is_not_read_and_its_deadline_rests(running: Running) -> None:
    acceptor = Acceptor(stop_after=1000)
    async with running(acceptor, limits=EdgeLimits(body_idle=0.3)) as edge, RawClient(edge.port) as client:
        size = 40 * MIB
        sending = asyncio.create_task(client.send(head(size) + b"x" * size))
        recorder = await acceptor.next()
        [taker] = acceptor.takers
        await recorder.until(lambda _: taker.paused)
        done, _ = await asyncio.wait([sending], timeout=0.6)
        assert not done
        assert edge.context.stats.body_timeouts == 0
        assert len(taker.taken) <= MIB
        taker.go()
        await sending
        assert (await client.answer()).body == b"%d" % size


async def test_a_body_that_ends_while_it_is_paused_ends_when_it_goes_on(running: Running) -> None:
    acceptor = Acceptor(stop_after=1)
    async with running(acceptor) as edge, RawClient(edge.port) as client:
        await client.send(head(3) + b"abc")
        recorder = await acceptor.next()
        [taker] = acceptor.takers
        await recorder.until(lambda _: taker.paused)
        await asyncio.sleep(0.02)
        assert not taker.ended
        taker.go()
        assert (await client.answer()).body == b"3"


async def test_a_streamed_body_that_stops_arriving_is_a_408(running: Running) -> None:
    acceptor = Acceptor()
    async with running(acceptor, limits=EdgeLimits(body_idle=0.1)) as edge, RawClient(edge.port) as client:
        await client.send(head(10) + b"x")
        assert (await client.answer()).status == 408
    assert not acceptor.takers[0].ended


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_streamed_body_above_the_limit_is_refused(running: Running, chunked: bool) -> None:
    class Small(Taker):
        def __init__(self, recorder: Recorder) -> None:
            self.recorder, self.stop_after, self.taken, self.ended, self.paused = recorder, None, bytearray(), 0, False
            recorder.downstream.stream_body(10, self)

    def act(recorder: Recorder) -> None:
        Small(recorder)

    async with running(EchoAcceptor(act)) as edge, RawClient(edge.port) as client:
        await client.send(head(None) + b"b\r\n12345678901\r\n" if chunked else head(11) + b"x")
        answer = await client.answer()
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")


async def test_an_early_answer_drops_the_rest(running: Running) -> None:
    acceptor = Acceptor(stop_after=1)
    async with running(acceptor) as edge, RawClient(edge.port) as client:
        await client.send(head(5 * MIB) + b"x" * 1000)
        recorder = await acceptor.next()
        [taker] = acceptor.takers
        await recorder.until(lambda _: taker.paused)
        recorder.downstream.reply(413, [JSON], b"{}")
        assert (await client.answer()).status == 413
        taker.paused = False
        recorder.downstream.resume_body()
        client.leave()
    assert not taker.ended


async def test_a_client_that_leaves_in_mid_body_is_reported_to_a_stream_too(running: Running) -> None:
    acceptor = Acceptor()
    async with running(acceptor) as edge, RawClient(edge.port) as client:
        await client.send(head(5000) + b"x")
        recorder = await acceptor.next()
        client.leave()
        await recorder.until(lambda r: r.gone)


async def test_what_the_engine_keeps_counts_until_the_end(running: Running) -> None:
    acceptor = Acceptor()
    async with running(acceptor, budget=1000) as edge, RawClient(edge.port) as client:
        await client.send(head(3) + b"x")
        recorder = await acceptor.next()
        await recorder.until(lambda _: acceptor.takers[0].taken)
        recorder.downstream.charge_body(600)
        with pytest.raises(OverloadError):
            recorder.downstream.charge_body(600)
        recorder.downstream.charge_body(-100)
        assert edge.context.budget.used == 500
        await client.send(b"yz")
        await client.answer()
        assert edge.context.budget.used == 0
