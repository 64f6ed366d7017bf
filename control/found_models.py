"""Shows in `/v1/models` what providers say they have, in the process that answers it.

An entry takes up to a millisecond, mostly to find its price, and a list may have thousands: they are made a few at a
time in the background, and shown when all are made.

Not here: asking providers (model_watch.py), what an entry says (proxy/model_list.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..proxy.model_list import found_models

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from ..proxy.catalog import Listing
    from ..proxy.clock import Clock
    from ..proxy.engine import Engine
    from ..proxy.graph import Graph
    from ..proxy.upstream.cluster import Cluster

AT_A_TIME = 4


class FoundModels:
    """Of one engine, which owns the task."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._task: asyncio.Task[None] | None = None
        self._behind = False

    def take(self, listing: Listing, clusters: Mapping[str, Cluster]) -> None:
        """A provider has told its models; they are shown a moment later. Ignored where the provider is no more."""
        cluster = clusters.get(listing.provider)
        if cluster is None or cluster.address != listing.base_url:
            return
        cluster.listed = {model.id: model for model in listing.models}
        self.refresh()

    def refresh(self) -> None:
        """What entries say has changed; the new ones are shown a moment later."""
        self._behind = True
        if self._task is None or self._task.done():
            self._task = self._engine.spawn(self._catch_up())

    async def _catch_up(self) -> None:
        while self._behind:
            self._behind = False
            await find_models(self._engine.graph, self._engine.clock)


async def find_models(graph: Graph, clock: Clock) -> None:
    """Make the entries of `graph` from what its providers have told. Cancelled, it leaves them as they were."""
    found: dict[str, bytes] = {}
    for count, made in enumerate(found_models(graph), 1):
        if made is not None:
            found[made[0]] = made[1]
        if count % AT_A_TIME == 0:
            await clock.sleep(0)
    graph.found_models = found
