"""Passive health: an endpoint that fails where others do not is left out for a while.

Counting alone decides. Failures in a row eject at once; success rates and failure percentages are compared with those
of the other endpoints at each interval. The time out grows with each ejection and shrinks again with each interval
that passes without one. However bad things look, only a part of the endpoints is ejected, and never the last available
one unless told: a failing endpoint is better than none, and what fails everywhere is not an endpoint's fault.

Not here: active checks (health.py), targets (the circuit_breaker filter), 401 and 429, which are about a credential
(credentials.py) and count as success.

Source: Envoy's outlier detection, its names and defaults, but `max_ejection_percent` is 50, because LLM clusters are
small, and a gateway failure is enforced.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

    from ..errors import GatewayError
    from .balance import Member

Result = Literal["ok", "5xx", "gateway"]
"""How a try ended: `gateway` is 502, 503, 504 and whatever gave no answer or no whole one (connect, reset, time-out);
`5xx` any other of the provider's; `ok` the rest, 4xx included."""

Cause = Literal["consecutive_5xx", "consecutive_gateway_failure", "success_rate", "failure_percentage"]
_GATEWAY_FAILURES = frozenset((502, 503, 504))
CAUSES: tuple[Cause, ...] = ("consecutive_5xx", "consecutive_gateway_failure", "success_rate", "failure_percentage")


class OutlierSettings(NamedTuple):
    """Times in seconds, percentages 0 to 100."""

    consecutive_5xx: int = 5
    """Failures of any kind in a row; 0 turns it off."""
    consecutive_gateway_failure: int = 5
    """Gateway failures in a row; 0 turns it off."""
    interval: float = 10.0
    base_ejection_time: float = 30.0
    max_ejection_time: float = 300.0
    max_ejection_time_jitter: float = 0.0
    max_ejection_percent: float = 50.0
    always_eject_one: bool = False
    """The first may be ejected whatever the percentage, even when nobody else is available."""
    enforcing_success_rate: bool = True
    success_rate_minimum_hosts: int = 5
    success_rate_request_volume: int = 100
    success_rate_stdev_factor: float = 1900.0
    """Thousandths of a standard deviation below the mean."""
    enforcing_failure_percentage: bool = False
    failure_percentage_threshold: float = 85.0
    failure_percentage_minimum_hosts: int = 5
    failure_percentage_request_volume: int = 50


class OutlierState:
    """What is known of one endpoint."""

    __slots__ = (
        "ejected",
        "ejections",
        "failed",
        "failures",
        "gateway_failures",
        "member",
        "ok",
        "success_rate",
        "until",
    )

    def __init__(self, member: Member) -> None:
        self.member = member
        self.ejected = False
        self.until = 0.0
        """Monotonic seconds from which the next sweep takes it back."""
        self.ejections = 0
        """What the next ejection's time is multiplied by; falls by one with each quiet interval."""
        self.failures = 0
        self.gateway_failures = 0
        self.failed = 0
        """Results of this interval: failures and successes."""
        self.ok = 0
        self.success_rate = -1.0
        """Per cent over the last interval; -1 when it saw too little."""

    @property
    def total(self) -> int:
        """Results of this interval."""
        return self.failed + self.ok

    def __repr__(self) -> str:
        return f"<OutlierState {self.member.name}{' ejected' if self.ejected else ''}>"


class Outlier:
    """The detector of one cluster. `detected` and `enforced` count by cause; `overflow` ejections that were refused."""

    __slots__ = ("_rng", "detected", "enforced", "overflow", "settings", "states")

    def __init__(self, settings: OutlierSettings, states: Iterable[OutlierState], rng: Random) -> None:
        self.settings = settings
        self.states = list(states)
        self._rng = rng
        self.detected: dict[Cause, int] = dict.fromkeys(CAUSES, 0)
        self.enforced: dict[Cause, int] = dict.fromkeys(CAUSES, 0)
        self.overflow = 0

    @property
    def ejected(self) -> int:
        """How many are out now."""
        return sum(state.ejected for state in self.states)

    def on_result(self, state: OutlierState, result: Result, now: float) -> bool:
        """A try at this endpoint has ended; True when that ejected it. While it is out,
        what still ends there says nothing new."""
        if result == "ok":
            self.on_success(state)
            return False
        if state.ejected:
            return False
        state.failed += 1
        state.failures += 1
        state.gateway_failures = state.gateway_failures + 1 if result == "gateway" else 0
        settings = self.settings
        if 0 < settings.consecutive_gateway_failure <= state.gateway_failures:
            state.gateway_failures = 0
            if self._eject(state, "consecutive_gateway_failure", now):
                return True
        if 0 < settings.consecutive_5xx <= state.failures:
            state.failures = 0
            return self._eject(state, "consecutive_5xx", now)
        return False

    def on_success(self, state: OutlierState) -> None:
        """As `on_result`, of one that ended well."""
        if not state.ejected:
            state.ok += 1
            if state.failures or state.gateway_failures:
                state.failures = state.gateway_failures = 0

    def sweep(self, now: float) -> list[OutlierState]:
        """What is due at each `interval`: who comes back, and who is worse than the others. Returns those that changed;
        whoever owns them sets `available` and `since` of their members."""
        changed = []
        for state in self.states:
            if state.ejected:
                if now >= state.until:
                    self.restore(state)
                    changed.append(state)
            elif state.ejections:
                state.ejections -= 1
        changed += self._compare(now)
        for state in self.states:
            state.success_rate = _rate(state) if state.total >= self.settings.success_rate_request_volume else -1.0
            state.failed = state.ok = 0
        return changed

    def restore(self, state: OutlierState) -> None:
        """Take an endpoint back: its time is over, or an active check has found it well."""
        state.ejected = False
        state.failures = state.gateway_failures = state.failed = state.ok = 0

    def _compare(self, now: float) -> list[OutlierState]:
        settings = self.settings
        found: list[tuple[OutlierState, Cause]] = []
        rated = [state for state in self.states if state.total >= settings.success_rate_request_volume]
        if settings.enforcing_success_rate and rated and len(rated) >= settings.success_rate_minimum_hosts:
            rates = [_rate(state) for state in rated]
            mean = sum(rates) / len(rates)
            deviation = sqrt(sum((rate - mean) ** 2 for rate in rates) / len(rates))
            threshold = mean - settings.success_rate_stdev_factor / 1000 * deviation
            found += [(state, "success_rate") for state in rated if _rate(state) < threshold]
        rated = [state for state in self.states if state.total >= settings.failure_percentage_request_volume]
        if settings.enforcing_failure_percentage and len(rated) >= settings.failure_percentage_minimum_hosts:
            least = 100 - settings.failure_percentage_threshold
            found += [(state, "failure_percentage") for state in rated if _rate(state) <= least]
        return [state for state, cause in found if not state.ejected and self._eject(state, cause, now)]

    def _eject(self, state: OutlierState, cause: Cause, now: float) -> bool:
        self.detected[cause] += 1
        if not self._may_eject(state):
            self.overflow += 1
            return False
        self.enforced[cause] += 1
        settings = self.settings
        longest = max(settings.base_ejection_time, settings.max_ejection_time)
        if state.ejections * settings.base_ejection_time < longest:
            state.ejections += 1
        state.ejected = True
        state.until = (
            now
            + min(longest, settings.base_ejection_time * state.ejections)
            + self._rng.uniform(0, settings.max_ejection_time_jitter)
        )
        return True

    def _may_eject(self, state: OutlierState) -> bool:
        ejected = self.ejected
        if self.settings.always_eject_one and not ejected:
            return True
        if 100 * (ejected + 1) > self.settings.max_ejection_percent * len(self.states):
            return False
        return any(other.member.available and not other.ejected for other in self.states if other is not state)


def _rate(state: OutlierState) -> float:
    return 100 * state.ok / state.total


def result_of(error: GatewayError, status: int) -> Result:
    """How a try that failed ended; `status` is its answer's, 0 without one. A 429, a refused key and an error event in
    a stream are not about the host."""
    if error.condition in ("connect-failure", "reset", "timeout"):
        return "gateway"
    if error.condition == "5xx" and status >= 500:
        return "gateway" if status in _GATEWAY_FAILURES else "5xx"
    return "ok"
