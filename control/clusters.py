"""The clusters of a config, and what of them a new config keeps.

Two things outlive a config. A cluster, as long as its dialect, its keys and, where it has just one address, that
address stay: its counters, its limits, who rests. And a host, as long as its provider still names its URL: connections
cost the most to make anew, so a host is even handed from a cluster to the one that takes its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from ..dialects.mock import CREATED, MockEndpoint
from ..proxy.accounting.prices import own_price
from ..proxy.catalog import ListedModel
from ..proxy.upstream.balance import Balancing
from ..proxy.upstream.cluster import Cluster, Timeouts
from ..proxy.upstream.credentials import Credential
from ..proxy.upstream.host import Host
from ..proxy.upstream.http_endpoint import DEFAULT_PORTS, HttpEndpoint
from ..proxy.upstream.limits import LimitSettings
from ..proxy.upstream.outlier import OutlierSettings
from ..proxy.upstream.policies import SlowStart
from ..proxy.upstream.pool import IdleQuota, PoolLimits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from random import Random

    from ..config import EndpointConfig, Provider
    from ..proxy.clock import Clock, Deadlines
    from ..proxy.dialect import Dialect
    from ..proxy.upstream.health import Verdict
    from ..proxy.upstream.tls import Http2

MOCK_PRICE = own_price({"input": 0.0, "output": 0.0}, source="mock")
"""The mock is known to be free, which is not the same as a price that nobody knows."""
MOCK_MODELS = {"mock": ListedModel("mock", CREATED)}


class Identity(NamedTuple):
    """What makes a cluster the one it is."""

    dialect: str
    base_url: str | None
    keys: tuple[tuple[str, str, int], ...]
    policy: str
    balancing: Balancing
    http2: Http2


class _Kept(NamedTuple):
    identity: Identity
    cluster: Cluster
    hosts: dict[str, Host]
    """By URL."""


class ClusterSet:
    """The clusters of the newest config. `update` takes the next one over; hosts that it no longer has are the caller's
    to close, once no exchange can reach them."""

    def __init__(self, dialects: Mapping[str, Dialect], clock: Clock, deadlines: Deadlines, rng: Random) -> None:
        self._dialects = dialects
        self._clock = clock
        self._deadlines = deadlines
        self._rng = rng
        self._quota = IdleQuota()
        self._kept: dict[str, _Kept] = {}

    @property
    def clusters(self) -> dict[str, Cluster]:
        """By provider, in config order."""
        return {name: kept.cluster for name, kept in self._kept.items()}

    def update(self, providers: Mapping[str, Provider], workers: int) -> list[Host]:
        """Take `providers` over for one of `workers`; returns the hosts that are no longer in them."""
        old, self._kept = (
            self._kept,
            {name: self._next(name, provider, self._kept.get(name), workers) for name, provider in providers.items()},
        )
        hosts = {id(host) for kept in self._kept.values() for host in kept.hosts.values()}
        return [host for kept in old.values() for host in kept.hosts.values() if id(host) not in hosts]

    def judge(self, verdict: Verdict) -> bool:
        """Take over what a check has found; returns whether that changes what is said of its provider. Ignored where
        nobody is asked any more."""
        kept = self._kept.get(verdict.provider)
        if kept is None or not kept.cluster.checked:
            return False
        before = kept.cluster.health
        kept.cluster.set_health(verdict.endpoint, verdict.healthy, self._clock.monotonic())
        return kept.cluster.health != before

    def _next(self, name: str, provider: Provider, kept: _Kept | None, workers: int) -> _Kept:
        identity = _identity(provider)
        hosts = {place.url: self._host(provider, place, kept) for place in provider.places}
        if provider.is_mock:
            hosts = {"mock:": kept.hosts["mock:"] if kept and "mock:" in kept.hosts else Host(MockEndpoint())}
        if kept is not None and kept.identity == identity:
            cluster = kept.cluster
            cluster.set_hosts(tuple(hosts.values()))  # also where they are the same: their weights may not be
        else:
            cluster = self._cluster(name, provider, hosts.values(), kept.cluster if kept is not None else None)
        self._apply(cluster, provider, workers)
        return _Kept(identity, cluster, hosts)

    def _host(self, provider: Provider, place: EndpointConfig, kept: _Kept | None) -> Host:
        before = kept.hosts.get(place.url) if kept is not None else None
        same = kept is not None and kept.identity.http2 == provider.http2
        host = before if same else None
        if host is None:
            endpoint = HttpEndpoint(
                place.url, clock=self._clock, deadlines=self._deadlines, quota=self._quota, http2=provider.http2
            )
            host = Host(endpoint, healthy=_starts_healthy(provider, before, kept))
            host.since = self._clock.monotonic()
        host.name = host_name(provider, place)
        host.weight, host.priority, host.region = place.weight, place.priority, place.region or ""
        host.metadata = dict(place.metadata)
        return host

    def _cluster(self, name: str, provider: Provider, hosts: Iterable[Host], before: Cluster | None) -> Cluster:
        dialect = self._dialects[provider.dialect]
        keys = [
            Credential(one.name, tuple(dialect.credential(one.key.reveal())), weight=one.weight)
            for one in provider.credentials
        ]
        return Cluster(
            name,
            dialect,
            tuple(hosts),
            address=provider.address,
            host=provider.base_url or "",
            credentials=keys,
            before=before,
            policy=provider.load_balancing,
            balancing=_balancing(provider),
            deadlines=self._deadlines,
            rng=self._rng,
            stand_in=provider.is_mock,
            price=MOCK_PRICE if provider.is_mock else None,
            listed=MOCK_MODELS if provider.is_mock else None,
        )

    def _apply(self, cluster: Cluster, provider: Provider, workers: int) -> None:
        """All that may change without a new cluster, at the start as at a reload."""
        cluster.checked = provider.health_check is not None
        cluster.unconfigured = provider.unconfigured
        cluster.timeouts = _timeouts(provider)
        cluster.price_as = provider.price_as
        cluster.credential_origin = provider.credential_origin
        limits = provider.limits
        queue = limits.queue_timeout.total_seconds() if limits.on_overflow == "queue" else 0.0
        cluster.set_limits(_limits(provider, workers), queue, self._clock.monotonic())
        cluster.set_adaptive(limits.adaptive)
        cluster.set_outliers(_outliers(provider))
        for host in cluster.hosts:
            if not cluster.checked:
                cluster.set_health(host.name, True, self._clock.monotonic())
            if isinstance(host.endpoint, HttpEndpoint):
                host.endpoint.update(_pool_limits(provider, workers))


def open_endpoint(provider: Provider, dialect: Dialect, clock: Clock, deadlines: Deadlines) -> HttpEndpoint:
    """One connection of its own to a provider's first endpoint, with its first key, for what is asked beside
    exchanges."""
    keys = provider.credentials
    return HttpEndpoint(
        provider.address,
        clock=clock,
        deadlines=deadlines,
        credential=dialect.credential(keys[0].key.reveal()) if keys else (),
        limits=PoolLimits(1, 1, connect_timeout=provider.timeouts.connect.total_seconds()),
        http2=provider.http2,
    )


def open_check(clock: Clock, deadlines: Deadlines, provider: Provider, place: EndpointConfig) -> HttpEndpoint:
    """One connection of its own to the root of an endpoint's server, without a key, for checks."""
    check = provider.health_check
    timeout = (check.timeout if check is not None else provider.timeouts.connect).total_seconds()
    return HttpEndpoint(
        _address(place.url),
        clock=clock,
        deadlines=deadlines,
        limits=PoolLimits(1, 1, connect_timeout=timeout),
        http2=provider.http2,
    )


def open_url(clock: Clock, deadlines: Deadlines, url: str) -> HttpEndpoint:
    """One connection to the server of a URL, without a key."""
    return HttpEndpoint(_address(url), clock=clock, deadlines=deadlines, limits=PoolLimits(1, 1, connect_timeout=3.0))


def open_service(clock: Clock, deadlines: Deadlines, url: str, connections: int, seconds: float) -> HttpEndpoint:
    """Connections to the server of a URL, without a key, for what a filter asks while a request waits."""
    limits = PoolLimits(connections, connections, connect_timeout=seconds)
    return HttpEndpoint(_address(url), clock=clock, deadlines=deadlines, limits=limits)


def host_name(provider: Provider, place: EndpointConfig) -> str:
    """What counters, logs and /clusters call an endpoint: scheme, host and port, and the path where that alone tells
    it from another of the same provider."""
    address = _address(place.url)
    return address if sum(_address(other.url) == address for other in provider.places) == 1 else place.url


def _address(base_url: str) -> str:
    url = urlsplit(base_url)
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    return f"{url.scheme}://{host}:{url.port or DEFAULT_PORTS[url.scheme]}"


def _starts_healthy(provider: Provider, before: Host | None, kept: _Kept | None) -> bool:
    """Whether a host is used before its first check: unless it joins others that are there, for somebody must serve."""
    if before is not None:
        return before.healthy
    joins = kept is not None and any(place.url in kept.hosts for place in provider.places)
    return provider.health_check is None or not joins


def _identity(provider: Provider) -> Identity:
    keys = tuple((one.name, one.key.reveal(), one.weight) for one in provider.credentials)
    return Identity(
        provider.dialect, provider.base_url, keys, provider.load_balancing, _balancing(provider), provider.http2
    )


def _balancing(provider: Provider) -> Balancing:
    window = provider.slow_start.total_seconds() if provider.slow_start is not None else 0.0
    return Balancing(SlowStart(window), panic_threshold=provider.panic_threshold)


def _timeouts(provider: Provider) -> Timeouts:
    times = provider.timeouts
    return Timeouts(*(getattr(times, name).total_seconds() for name in Timeouts._fields))


def _limits(provider: Provider, workers: int) -> LimitSettings:
    """Of one worker; rounded up, so that each may make a call."""
    limits = provider.limits
    return LimitSettings(
        -(-limits.requests // workers),
        -(-limits.tokens // workers) if limits.tokens is not None else None,
        -(-limits.pending // workers),
    )


def _outliers(provider: Provider) -> OutlierSettings:
    found = provider.outlier_detection
    return OutlierSettings(
        consecutive_5xx=found.consecutive_5xx,
        consecutive_gateway_failure=found.consecutive_gateway_failure,
        interval=found.interval.total_seconds(),
        base_ejection_time=found.base_ejection_time.total_seconds(),
        max_ejection_time=found.max_ejection_time.total_seconds(),
        max_ejection_percent=found.max_ejection_percent,
        enforcing_success_rate=found.success_rate_stdev_factor > 0,
        success_rate_minimum_hosts=found.success_rate_minimum_hosts,
        success_rate_request_volume=found.success_rate_request_volume,
        success_rate_stdev_factor=found.success_rate_stdev_factor,
        enforcing_failure_percentage=found.failure_percentage_threshold > 0,
        failure_percentage_threshold=found.failure_percentage_threshold,
        failure_percentage_minimum_hosts=found.failure_percentage_minimum_hosts,
        failure_percentage_request_volume=found.failure_percentage_request_volume,
    )


def _pool_limits(provider: Provider, workers: int) -> PoolLimits:
    """Of one worker; rounded up, so that each may have a connection."""
    return PoolLimits(
        max_connections=-(-provider.limits.connections // workers),
        max_pending=-(-provider.limits.pending // workers),
        connect_timeout=provider.timeouts.connect.total_seconds(),
        keepalive_interval=provider.http2_keepalive.interval.total_seconds(),
        keepalive_timeout=provider.http2_keepalive.timeout.total_seconds(),
        stall_timeout=provider.timeouts.idle.total_seconds(),
    )
