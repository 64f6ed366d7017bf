"""The data half on its sockets: an edge in front of one engine, and the steps of its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import structlog

from ...proxy.edge.body import BodyBudget
from ...proxy.edge.context import EdgeContext, EdgeLimits, connection_bound
from ...proxy.edge.data_app import data_app
from ...proxy.edge.guard import Guard
from ...proxy.edge.listen import EdgeServer, serve
from ...proxy.observe import Observer
from ...proxy.upstream.shedding import Shedding, SheddingSettings, Trigger
from .front import Front
from .memory import Memory
from .overload import Overload
from .signals import unless

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence

    from ...config import GatewayConfig, Provider
    from ...filters.stores.rules import Store
    from ...proxy.accounting.spool import Spool
    from ...proxy.catalog import Listing
    from ...proxy.clock import Clock, Deadlines
    from ...proxy.dialect import Dialect
    from ...proxy.engine import Engine
    from ...proxy.snapshot import Snapshot, StoreCounters
    from ...proxy.upstream.call import Endpoint
    from ...proxy.upstream.health import Verdict

log = structlog.get_logger("headgate")

FLUSH_SECONDS = 5.0
"""How long a slow client may take, within the grace, for the end of an answer that is complete."""
CUT_SECONDS = 1.0
"""How long the last words of exchanges that were cut may take to reach their clients."""
RETIRE_SECONDS = 900.0
"""How long a worker that was replaced may serve those who are connected to it; Envoy's `--parent-shutdown-time-s`."""
NO_LAG_IS_TOO_MUCH = 1e9
_ALONE_POLL = 0.1


class DataHalf(Protocol):
    """What gateway.Gateway is, as far as processes care."""

    config: GatewayConfig
    worker: str
    clock: Clock
    deadlines: Deadlines
    engine: Engine
    spool: Spool | None
    store: Store
    ready: bool

    async def start(self) -> None:
        """Build everything. Raises ConfigError, BootError."""

    async def reload(self, config: GatewayConfig) -> None:
        """Serve new exchanges under another config. Raises ConfigError, and then nothing has changed."""

    ask_jwks: Callable[[], object]
    """Called when a token names a key that is not known."""

    def take_jwks(self, url: str, jwks: bytes) -> None:
        """The keys of tokens, as found at `url`. Raises ValueError where they are of no use."""

    async def read_keys(self) -> None:
        """Take over what stands in the `keys_file`. Raises ConfigError, and then nothing has changed."""

    def open_provider(self, provider: Provider) -> tuple[Endpoint, Dialect]:
        """A connection to a provider for the control half."""

    def take_listing(self, listing: Listing) -> None:
        """What a provider has told of its models."""

    def take_verdict(self, verdict: Verdict) -> None:
        """What a check has found out about an endpoint."""

    def stores(self) -> Mapping[str, tuple[bool, StoreCounters]]:
        """The stores that servers keep, by name: whether they are reached, and what was asked of them."""

    async def drain(self) -> int:
        """Let what runs finish; returns how many were left."""

    async def aclose(self) -> None:
        """End what is left."""


class DataServer:
    """Serves one started `DataHalf`."""

    def __init__(self, half: DataHalf, version: str) -> None:
        config = half.config
        self.half = half
        self._version = version
        self.context = EdgeContext(
            half.engine,
            clock=half.clock,
            deadlines=half.deadlines,
            guard=Guard(open_to_all=config.auth_is_open),
            limits=_limits(config),
            budget=BodyBudget(config.limits.buffered),
            new_id=half.engine.next_id,
        )
        self._front = Front(config.listeners.data, "listeners.data")
        self._front.adopt(self.context, open_to_all=config.auth_is_open)
        self._edge: EdgeServer | None = None
        self._retiring = False
        self._overload = Overload(
            half.engine, half.clock, Shedding(_thresholds(config), half.engine.rng), _memory(config).fraction
        )
        self._observer = Observer(half.engine, worker=half.worker, edges=[self.context], spool=half.spool)

    async def open(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections, and look after this worker's health: its loop is ours alone."""
        self._edge = await serve(data_app(self.not_ready, self._version), self.context, sockets, self._front.tls)
        self._overload.start()

    def not_ready(self) -> list[str]:
        """Why this worker should get no new traffic; empty when it should."""
        if not self.half.ready:
            return ["draining" if self.context.draining else "starting"]
        return []

    def snapshot(self) -> Snapshot:
        """What this worker counts, now."""
        overload = self._overload
        snapshot = self._observer.take(ready=self.half.ready and not self._retiring, loop_lag=overload.lag)
        snapshot.memory_ratio = overload.used
        snapshot.shedding = self.half.engine.shedding is not None
        snapshot.draining = self.context.draining
        for name, (up, counters) in self.half.stores().items():
            snapshot.stores[name], snapshot.counters.stores[name] = int(up), counters
        return snapshot

    def refuse_new_work(self) -> None:
        """Readiness off and no new exchanges; what runs goes on, and the sockets stay open to say so."""
        self.half.ready = False
        self.half.engine.draining = True
        self._last_call()

    def _last_call(self) -> None:
        self.context.draining = True
        if self._edge is not None:
            self._edge.last_call()

    async def reload(self, config: GatewayConfig) -> None:
        """Raises ConfigError and leaves everything as it was."""
        await self.half.reload(config)
        self._front.adopt(self.context, open_to_all=config.auth_is_open)
        if (problem := self._front.renew()) is not None:
            log.error("certificate_not_renewed", problem=problem)
        self.context.limits = _limits(config)
        self.context.budget.limit = config.limits.buffered
        self._overload.adopt(_thresholds(config), _memory(config).fraction)

    async def retire(self, leave: asyncio.Event) -> None:
        """Give way to a successor on the same socket: accept no more, refuse nothing, serve whoever is connected.

        Each connection gets one more answer at most, which says `connection: close`. Over when nobody is connected,
        after RETIRE_SECONDS, or when `leave` is set; `drain` sees to what is left.
        """
        self._retiring = True
        self._last_call()
        if self._edge is not None:
            self._edge.close_listeners()  # what waits on the socket is the successor's
        await unless(leave, self._until_alone())

    async def _until_alone(self) -> None:
        clock = self.half.clock
        until = clock.monotonic() + RETIRE_SECONDS
        while self.context.connections and clock.monotonic() < until:
            await clock.sleep(_ALONE_POLL)

    async def drain(self, hurry: asyncio.Event | None = None) -> None:
        """Readiness off and no new work; what runs finishes, or is cut with an error its client sees; then everything
        closes.

        New work is still taken for `limits.drain_delay`, so that a load balancer can look elsewhere first. What runs
        has `limits.drain` from then, or until `hurry` is set.
        """
        hurry = hurry or asyncio.Event()
        await self._look_elsewhere(hurry)
        now = self.half.clock.monotonic
        until = now() + self.half.config.limits.drain.total_seconds()
        self.refuse_new_work()
        if self._edge is not None:
            await self._edge.stop_accepting()
            self._edge.close_idle()
        await unless(hurry, self.half.drain())
        self.half.engine.cut()
        if self._edge is not None:
            if now() < until:
                await unless(hurry, self._edge.aclose(min(until - now(), FLUSH_SECONDS)))
            await self._edge.aclose(CUT_SECONDS)
        self._overload.stop()
        await self.half.aclose()

    async def _look_elsewhere(self, hurry: asyncio.Event) -> None:
        """The time between saying that it drains and meaning it; none where it has been said already."""
        delay = self.half.config.limits.drain_delay.total_seconds()
        if delay and self._edge is not None and not self.context.draining:
            self.half.ready = False
            self._last_call()
            await unless(hurry, self.half.clock.sleep(delay))


def _limits(config: GatewayConfig) -> EdgeLimits:
    return EdgeLimits(head_bytes=config.limits.headers, connections=connection_bound())


def _memory(config: GatewayConfig) -> Memory:
    return Memory(config.limits.memory, config.workers)


def _thresholds(config: GatewayConfig) -> SheddingSettings:
    """Some are refused from a quarter of `limits.loop_lag` on."""
    lag = config.limits.loop_lag.total_seconds() or NO_LAG_IS_TOO_MUCH
    return SheddingSettings(lag=Trigger(lag / 4, lag))
