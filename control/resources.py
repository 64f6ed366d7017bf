"""What outlives a config, and how does a config become a graph over it?

Clusters with their connections, and filters with their counters, are keyed by what makes them what they are. A reload
that leaves a cluster's address and credential alone keeps the object, whatever else changed; a new identity makes a new
one, and the old finishes its calls.

Which class stands for which dialect is known here alone. Not here: when the old is closed (gateway.py), which hosts a
cluster keeps (clusters.py), which class a filter is (filter_factory.py).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ..dialects.openai import OpenAI
from ..proxy.graph import Graph
from .clusters import ClusterSet, open_endpoint
from .endpoints import endpoint_table
from .filter_factory import make_filter
from .filter_set import FilterSet
from .parts import find_prices, model_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from random import Random

    from ..config import GatewayConfig, Provider
    from ..proxy.clock import Clock, Deadlines
    from ..proxy.dialect import Dialect
    from ..proxy.filter import Filter
    from ..proxy.upstream.call import Endpoint
    from ..proxy.upstream.cluster import Cluster
    from ..proxy.upstream.health import Verdict
    from ..proxy.upstream.host import Host
    from .filter_factory import Means
    from .filter_set import Kept

DIALECTS: Mapping[str, type[Dialect]] = {"openai": OpenAI}


class Retired(NamedTuple):
    """What a new config no longer has, and exchanges under earlier ones may still use."""

    hosts: Sequence[Host]
    filters: Sequence[Filter]

    def is_in_use(self, graphs: Iterable[Graph]) -> bool:
        """Whether an exchange under one of these can reach any of it: one that has not sent yet will."""
        for graph in graphs:
            chains = [graph.prefix, graph.default.chain, *(route.chain for route in graph.routes)]
            if any(link in chain.filters for chain in chains for link in self.filters):
                return True
            if any(host in cluster.hosts for cluster in graph.clusters.values() for host in self.hosts):
                return True
        return False

    async def aclose(self) -> None:
        """Let go of all of it."""
        for host in self.hosts:
            await host.endpoint.aclose()
        for link in self.filters:
            await link.aclose()


class Resources:
    """What graphs share and reloads keep. A failed `compile` leaves it as it was."""

    def __init__(self, clock: Clock, deadlines: Deadlines, rng: Random, means: Means) -> None:
        self._means = means
        self.dialects: dict[str, Dialect] = {name: kind() for name, kind in DIALECTS.items()}
        self._clock = clock
        self._clusters = ClusterSet(self.dialects, clock, deadlines, rng)
        self._filters: dict[str, Kept] = {}

    @property
    def clusters(self) -> dict[str, Cluster]:
        """The clusters of the newest config."""
        return self._clusters.clusters

    @property
    def links(self) -> list[Filter]:
        """The filters of the newest config."""
        return [link for _, link in self._filters.values()]

    def judge(self, verdict: Verdict) -> bool:
        """Take over what a check has found; returns whether that changes what is said of its provider."""
        return self._clusters.judge(verdict)

    def compile(self, config: GatewayConfig) -> tuple[Graph, Retired]:
        """Config to graph, and what it does not use any more. What may refuse comes first: then nothing has changed.

        Raises ConfigError, and BootError where prices cannot be had.
        """
        filters = self._filter_set(config)
        prices = find_prices(config, self._clock)
        retired = self._apply(config, filters)
        clusters = self.clusters
        graph = Graph(
            version=config.digest,
            faces=endpoint_table(config.routes),
            prefix=filters.chains.prefix,
            routes=filters.chains.routes,
            default=filters.chains.default,
            models=model_table(config, clusters),
            prices=prices,
            clusters=clusters,
            body_limit=config.limits.body,
            upload_limit=config.limits.upload,
            json_depth=config.limits.json_depth,
            auth_open=config.auth_is_open,
            policy=config.policy,
            divided=config.auth is not None and config.auth.divided,
            own_fields=frozenset((config.auth.header.lower().encode(),)) if config.auth is not None else frozenset(),
        )
        return graph, retired

    def _filter_set(self, config: GatewayConfig) -> FilterSet:
        """The filters of a config that may yet be refused. Raises ConfigError."""
        make = partial(make_filter, workers=config.workers, now=self._clock.monotonic, means=self._means)
        return FilterSet(config, make, self._filters)

    def _apply(self, config: GatewayConfig, filters: FilterSet) -> Retired:
        """Take `config` over. Returns what is no longer in it, for its last user to close."""
        before, self._filters = self.links, filters.kept
        kept = self.links
        gone = [link for link in before if not any(link is other for other in kept)]
        return Retired(self._clusters.update(config.providers, config.workers), gone)


def open_provider(provider: Provider, clock: Clock, deadlines: Deadlines) -> tuple[Endpoint, Dialect]:
    """A connection of its own to a provider, for what is asked beside exchanges, and its language."""
    dialect = DIALECTS[provider.dialect]()
    return open_endpoint(provider, dialect, clock, deadlines), dialect
