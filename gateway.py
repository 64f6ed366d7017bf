"""The composition root: a config becomes a graph over resources, and an engine that runs exchanges under it.

`Resources` are what must outlive a config: clusters with their connections, and filters with their counters. They are
keyed by what makes them what they are. A reload that leaves a cluster's address and credential alone keeps the object,
whatever else changed; a new identity makes a new one, and the old finishes its calls.

Here, and only here, are concrete dialects, filters and endpoints known by name.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from .config import AuthConfig, ConfigError, GatewayConfig, Problem, RetryConfig, UseConfig, load_config
from .dialects.mock import MockEndpoint
from .dialects.openai import OpenAI
from .filters.auth import Auth
from .filters.retry import Retry
from .proxy.accounting.estimate import Estimator
from .proxy.accounting.ledger import Ledger
from .proxy.accounting.price_file import PriceFileError, read_price_file
from .proxy.accounting.price_table import load_price_table
from .proxy.accounting.prices import own_price
from .proxy.accounting.spool import Spool
from .proxy.chain import Chain, misplaced, prefix_length
from .proxy.clock import Clock, Deadlines, LoopClock
from .proxy.engine import Engine
from .proxy.faces import Face, FaceTable
from .proxy.filter import Filter
from .proxy.graph import Graph, Route
from .proxy.model_list import PATH, list_models, retrieve_model
from .proxy.models import ModelTable, ModelTarget
from .proxy.upstream.cluster import Cluster, Timeouts
from .proxy.upstream.http_endpoint import HttpEndpoint
from .proxy.upstream.pool import IdleQuota, PoolLimits

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from .config import FilterEntry, Price, Provider
    from .config import Target as TargetConfig
    from .proxy.accounting.price_lookup import PriceTable
    from .proxy.dialect import Dialect
    from .proxy.upstream.call import Endpoint

DIALECTS: Mapping[str, type[Dialect]] = {"openai": OpenAI}
MOCK_PRICE = own_price({"input": 0.0, "output": 0.0}, source="mock")
"""The mock is known to be free, which is not the same as a price that nobody knows."""
FACES = (
    Face("chat", "POST", "/v1/chat/completions", operation="chat", reads_body=True, repeatable=True, metered=True),
    Face("models", "GET", PATH, handler=list_models),
    Face("models", "GET", PATH + "/", handler=retrieve_model),
)


class Resources:
    """What graphs share and reloads keep."""

    def __init__(self, clock: Clock, deadlines: Deadlines) -> None:
        self.clock = clock
        self.deadlines = deadlines
        self.dialects: dict[str, Dialect] = {name: kind() for name, kind in DIALECTS.items()}
        self._quota = IdleQuota()
        self._clusters: dict[str, tuple[tuple[object, ...], Cluster]] = {}
        self._filters: dict[str, tuple[object, Filter]] = {}

    @property
    def clusters(self) -> list[Cluster]:
        """The clusters of the newest config."""
        return [cluster for _, cluster in self._clusters.values()]

    async def apply(self, config: GatewayConfig) -> dict[str, Cluster]:
        """The clusters of `config`: kept where they are the same, changed in place where only parameters differ."""
        old, self._clusters = self._clusters, {}
        for name, provider in config.providers.items():
            key = provider.api_key.reveal() if provider.api_key is not None else None
            identity = (provider.base_url, provider.dialect, key)
            kept = old.get(name)
            if kept is not None and kept[0] == identity:
                cluster = old.pop(name)[1]
                self._update(cluster, provider)
            else:
                cluster = self._make(name, provider)
            self._clusters[name] = (identity, cluster)
        for _, cluster in old.values():
            await cluster.aclose()
        return {name: cluster for name, (_, cluster) in self._clusters.items()}

    def filter(self, entry: FilterEntry, config: object, name: str) -> Filter:
        """The filter of an entry: the same object, counters and all, as long as its config is equal."""
        kept = self._filters.get(name)
        if kept is not None and kept[0] == config:
            return kept[1]
        made = make_filter(config)
        made.name = entry.name
        self._filters[name] = (config, made)
        return made

    async def aclose(self) -> None:
        """Close every pool."""
        for cluster in self.clusters:
            await cluster.aclose()

    def _make(self, name: str, provider: Provider) -> Cluster:
        dialect = self.dialects[provider.dialect]
        endpoint: Endpoint
        if provider.is_mock:
            endpoint = MockEndpoint()
        else:
            key = provider.api_key
            endpoint = HttpEndpoint(
                provider.base_url,
                clock=self.clock,
                deadlines=self.deadlines,
                credential=dialect.credential(key.reveal()) if key else (),
                limits=_pool_limits(provider),
                quota=self._quota,
            )
        return Cluster(
            name,
            dialect,
            [endpoint],
            host=provider.base_url,
            timeouts=_timeouts(provider),
            unconfigured=provider.unconfigured,
            credential_origin=provider.api_key.origin if provider.api_key is not None else None,
            has_credential=bool(provider.api_key),
            stand_in=provider.is_mock,
            price_as=provider.price_as,
            price=MOCK_PRICE if provider.is_mock else None,
        )

    @staticmethod
    def _update(cluster: Cluster, provider: Provider) -> None:
        cluster.timeouts = _timeouts(provider)
        cluster.price_as = provider.price_as
        for endpoint in cluster.endpoints:
            if isinstance(endpoint, HttpEndpoint):
                endpoint.update(_pool_limits(provider))


def make_filter(config: object) -> Filter:
    """A filter from its config. Raises ConfigError when a user's class cannot be had."""
    match config:
        case AuthConfig():
            return Auth(config)
        case RetryConfig():
            return Retry(config)
        case UseConfig():
            return _users_filter(config)
    raise TypeError(f"no filter for {type(config).__name__}")


def _users_filter(config: UseConfig) -> Filter:
    module_name, _, class_name = config.target.partition(":")
    where = f"filters: use: '{config.target}'"
    try:
        kind = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise _refused(f"{where}: cannot be imported: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Filter)):
        raise _refused(f"{where}: is not a subclass of headgate.Filter")
    try:
        return kind.from_config(config.config)
    except (TypeError, ValueError) as error:
        raise _refused(f"{where}: its config was refused: {error}") from error


def _refused(message: str) -> ConfigError:
    return ConfigError((Problem(file="gateway.yaml", line=0, column=0, path="", message=message),))


class Gateway:
    """One gateway in one event loop: `start`, then hand `engine` to an edge; `reload`; `drain`; `aclose`.

    `config` is a loaded value or a path. `spool` False keeps no records. Everything is built on the running loop,
    so construct freely and start inside it.
    """

    def __init__(
        self,
        config: GatewayConfig | str | os.PathLike[str] | None = None,
        *,
        worker: str = "0",
        spool: bool = True,
        clock: Clock | None = None,
        rng: Random | None = None,
    ) -> None:
        self.config = (
            config if isinstance(config, GatewayConfig) else load_config(Path(config) if config is not None else None)
        )
        self.worker = worker
        self._keeps_records = spool
        self._clock = clock
        self._rng = rng or Random()  # noqa: S311 - jitter, not secrets
        self.clock: Clock
        self.deadlines: Deadlines
        self.resources: Resources
        self.engine: Engine
        self.spool: Spool | None = None
        self.ready = False

    async def start(self) -> None:
        """Build everything. Raises ConfigError, PriceTableError, OSError (the spool's directory)."""
        self.clock = self._clock or LoopClock()
        self.deadlines = Deadlines(self.clock)
        self.resources = Resources(self.clock, self.deadlines)
        graph = await self._compile(self.config)
        if self._keeps_records:
            settings = self.config.events.spool
            self.spool = Spool(
                settings.path,
                self.worker,
                max_size=settings.max_size,
                on_full=settings.on_full,
                monotonic=self.clock.monotonic,
            )
        self.engine = Engine(
            graph,
            face_dialect=self.resources.dialects["openai"],
            clock=self.clock,
            deadlines=self.deadlines,
            rng=self._rng,
            ledger=Ledger(self.spool, Estimator(), self.worker),
        )
        self.ready = True

    async def reload(self, config: GatewayConfig) -> None:
        """Serve new exchanges under `config`. Raises ConfigError and leaves everything as it was."""
        check_reload(self.config, config)
        self.engine.graph = await self._compile(config)
        self.config = config

    async def drain(self) -> int:
        """Stop taking new work and wait for what runs, at most `limits.drain`; returns how many were left."""
        self.ready = False
        return await self.engine.drain(self.config.limits.drain.total_seconds())

    async def aclose(self) -> None:
        """End what is left and let go of everything; each exchange has its record afterwards."""
        self.ready = False
        await self.engine.aclose()
        await self.resources.aclose()
        if self.spool is not None:
            self.spool.close()

    async def _compile(self, config: GatewayConfig) -> Graph:
        """Config to graph. Filters and prices first: they may refuse, and then nothing has changed."""
        if config.files:
            _make_importable(config.files[0].resolve().parent)
        prefix, default, routes = self._chains(config)
        prices = _prices(config, self.clock)
        clusters = await self.resources.apply(config)
        return Graph(
            version=config.digest,
            faces=FaceTable(FACES),
            prefix=prefix,
            routes=routes,
            default=default,
            models=_models(config, clusters),
            prices=prices,
            clusters=clusters,
            body_limit=config.limits.body,
            json_depth=config.limits.json_depth,
            auth_open=config.auth_is_open,
            own_fields=frozenset((config.auth.header.lower().encode(),)) if config.auth is not None else frozenset(),
        )

    def _chains(self, config: GatewayConfig) -> tuple[Chain, Route, list[Route]]:
        make = self.resources.filter
        filters = [make(entry, entry.config, entry.name) for entry in config.filters]
        kinds = [entry.kind for entry in config.filters]
        if "auth" in kinds[1:]:
            raise _refused(f"filters[{kinds.index('auth')}]: 'auth' must come first")
        for at, later in misplaced(kinds, [link.after for link in filters]):
            raise _refused(f"filters[{at}]: '{kinds[at]}' must come after '{later}'")
        overridden = frozenset(name for route in config.routes for name in route.filters)
        length = prefix_length(filters, overridden)
        routes: list[Route] = []
        for written in config.routes:
            links: list[Filter] = []
            for entry, link in zip(config.filters, filters, strict=True):
                override = written.filters.get(entry.name)
                if override is None:
                    links.append(link)
                elif override != "off":
                    links.append(make(entry, override, f"{written.name}/{entry.name}"))
            match = written.match
            routes.append(
                Route(
                    written.name,
                    Chain(links, length),
                    path=match.path,
                    model=match.model,
                    key=match.key,
                    provider=written.provider,
                )
            )
        return Chain(filters[:length]), Route("default", Chain(filters, length)), routes


def check_startable(config: GatewayConfig) -> None:
    """What a supervisor checks before it starts workers: filters can be built, and there is a price table.

    Raises ConfigError, PriceTableError.
    """
    if config.files:
        _make_importable(config.files[0].resolve().parent)
    for entry in config.filters:
        make_filter(entry.config)
    load_price_table(wall=lambda: 0.0)


def check_reload(old: GatewayConfig, new: GatewayConfig) -> None:
    """Refuse what only a restart can change, by name."""
    fixed = (
        ("listeners", old.listeners, new.listeners),
        ("workers", old.workers, new.workers),
        ("events", old.events, new.events),
    )
    changed = [name for name, before, after in fixed if before != after]
    if changed:
        raise _refused(f"{', '.join(changed)}: a change needs a restart")


def _prices(config: GatewayConfig, clock: Clock) -> PriceTable:
    try:
        file = read_price_file(config.prices.file) if config.prices.file is not None else None
    except (PriceFileError, OSError) as error:
        raise _refused(f"prices.file: {error}") from error
    return load_price_table(wall=clock.wall, file=file)


def _models(config: GatewayConfig, clusters: Mapping[str, Cluster]) -> ModelTable:
    entries: dict[str, Sequence[ModelTarget]] = {
        name: [_target(target, clusters) for target in model.targets] for name, model in config.models.items()
    }
    direct = frozenset(name for name, provider in config.providers.items() if provider.direct)
    return ModelTable(entries, clusters, direct)


def _target(target: TargetConfig, clusters: Mapping[str, Cluster]) -> ModelTarget:
    price = own_price(_rates(target.price)) if target.price is not None else None
    return ModelTarget(clusters[target.provider], target.model, target.priority, price)


def _rates(price: Price) -> dict[str, float]:
    return {name: float(value) for name, value in price.model_dump().items() if value is not None}


def _timeouts(provider: Provider) -> Timeouts:
    times = provider.timeouts
    return Timeouts(*(getattr(times, name).total_seconds() for name in Timeouts._fields))


def _pool_limits(provider: Provider) -> PoolLimits:
    return PoolLimits(
        max_connections=provider.limits.connections,
        max_pending=provider.limits.pending,
        connect_timeout=provider.timeouts.connect.total_seconds(),
    )


def _make_importable(directory: Path) -> None:
    """A user's filter lies beside the file that names it."""
    if str(directory) not in sys.path:
        sys.path.append(str(directory))
