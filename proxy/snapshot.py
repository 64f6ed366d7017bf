"""What a worker tells about itself in one value, and the sums over all workers.

Everything is either a counter, which only grows and is added up, or a gauge, which belongs to the worker that told it.
They are apart in the type, so that whoever merges cannot mistake one for the other.

No total ever goes back. `Totals` has one set of counters and only ever adds to it what a worker has counted since it
spoke last, so a worker that is gone takes its gauges along and leaves its counters. For the same reason a name that
came above the bound is `other` for ever.

Not here: reading it off a worker (observe.py), the format of Prometheus (control/telemetry/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from .stats import DURATION_BOUNDS, MAX_SERIES, OTHER, STORE_BOUNDS, TTFT_BOUNDS, bounded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

K = TypeVar("K")

Life = tuple[str, int, float]
"""Name, pid and start of a worker: which one, and which life of it."""


class Distribution(msgspec.Struct):
    """A histogram: counts per bucket, the last one unbounded, and the sum of what was observed."""

    counts: list[int]
    total: float = 0.0

    def grow(self, new: Distribution, old: Distribution) -> None:
        """Add what `new` has above `old`; all three have the same bounds."""
        self.counts = [
            mine + max(0, after - before)
            for mine, after, before in zip(self.counts, new.counts, old.counts, strict=True)
        ]
        self.total += max(0.0, new.total - old.total)


class ModelCounters(msgspec.Struct):
    """What one model at one provider has used. `answers` are those with usage, on which the tokens stand."""

    answers: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0
    unknown_cost: int = 0
    """Answers with usage whose price nobody knows: they are missing in `cost_usd`."""
    duration: Distribution = msgspec.field(default_factory=lambda: Distribution([0] * (len(DURATION_BOUNDS) + 1)))
    """Seconds from request to end; `stats.DURATION_BOUNDS`."""
    ttft: Distribution = msgspec.field(default_factory=lambda: Distribution([0] * (len(TTFT_BOUNDS) + 1)))
    """Seconds from request to first token; `stats.TTFT_BOUNDS`."""

    def grow(self, new: ModelCounters, old: ModelCounters) -> None:
        """Add what `new` has above `old`."""
        self.answers += max(0, new.answers - old.answers)
        self.tokens_in += max(0, new.tokens_in - old.tokens_in)
        self.tokens_out += max(0, new.tokens_out - old.tokens_out)
        self.cost_usd += max(0.0, new.cost_usd - old.cost_usd)
        self.unknown_cost += max(0, new.unknown_cost - old.unknown_cost)
        self.duration.grow(new.duration, old.duration)
        self.ttft.grow(new.ttft, old.ttft)


NOTHING = ModelCounters()


class StoreCounters(msgspec.Struct):
    """What has been asked of a store that a server keeps."""

    answered: int = 0
    failed: int = 0
    """Not answered in time, or not carried out."""
    refused: int = 0
    """Not even sent: the server was away, or too much was under way."""
    opened: int = 0
    """Times that it was given up for a while."""
    latency: Distribution = msgspec.field(default_factory=lambda: Distribution([0] * (len(STORE_BOUNDS) + 1)))
    """Seconds; `stats.STORE_BOUNDS`."""

    def grow(self, new: StoreCounters, old: StoreCounters) -> None:
        """Add what `new` has above `old`."""
        self.answered += max(0, new.answered - old.answered)
        self.failed += max(0, new.failed - old.failed)
        self.refused += max(0, new.refused - old.refused)
        self.opened += max(0, new.opened - old.opened)
        self.latency.grow(new.latency, old.latency)


class Resting(msgspec.Struct):
    """A key or a target that is left alone for a while: why, the seconds that are left of it at most, and in how many
    workers."""

    why: str
    seconds: float
    workers: int = 1

    def join(self, other: Resting) -> Resting:
        """Both as one; the longer one says why."""
        longer = self if self.seconds >= other.seconds else other
        return Resting(longer.why, longer.seconds, self.workers + other.workers)


class Counters(msgspec.Struct):
    """All that only grows."""

    exchanges: dict[tuple[str, str, int], int] = {}
    """(endpoint, outcome, status) -> exchanges that are over."""
    models: dict[tuple[str, str, str], ModelCounters] = {}
    """By (endpoint, provider, upstream model)."""
    clusters: dict[str, dict[str, int]] = {}
    """By provider: rq_total, rq_success, rq_error, rq_retry."""
    endpoints: dict[tuple[str, str], dict[str, int]] = {}
    """By (provider, address): the counters of `UpstreamStats`."""
    filters: dict[str, dict[str, int]] = {}
    """By filter: its public integers."""
    edge: dict[str, int] = {}
    """The counters of `EdgeStats`."""
    engine: dict[str, int] = {}
    """refused_by_auth, retries, internal_errors, rows, issuer_lookups, issuer_lookups_failed."""
    spool: dict[str, int] = {}
    """dropped, errors."""
    stores: dict[str, StoreCounters] = {}
    """By name: `redis`."""

    def grow(self, new: Counters, old: Counters) -> None:
        """Add what `new` has above `old`; models and statuses above the bound count as `other`."""
        for outcome, count in new.exchanges.items():
            place = outcome if outcome in self.exchanges else bounded(self.exchanges, outcome)
            self.exchanges[place] = self.exchanges.get(place, 0) + max(0, count - old.exchanges.get(outcome, 0))
        for key, model in new.models.items():
            self._model(key).grow(model, old.models.get(key, NOTHING))
        _grow_tables(self.clusters, new.clusters, old.clusters)
        _grow_tables(self.endpoints, new.endpoints, old.endpoints)
        _grow_tables(self.filters, new.filters, old.filters)
        grow(self.edge, new.edge, old.edge)
        grow(self.engine, new.engine, old.engine)
        grow(self.spool, new.spool, old.spool)
        for name, store in new.stores.items():
            self.stores.setdefault(name, StoreCounters()).grow(store, old.stores.get(name, StoreCounters()))

    def _model(self, key: tuple[str, str, str]) -> ModelCounters:
        found = self.models.get(key)
        if found is None:
            if len(self.models) >= MAX_SERIES:
                key = (key[0], key[1], OTHER)
            found = self.models.setdefault(key, ModelCounters())
        return found


class Snapshot(msgspec.Struct):
    """One worker at one moment, or all of them. Plain values, made to be sent: see `encode`."""

    worker: str
    pid: int
    started: float
    """Unix seconds."""
    config: str
    """Version of the configuration that new exchanges get."""
    ready: bool = False
    draining: bool = False
    live: int = 0
    """Exchanges under way."""
    websockets: int = 0
    """Those of them that are sessions over a WebSocket."""
    connections: int = 0
    """Open connections of clients."""
    rss_bytes: int = 0
    loop_lag: float | None = None
    """Seconds the event loop came late when it was last looked at; None where nobody looks."""
    memory_ratio: float | None = None
    """Part in use of the memory that the worker may use; None where nobody looks."""
    shedding: bool = False
    """It turns new requests away, some or all."""
    spool_full: bool = False
    stores: dict[str, int] = {}
    """By name: 1 while the worker reaches the store."""
    upstreams: dict[tuple[str, str], dict[str, int]] = {}
    """By (provider, address): cx_active, rq_active, rq_pending_active."""
    keys: dict[tuple[str, str, str], Resting] = {}
    """By (provider, name of the key, upstream model): those that rest. The model is empty where they rest for all."""
    targets: dict[tuple[str, str, str], Resting] = {}
    """By (filter, provider, upstream model): those that a filter leaves alone (circuit breakers)."""
    counters: Counters = msgspec.field(default_factory=Counters)

    @property
    def life(self) -> Life:
        """Which worker, and which life of it."""
        return self.worker, self.pid, self.started


def encode(snapshot: Snapshot) -> bytes:
    """MessagePack: keys are tuples, which JSON has not."""
    return msgspec.msgpack.encode(snapshot)


def decode(data: bytes) -> Snapshot:
    """Raises msgspec.DecodeError."""
    return msgspec.msgpack.decode(data, type=Snapshot)


class Totals:
    """The sums over all workers, living and dead.

    `tell` what a worker told, and `gone` once its process has ended; both in the order in which they happened.
    """

    __slots__ = ("_counters", "_told")

    def __init__(self) -> None:
        self._counters = Counters()
        self._told: dict[Life, Snapshot] = {}

    def tell(self, snapshot: Snapshot) -> None:
        """A worker's newest snapshot replaces its last, and what it counted in between is added."""
        last = self._told.get(snapshot.life)
        self._counters.grow(snapshot.counters, last.counters if last is not None else Counters())
        self._told[snapshot.life] = snapshot

    def gone(self, life: Life) -> None:
        """A worker has ended: its gauges are no more, what it counted stays. Harmless when it never told anything."""
        self._told.pop(life, None)

    def calls(self, provider: str) -> int:
        """How many calls went to a provider so far."""
        return self._counters.clusters.get(provider, {}).get("rq_total", 0)

    def workers(self) -> list[Snapshot]:
        """The last word of the living, by name and then by age."""
        return sorted(self._told.values(), key=lambda one: (one.worker, one.started))

    def merged(self, *, worker: str = "*", pid: int = 0) -> Snapshot:
        """All as one: counters of the living and the dead, gauges of the living added up.

        Ready while one worker is, draining when all are. `started` is the earliest, `loop_lag` the worst, `config` that
        of the youngest.
        """
        living = sorted(self._told.values(), key=lambda one: one.started)
        lags = [one.loop_lag for one in living if one.loop_lag is not None]
        upstreams: dict[tuple[str, str], dict[str, int]] = {}
        stores: dict[str, int] = {}
        for one in living:
            _grow_tables(upstreams, one.upstreams, {})
            add(stores, one.stores)
        return Snapshot(
            worker,
            pid,
            living[0].started if living else 0.0,
            living[-1].config if living else "",
            ready=any(one.ready for one in living),
            draining=bool(living) and all(one.draining for one in living),
            live=sum(one.live for one in living),
            websockets=sum(one.websockets for one in living),
            connections=sum(one.connections for one in living),
            rss_bytes=sum(one.rss_bytes for one in living),
            loop_lag=max(lags, default=None),
            memory_ratio=max((one.memory_ratio for one in living if one.memory_ratio is not None), default=None),
            shedding=any(one.shedding for one in living),
            spool_full=any(one.spool_full for one in living),
            stores=stores,
            upstreams=upstreams,
            keys=_joined(one.keys for one in living),
            targets=_joined(one.targets for one in living),
            counters=msgspec.msgpack.decode(msgspec.msgpack.encode(self._counters), type=Counters),
        )


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Several workers as one, at one moment; over time `Totals` does it."""
    totals = Totals()
    for snapshot in snapshots:
        totals.tell(snapshot)
    return totals.merged()


def add(counts: dict[K, int], more: Mapping[K, int]) -> None:
    """Add `more` to `counts`."""
    for key, value in more.items():
        counts[key] = counts.get(key, 0) + value


def grow(counts: dict[K, int], new: Mapping[K, int], old: Mapping[K, int]) -> None:
    """Add to `counts` what `new` has above `old`."""
    for key, value in new.items():
        counts[key] = counts.get(key, 0) + max(0, value - old.get(key, 0))


def _joined(tables: Iterable[Mapping[K, Resting]]) -> dict[K, Resting]:
    joined: dict[K, Resting] = {}
    for table in tables:
        for key, rest in table.items():
            joined[key] = joined[key].join(rest) if key in joined else rest
    return joined


def _grow_tables(
    tables: dict[K, dict[str, int]], new: Mapping[K, Mapping[str, int]], old: Mapping[K, Mapping[str, int]]
) -> None:
    for key, counts in new.items():
        grow(tables.setdefault(key, {}), counts, old.get(key, {}))
