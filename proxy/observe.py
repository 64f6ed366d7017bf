"""Reads a worker's snapshot off the objects that count.

A reload replaces clusters and filters whose identity changed, and their counters with them. So a graph is kept in sight
until the last exchange under it is over, and what its objects have counted by then is kept for good: a worker's
counters never go back.

Not here: the value itself, and sums over workers (snapshot.py).
"""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .snapshot import Counters, Distribution, ModelCounters, Resting, Snapshot, add
from .upstream.http_endpoint import HttpEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .accounting.spool import Spool
    from .chain import Chain
    from .edge.context import EdgeContext
    from .engine import Engine
    from .filter import Filter
    from .graph import Graph
    from .stats import Series
    from .upstream.cluster import Cluster
    from .upstream.host import Host

CLUSTER_COUNTERS = (
    "rq_total", "rq_success", "rq_error", "rq_timeout", "rq_retry", "rq_hedged", "rq_overflow", "ejections",
    "ejections_overflow", "healthy_panic",
)  # fmt: skip
HOST_COUNTERS = ("rq_success", "rq_error", "rq_timeout")
GAUGES = ("cx_active", "rq_active", "rq_pending_active")
"""What of `UpstreamStats` goes up and down."""
HOST_GAUGES = ("failed_active_hc", "failed_outlier_check")
MOST_RESTING = 256
"""Keys, and targets, that are told of: models may come from clients, and this goes out every second."""
SWITCHED = 101
_STATM = Path("/proc/self/statm")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Observer:
    """Takes snapshots of one engine and what is around it. `edges` are the listeners of the data half."""

    __slots__ = ("_edges", "_engine", "_graphs", "_left", "_pid", "_spool", "_started", "_worker")

    def __init__(
        self, engine: Engine, *, worker: str = "0", edges: Sequence[EdgeContext] = (), spool: Spool | None = None
    ) -> None:
        self._engine = engine
        self._worker = worker
        self._edges = tuple(edges)
        self._spool = spool
        self._pid = os.getpid()
        self._started = engine.clock.wall()
        self._graphs: list[Graph] = []
        self._left = Counters()
        """What the objects of graphs that are no more have counted."""

    def take(self, *, ready: bool, loop_lag: float | None = None) -> Snapshot:
        """The worker as it is now."""
        engine = self._engine
        parts = self._in_sight()
        counters = self._copy_of_what_left()
        _count(counters, parts)
        stats, spool = engine.stats, self._spool
        counters.exchanges = dict(stats.exchanges)
        counters.models = {key: _model(series) for key, series in stats.series.items()}
        counters.engine = {
            "refused_by_auth": stats.refused_by_auth,
            "turned_away": stats.turned_away,
            "retries": stats.retries,
            "internal_errors": stats.internal_errors,
            "rows": engine.ledger.rows,
            "issuer_lookups": engine.issuers.asked,
            "issuer_lookups_failed": engine.issuers.unanswered,
        }
        for edge in self._edges:
            add(counters.edge, {name: getattr(edge.stats, name) for name in edge.stats.__slots__})
        if spool is not None:
            counters.spool = {"dropped": spool.dropped, "errors": spool.errors}
        return Snapshot(
            self._worker,
            self._pid,
            self._started,
            engine.graph.version,
            ready=ready and not engine.draining,
            draining=engine.draining,
            live=len(engine.live),
            websockets=sum(run.ex.status == SWITCHED for run in engine.live),
            connections=sum(len(edge.connections) for edge in self._edges),
            rss_bytes=rss_bytes(),
            loop_lag=loop_lag,
            spool_full=spool is not None and spool.full,
            upstreams=_gauges(parts.hosts),
            keys=_keys(engine.graph.clusters.values(), engine.clock.monotonic()),
            targets=_targets(_parts([engine.graph]).links),
            counters=counters,
        )

    def _in_sight(self) -> _Parts:
        """What every graph that is in use has; what the others had alone is counted for good."""
        engine = self._engine
        if engine.graph not in self._graphs:
            self._graphs.append(engine.graph)
        if len(self._graphs) > 1:
            used = {run.ex.graph for run in engine.live} | {engine.graph}
            kept = [graph for graph in self._graphs if graph in used]
            left = _parts([graph for graph in self._graphs if graph not in used])
            _count(self._left, left.without(_parts(kept)))
            self._graphs = kept
        return _parts(self._graphs)

    def _copy_of_what_left(self) -> Counters:
        left = self._left
        return Counters(
            clusters={name: dict(counts) for name, counts in left.clusters.items()},
            endpoints={name: dict(counts) for name, counts in left.endpoints.items()},
            filters={name: dict(counts) for name, counts in left.filters.items()},
        )


def rss_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    try:
        return int(_STATM.read_bytes().split()[1]) * _PAGE
    except OSError:
        return 0


def filter_counters(link: Filter) -> dict[str, int]:
    """The public integers of a filter: what it counts."""
    return {name: value for name, value in _attributes(link) if type(value) is int and not name.startswith("_")}


def _attributes(link: Filter) -> Iterator[tuple[str, object]]:
    yield from getattr(link, "__dict__", {}).items()
    for kind in type(link).__mro__:
        for name in kind.__dict__.get("__slots__", ()):
            if hasattr(link, name):
                yield name, getattr(link, name)


class _Parts(NamedTuple):
    """What counts. A host belongs to one provider, and to each of its clusters in turn."""

    clusters: list[Cluster]
    hosts: list[tuple[str, Host]]
    links: list[Filter]

    def without(self, others: _Parts) -> _Parts:
        """Those that the others have not."""
        return _Parts(
            [cluster for cluster in self.clusters if cluster not in others.clusters],
            [host for host in self.hosts if host not in others.hosts],
            [link for link in self.links if link not in others.links],
        )


def _parts(graphs: Sequence[Graph]) -> _Parts:
    clusters = dict.fromkeys(cluster for graph in graphs for cluster in graph.clusters.values())
    hosts = dict.fromkeys((cluster.name, host) for cluster in clusters for host in cluster.hosts)
    links = dict.fromkeys(link for graph in graphs for chain in _chains(graph) for link in chain.filters)
    return _Parts(list(clusters), list(hosts), list(links))


def _chains(graph: Graph) -> Iterator[Chain]:
    yield graph.default.chain
    for route in graph.routes:
        yield route.chain


def _count(counters: Counters, parts: _Parts) -> None:
    for cluster in parts.clusters:
        add(
            counters.clusters.setdefault(cluster.name, {}),
            {name: getattr(cluster, name) for name in CLUSTER_COUNTERS},
        )
    for provider, host in parts.hosts:
        if isinstance(host.endpoint, HttpEndpoint):
            counts = host.endpoint.stats.as_dict() | {name: getattr(host, name) for name in HOST_COUNTERS}
            add(
                counters.endpoints.setdefault((provider, host.name), {}),
                {name: value for name, value in counts.items() if name not in GAUGES},
            )
    for link in parts.links:
        add(counters.filters.setdefault(link.name, {}), filter_counters(link))


def _gauges(hosts: Sequence[tuple[str, Host]]) -> dict[tuple[str, str], dict[str, int]]:
    gauges: dict[tuple[str, str], dict[str, int]] = {}
    for provider, host in hosts:
        if isinstance(host.endpoint, HttpEndpoint):
            counts = gauges.setdefault((provider, host.name), {})
            add(counts, {name: getattr(host.endpoint.stats, name) for name in GAUGES})
            state = (not host.healthy, host.ejected)
            add(counts, {name: int(holds) for name, holds in zip(HOST_GAUGES, state, strict=True)})
    return gauges


def _keys(clusters: Iterable[Cluster], now: float) -> dict[tuple[str, str, str], Resting]:
    found = (
        ((cluster.name, key, model), Resting(why, round(seconds, 1)))
        for cluster in clusters
        for key, model, why, seconds in cluster.resting_keys(now)
    )
    return dict(islice(found, MOST_RESTING))


def _targets(links: Sequence[Filter]) -> dict[tuple[str, str, str], Resting]:
    found = (
        ((link.name, provider, model), Resting(rest.why, round(rest.seconds, 1), rest.workers))
        for link in links
        for (provider, model), rest in link.left_alone().items()
    )
    return dict(islice(found, MOST_RESTING))


def _model(series: Series) -> ModelCounters:
    return ModelCounters(
        series.answers,
        series.tokens_in,
        series.tokens_out,
        series.cost_usd,
        series.unknown_cost,
        Distribution(list(series.duration.buckets), series.duration.total),
        Distribution(list(series.ttft.buckets), series.ttft.total),
    )
