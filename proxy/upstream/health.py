"""Active health: what a check's outcome means, and when the next one is due.

A machine of two states per endpoint, and both ways out of a state are counted in a row, so a single lost packet does
not take an endpoint away. Two things decide at once, as in Envoy: the first success of a new endpoint, and an answer
with a status that is neither expected nor retriable, because an endpoint that says so knows better than we do. An
endpoint is unhealthy until its first check; a cluster in which nobody has been checked yet is in panic and serves.

Not here: sending the check, and what requests say about an endpoint (outlier.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection
    from random import Random


class HealthSettings(NamedTuple):
    """Times in seconds. Envoy's names; its times and thresholds have no defaults there."""

    interval: float = 5.0
    timeout: float = 1.0
    """A check without an answer by then has failed."""
    unhealthy_threshold: int = 3
    healthy_threshold: int = 1
    no_traffic_interval: float = 60.0
    """For a healthy endpoint while its cluster has no traffic; not shorter than `interval`."""
    edge_interval: float | None = None
    """While a change is being counted, and once after it; None is `interval`."""
    jitter: float = 0.1
    """Up to this part of the interval is added, so that checks of many endpoints and gateways drift apart."""
    expected_statuses: Collection[int] = (200,)
    retriable_statuses: Collection[int] = ()
    """Counted towards `unhealthy_threshold`, as no answer is."""


class Verdict(NamedTuple):
    """What every worker is told of one endpoint, by the names that counters and logs use."""

    provider: str
    endpoint: str
    healthy: bool


class HealthState:
    """What checks have said about one endpoint."""

    __slots__ = ("checked", "edge", "healthy", "in_a_row")

    def __init__(self) -> None:
        self.healthy = False
        self.checked = False
        self.in_a_row = 0
        """Outcomes against the present state since the last one for it."""
        self.edge = False
        """A change is being counted, or the last outcome was one."""

    def __repr__(self) -> str:
        return f"<HealthState {'healthy' if self.healthy else 'unhealthy'}{'' if self.checked else ', not checked'}>"


class Health:
    """The rules of one cluster; `success` and `failure` count outcomes."""

    __slots__ = ("failure", "settings", "success")

    def __init__(self, settings: HealthSettings) -> None:
        self.settings = settings
        self.success = 0
        self.failure = 0

    def on_check(self, state: HealthState, status: int | None) -> bool:
        """The outcome of a check: its status, or None without an answer in time. True when `healthy` has changed."""
        first, state.checked = not state.checked, True
        passed = status in self.settings.expected_statuses
        if passed:
            self.success += 1
            enough = 1 if first else self.settings.healthy_threshold
        else:
            self.failure += 1
            counted = status is None or status in self.settings.retriable_statuses
            enough = self.settings.unhealthy_threshold if counted else 1
        if passed == state.healthy:
            state.in_a_row = 0
            state.edge = False
            return False
        state.in_a_row += 1
        state.edge = True
        return state.in_a_row >= enough and self._turn(state)

    def fail(self, state: HealthState) -> bool:
        """A request's answer said the endpoint is to be left alone (`x-envoy-immediate-health-check-fail`): unhealthy
        until checks say otherwise. True when that changed it."""
        return state.healthy and self._turn(state)

    def next_check_in(self, state: HealthState, rng: Random, *, traffic: bool) -> float:
        """Seconds to wait after a check. `traffic`: the cluster has had requests since then.

        Silence only excuses who is healthy: an endpoint that is out gets no requests, and must not wait for some.
        """
        settings = self.settings
        wait = settings.interval
        if state.edge:
            wait = settings.interval if settings.edge_interval is None else settings.edge_interval
        elif state.healthy and not traffic:
            wait = max(wait, settings.no_traffic_interval)
        return wait * (1 + rng.uniform(0, settings.jitter))

    def first_check_in(self, rng: Random) -> float:
        """Seconds to wait before the very first check: at once, but for the jitter."""
        return rng.uniform(0, self.settings.jitter) * self.settings.interval

    @staticmethod
    def _turn(state: HealthState) -> bool:
        state.healthy = not state.healthy
        state.in_a_row = 0
        state.edge = True
        return True
