"""worker: starts under the first order, obeys the others, and does not outlive who gives them.

The worker runs in this process, and the test is its supervisor.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from headgate.config import ConfigError
from headgate.control.process import data_server
from headgate.control.process import worker as module
from headgate.control.process.channel import Channel, Configure, Leave, Ready, Refuse, Refused, Retire, Told
from headgate.control.process.source import ConfigSource
from headgate.control.process.worker import run_worker
from headgate.gateway import Gateway
from tests_support.answers import chat_chunks, chunk, event, response_head
from tests_support.caller import eventually
from tests_support.gateway import Asking, written
from tests_support.raw import CHAT, RawClient, request
from tests_support.traffic import error_events
from tests_support.upstream import STALL, FakeUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from headgate.config import GatewayConfig
    from headgate.control.process.channel import FromWorker
    from headgate.proxy.graph import Graph
    from tests_support.upstream import Step

WITHIN = 20.0
MOCK = {"providers": {"mock": {"base_url": "mock:"}}}
SSE = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
STALLED: list[Step] = [SSE, *(chunk(event(one)) for one in chat_chunks(done=False)[:3]), STALL]
ASK = request("POST", CHAT, b'{"model":"m","messages":[{"role":"user","content":"hello"}]}')
STREAM = request("POST", CHAT, b'{"model":"m","stream":true}')


class Played(Asking):
    """A worker and the other end of its channel."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = ConfigSource(None)
        self.half: Gateway | None = None
        self.channel: Channel
        self.task: asyncio.Task[int]

    def make(self, config: GatewayConfig) -> Gateway:
        """The data half."""
        self.half = Gateway(config)
        return self.half

    def order(self, digest: str | None = None, **changes: object) -> Configure:
        """A config; its digest is what the text says unless the test does."""
        text = written({**MOCK, **changes}, self.folder)
        return Configure(text, self.source.parse(text).digest if digest is None else digest)

    async def hears(self, kind: type[FromWorker]) -> FromWorker:
        """The next message of a kind."""
        async with asyncio.timeout(WITHIN):
            while True:
                message = await self.channel.from_worker()
                if isinstance(message, kind):
                    return message

    async def to_the_end(self) -> list[FromWorker]:
        """Every message until it closes."""
        heard: list[FromWorker] = []
        with suppress(EOFError):
            async with asyncio.timeout(WITHIN):
                while True:
                    heard.append(await self.channel.from_worker())
        return heard

    async def started(self, **changes: object) -> None:
        """Told its first config, and ready."""
        self.channel.send(self.order(None, **changes))
        await self.hears(Ready)

    @property
    def graph(self) -> Graph:
        """What it serves under."""
        assert self.half is not None
        return self.half.engine.graph

    async def ended(self) -> int:
        """Its exit code."""
        async with asyncio.timeout(WITHIN):
            return await self.task


@asynccontextmanager
async def playing(folder: Path) -> AsyncIterator[Played]:
    """Not configured yet."""
    played = Played(folder)
    ours, theirs = socket.socketpair()
    data = socket.create_server(("127.0.0.1", 0))
    played.port = data.getsockname()[1]
    data.setblocking(False)
    played.channel = await Channel.over(ours)
    played.task = asyncio.ensure_future(run_worker(played.make, played.source, "test", theirs, data))
    try:
        yield played
    finally:
        await played.channel.aclose()
        await asyncio.wait([played.task], timeout=WITHIN)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        data.close()


async def test_it_serves_what_it_was_told_and_tells_what_it_counts(tmp_path: Path) -> None:
    async with playing(tmp_path) as worker:
        first = worker.order()
        worker.channel.send(first)
        ready = await worker.hears(Ready)
        assert isinstance(ready, Ready)
        assert (ready.digest, [chain["route"] for chain in ready.chains]) == (first.digest, ["default"])
        assert (await worker.post(key=None)).status == 200
        worker.channel.send(Leave())
        last = (await worker.to_the_end())[-1]
        assert isinstance(last, Told)
        assert last.snapshot.counters.exchanges == {("chat", "ok", 200): 1}
        assert await worker.ended() == 0


async def test_a_reload_is_confirmed_under_its_digest(tmp_path: Path) -> None:
    async with playing(tmp_path) as worker:
        await worker.started()
        order = worker.order(limits={"json_depth": 9})
        worker.channel.send(order)
        ready = await worker.hears(Ready)
        assert isinstance(ready, Ready)
        assert ready.digest == order.digest
        assert worker.half is not None
        assert worker.half.engine.graph.json_depth == 9


@pytest.mark.parametrize(
    ("changes", "digest", "why"),
    [
        ({"workers": 2}, None, "workers: a change needs a restart"),
        ({"limits": {"json_depth": 0}}, "d", "limits.json_depth: "),
        ({"limits": {"json_depth": 9}}, "of another reading", "a file it names has changed since it was read"),
    ],
    ids=["restart", "bad", "changed meanwhile"],
)
async def test_what_it_cannot_take_over_it_refuses_and_serves_on(
    changes: dict[str, object], digest: str | None, why: str, tmp_path: Path
) -> None:
    async with playing(tmp_path) as worker:
        await worker.started()
        before = worker.graph
        order = worker.order(digest, **changes)
        worker.channel.send(order)
        refused = await worker.hears(Refused)
        assert isinstance(refused, Refused)
        assert refused.digest == order.digest
        assert why in str(refused.problems[0])
        assert worker.graph is before
        assert (await worker.post(key=None)).status == 200


async def test_a_reload_that_fails_by_a_bug_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: Gateway, config: GatewayConfig) -> None:
        raise ZeroDivisionError

    async with playing(tmp_path) as worker:
        await worker.started()
        monkeypatch.setattr(Gateway, "reload", broken)
        worker.channel.send(worker.order(limits={"json_depth": 9}))
        refused = await worker.hears(Refused)
        assert isinstance(refused, Refused)
        assert "a bug, see the log: ZeroDivisionError()" in str(refused.problems[0])
        assert (await worker.post(key=None)).status == 200


async def test_told_to_refuse_it_stays(tmp_path: Path) -> None:
    async with playing(tmp_path) as worker:
        await worker.started()
        worker.channel.send(Refuse())
        await eventually(lambda: worker.half is not None and worker.half.engine.draining)
        assert (await worker.post(key=None)).status == 503
        assert not worker.task.done()


async def test_sigterm_is_its_end_too(tmp_path: Path) -> None:
    async with playing(tmp_path) as worker:
        await worker.started()
        os.kill(os.getpid(), signal.SIGTERM)
        assert await worker.ended() == 0


async def test_told_twice_to_leave_it_cuts_what_runs(tmp_path: Path) -> None:
    async with FakeUpstream(STALLED) as upstream, playing(tmp_path) as worker:
        await worker.started(providers={"up": {"base_url": upstream.base_url}})
        async with RawClient(worker.port) as client:
            await client.send(STREAM)
            await client.head()
            worker.channel.send(Leave())
            await eventually(lambda: worker.half is not None and worker.half.engine.draining)
            assert not worker.task.done()
            worker.channel.send(Leave())
            assert [error["code"] for error in error_events((await client.rest()).body)] == ["shutting_down"]
            assert await worker.ended() == 0


async def test_without_its_supervisor_it_ends_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ORPHAN_SECONDS", 0.1)
    async with FakeUpstream(STALLED) as upstream, playing(tmp_path) as worker:
        await worker.started(providers={"up": {"base_url": upstream.base_url}})
        async with RawClient(worker.port) as client:
            await client.send(STREAM)
            await client.head()
            await worker.channel.aclose()
            assert [error["code"] for error in error_events((await client.rest()).body)] == ["shutting_down"]
            assert await worker.ended() == 0


async def test_a_supervisor_that_goes_before_it_says_anything_is_the_end(tmp_path: Path) -> None:
    async with playing(tmp_path) as worker:
        await worker.channel.aclose()
        assert await worker.ended() == 0
        assert worker.half is None


async def test_told_to_leave_before_it_was_told_anything_it_leaves(tmp_path: Path) -> None:
    async with playing(tmp_path) as worker:
        worker.channel.send(Leave())
        assert await worker.ended() == 0
        assert worker.half is None


async def test_a_config_it_cannot_start_under_is_raised(tmp_path: Path) -> None:
    async with playing(tmp_path) as worker:
        worker.channel.send(worker.order("d", filters=[{"use": "nowhere_at_all:X"}]))
        with pytest.raises(ConfigError, match="cannot be imported"):
            await worker.ended()


async def test_told_to_retire_it_serves_who_is_connected_and_ends_when_nobody_is(tmp_path: Path) -> None:
    async with playing(tmp_path) as worker:
        await worker.started()
        async with RawClient(worker.port) as kept:
            await kept.send(ASK)
            assert (await kept.answer()).header("connection") is None
            worker.channel.send(Retire())
            while not (told := await worker.hears(Told)).snapshot.draining:  # type: ignore[union-attr]
                pass
            assert isinstance(told, Told)
            assert not told.snapshot.ready
            await kept.send(ASK)
            answer = await kept.answer()
            assert (answer.status, answer.header("connection")) == (200, "close")
        assert await worker.ended() == 0


async def test_told_to_leave_while_it_retires_it_drains(tmp_path: Path) -> None:
    async with FakeUpstream(STALLED) as upstream, playing(tmp_path) as worker:
        await worker.started(providers={"up": {"base_url": upstream.base_url}}, limits={"drain": "0s"})
        async with RawClient(worker.port) as client:
            await client.send(STREAM)
            await client.head()
            worker.channel.send(Retire())
            worker.channel.send(Leave())
            assert [error["code"] for error in error_events((await client.rest()).body)] == ["shutting_down"]
        assert await worker.ended() == 0


async def test_a_worker_that_retires_for_too_long_drains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_server, "RETIRE_SECONDS", 0.3)
    async with FakeUpstream(STALLED) as upstream, playing(tmp_path) as worker:
        await worker.started(providers={"up": {"base_url": upstream.base_url}}, limits={"drain": "200ms"})
        async with RawClient(worker.port) as client:
            await client.send(STREAM)
            await client.head()
            worker.channel.send(Retire())
            assert [error["code"] for error in error_events((await client.rest()).body)] == ["shutting_down"]
        assert await worker.ended() == 0
