"""Whole gateways under random sequences of faults, clients that leave, reloads and drains: nothing is lost or made up.

Real are the gateway from its config to its connections, and the mock that plays the faults; in memory are the network
between them, which cuts what is sent at random, the clients and the clock. So a sequence takes milliseconds, and one
that breaks something is repeated and shrunk by hypothesis.
"""

from __future__ import annotations

import asyncio
import json
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from structlog.testing import capture_logs

from headgate.config import ConfigError
from headgate.control.mock.catalogue import FAULTS
from headgate.control.mock.connection import MockConnection
from headgate.control.mock.fault import body
from headgate.control.mock.provider import MockProvider
from headgate.control.mock.schedule import Schedule
from headgate.control.mock.shared import Shared
from headgate.control.mock.steps import Data, Frame, Raw
from headgate.dialects.mock import answer
from headgate.gateway import Gateway
from headgate.proxy.accounting.estimate import Estimator
from headgate.proxy.accounting.ledger import Ledger
from headgate.proxy.accounting.record import Done, Opened
from headgate.proxy.errors import BodyTimeoutError
from headgate.proxy.upstream.http_endpoint import HttpEndpoint
from tests_support.clock import FakeClock
from tests_support.downstream import FakeDownstream
from tests_support.gateway import load
from tests_support.memory import MemoryNet, MemoryTransport, Reach
from tests_support.relay import Lines
from tests_support.traffic import events, finish_reasons, has_done, without_ours
from tests_support.wall import said

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from headgate.control.mock.fault import Fault
    from headgate.control.mock.provider import Script
    from headgate.control.mock.steps import Step
    from headgate.proxy.accounting.spool import Spool
    from headgate.proxy.edge.downstream import RequestHead
    from headgate.proxy.upstream.cluster import Cluster

HOSTS = ("first", "second", "third")
TIMES = {"connect": "2s", "first_token": "4s", "idle": "3s", "total": "12s"}
_SAMPLES = [
    answer(b'{"stream":%b,"messages":[{"role":"user","content":"one two three"}]}' % way) for way in (b"true", b"false")
]
_LIGHT_BYTES = 200_000


def _size(step: Step) -> int:
    if isinstance(step, Frame):
        return (9 + len(step.payload)) * step.times
    return len(step.data) if isinstance(step, Data | Raw) else 0


def _is_light(fault: Fault) -> bool:
    sizes = (
        sum(_size(step) for step in islice(fault.play(sample, http2=http2), 2000))
        for sample in _SAMPLES
        for http2 in (False, True)
    )
    return max(sizes) < _LIGHT_BYTES


FOLLOWED = {"bytes-after-end", "second-answer", "length-too-short"}
"""What comes after the end in a later segment may meet the next call, for any reader of HTTP/1.1."""
LIGHT = [name for name, fault in FAULTS.items() if _is_light(fault) and name not in FOLLOWED]


def config(
    *hosts: str, attempts: int = 3, key: str = "one", connections: int = 1024, http2: bool = False, **times: str
) -> str:
    provider = {
        "api_key": f"sk-{key}-0123456789abcdef",
        "timeouts": {**TIMES, **times},
        "limits": {"connections": connections},
        "list_models": False,
        "http2": http2,
    }
    return json.dumps(
        {
            "providers": {host: {"base_url": f"http://{host}/v1", **provider} for host in hosts},
            "models": {"*": {"targets": [{"provider": host} for host in hosts]}},
            "filters": [{"retry": {"attempts": attempts, "on": ["connect-failure", "reset", "5xx", "429", "timeout"]}}],
        }
    )


CONFIGS = [
    load(text)
    for text in (
        config(*HOSTS),
        config(*HOSTS, key="two"),
        config(*HOSTS, connections=1),
        config("second", "first"),
        config("third", attempts=2, idle="1s"),
        config("first", first_token="1s", total="5s"),
        config(*HOSTS, http2=True),
        config("second", "third", http2=True, key="two"),
    )
]
REFUSED = load(json.dumps({**json.loads(config("first")), "workers": 2}))


PICK = st.integers(0, 1000)
"""Which of those there are. What is drawn must not depend on the state: who is there, and in which order deadlines of
one moment fall due, may differ from one run to the next."""


def picked(clients: list[Client], which: int) -> list[Client]:
    """One of them, or nobody."""
    return [clients[which % len(clients)]] if clients else []


class Client:
    """One exchange: its client's side, and what providers said in its name."""

    def __init__(self, number: int, streams: bool, downstream: FakeDownstream) -> None:
        self.id = f"client-{number}"
        self.streams = streams
        self.downstream = downstream
        self.delivered = False
        self.heard: list[tuple[bytes, bool]] = []
        """The body of each answer as its script says it, and whether it is a good one."""


class Host:
    """A provider: its mood, and what it was asked."""

    def __init__(self, machine: Sequences, name: str) -> None:
        self.name = name
        self.provider = MockProvider()
        self.shared = Shared(self.provider, machine.clock, watcher=self)
        self._machine = machine

    def connection(self) -> MockConnection:
        return MockConnection(self.shared)

    def connections(self) -> list[MemoryTransport]:
        """Its ends of those that are open."""
        ours = [cast("object", one) for one in self.shared.connections]
        return [one for one in self._machine.net.open if one.protocol in ours]

    def on_accept(self, script: Script) -> None:
        """Nothing was heard."""

    def on_request(self, head: RequestHead, body_: bytes, script: Script) -> None:
        made = answer(body_)
        id_ = (head.header(b"x-request-id") or b"").decode()
        http2 = head.http_version == "2"
        words = body(made) if script.fault is None else said(islice(script.fault.play(made, http2=http2), 20_000))
        self._machine.clients[int(id_.removeprefix("client-"))].heard.append((words, script.fault is None))


class Sequences(RuleBasedStateMachine):
    """See the top."""

    @initialize(
        seed=st.integers(0, 2**32),
        which=st.integers(0, len(CONFIGS) - 1),
        faults=st.lists(st.lists(st.sampled_from(LIGHT), max_size=3), min_size=3, max_size=3),
    )
    def begin(self, seed: int, which: int, faults: list[list[str]]) -> None:
        self.loop = asyncio.SelectorEventLoop()
        self.raised: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.raised.append(context))
        self.clock = FakeClock()
        self.net = MemoryNet(self.loop, Random(seed))
        self.hosts = {name: Host(self, name) for name in HOSTS}
        for names, (name, host) in zip(faults, self.hosts.items(), strict=True):
            host.provider.schedule = Schedule([FAULTS[one] for one in names], every=2)
            self.net.listen(name, host.connection)
        self.clients: list[Client] = []
        self.lines = Lines()
        self.dialled = self.net.dialled()
        self.dialled.__enter__()
        self.logs = capture_logs()
        self.seen_logs = self.logs.__enter__()
        self.gateway = Gateway(CONFIGS[which], spool=False, clock=self.clock, rng=Random(seed))
        self.do(self.gateway.start())
        self.gateway.engine.ledger = Ledger(cast("Spool", self.lines), Estimator())
        self.clusters: dict[int, Cluster] = {}
        self.draining: asyncio.Task[int] | None = None

    def do(self, work: Coroutine[Any, Any, object] | None = None) -> None:
        """Do this, and let everything happen that follows from it at once."""

        async def doing() -> None:
            if work is not None:
                await work
            await self.net.settled()

        self.loop.run_until_complete(doing())

    # -- what can happen

    @rule(
        kinds=st.lists(st.booleans(), min_size=1, max_size=4),
        room=st.sampled_from([None, None, None, 1, 200]),
        patience=st.sampled_from([None, None, None, b"1500", b"9000"]),
        at_once=st.sampled_from([True, True, True, False]),
    )
    def clients_come(self, kinds: list[bool], room: int | None, patience: bytes | None, at_once: bool) -> None:
        """For streams and plain answers; most bring their body along."""

        async def coming() -> None:
            for streams in kinds:
                client = self.new_client(streams, room, patience)
                self.gateway.engine.accept(client.downstream)
                if at_once and client.downstream.asked is not None:
                    client.delivered = True
                    client.downstream.deliver()

        self.do(coming())

    def new_client(self, streams: bool, room: int | None, patience: bytes | None) -> Client:
        number = len(self.clients)
        headers = [(b"x-request-id", f"client-{number}".encode())]
        if patience is not None:
            headers.append((b"x-headgate-timeout-ms", patience))
        asked: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": f"I am {number}"}]}
        if streams:
            asked |= {"stream": True, "stream_options": {"include_usage": True}}
        downstream = FakeDownstream(json.dumps(asked).encode(), headers=headers, room=room)
        self.clients.append(Client(number, streams, downstream))
        return self.clients[-1]

    @rule(how_many=st.sampled_from([1, 1, 5]))
    def bodies_arrive(self, how_many: int) -> None:
        async def arriving() -> None:
            for client in self.waiting()[:how_many]:
                client.delivered = True
                client.downstream.deliver()

        self.do(arriving())

    @rule(which=PICK)
    def a_body_does_not_arrive(self, which: int) -> None:
        async def failing() -> None:
            for client in picked(self.waiting(), which):
                client.delivered = True
                client.downstream.fail_body(BodyTimeoutError("too slow"))

        self.do(failing())

    @rule(which=PICK)
    def a_client_leaves(self, which: int) -> None:
        self.do(self.leave(picked(self.open_clients(), which)))

    @rule(which=PICK, room=st.sampled_from([None, 1, 500]))
    def a_client_reads_again(self, which: int, room: int | None) -> None:
        async def reading() -> None:
            for client in picked(self.behind(), which):
                client.downstream.resume(room)

        self.do(reading())

    @rule(
        host=st.sampled_from(HOSTS),
        faults=st.lists(st.sampled_from(LIGHT), min_size=1, max_size=3),
        every=st.sampled_from([1, 1, 2]),
        times=st.sampled_from([None, 1, 3]),
    )
    def a_provider_fails(self, host: str, faults: list[str], every: int, times: int | None) -> None:
        self.hosts[host].provider.schedule = Schedule([FAULTS[name] for name in faults], every=every, times=times)

    @rule(host=st.sampled_from(HOSTS))
    def a_provider_recovers(self, host: str) -> None:
        self.hosts[host].provider.schedule = Schedule()
        self.net.reach[host] = Reach.OPEN

    @rule(host=st.sampled_from(HOSTS), reach=st.sampled_from(Reach))
    def the_way_to_a_provider_changes(self, host: str, reach: Reach) -> None:
        self.net.reach[host] = reach

    @rule(host=st.sampled_from(HOSTS), every=st.booleans(), orderly=st.booleans())
    def a_provider_ends_connections(self, host: str, every: bool, orderly: bool) -> None:
        """Those that are idle, or all it has."""

        async def ending() -> None:
            for one in self.hosts[host].connections():
                if every or "idle" in repr(one.protocol) or "0 streams" in repr(one.protocol):
                    (one.close if orderly else one.abort)()

        self.do(ending())

    @rule(seconds=st.sampled_from([0.0, 0.02, 0.3, 1.0, 2.2, 5.0, 5.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        """In small steps, as what happens at one moment takes its time to get about."""
        self.do(self.pass_time(seconds))

    @rule(which=st.integers(0, len(CONFIGS) - 1))
    def the_config_changes(self, which: int) -> None:
        self.do(self.gateway.reload(CONFIGS[which]))

    @rule()
    def a_config_is_refused(self) -> None:
        before = self.gateway.engine.graph
        with pytest.raises(ConfigError, match="restart"):
            self.do(self.gateway.reload(REFUSED))
        assert self.gateway.engine.graph is before

    @rule(really=st.integers(0, 9))
    def the_gateway_drains(self, really: int) -> None:
        if really == 0 and self.draining is None and len(self.clients) > 3:
            self.draining = self.loop.create_task(self.gateway.drain())
            self.do()

    # -- what must hold at any time

    @invariant()
    def nothing_is_lost_from_sight(self) -> None:
        if not hasattr(self, "gateway"):
            return
        engine = self.gateway.engine
        for cluster in self.gateway.resources.clusters.values():
            self.clusters[id(cluster)] = cluster
        assert len(engine.live) == len(self.open_clients())
        assert self.raised == []
        assert [log for log in self.seen_logs if log["event"] == "internal_error"] == []
        assert [host.shared.strays for host in self.hosts.values()] == [0, 0, 0]
        calls = sum(one.stats.rq_active + one.stats.rq_pending_active for one in self.endpoints())
        assert calls <= len(engine.live) + len(engine.lingering)
        assert sum(one.stats.cx_active for one in self.endpoints()) <= len(self.net.open)
        for client in self.clients:
            self.check_words(client)

    def check_words(self, client: Client) -> None:
        """What has gone down is a beginning of what one provider said; a cut adds one error event to that."""
        downstream = client.downstream
        if downstream.status != 200 or not client.streams:
            return
        spoken = without_ours(downstream.received)
        voices = [words for words, _ in client.heard]
        sources = [words for words in voices if words.startswith(spoken)]
        if not sources:
            last = events(spoken)[-1]
            assert b'"error"' in last
            assert downstream.ended
            spoken = spoken.removesuffix(last)
            sources = [words for words in voices if words.startswith(spoken)]
        assert sources, f"nobody said {spoken!r}"
        assert has_done(spoken) <= max(map(has_done, sources))
        assert len(finish_reasons(spoken)) <= max(len(finish_reasons(words)) for words in sources)

    # -- what must hold in the end

    def teardown(self) -> None:
        if not hasattr(self, "gateway"):
            return
        try:
            self.nothing_is_lost_from_sight()
            self.do(self.leave(self.open_clients()[::2]))
            self.do(self.pass_time(30))
            self.nothing_is_lost_from_sight()
            self.do(self.leave(self.open_clients()))
            self.do(self.pass_time(20))
            self.check_the_end()
            self.do(self.gateway.aclose())
            self.do(self.pass_time(2))
            self.check_nothing_is_left()
        finally:
            self.logs.__exit__(None, None, None)
            self.dialled.__exit__(None, None, None)
            self.loop.close()

    def check_the_end(self) -> None:
        engine = self.gateway.engine
        assert (len(engine.live), len(engine.lingering)) == (0, 0)
        assert [cluster.retries_waiting for cluster in self.clusters.values()] == [0] * len(self.clusters)
        for one in self.endpoints():
            assert (one.stats.rq_active, one.stats.rq_pending_active) == (0, 0)
        spoiled = [one for host in self.hosts.values() for one in host.shared.connections if one.spoiled]
        assert all(one.deaf for one in spoiled)
        attempts = sum(one.rq_success + one.rq_error for one in self.clusters.values())
        lines = self.lines.take()
        done = {line.client_request_id: line for line in lines if isinstance(line, Done)}
        assert attempts <= sum(row.attempts for row in done.values())
        assert [line.client_request_id for line in lines if isinstance(line, Opened)] == [
            one.id for one in self.clients
        ]
        assert len(lines) == 2 * len(self.clients)
        assert sum(engine.stats.exchanges.values()) == len(self.clients)
        for client in self.clients:
            self.check_row(client, done[client.id])

    def check_row(self, client: Client, row: Done) -> None:
        downstream = client.downstream
        assert [downstream.ended, downstream.aborted, downstream.gone].count(True) == 1
        assert row.attempts <= 3
        assert len(client.heard) <= 4 * row.attempts
        if downstream.gone:
            assert row.outcome in ("cancelled", "ok", "upstream_error")
        elif row.outcome in ("failed", "refused"):
            assert downstream.status is not None
            assert downstream.status >= 400
            assert row.status == downstream.status
        elif row.outcome == "truncated":
            assert downstream.aborted or b'"error"' in downstream.received
        elif downstream.status == 200 and row.outcome == "ok":
            assert downstream.ended
            received = without_ours(downstream.received)
            assert any(words.startswith(received) for words, _ in client.heard)

    def check_nothing_is_left(self) -> None:
        left = [one for one in self.net.open if not getattr(one.protocol, "deaf", False)]
        assert left == []
        assert asyncio.all_tasks(self.loop) == set()
        assert len(self.gateway.deadlines) == 0
        assert self.raised == []

    # -- who is there

    async def leave(self, clients: list[Client]) -> None:
        for client in clients:
            client.downstream.leave()

    async def pass_time(self, seconds: float) -> None:
        step = max(seconds / 20, 0.01) if seconds < 20 else seconds / 40
        passed = 0.0
        while passed <= seconds:
            self.clock.advance(step)
            await self.net.settled()
            passed += step

    def endpoints(self) -> list[HttpEndpoint]:
        """Those of all configs so far; clusters may share them."""
        found = {id(host.endpoint): host.endpoint for cluster in self.clusters.values() for host in cluster.hosts}
        return [one for one in found.values() if isinstance(one, HttpEndpoint)]

    def waiting(self) -> list[Client]:
        return [c for c in self.open_clients() if c.downstream.asked is not None and not c.delivered]

    def open_clients(self) -> list[Client]:
        return [client for client in getattr(self, "clients", []) if not client.downstream.finished]

    def behind(self) -> list[Client]:
        return [c for c in self.open_clients() if c.downstream.room is not None and c.downstream.room <= 0]


def run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Sequences, settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    )


def test_whatever_happens_in_whatever_order_nothing_is_lost_and_nothing_made_up() -> None:
    run(40, 40)


@pytest.mark.slow
def test_and_that_in_two_thousand_sequences() -> None:
    run(2000, 60)
