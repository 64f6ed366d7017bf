"""One gateway before a provider that fails as each request says, and what must hold whatever it does (faults §3.3).

    async with wall() as held:
        told = await held.ask("close-in-body", stream=True)
        await held.settled()

1 an answer within the deadline; 2 nothing made up; 3 few attempts, none after the first byte down; 4 one row; 5 nothing
left under way; 6 the next request succeeds; 7 no traceback, host or secret in the body; 8 counted once. `ask` holds
those of one exchange, `settled` those of all that were asked since the last time, which may have been at once.
"""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from headgate.control.mock.catalogue import FAULTS, MODEL_PREFIX
from headgate.control.mock.fault import body
from headgate.control.mock.provider import MockProvider
from headgate.control.mock.server import serve
from headgate.control.mock.steps import Data, Frame, Raw
from headgate.dialects.mock import answer as mock_answer
from headgate.proxy.accounting.record import Done, Opened, decode
from headgate.proxy.edge.listen import bind
from headgate.proxy.upstream.h2_frames import DATA, PADDED
from headgate.proxy.upstream.http_endpoint import HttpEndpoint

from .gateway import CLIENT_KEY, PROVIDER_KEY, RunningGateway, bearer, running_gateway
from .leaks import leak_check
from .own_time import OwnTime
from .raw import CHAT, RawClient, request
from .traffic import events, finish_reasons, has_done, without_ours

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from pathlib import Path

    from headgate.control.mock.provider import Script
    from headgate.control.mock.schedule import Schedule
    from headgate.control.mock.server import MockServer
    from headgate.control.mock.steps import Step
    from headgate.proxy.clock import Clock
    from headgate.proxy.edge.downstream import RequestHead

    from .raw import Answer


SLOWER = 1.8
"""How many times longer every time-out and pause is than the time-outs below: the most that still makes a first token
wait less than events are held."""
SPEED = 20.0 / SLOWER
"""The pauses of the catalogue (30 s, 5 s, 1 s) become 2.7 s, 450 ms and 90 ms."""
_SECONDS = {"connect": 1.0, "first_token": 1.0, "idle": 1.0, "total": 2.5}
TIMEOUTS = {name: f"{round(seconds * SLOWER * 1000)}ms" for name, seconds in _SECONDS.items()}
ANSWERED_BY = 2.5 * SLOWER + 0.5
"""Seconds: the longest deadline, and the half second of invariant 1."""
REACHED_BY = 3 * 1.0 * SLOWER + 0.5
"""The same where no connection can be made: every attempt may take as long as `connect` says."""
SETTLED_BY = 3.0 + 1.0 * SLOWER
"""Seconds: what a message may take to end after its answer (2), and the same."""
GIVEN_UP_AFTER = 120.0
"""Seconds of real time after which a test that hangs ends; what is held is measured on the wall's clock."""
HEALTHY = "mock"
RESTING = ("401", "403", *(name for name in FAULTS if name.startswith("429")))
"""After these the provider's key rests: each has a provider of its own, or all others would rest along."""
SECRETS = (b"Traceback", PROVIDER_KEY.encode(), CLIENT_KEY.encode(), b"127.0.0.1", b"/headgate/", b".py")
_MOST_STEPS = 20_000


@dataclass
class Heard:
    """What providers heard of one exchange, by the name they heard it under."""

    body: bytes
    fault: str | None
    http2: bool


@dataclass
class Told:
    """One exchange, as its client and its record saw it. `said`: the body the first provider's script says."""

    fault: str
    stream: bool
    answer: Answer
    id: str
    said: bytes = b""
    good: bytes = b""
    """The body of a good answer, from whichever provider."""
    row: Done | None = None
    why: list[str] = field(default_factory=list)
    """What the gateway says of its decisions."""

    def __repr__(self) -> str:
        row = self.row
        end = "no row" if row is None else f"{row.outcome} {row.status}, {row.attempts} attempts: {' '.join(self.why)}"
        kind = "stream" if self.stream else "plain"
        return f"<{self.fault}, {kind}: {self.answer.status} {self.answer.body[-160:]!r}, {end}>"

    @property
    def received(self) -> bytes:
        """The body without our comment."""
        return without_ours(self.answer.body)


class Hearing:
    """Watches the requests of every mock."""

    def __init__(self) -> None:
        self.by_id: dict[str, list[Heard]] = {}

    def on_accept(self, script: Script) -> None:
        """Nothing was heard of it."""

    def on_request(self, head: RequestHead, body: bytes, script: Script) -> None:
        """One whole request."""
        id_ = (head.header(b"x-request-id") or b"").decode()
        fault = None if script.fault is None else script.fault.name
        self.by_id.setdefault(id_, []).append(Heard(body, fault, head.http_version == "2"))


@dataclass
class Ledger:
    """The records of a gateway's spool, each line read once."""

    folder: Path
    done: dict[str, Done] = field(default_factory=dict)
    """By the client's id."""
    opened: set[str] = field(default_factory=set)
    """The exchanges that have begun and of which no end is known."""
    _read: dict[str, int] = field(default_factory=dict)

    def read(self) -> None:
        """Take in what was written since; fails on a second row for an exchange."""
        for segment in sorted(self.folder.glob("spool/*.seg")):
            start = self._read.get(segment.name, 0)
            whole = segment.read_bytes()[start:]
            lines, _, _ = whole.rpartition(b"\n")
            self._read[segment.name] = start + len(lines) + 1 if lines else start
            for line in filter(None, lines.split(b"\n")):
                self._take(decode(line))

    def _take(self, record: object) -> None:
        if isinstance(record, Opened):
            self.opened.add(record.id)
        if isinstance(record, Done):
            assert record.client_request_id not in self.done, f"two rows: {record}"
            assert record.id in self.opened, f"the end of what never began: {record}"
            self.opened.remove(record.id)
            self.done[record.client_request_id] = record


class Wall:
    """See the top."""

    def __init__(self, gateway: RunningGateway, clock: Clock, mocks: list[MockServer], hearing: Hearing) -> None:
        self.gateway = gateway
        self.clock = clock
        self.mocks = mocks
        self.hearing = hearing
        self.ledger = Ledger(gateway.folder)
        self._tasks = len(asyncio.all_tasks())
        self._asked: list[Told] = []
        self.count = self._counted = 0
        """Exchanges that were asked for."""

    async def ask(self, fault: str, *, stream: bool, model: str | None = None, within: float = ANSWERED_BY) -> Told:
        """Ask for this fault, or for a good answer of `HEALTHY`, and hold that it is answered `within` seconds."""
        self.count += 1
        id_ = f"{fault}-{self.count}"
        asked: dict[str, Any] = {
            "model": model or (HEALTHY if fault == HEALTHY else MODEL_PREFIX + fault),
            "messages": [{"role": "user", "content": "one two three four"}],
        }
        if stream:
            asked |= {"stream": True, "stream_options": {"include_usage": True}}
        data = request("POST", CHAT, json.dumps(asked).encode(), [("x-request-id", id_), *bearer(CLIENT_KEY)])
        started = self.clock.monotonic()
        async with RawClient(self.gateway.port, GIVEN_UP_AFTER) as client:
            await client.send(data)
            answer = await client.answer()
        took = self.clock.monotonic() - started
        assert took < within, f"{model or fault}: answered after {took:.2f} s"
        told = Told(fault, stream, answer, id_)
        self._asked.append(told)
        return told

    async def settled(self) -> None:
        """Wait until nothing is under way any more, and hold all that was asked against what was said."""
        asked, self._asked = self._asked, []
        await self._until_at_rest(asked)
        for told in asked:
            self._check(told)
        before, self._counted = self._counted, sum(self.gateway.half.engine.stats.exchanges.values())
        assert self._counted - before == len(asked), f"counted {self._counted - before} of {len(asked)}"
        assert [mock.strays for mock in self.mocks] == [0] * len(self.mocks), "a spoiled connection was used again"

    def _check(self, told: Told) -> None:
        row = told.row = self.ledger.done[told.id]
        decision = self.gateway.half.engine.decisions.find(row.id)
        told.why = [] if decision is None else decision["why"]
        heard = self.hearing.by_id.get(told.id, [])
        for one in heard:
            made = mock_answer(one.body)
            told.good = body(made)
            if one.fault is not None:
                told.said = said(islice(FAULTS[one.fault].play(made, http2=one.http2), _MOST_STEPS))
        assert row.attempts <= 3, told
        # A kept connection that closes before a word of the answer may have been closed already: it is replaced once.
        # A stream that was refused, by an HTTP/2 that says it has not looked at it, may be sent three times more.
        assert len(heard) <= (4 if any(one.http2 for one in heard) else 2) * row.attempts, told
        for secret in SECRETS:
            assert secret not in told.answer.body, told
            assert not any(secret.decode() in value for _, value in told.answer.headers), told
        if told.stream and told.answer.status == 200:
            self._check_words(told, [told.said, *[told.good for one in heard if one.fault is None]])

    def _check_words(self, told: Told, voices: list[bytes]) -> None:
        """What went down is a beginning of what one provider said; a cut adds at most one error event to that."""
        assert told.row is not None
        spoken = told.received
        if spoken in voices:
            return
        if told.row.outcome == "truncated" and told.answer.whole:
            last = events(spoken)[-1]
            assert b'"error"' in last, told
            spoken = spoken.removesuffix(last)
        sources = [voice for voice in voices if voice.startswith(spoken)]
        assert sources, f"{told} is nothing that was said: {spoken[:300]!r}…"
        assert has_done(spoken) <= max(map(has_done, sources)), told
        assert len(finish_reasons(spoken)) <= max(len(finish_reasons(source)) for source in sources), told

    async def _until_at_rest(self, asked: list[Told]) -> None:
        deadline = self.clock.monotonic() + SETTLED_BY
        while left := self._under_way(asked):
            assert self.clock.monotonic() < deadline, f"left after {SETTLED_BY} s: {left}"
            await self.clock.sleep(0.01)

    def _under_way(self, asked: list[Told]) -> dict[str, object]:
        """Whatever is held, open or waiting, and should not be once nobody asks."""
        self.ledger.read()
        half, context = self.gateway.half, self.gateway.server.context
        engine = half.engine
        clusters = half.resources.clusters.values()
        endpoints = [host.endpoint for cluster in clusters for host in cluster.hosts]
        stats = [one.stats for one in endpoints if isinstance(one, HttpEndpoint)]
        open_at_mocks = [one for mock in self.mocks for one in mock.connections]
        found: dict[str, object] = {
            "exchanges": len(engine.live),
            "messages that still end": len(engine.lingering),
            "calls": sum(one.rq_active + one.rq_pending_active for one in stats),
            "waiting retries": sum(cluster.retries_waiting for cluster in clusters),
            "client connections": len(context.connections),
            "bytes of bodies": context.budget.used,
            "missing rows": [told for told in asked if told.id not in self.ledger.done],
            "open rows": len(self.ledger.opened),
            "spoiled connections": [one for one in open_at_mocks if one.spoiled and not one.deaf],
            "tasks": max(0, len(asyncio.all_tasks()) - self._tasks),
            "descriptors": max(0, sum(one.cx_active for one in stats) - len(open_at_mocks)),
        }
        return {what: left for what, left in found.items() if left}


def _content(step: Step) -> bytes:
    if isinstance(step, Data):
        return step.data
    if isinstance(step, Frame) and step.kind == DATA and step.flags & PADDED:
        return step.payload[1 : len(step.payload) - step.payload[0]]
    return b""


def said(steps: Iterable[Step]) -> bytes:
    """The body that a script says, unframed; apart from the product."""
    steps = list(steps)
    plain = b"".join(_content(step) for step in steps)
    wire = b"".join(step.data for step in steps if isinstance(step, Raw))
    head, _, rest = wire.partition(b"\r\n\r\n")
    if b"chunked" not in head or b"content-length" in head:
        return plain or rest
    unframed = b""
    while b"\r\n" in rest:
        line, _, rest = rest.partition(b"\r\n")
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            break
        if size <= 0:
            break
        unframed += rest[:size]
        rest = rest[size + 2 :]
    return unframed


def wall_config(ports: Mapping[str, int], places: Mapping[str, str], *, http2: bool, keepalive: str) -> dict[str, Any]:
    """Providers on these ports, asked in this order for every model; all but the first get the healthy model."""
    same = {
        "api_key": PROVIDER_KEY,
        "timeouts": TIMEOUTS,
        "list_models": False,
        "http2_keepalive": {"timeout": keepalive},
    }
    providers = {
        **{name: {"base_url": f"http://127.0.0.1:{port}/v1", "http2": http2, **same} for name, port in ports.items()},
        **{name: {"base_url": url, **same} for name, url in places.items()},
    }
    first, *others = ports
    providers |= {f"{first}-{name}": providers[first] | {"api_key": f"{PROVIDER_KEY}-{name}"} for name in RESTING}
    targets = [{"provider": first}, *({"provider": name, "model": HEALTHY} for name in others)]
    models = {
        "*": {"targets": targets},
        **{MODEL_PREFIX + name: {"targets": [{"provider": f"{first}-{name}"}, *targets[1:]]} for name in RESTING},
        HEALTHY: {"targets": [{"provider": first, "model": HEALTHY}]},
        **{name: {"targets": [{"provider": name}]} for name in places},
    }
    retry = {"budget": {"percent": 100, "min_per_second": 10_000}}
    return {
        "providers": providers,
        "models": models,
        "limits": {"loop_lag": "60s"},
        "filters": [{"auth": {"keys": [{"name": "app", "key": CLIENT_KEY}]}}, {"retry": retry}],
    }


def _looks_up() -> bool:
    """Whether a name is being looked up, which happens in a thread."""
    return any(thread.name == "headgate-resolver" for thread in threading.enumerate())


@asynccontextmanager
async def wall(
    *,
    second: bool = False,
    schedule: Schedule | None = None,
    places: Mapping[str, str] | None = None,
    http2: bool = False,
    keepalive: str = "15s",
) -> AsyncIterator[Wall]:
    """`second`: another provider stands behind, which is well. `schedule`: what the first does unasked. `places`: URLs
    of more providers, each asked under its name as a model. `http2`: providers speak it, and must answer its PINGs
    within `keepalive`."""
    hearing = Hearing()
    list(FAULTS["gzip-bomb"].play(mock_answer(b"{}")))  # packed once, which takes its time
    async with leak_check(SETTLED_BY):
        clock = OwnTime(elsewhere=_looks_up)
        mocks = []
        for provider in (MockProvider(schedule), *([MockProvider()] if second else [])):
            sock = bind("127.0.0.1", 0)
            mocks.append(await serve(sock, provider, clock, speed=SPEED, watcher=hearing))
        ports = dict(zip(("first", "second"), (mock.port for mock in mocks), strict=False))
        try:
            config = wall_config(ports, places or {}, http2=http2, keepalive=keepalive)
            async with running_gateway(config, clock=clock) as gateway:
                held = Wall(gateway, clock, mocks, hearing)
                yield held
                await held.settled()
        finally:
            for mock in mocks:
                await mock.aclose()
