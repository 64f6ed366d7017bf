"""The real engine between a client and providers without sockets, on a clock that only moves when told.

    relay = Relay(providers=2)
    exchange = relay.ask(b'{"model": "m"}')          # the body has been read, the first attempt is under way
    relay.providers[0].last.feed(b"HTTP/1.1 200 OK…")
    exchange.downstream.received, exchange.row

Everything from the endpoint table to the ledger's record is the product; only the two sockets and the clock are not.
One relay carries any number of exchanges, so that a test may cut an answer at every byte.
"""

from __future__ import annotations

import json
from random import Random
from typing import TYPE_CHECKING, Any, cast

from headgate.config import RetryConfig
from headgate.control.endpoints import FACES
from headgate.dialects.openai import OpenAI
from headgate.filters.retry import Retry
from headgate.proxy.accounting.estimate import Estimator
from headgate.proxy.accounting.ledger import Ledger
from headgate.proxy.accounting.record import OPENED_PREFIX, Done, Forgotten, Issued, Opened, decode
from headgate.proxy.accounting.spool import SpoolFullError
from headgate.proxy.chain import Chain, prefix_length
from headgate.proxy.clock import Deadlines
from headgate.proxy.engine import Engine
from headgate.proxy.faces import FaceTable
from headgate.proxy.graph import Graph, Route
from headgate.proxy.models import REJECT, Exhaustion, ModelTable, ModelTarget
from headgate.proxy.upstream.cluster import Cluster, Timeouts
from headgate.proxy.upstream.credentials import Credential
from headgate.proxy.upstream.host import Host

from .calls import FakeEndpoint
from .clock import FakeClock
from .downstream import FakeDownstream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headgate.proxy.accounting.prices import Price
    from headgate.proxy.accounting.spool import Spool
    from headgate.proxy.filter import Filter

    from .calls import FakeCall

EVERY_FAILURE = RetryConfig(on=frozenset({"connect-failure", "reset", "5xx", "429", "timeout"}))
BACKOFF = 0.3
"""Longer than any back-off of `attempts: 3`."""


class Lines:
    """A spool that keeps the records it is given."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.pieces: list[bytes] = []
        """As they were given, one or more records each."""

    def append(self, lines: bytes) -> bool:
        """Keep records."""
        self.pieces.append(lines)
        self.written += lines.splitlines(keepends=True)
        return True

    def take(self) -> list[Opened | Done]:
        """The records of exchanges since the last time."""
        taken = [record for line in self.written if isinstance(record := decode(line), Opened | Done)]
        self.written.clear()
        return taken

    @property
    def issued(self) -> list[Issued | Forgotten]:
        """What was made and deleted since then."""
        return [record for line in self.written if isinstance(record := decode(line), Issued | Forgotten)]


class FullSpool(Lines):
    """A spool that is full, and whose policy is to refuse."""

    def append(self, lines: bytes) -> bool:
        """Refuse what opens an exchange."""
        if lines.startswith(OPENED_PREFIX):
            raise SpoolFullError
        return super().append(lines)


class Exchange:
    """One request through a relay."""

    def __init__(self, downstream: FakeDownstream, lines: Lines) -> None:
        self.downstream = downstream
        self._lines = lines

    @property
    def rows(self) -> list[Done]:
        """Its `done` records so far, of which there is at most one."""
        return [line for line in map(decode, self._lines.written) if isinstance(line, Done)]

    @property
    def error(self) -> dict[str, Any]:
        """The error object of an answer."""
        error: dict[str, Any] = json.loads(self.downstream.received)["error"]
        return error

    @property
    def row(self) -> Done:
        """Its record; fails unless there is exactly one, and one `opened` before it."""
        opened, done = self._lines.take()
        assert isinstance(opened, Opened)
        assert isinstance(done, Done)
        assert opened.id == done.id
        return done


def _key() -> Credential:
    return Credential("k", ((b"authorization", b"Bearer k"),))


class Relay:
    """`providers` are asked in their order. `before` stands above `retry` in the chain, and `filters` below it;
    `retry` None makes one attempt only; `on_exhausted` is every model's."""

    def __init__(
        self,
        *,
        providers: int = 1,
        retry: RetryConfig | None = EVERY_FAILURE,
        before: Sequence[Filter] = (),
        filters: Sequence[Filter] = (),
        timeouts: Timeouts | None = None,
        has_credential: bool = False,
        price: Price | None = None,
        lines: Lines | None = None,
        on_exhausted: Exhaustion = REJECT,
    ) -> None:
        self.clock = FakeClock()
        self.lines = lines or Lines()
        self.providers = [FakeEndpoint(f"http://up{n}") for n in range(providers)]
        self.timeouts = timeouts or Timeouts()
        dialect = OpenAI()
        clusters = {
            f"up{n}": Cluster(
                f"up{n}",
                dialect,
                [Host(endpoint)],
                timeouts=self.timeouts,
                credentials=[_key()] if has_credential else [],
                price=price,
            )
            for n, endpoint in enumerate(self.providers)
        }
        self.clusters = list(clusters.values())
        targets = [ModelTarget(cluster, None, 0, None) for cluster in clusters.values()]
        links = [*before, *([Retry(retry)] if retry is not None else []), *filters]
        length = prefix_length(links, frozenset())
        graph = Graph(
            version="test",
            faces=FaceTable(FACES),
            prefix=Chain(links[:length]),
            routes=[],
            default=Route("default", Chain(links, length)),
            models=ModelTable({"*": targets}, clusters, frozenset(), {"*": on_exhausted}),
            prices=None,
            clusters=clusters,
            body_limit=1 << 25,
            upload_limit=1 << 32,
            json_depth=64,
            auth_open=True,
            own_fields=frozenset(),
        )
        self.engine = Engine(
            graph,
            face_dialect=dialect,
            clock=self.clock,
            deadlines=Deadlines(self.clock),
            rng=Random(7),
            ledger=Ledger(cast("Spool", self.lines), Estimator()),
        )

    def accept(self, downstream: FakeDownstream) -> Exchange:
        """A request whose body has not been delivered."""
        self.engine.accept(downstream)
        return Exchange(downstream, self.lines)

    def ask_now(self, body: bytes) -> Exchange:
        """A request whose body has arrived, in this very moment."""
        downstream = FakeDownstream(body)
        exchange = self.accept(downstream)
        downstream.deliver()
        return exchange

    def ask(self, body: bytes, downstream: FakeDownstream | None = None) -> Exchange:
        """A request whose body has arrived. The clock moves on a little, so that no retry budget runs out."""
        for provider in self.providers:
            provider.calls.clear()
        self.clock.advance(1)
        downstream = downstream or FakeDownstream(body)
        downstream.body = body
        exchange = self.accept(downstream)
        if downstream.asked is not None:
            downstream.deliver()
        return exchange

    @property
    def calls(self) -> list[FakeCall]:
        """Every attempt since the latest request, those of one provider together."""
        return [call for provider in self.providers for call in provider.calls]

    def at_rest(self) -> bool:
        """Nothing is under way: no run, no watched deadline, no call that was neither ended nor cancelled."""
        self.clock.advance(3)
        engine = self.engine
        nothing_left = not (engine.live or engine.lingering or len(engine.deadlines))
        return nothing_left and all(call.over for call in self.calls)
