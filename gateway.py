"""What does a gateway do? It starts, takes over what is found out while it serves, reloads, drains, and lets go.

A reload builds beside what serves and swaps the graph last: an exchange keeps the graph it began with, so what a new
config no longer has is closed when the last exchange that can reach it is over. Before it come the checks of whether a
config can be started with, or gone on with.

Not here: what a gateway is built of: the graph that a config becomes, and what outlives it (control/resources.py),
filters and the stores they count in (control/filter_factory.py), prices and the spool (control/parts.py).
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from anyio import Lock, to_thread

from .config import GatewayConfig, load_config
from .config.checks import MEMORY_OF_MANY
from .control.clusters import open_service
from .control.filter_factory import Means, make_filter, open_answers, open_redis
from .control.filter_set import FilterSet, read_keys, refused
from .control.found_models import FoundModels, find_models
from .control.parts import find_price_file, find_prices, open_spool, try_spool
from .control.process.errors import BootError
from .control.process.front import Front
from .control.resources import Resources, Retired, open_provider
from .filters.auth import Auth, find_auth
from .filters.cache_remote import RemoteCache
from .filters.stores.memory import MemoryStore
from .proxy.accounting.estimate import Estimator
from .proxy.accounting.ledger import Ledger
from .proxy.clock import Clock, Deadlines, LoopClock
from .proxy.engine import Engine

if TYPE_CHECKING:
    import asyncio
    import os
    from collections.abc import Callable, Mapping

    from .config import Provider
    from .filters.stores.redis_limits import RedisStore
    from .filters.stores.rules import Store
    from .proxy.accounting.spool import Spool
    from .proxy.catalog import Listing
    from .proxy.dialect import Dialect
    from .proxy.graph import Graph
    from .proxy.snapshot import StoreCounters
    from .proxy.upstream.call import Endpoint
    from .proxy.upstream.health import Verdict

RETIRE_SECONDS = 1.0
"""Between two looks whether the hosts of an earlier config are still in use."""


class Gateway:
    """One gateway in one event loop: `start`, then hand `engine` to an edge; `reload`; `drain`; `aclose`.

    `config` is a loaded value or a path. `spool` False keeps no records. Everything is built on the running loop,
    so construct freely and start inside it. `store` is what several processes count in; who is alone counts in its own
    memory, also where the config says `shared`: there is nobody to share it with.
    """

    def __init__(
        self,
        config: GatewayConfig | str | os.PathLike[str] | None = None,
        *,
        worker: str = "0",
        spool: bool = True,
        clock: Clock | None = None,
        rng: Random | None = None,
        store: Store | None = None,
    ) -> None:
        self.config = (
            config if isinstance(config, GatewayConfig) else load_config(Path(config) if config is not None else None)
        )
        self.worker = worker
        self.store = store or MemoryStore()
        self._redis: RedisStore | None = None
        self._keeps_records = spool
        self._clock = clock
        self._rng = rng or Random()  # noqa: S311 - jitter, not secrets
        self.clock: Clock
        self.deadlines: Deadlines
        self.resources: Resources
        self.engine: Engine
        self.spool: Spool | None = None
        self._ledger = Ledger(None, Estimator(), worker)
        self.ready = False
        self._retiring: dict[asyncio.Task[None], Retired] = {}
        self._found: FoundModels
        self._reading_keys = Lock()
        self.ask_jwks: Callable[[], object] = lambda: None
        self._jwks: tuple[str, bytes] | None = None

    async def start(self) -> None:
        """Build everything. Raises ConfigError, or BootError with what the operator must mend."""
        self.clock = self._clock or LoopClock()
        self.deadlines = Deadlines(self.clock)
        self._redis = open_redis(self.config, self.worker, self.clock, self._rng)
        self.resources = Resources(self.clock, self.deadlines, self._rng, self._means())
        graph, _ = self.resources.compile(self.config)
        await self._read_keys(graph)
        if self._keeps_records:
            self._ledger.spool = self.spool = open_spool(self.config, self.worker, self.clock)
        self.engine = Engine(
            graph,
            face_dialect=self.resources.dialects["openai"],
            clock=self.clock,
            deadlines=self.deadlines,
            rng=self._rng,
            ledger=self._ledger,
            sampled=self.config.events.decisions.inputs_percent / 100,
        )
        await find_models(graph, self.clock)
        self._found = FoundModels(self.engine)
        if self._redis is not None:
            await self._redis.client.start()
        await self._start_caches()
        self.ready = True

    async def reload(self, config: GatewayConfig) -> None:
        """Serve new exchanges under `config`. Raises ConfigError and leaves everything as it was."""
        check_reload(self.config, config)
        try:
            graph, retired = self.resources.compile(config)
        except BootError as error:
            raise refused(str(error)) from error
        await self._read_keys(graph)
        await find_models(graph, self.clock)
        await self._start_caches()
        self.engine.graph = graph
        self.config = config
        if retired.hosts or retired.filters:
            task = self.engine.spawn(self._retire(retired))
            self._retiring[task] = retired
            task.add_done_callback(self._retiring.pop)

    def _means(self) -> Means:
        """For filters, which are made before the engine is: nothing of it is used before an exchange."""
        return Means(
            self._ledger.estimate_tokens,
            self.store,
            self.clock.wall,
            self._ledger.foresee,
            self._ledger.write,
            self._ledger.hold,
            partial(open_service, self.clock, self.deadlines),
            self._redis,
            partial(open_answers, self.config.stores, self.worker, self.clock),
        )

    async def _start_caches(self) -> None:
        for link in self.resources.links:
            if isinstance(link, RemoteCache):
                await link.start()

    def take_jwks(self, url: str, jwks: bytes) -> None:
        """The keys of tokens, as found at `url`. Raises ValueError where they are of no use."""
        auth = find_auth(self.engine.graph.prefix.filters)
        if auth is not None:
            auth.take_jwks(url, jwks)
        self._jwks = url, jwks

    async def read_keys(self) -> None:
        """The `keys_file` has changed: take over what stands there now. Raises ConfigError and leaves all as it was."""
        await self._read_keys(self.engine.graph)

    async def _read_keys(self, graph: Graph) -> None:
        auth = find_auth(graph.prefix.filters)
        if auth is None:
            return
        if auth.tokens is not None:
            auth.tokens.ask = lambda: self.ask_jwks()
            if self._jwks is not None:
                with suppress(ValueError):  # of no use under this config; others will come
                    auth.take_jwks(*self._jwks)
        if auth.settings.keys_file is not None:
            async with self._reading_keys:  # what is read last is what counts
                auth.adopt(await to_thread.run_sync(read_keys, auth))

    def open_provider(self, provider: Provider) -> tuple[Endpoint, Dialect]:
        """See the function of this name."""
        return open_provider(provider, self.clock, self.deadlines)

    def take_listing(self, listing: Listing) -> None:
        """A provider has said which models it has; `/v1/models` shows them a moment later."""
        self._found.take(listing, self.resources.clusters)

    def take_verdict(self, verdict: Verdict) -> None:
        """A check has found out that an endpoint is well, or is not."""
        if self.resources.judge(verdict):
            self._found.refresh()

    def stores(self) -> Mapping[str, tuple[bool, StoreCounters]]:
        """Of Redis, whether it is reached, and what was asked of it."""
        if self._redis is None:
            return {}
        client = self._redis.client
        return {"redis": (client.up, client.tally.counters())}

    async def drain(self) -> int:
        """Stop taking new work and wait for what runs, at most `limits.drain`; returns how many were left."""
        self.ready = False
        return await self.engine.drain(self.config.limits.drain.total_seconds())

    async def aclose(self) -> None:
        """End what is left and let go of everything; each exchange has its record afterwards."""
        self.ready = False
        hosts = [host for one in self.resources.clusters.values() for host in one.hosts]
        gone = [*self._retiring.values(), Retired(hosts, self.resources.links)]
        await self.engine.aclose()
        for one in gone:
            await one.aclose()
        self.store.close()
        if self._redis is not None:
            await self._redis.aclose()
        if self.spool is not None:
            self.spool.close()

    async def _retire(self, gone: Retired) -> None:
        """Close what an earlier config had once no exchange can reach it."""
        while gone.is_in_use({run.ex.graph for run in self.engine.live}):
            await self.clock.sleep(RETIRE_SECONDS)
        await gone.aclose()


def check_buildable(config: GatewayConfig) -> None:
    """What the file alone cannot tell: whether its filters can be had, and its prices read. Raises ConfigError."""
    FilterSet(config, partial(make_filter, workers=config.workers))
    if config.auth is not None:
        read_keys(Auth(config.auth))
    find_price_file(config)


def check_startable(config: GatewayConfig, clock: Clock) -> None:
    """What a supervisor makes sure of before it starts workers, so that one process says it, and not each of them.

    Raises ConfigError, BootError.
    """
    check_buildable(config)
    if config.stores.default == "memory":
        raise refused(f"stores: default: {MEMORY_OF_MANY}")  # --workers came after the file was checked
    for name, listener in (("data", config.listeners.data), ("admin", config.listeners.admin)):
        Front(listener, f"listeners.{name}")
    find_prices(config, clock)
    try_spool(config)


def check_reload(old: GatewayConfig, new: GatewayConfig) -> None:
    """Refuse what only a restart can change, by name."""
    fixed = (
        ("listeners", old.listeners, new.listeners),
        ("workers", old.workers, new.workers),
        ("events", old.events, new.events),
        ("stores", old.stores, new.stores),
    )
    changed = [name for name, before, after in fixed if before != after]
    if changed:
        raise refused(f"{', '.join(changed)}: a change needs a restart")
