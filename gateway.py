"""The composition root: a config becomes a graph over resources, and an engine that runs exchanges under it.

`Resources` are what must outlive a config: clusters with their connections, and filters with their counters. They are
keyed by what makes them what they are. A reload that leaves a cluster's address and credential alone keeps the object,
whatever else changed; a new identity makes a new one, and the old finishes its calls.

Here, and only here, are concrete dialects, filters and endpoints known by name.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from anyio import Lock, to_thread

from .config import (
    AccessLogConfig,
    AuthConfig,
    BudgetConfig,
    CacheConfig,
    CircuitBreakerConfig,
    GatewayConfig,
    GuardConfig,
    HeadersConfig,
    RateLimitConfig,
    RetryConfig,
    UseConfig,
    load_config,
)
from .config.checks import MEMORY_OF_MANY
from .control.clusters import ClusterSet, open_endpoint, open_service
from .control.endpoints import endpoint_table
from .control.filter_set import FilterSet, Kept, read_keys, refused, users_filter
from .control.found_models import FoundModels, find_models
from .control.parts import find_price_file, find_prices, model_table, open_spool, try_spool
from .control.process.errors import BootError
from .control.process.front import Front
from .dialects.openai import OpenAI
from .filters.access_log import AccessLog
from .filters.auth import Auth, find_auth
from .filters.budget import Budget
from .filters.budget_remote import RemoteBudget
from .filters.cache import Cache
from .filters.cache_remote import RemoteCache
from .filters.circuit_breaker import CircuitBreaker
from .filters.guard import make_guard
from .filters.headers import Headers
from .filters.rate_limit import RateLimit
from .filters.rate_limit_remote import RemoteRateLimit
from .filters.retry import Retry
from .filters.stores.memory import MemoryStore
from .proxy.accounting.estimate import Estimator
from .proxy.accounting.ledger import Ledger
from .proxy.clock import Clock, Deadlines, LoopClock, monotonic_time, wall_time
from .proxy.engine import Engine
from .proxy.graph import Graph

if TYPE_CHECKING:
    import asyncio
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from .config import Provider
    from .filters.guard_service import OpenService
    from .filters.stores.redis_answers import RedisAnswers
    from .filters.stores.redis_limits import RedisStore
    from .filters.stores.rules import RemoteStore, Store
    from .proxy.accounting.record import Reserved, Spent
    from .proxy.accounting.spool import Spool
    from .proxy.catalog import Listing
    from .proxy.dialect import Dialect
    from .proxy.exchange import Exchange
    from .proxy.filter import Filter
    from .proxy.plan import Target
    from .proxy.snapshot import StoreCounters
    from .proxy.upstream.call import Endpoint
    from .proxy.upstream.cluster import Cluster
    from .proxy.upstream.health import Verdict
    from .proxy.upstream.host import Host

DIALECTS: Mapping[str, type[Dialect]] = {"openai": OpenAI}
RETIRE_SECONDS = 1.0
"""Between two looks whether the hosts of an earlier config are still in use."""


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
    """What graphs share and reloads keep. A failed compile leaves it as it was."""

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

    def judge(self, verdict: Verdict) -> bool:
        """Take over what a check has found; returns whether that changes what is said of its provider."""
        return self._clusters.judge(verdict)

    def filters(self, config: GatewayConfig) -> FilterSet:
        """The filters of a config that may yet be refused. Raises ConfigError."""
        make = partial(make_filter, workers=config.workers, now=self._clock.monotonic, means=self._means)
        return FilterSet(config, make, self._filters)

    @property
    def links(self) -> list[Filter]:
        """The filters of the newest config."""
        return [link for _, link in self._filters.values()]

    def apply(self, config: GatewayConfig, filters: FilterSet) -> Retired:
        """Take `config` over. Returns what is no longer in it, for its last user to close."""
        before, self._filters = self.links, filters.kept
        kept = self.links
        gone = [link for link in before if not any(link is other for other in kept)]
        return Retired(self._clusters.update(config.providers, config.workers), gone)


def open_provider(provider: Provider, clock: Clock, deadlines: Deadlines) -> tuple[Endpoint, Dialect]:
    """A connection of its own to a provider, for what is asked beside exchanges, and its language."""
    dialect = DIALECTS[provider.dialect]()
    return open_endpoint(provider, dialect, clock, deadlines), dialect


class Means(NamedTuple):
    """What filters work with besides the time: what a call may use in tokens, where limits are counted (`remote`, where
    there is one), the time of the calendar, what a call may cost at a target, the spool (`hold` is for what goes out
    with the record of an exchange), connections to a service of the operator's, and answers in Redis, where they are
    kept there."""

    estimate: Callable[[Exchange], int] = lambda ex: 0
    store: Store = MemoryStore()
    wall: Callable[[], float] = wall_time
    foresee: Callable[[Exchange, Target, int | None], float | None] = lambda ex, target, output: None
    write: Callable[[Reserved | Spent], object] = lambda record: None
    hold: Callable[[Spent], object] = lambda record: None
    open_service: OpenService | None = None
    remote: RemoteStore | None = None
    open_answers: Callable[[CacheConfig], RedisAnswers | None] = lambda settings: None


def make_filter(
    settings: object,
    place: str = "",
    *,
    workers: int = 1,
    now: Callable[[], float] = monotonic_time,
    means: Means | None = None,
) -> Filter:
    """A filter from its settings, for one of `workers`; what it counts is kept under its `place`, `now` is the
    monotonic time. Without `means` it is only looked at. Raises ConfigError when a user's class cannot be had."""
    match settings:
        case AuthConfig():
            return Auth(settings)
        case CircuitBreakerConfig():
            return CircuitBreaker(settings, now=now)
        case RetryConfig():
            return Retry(settings, workers=workers)
        case AccessLogConfig():
            return AccessLog(settings, now=now)
        case GuardConfig():
            means = means or Means()
            return make_guard(settings, open_service=means.open_service, now=now)
        case HeadersConfig():
            return Headers(settings)
        case RateLimitConfig():
            means = means or Means()
            estimate = means.estimate
            if means.remote is not None:
                return RemoteRateLimit(settings, place=place, store=means.remote, monotonic=now, estimate=estimate)
            return RateLimit(settings, place=place, store=means.store, monotonic=now, estimate=estimate)
        case BudgetConfig():
            means = means or Means()
            needs = {
                "monotonic": now,
                "wall": means.wall,
                "foresee": means.foresee,
                "write": means.write,
                "hold": means.hold,
            }
            if means.remote is not None:
                return RemoteBudget(settings, place=place, store=means.remote, **needs)
            return Budget(settings, place=place, store=means.store, **needs)
        case CacheConfig():
            means = means or Means()
            answers = means.open_answers(settings)
            if answers is not None:
                return RemoteCache(settings, monotonic=now, wall=means.wall, answers=answers)
            return Cache(settings, monotonic=now, wall=means.wall)
        case UseConfig():
            return users_filter(settings)
    raise TypeError(f"no filter for {type(settings).__name__}")


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
        self._redis = self._open_redis()
        self.resources = Resources(self.clock, self.deadlines, self._rng, self._means())
        graph, _ = self._compile(self.config)
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
            graph, retired = self._compile(config)
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
            self._open_answers,
        )

    def _open_answers(self, settings: CacheConfig) -> RedisAnswers | None:
        stores = self.config.stores
        if stores.redis is None or not (settings.store == "redis" or (settings.store == "auto" and stores.in_redis)):
            return None
        from .filters.stores.redis_answers import open_answers  # as below

        return open_answers(
            stores.redis,
            self.clock,
            max_entry=settings.max_entry,
            ttl=settings.ttl.total_seconds(),
            name=self.worker,
        )

    async def _start_caches(self) -> None:
        for link in self.resources.links:
            if isinstance(link, RemoteCache):
                await link.start()

    def _open_redis(self) -> RedisStore | None:
        settings = self.config.stores.redis
        if settings is None or not self.config.stores.in_redis:
            return None
        from .filters.stores.redis_limits import open_store  # the driver costs 0.1 s and 19 MB

        place = int(self.worker) if self.worker.isdecimal() else 0
        return open_store(settings, self.clock, self._rng, workers=self.config.workers, place=place, name=self.worker)

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

    def _compile(self, config: GatewayConfig) -> tuple[Graph, Retired]:
        """Config to graph, and what it does not use any more. What may refuse comes first: then nothing has changed."""
        filters = self.resources.filters(config)
        prices = find_prices(config, self.clock)
        retired = self.resources.apply(config, filters)
        clusters = self.resources.clusters
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
