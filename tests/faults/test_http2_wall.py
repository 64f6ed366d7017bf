"""Faults that only HTTP/2 has, streamed and not, alone and with a healthy provider behind: what the client sees.

The invariants are those of the wall (tests_support.wall): an answer in time, nothing made up, few attempts, one row,
nothing left under way, the next request succeeds, no secret in a body. Twenty repeats of each are marked slow.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import ContinuationFrame, DataFrame, GoAwayFrame, HeadersFrame, PingFrame, SettingsFrame

from headgate.proxy.upstream.h2_session import MAX_OVERHEAD
from headgate.proxy.upstream.http_endpoint import HttpEndpoint
from tests_support.answers import USAGE, chat_chunks, chat_completion, event
from tests_support.gateway import CLIENT_KEY, PROVIDER_KEY, bearer, running_gateway
from tests_support.h2_upstream import H2Upstream
from tests_support.leaks import leak_check
from tests_support.own_time import OwnTime
from tests_support.raw import CHAT, RawClient, request
from tests_support.traffic import error_events, events, without_ours
from tests_support.wall import GIVEN_UP_AFTER, Ledger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from headgate.proxy.accounting.record import Done
    from headgate.proxy.clock import Clock
    from tests_support.gateway import RunningGateway
    from tests_support.h2_upstream import PeerStream
    from tests_support.raw import Answer

    Fault = Callable[["Turn"], Awaitable[None]]

TIMEOUTS = {"connect": "500ms", "first_token": "1500ms", "idle": "500ms", "total": "2500ms"}
ANSWERED_BY = 2.5 + 0.5
SETTLED_BY = 5.0
REPEATS = 20
SECRETS = (b"Traceback", PROVIDER_KEY.encode(), CLIENT_KEY.encode(), b"127.0.0.1", b".py")
PLAIN = json.dumps(chat_completion()).encode()
STREAM = [event(one) for one in chat_chunks(usage=USAGE)]


class Turn:
    """One request to a provider that fails, and what a good answer to it would be."""

    def __init__(self, stream: PeerStream, pieces: list[bytes], clock: Clock, *, first: bool) -> None:
        self.stream = stream
        self.clock = clock
        self.peer = stream.peer
        self.pieces = pieces
        self.kind = "text/event-stream" if len(pieces) > 2 else "application/json"
        self.first = first
        """This request was not heard before."""

    async def good(self) -> None:
        """All of it."""
        await self.begin()
        await self.end()

    async def begin(self, headers: list[tuple[str, str]] | None = None) -> None:
        """The head and the first half."""
        self.stream.head(200, [("content-type", self.kind), *(headers or [])])
        for piece in self.pieces[: len(self.pieces) // 2]:
            await self.stream.data(piece)

    async def end(self) -> None:
        """The other half."""
        for piece in self.pieces[len(self.pieces) // 2 :]:
            await self.stream.data(piece)
        await self.stream.data(b"", end=True)

    def head(self, fields: list[tuple[str, str]], *flags: str) -> HeadersFrame:
        """A head that the state machine does not know of."""
        frame = HeadersFrame(self.stream.id, self.peer.h2.encoder.encode(fields))
        frame.flags |= set(flags)
        return frame

    def goaway(self, last: int) -> GoAwayFrame:
        return GoAwayFrame(0, last_stream_id=max(0, last))


def raw(make: Callable[[Turn], Any]) -> tuple[Fault, Fault]:
    """These bytes instead of an answer, and in the middle of one."""

    async def instead(turn: Turn) -> None:
        turn.peer.raw(make(turn))

    async def within(turn: Turn) -> None:
        await turn.begin()
        turn.peer.raw(make(turn))

    return instead, within


async def goaway_once(turn: Turn) -> None:
    if turn.first:
        turn.peer.raw(turn.goaway(turn.stream.id - 2))
    else:
        await turn.good()


async def goaway_always(turn: Turn) -> None:
    turn.peer.raw(turn.goaway(turn.stream.id - 2))


async def goaway_in_flight(turn: Turn) -> None:
    await turn.begin()
    turn.peer.raw(turn.goaway(turn.stream.id))
    await turn.clock.sleep(0.02)
    await turn.end()


async def goaway_then_close(turn: Turn) -> None:
    await turn.begin()
    turn.peer.raw(turn.goaway(turn.stream.id))
    await turn.clock.sleep(0.02)
    turn.peer.close()


async def refused_once(turn: Turn) -> None:
    if turn.first:
        turn.stream.reset(ErrorCodes.REFUSED_STREAM)
    else:
        await turn.good()


def reset(code: ErrorCodes, *, begun: bool) -> Fault:
    async def fault(turn: Turn) -> None:
        if begun:
            await turn.begin()
        turn.stream.reset(code)

    return fault


async def window_0(turn: Turn) -> None:
    turn.peer.raw(SettingsFrame(0, {SettingCodes.INITIAL_WINDOW_SIZE: 0}))
    turn.stream.reset(ErrorCodes.REFUSED_STREAM)  # it comes again, and its body can never follow


async def one_then_hundred(turn: Turn) -> None:
    turn.peer.raw(SettingsFrame(0, {SettingCodes.MAX_CONCURRENT_STREAMS: 1}))
    await turn.begin()
    turn.peer.raw(SettingsFrame(0, {SettingCodes.MAX_CONCURRENT_STREAMS: 100}))
    await turn.end()


async def wrong_length(turn: Turn) -> None:
    await turn.begin([("content-length", "1000000")])
    await turn.end()


async def no_head(turn: Turn) -> None:
    turn.peer.raw(DataFrame(turn.stream.id, b"x"))


async def line_break(turn: Turn) -> None:
    turn.peer.raw(turn.head([(":status", "200"), ("x-a", "b\r\nset-cookie: c")], "END_HEADERS", "END_STREAM"))


async def many_fields(turn: Turn) -> None:
    fields = [(":status", "200"), *[(f"x-{n}", "v") for n in range(500)]]
    turn.peer.raw(turn.head(fields, "END_HEADERS", "END_STREAM"))


async def interim(turn: Turn) -> None:
    for _ in range(3):
        turn.stream.head(103)
    await turn.good()


async def trailers(turn: Turn) -> None:
    await turn.begin()
    for piece in turn.pieces[len(turn.pieces) // 2 :]:
        await turn.stream.data(piece)
    turn.stream.trailers([("x-sum", "1")])


async def stall(turn: Turn) -> None:
    await turn.begin()
    await asyncio.get_running_loop().create_future()


def flood(make: Callable[[Turn], bytes]) -> tuple[Fault, Fault]:
    return raw(lambda turn: make(turn) * (MAX_OVERHEAD + 10))


def bomb(turn: Turn) -> bytes:
    frame = HeadersFrame(turn.stream.id, b"\x88\x40\x01a\x7f\xa1\x1e" + b"x" * 4000 + b"\xbe" * 11_000)
    frame.flags.add("END_HEADERS")
    return frame.serialize()


def continuations(turn: Turn) -> bytes:
    return HeadersFrame(turn.stream.id, b"\x88").serialize() + ContinuationFrame(turn.stream.id, b"").serialize() * 100


BOTH: dict[str, tuple[Fault, Fault]] = {
    "settings-flood": flood(lambda _: SettingsFrame(0).serialize()),
    "ping-flood": flood(lambda _: PingFrame(0, b"12345678").serialize()),
    "hpack-bomb": raw(bomb),
    "continuation-flood": raw(continuations),
    "pushed-stream": raw(lambda turn: b"\0\0\x05\x05\x04" + turn.stream.id.to_bytes(4, "big") + b"\0\0\0\x02\x82"),
    "bad-frame": raw(lambda _: b"\0\0\x07\x06\0\0\0\0\0" + b"\0" * 7),
    "huge-frame": raw(lambda turn: b"\xff\xff\xff\0\0" + turn.stream.id.to_bytes(4, "big") + b"x" * 100),
    "window-overflow": raw(lambda _: b"\0\0\x04\x08\0\0\0\0\0\x7f\xff\xff\xff"),
    "empty-data-flood": flood(lambda turn: DataFrame(turn.stream.id, b"").serialize()),
}
# What each comes to for a plain answer and for a stream, as in the wall of HTTP/1.1: whole, bad, late or cut.
FAULTS: dict[str, tuple[Fault, str]] = {
    "goaway-once": (goaway_once, "whole whole"),
    "goaway-always": (goaway_always, "bad bad"),
    "goaway-in-flight": (goaway_in_flight, "whole whole"),
    "goaway-then-close": (goaway_then_close, "bad cut"),
    "refused-once": (refused_once, "whole whole"),
    "refused-always": (reset(ErrorCodes.REFUSED_STREAM, begun=False), "bad bad"),
    "reset-before-head": (reset(ErrorCodes.INTERNAL_ERROR, begun=False), "bad bad"),
    "cancel-in-body": (reset(ErrorCodes.CANCEL, begun=True), "bad cut"),
    "no-error-in-body": (reset(ErrorCodes.NO_ERROR, begun=True), "bad cut"),
    "refused-in-body": (reset(ErrorCodes.REFUSED_STREAM, begun=True), "bad cut"),
    "window-0": (window_0, "late late"),
    "one-then-hundred": (one_then_hundred, "whole whole"),
    "wrong-length": (wrong_length, "bad whole"),  # [DONE] has come: nothing is missing
    "no-head": (no_head, "bad bad"),
    "line-break": (line_break, "bad bad"),
    "many-fields": (many_fields, "bad bad"),
    "interim": (interim, "whole whole"),
    "trailers": (trailers, "whole whole"),
    "stall-in-body": (stall, "late cut"),
    **{name: (faults[0], "bad bad") for name, faults in BOTH.items()},
    **{f"{name}-in-body": (faults[1], "bad cut") for name, faults in BOTH.items()},
}


class Wall:
    """A gateway before a provider that fails as each model says, and perhaps one that does not."""

    def __init__(self, gateway: RunningGateway, clock: Clock, *, second: bool) -> None:
        self.gateway = gateway
        self.clock = clock
        self.second = second
        self.ledger = Ledger(gateway.folder)
        self.asked = 0

    async def ask(self, fault: str, *, stream: bool) -> Answer:
        """One exchange, and the invariants that can be seen at once."""
        asked: dict[str, Any] = {"model": fault, "messages": [{"role": "user", "content": "x" * 200}]}
        if stream:
            asked |= {"stream": True, "stream_options": {"include_usage": True}}
        self.asked += 1
        headers = [("x-request-id", f"asked-{self.asked}"), *bearer(CLIENT_KEY)]
        data = request("POST", CHAT, json.dumps(asked).encode(), headers)
        began = self.clock.monotonic()
        async with RawClient(self.gateway.port, GIVEN_UP_AFTER) as client:
            await client.send(data)
            answer = await client.answer()
        took = self.clock.monotonic() - began
        assert took < ANSWERED_BY, f"{fault}: answered after {took:.2f} s"
        for secret in SECRETS:
            assert secret not in answer.body
        return answer

    async def settled(self) -> Done:
        """The row of the last exchange, once nothing is under way."""
        stats = [
            host.endpoint.stats
            for cluster in self.gateway.half.resources.clusters.values()
            for host in cluster.hosts
            if isinstance(host.endpoint, HttpEndpoint)
        ]
        engine, rows = self.gateway.half.engine, self.ledger.done
        deadline = self.clock.monotonic() + SETTLED_BY
        while True:
            self.ledger.read()
            calls = sum(one.rq_active + one.rq_pending_active for one in stats)
            left = (calls, len(engine.live), len(engine.lingering), len(self.ledger.opened), self.asked - len(rows))
            if not any(left):
                return rows[f"asked-{self.asked}"]
            assert self.clock.monotonic() < deadline, f"left after {SETTLED_BY} s: {left}"
            await self.clock.sleep(0.002)

    def check(self, fault: str, answer: Answer, row: Done, *, stream: bool) -> None:
        """Hold one exchange against what it must come to."""
        end = FAULTS[fault][1].split()[stream] if fault in FAULTS else "whole"
        if self.second and end == "bad":
            end = "whole"
        good = b"".join(STREAM) if stream else PLAIN
        received = without_ours(answer.body)
        decision = self.gateway.half.engine.decisions.find(row.id) or {}
        told = (end, answer.status, row.outcome, answer.whole, row.attempts, decision.get("why"), received[-200:])
        assert row.attempts <= 3, told
        if end == "whole":
            assert told[1:4] == (200, "ok", True), told
            assert received == good, told
        elif end == "cut":
            assert told[1:4] == (200, "truncated", True), told
            assert len(error_events(answer.body)) == 1, told
            assert good.startswith(received.removesuffix(events(received)[-1])), told
        else:
            status, code = (502, "upstream_error") if end == "bad" else (504, "upstream_timeout")
            assert told[1:4] == (status, "failed", True), told
            assert answer.error["code"] == code


def provider(heard: set[str], clock: Clock) -> Callable[[PeerStream], Awaitable[None]]:
    """Answers as the model says."""

    async def answer(stream: PeerStream) -> None:
        asked = json.loads(await stream.body())
        pieces = STREAM if asked.get("stream") else [PLAIN[:100], PLAIN[100:]]
        request_id = stream.header("x-request-id") or ""
        fault = FAULTS.get(asked["model"])
        turn = Turn(stream, pieces, clock, first=request_id not in heard)
        heard.add(request_id)
        await (turn.good() if fault is None else fault[0](turn))

    return answer


@asynccontextmanager
async def wall(*, second: bool) -> AsyncIterator[Wall]:
    clock = OwnTime()
    async with (
        leak_check(4.0),
        H2Upstream(provider(set(), clock), lenient=True) as up,
        H2Upstream(provider(set(), clock)) as other,
    ):
        same = {"api_key": PROVIDER_KEY, "timeouts": TIMEOUTS, "http2": True}
        providers = {"up": {"base_url": up.base_url, **same}}
        targets: list[dict[str, Any]] = [{"provider": "up"}]
        if second:
            providers["other"] = {"base_url": other.base_url, **same}
            targets.append({"provider": "other", "model": "healthy"})
        config = {
            "providers": providers,
            "models": {"*": {"targets": targets}},
            "filters": [
                {"auth": {"keys": [{"name": "app", "key": CLIENT_KEY}]}},
                {"retry": {"budget": {"percent": 100, "min_per_second": 10_000}}},
            ],
        }
        async with running_gateway(config, clock=clock) as gateway:
            yield Wall(gateway, clock, second=second)


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "with-another"])
async def held(request: pytest.FixtureRequest) -> AsyncIterator[Wall]:
    async with wall(second=request.param) as one:
        yield one


@pytest.fixture(autouse=True)
def _counted(record_property: Callable[[str, object], None], held: Wall) -> Iterator[None]:
    """For the summary."""
    before = held.asked
    yield
    record_property("exchanges", held.asked - before)


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One loop for the file, because the gateway lives as long."""
    return ("asyncio", {"use_uvloop": True})


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_each_fault_keeps_every_invariant(held: Wall, fault: str, stream: bool) -> None:
    answer = await held.ask(fault, stream=stream)
    row = await held.settled()
    held.check(fault, answer, row, stream=stream)
    after = await held.ask("healthy", stream=stream)
    row = await held.settled()
    held.check("healthy", after, row, stream=stream)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_each_fault_twenty_times_keeps_every_invariant(held: Wall, fault: str, stream: bool) -> None:
    for _ in range(REPEATS):
        answer = await held.ask(fault, stream=stream)
        row = await held.settled()
        held.check(fault, answer, row, stream=stream)
    for way in (False, True):
        after = await held.ask("healthy", stream=way)
        row = await held.settled()
        held.check("healthy", after, row, stream=way)
