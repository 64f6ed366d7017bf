"""Reads a worker's snapshot off the objects that count.

A reload replaces clusters and filters whose identity changed, and their counters with them. So a graph is kept in sight
until the last exchange under it is over, and what its objects have counted by then is kept for good: a worker's
counters never go back.

Not here: the value itself, and sums over workers (snapshot.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .snapshot import Counters, Distribution, ModelCounters, Snapshot, add
from .upstream.http_endpoint import HttpEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .accounting.spool import Spool
    from .chain import Chain
    from .edge.context import EdgeContext
    from .engine import Engine
    from .filter import Filter
    from .graph import Graph
    from .stats import Series
    from .upstream.cluster import Cluster

CLUSTER_COUNTERS = ("rq_total", "rq_success", "rq_error", "rq_retry")
GAUGES = ("cx_active", "rq_active", "rq_pending_active")
"""What of `UpstreamStats` goes up and down."""
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
        clusters, filters = self._in_sight()
        counters = self._copy_of_what_left()
        _count(counters, clusters, filters)
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
            upstreams=_gauges(clusters),
            counters=counters,
        )

    def _in_sight(self) -> tuple[list[Cluster], list[Filter]]:
        """The clusters and filters of every graph that is in use; what the others had alone is counted for good."""
        engine = self._engine
        if engine.graph not in self._graphs:
            self._graphs.append(engine.graph)
        if len(self._graphs) > 1:
            used = {run.ex.graph for run in engine.live} | {engine.graph}
            kept = [graph for graph in self._graphs if graph in used]
            clusters, filters = _parts(kept)
            left_clusters, left_filters = _parts([graph for graph in self._graphs if graph not in used])
            _count(
                self._left,
                [cluster for cluster in left_clusters if cluster not in clusters],
                [link for link in left_filters if link not in filters],
            )
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


def _parts(graphs: Sequence[Graph]) -> tuple[list[Cluster], list[Filter]]:
    clusters = dict.fromkeys(cluster for graph in graphs for cluster in graph.clusters.values())
    links = dict.fromkeys(link for graph in graphs for chain in _chains(graph) for link in chain.filters)
    return list(clusters), list(links)


def _chains(graph: Graph) -> Iterator[Chain]:
    yield graph.default.chain
    for route in graph.routes:
        yield route.chain


def _count(counters: Counters, clusters: Sequence[Cluster], filters: Sequence[Filter]) -> None:
    for cluster in clusters:
        add(
            counters.clusters.setdefault(cluster.name, {}),
            {name: getattr(cluster, name) for name in CLUSTER_COUNTERS},
        )
        for endpoint in cluster.endpoints:
            if isinstance(endpoint, HttpEndpoint):
                counts = endpoint.stats.as_dict()
                add(
                    counters.endpoints.setdefault((cluster.name, endpoint.name), {}),
                    {name: value for name, value in counts.items() if name not in GAUGES},
                )
    for link in filters:
        add(counters.filters.setdefault(link.name, {}), filter_counters(link))


def _gauges(clusters: Sequence[Cluster]) -> dict[tuple[str, str], dict[str, int]]:
    gauges: dict[tuple[str, str], dict[str, int]] = {}
    for cluster in clusters:
        for endpoint in cluster.endpoints:
            if isinstance(endpoint, HttpEndpoint):
                counts = gauges.setdefault((cluster.name, endpoint.name), {})
                add(counts, {name: getattr(endpoint.stats, name) for name in GAUGES})
    return gauges


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
