"""Are the endpoints well? Each is asked by itself, in the background, wherever `health_check` is written.

One task for each endpoint, on a connection of its own: a check never waits for a place among requests, and carries no
key. What the outcomes mean is decided by pure rules (proxy/upstream/health.py); here they are only brought about, told
to every worker when they change, and logged. Checks are rare while nothing is sent to a provider, and come back to
their pace within one interval of the first request.

Not here: what a worker does with an unhealthy endpoint (proxy/upstream/cluster.py), what requests say about one
(proxy/upstream/outlier.py).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import structlog

from ..proxy.errors import GatewayError
from ..proxy.upstream.call import UpstreamRequest
from ..proxy.upstream.fetch import fetch
from ..proxy.upstream.health import Health, HealthSettings, HealthState, Verdict
from .clusters import host_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

    from ..config import EndpointConfig, GatewayConfig, HealthCheck, Provider
    from ..proxy.clock import Clock
    from ..proxy.upstream.call import Endpoint

    OpenCheck = Callable[[Provider, EndpointConfig], Endpoint]
    """A connection to the root of an endpoint's server. Whoever opens it closes it."""

    Key = tuple[str, str]
    """Provider and URL."""

MOST_BYTES = 64 * 1024
"""Of an answer; what is longer is none."""
FIELDS = ((b"accept", b"*/*"), (b"accept-encoding", b"identity"), (b"user-agent", b"headgate-health-check"))
log = structlog.get_logger("headgate")


class Wanted(NamedTuple):
    """What makes a check the one it is."""

    check: HealthCheck
    http2: bool | str
    endpoint: str
    """By its name in counters and logs."""


class Watched:
    """One endpoint, and what has been found out about it. The counts have Envoy's names; they only grow."""

    __slots__ = (
        "attempt", "endpoint", "health", "network_failure", "passive_failure", "provider", "seen", "state", "told",
    )  # fmt: skip

    def __init__(self, provider: str, endpoint: str, check: HealthCheck) -> None:
        self.provider = provider
        self.endpoint = endpoint
        self.health = Health(settings(check))
        self.state = HealthState()
        self.told = True
        """What it was said to be last; until its first check it is taken for well."""
        self.seen = -1
        """Calls of its provider when it was checked last."""
        self.attempt = 0
        self.network_failure = 0
        """Checks without an answer in time."""
        self.passive_failure = 0
        """Times it asked to be left alone."""

    @property
    def verdict(self) -> Verdict:
        """For workers."""
        return Verdict(self.provider, self.endpoint, self.state.healthy)

    def counters(self) -> dict[str, int]:
        """By Envoy's names."""
        return {
            "health_check.attempt": self.attempt,
            "health_check.success": self.health.success,
            "health_check.failure": self.health.failure,
            "health_check.network_failure": self.network_failure,
            "health_check.passive_failure": self.passive_failure,
        }


def settings(check: HealthCheck) -> HealthSettings:
    """As the rules take them."""
    return HealthSettings(
        interval=check.interval.total_seconds(),
        timeout=check.timeout.total_seconds(),
        unhealthy_threshold=check.unhealthy_threshold,
        healthy_threshold=check.healthy_threshold,
        no_traffic_interval=check.no_traffic_interval.total_seconds(),
        expected_statuses=check.expected_statuses,
        retriable_statuses=check.retriable_statuses,
    )


class HealthWatch:
    """Checks the endpoints of the config that it follows, and tells `publish` of each that is found well or unwell.

    `calls` says how many calls a provider has had so far. The tasks end with `aclose`.
    """

    def __init__(
        self,
        clock: Clock,
        rng: Random,
        open_check: OpenCheck,
        publish: Callable[[Verdict], object],
        calls: Callable[[str], int],
    ) -> None:
        self._clock = clock
        self._rng = rng
        self._open = open_check
        self._publish = publish
        self._calls = calls
        self._watched: dict[Key, Watched] = {}
        self._tasks: dict[Key, tuple[Wanted, asyncio.Task[None]]] = {}
        self._running: set[asyncio.Task[None]] = set()
        """Those that were told to end included."""

    @property
    def verdicts(self) -> list[Verdict]:
        """Of all endpoints that have been checked: what a worker must know that is new, or whose config is."""
        return [one.verdict for one in self._watched.values() if one.state.checked]

    def counters(self) -> dict[tuple[str, str], dict[str, int]]:
        """By provider and endpoint."""
        return {(one.provider, one.endpoint): one.counters() for one in self._watched.values()}

    def follow(self, config: GatewayConfig) -> None:
        """Check the endpoints of `config` from now on. One that is still there goes on as it was, under new settings
        where they changed; the others are forgotten. What is known is told again: hosts may be new."""
        wanted = dict(_wanted(config))
        stale = [key for key, (how, _) in self._tasks.items() if key not in wanted or wanted[key] != how]
        for key in stale:
            self._tasks.pop(key)[1].cancel()
        for key in [key for key in self._watched if key not in wanted]:
            del self._watched[key]
        loop = asyncio.get_running_loop()
        for key, how in wanted.items():
            if key in self._tasks:
                continue
            provider = config.providers[key[0]]
            place = next(one for one in provider.places if one.url == key[1])
            watched = self._watched.get(key)
            if watched is None:
                watched = self._watched[key] = Watched(key[0], how.endpoint, how.check)
            watched.endpoint, watched.health.settings = how.endpoint, settings(how.check)
            task = loop.create_task(self._watch(watched, provider, place))
            self._tasks[key] = how, task
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        self.tell()

    def tell(self) -> None:
        """Say once more what is known."""
        for verdict in self.verdicts:
            self._publish(verdict)

    def leave_alone(self, provider: str, endpoint: str) -> None:
        """The endpoint has said in an answer that it is to be left alone: unwell until checks say otherwise. Ignored
        where it is not checked."""
        for one in self._watched.values():
            if (one.provider, one.endpoint) == (provider, endpoint) and one.health.fail(one.state):
                one.passive_failure += 1
                self._publish(one.verdict)
                self._log(one, "it asked to be left alone")

    async def aclose(self) -> None:
        """Stop checking."""
        self._tasks.clear()
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _watch(self, watched: Watched, provider: Provider, place: EndpointConfig) -> None:
        endpoint = self._open(provider, place)
        try:
            await self._clock.sleep(watched.health.first_check_in(self._rng))
            while True:
                watched.seen = self._calls(watched.provider)
                try:
                    await self._check(watched, provider, endpoint)
                except Exception as error:  # a bug, which says nothing about the endpoint
                    log.error("health_check_failed", provider=watched.provider, exc_info=error)
                await self._rest(watched)
        finally:
            await endpoint.aclose()

    async def _rest(self, watched: Watched) -> None:
        """Until the next check is due, which it is sooner once there is traffic."""
        health, state, clock = watched.health, watched.state, self._clock
        due = clock.monotonic() + health.next_check_in(state, self._rng, traffic=False)
        while (left := due - clock.monotonic()) > 0:
            await clock.sleep(min(left, health.next_check_in(state, self._rng, traffic=True)))
            if self._calls(watched.provider) != watched.seen:
                return

    async def _check(self, watched: Watched, provider: Provider, endpoint: Endpoint) -> None:
        """Ask once, and tell what has changed by it."""
        check = provider.health_check
        assert check is not None  # noqa: S101 - narrows for the type checker: else nobody would ask
        watched.attempt += 1
        request = UpstreamRequest(b"GET", check.path.encode("ascii"), list(FIELDS), b"")
        status: int | None = None
        seconds = watched.health.settings.timeout
        try:
            head, _ = await fetch(endpoint, request, most=MOST_BYTES, seconds=seconds)
        except GatewayError as error:
            reason = str(error.detail or error)
        except TimeoutError:
            reason = f"no answer within {seconds:g} s"
        else:
            status = head.status
            reason = f"status {status}"
        if status is None:
            watched.network_failure += 1
        first = not watched.state.checked
        if watched.health.on_check(watched.state, status) or first:
            self._publish(watched.verdict)
        self._log(watched, reason)

    def _log(self, watched: Watched, reason: str) -> None:
        """Say that it has become well, or not and why."""
        healthy = watched.state.healthy
        if healthy is watched.told:
            return
        watched.told = healthy
        if healthy:
            log.info("endpoint_healthy", provider=watched.provider, endpoint=watched.endpoint)
        else:
            log.warning("endpoint_unhealthy", provider=watched.provider, endpoint=watched.endpoint, reason=reason)


def _wanted(config: GatewayConfig) -> Iterator[tuple[Key, Wanted]]:
    for name, provider in config.providers.items():
        if provider.health_check is not None and not provider.unconfigured:
            for place in provider.places:
                yield (name, place.url), Wanted(provider.health_check, provider.http2, host_name(provider, place))
