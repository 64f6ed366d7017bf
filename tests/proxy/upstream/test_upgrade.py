"""A call that asks for an upgrade: after the 101 bytes pass both ways unframed, and the connection is nobody else's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from headgate.proxy.upstream.call import BodySource, UpstreamRequest
from headgate.proxy.upstream.h1_request import encode_head
from tests_support.answers import json_response
from tests_support.caller import Caller, Recorder, eventually
from tests_support.upstream import FIN, RST, STALL, FakeUpstream, in_turn

if TYPE_CHECKING:
    from headgate.proxy.upstream.call import BodySink
    from tests_support.upstream import Step

pytestmark = pytest.mark.usefixtures("no_leaks")

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
FIELDS = [(b"connection", b"upgrade"), (b"upgrade", b"websocket")]


class Source(BodySource):
    """Gives what a test gives it."""

    def __init__(self) -> None:
        self.length = None
        self.begun = False
        self.sink: BodySink | None = None
        self.said: list[str] = []

    def start(self, sink: BodySink) -> None:
        self.sink = sink
        self.said.append("start")

    def pause(self) -> None:
        self.said.append("pause")

    def resume(self) -> None:
        self.said.append("resume")

    def cancel(self) -> None:
        self.said.append("cancel")
        self.sink = None


def upgrade(source: Source) -> UpstreamRequest:
    """A handshake."""
    return UpstreamRequest(b"GET", b"/realtime", FIELDS, b"", source, upgrade=True)


async def test_the_head_has_no_framing() -> None:
    head = encode_head(upgrade(Source()), b"/v1", b" HTTP/1.1\r\nhost: h")
    assert head == b"GET /v1/realtime HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"


@pytest.mark.parametrize("cut", [1, len(SWITCH) - 1, len(SWITCH), len(SWITCH) + 2])
async def test_bytes_pass_both_ways_once_it_is_switched(cut: int) -> None:
    script: list[Step] = [(SWITCH + b"down")[:cut], (SWITCH + b"down")[cut:], STALL]
    async with FakeUpstream(script) as upstream, Caller(upstream.base_url) as caller:
        source, heard = Source(), Recorder()
        caller.endpoint.start(upgrade(source), heard)
        await eventually(lambda: heard.body == b"down")
        assert heard.head is not None
        assert heard.head.status == 101
        assert source.said == ["start"]
        assert source.sink is not None
        source.sink.put(b"up")
        connection = upstream.connections[0]
        await eventually(lambda: connection.received.endswith(b"\r\n\r\nup"))
        source.sink.put(b"bye")
        source.sink.finish()
        await upstream.wait_closed()
        assert connection.received.endswith(b"\r\n\r\nupbye")
        assert await heard.over() == "closed"


@pytest.mark.parametrize(("end", "told"), [(FIN, "closed"), (RST, "BrokenAnswerError")])
async def test_the_end_of_the_connection_is_told(end: Step, told: str) -> None:
    async with FakeUpstream([SWITCH, b"x", end]) as upstream, Caller(upstream.base_url) as caller:
        source, heard = Source(), Recorder()
        caller.endpoint.start(upgrade(source), heard)
        assert await heard.over() == told
        assert source.said == ["start", "cancel"]


async def test_whoever_does_not_want_the_101_starts_nothing() -> None:
    async with FakeUpstream([SWITCH, b"x", STALL]) as upstream, Caller(upstream.base_url) as caller:
        source, heard = Source(), Recorder({"head": lambda call: call.cancel()})
        caller.endpoint.start(upgrade(source), heard)
        await upstream.wait_closed()
        assert source.said == []
        assert heard.body == b""


async def test_an_answer_instead_of_the_101_leaves_the_connection_to_the_next_call() -> None:
    refusal = json_response({"error": {}}, 403)
    async with FakeUpstream(in_turn([refusal], [refusal])) as upstream, Caller(upstream.base_url) as caller:
        source, heard = Source(), Recorder()
        caller.endpoint.start(upgrade(source), heard)
        assert await heard.over() == "clean"
        assert await caller.ask().over() == "clean"
        assert len(upstream.connections) == 1
        assert source.said == []


async def test_a_101_that_says_no_upgrade_is_no_answer() -> None:
    async with (
        FakeUpstream([b"HTTP/1.1 101 OK\r\nupgrade: x\r\n\r\n", STALL]) as upstream,
        Caller(upstream.base_url) as caller,
    ):
        heard = Recorder()
        caller.endpoint.start(upgrade(Source()), heard)
        assert await heard.over() == "ProtocolError"


async def test_where_http2_is_spoken_an_upgrade_has_a_connection_of_its_own() -> None:
    """By prior knowledge the endpoint's own connections would begin with HTTP/2's preface."""
    async with FakeUpstream([SWITCH, b"x", STALL]) as upstream, Caller(upstream.base_url, http2=True) as caller:
        source, heard = Source(), Recorder()
        call = caller.endpoint.start(upgrade(source), heard)
        await eventually(lambda: heard.body == b"x")
        assert caller.stats.cx_active == 1
        caller.endpoint.update(caller.endpoint.limits)
        call.cancel()
        await upstream.wait_closed()
