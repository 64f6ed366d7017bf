"""Spares a target that fails: the circuit breaker.

A target is a provider and a model there; this filter vetoes it while its circuit is open, so that the plan goes
elsewhere. It does so softly: where every target of a model rests, `on_all_open` and the model's own `on_exhausted` may
overrule it. What is held against a target is an attempt that failed and that no other endpoint of the target could
save: while another endpoint is still to be tried, judgement waits for the next attempt, or for the end of the exchange.

Each worker has its own breakers, and they live as long as the settings stay what they are. While all circuits are
closed and no failure waits to be judged, there is nothing to look for (`_alert`): plans are made without the veto, and
of a good attempt one number is counted. All else is `_judge` and what it calls. Not here: when a circuit opens and
closes (breaker.py); single endpoints (`outlier_detection`), keys (they rest by themselves).

Status: stable. Trusts: upstream.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, NamedTuple

import structlog

from ..proxy.exchange import Veto
from ..proxy.filter import Filter
from ..proxy.snapshot import Resting
from .breaker import BUSY, Breaker, BreakerSettings, verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import CircuitBreakerConfig
    from ..proxy.attempt import Attempt
    from ..proxy.exchange import Exchange
    from ..proxy.plan import Target
    from ..proxy.upstream.call import ResponseHead
    from ..proxy.upstream.cluster import Cluster

MAX_TARGETS = 1024
"""Model names may come from clients: what is kept of them is bounded."""
HALF_OPEN = "half_open"
"""The next call is the probe."""
log = structlog.get_logger("headgate")


class _Unjudged(NamedTuple):
    """A failed attempt that another endpoint might save."""

    by: CircuitBreaker
    attempt: Attempt


class CircuitBreaker(Filter):
    """Vetoes targets that fail. `now` is the monotonic time."""

    reads_body = False
    after = ("auth",)

    def __init__(self, config: CircuitBreakerConfig, *, now: Callable[[], float]) -> None:
        self.name = "circuit_breaker"
        self.opened = 0
        self.closed = 0
        self.rejected = 0
        self.probes = 0
        self._settings = BreakerSettings(
            config.failures, config.percent, config.window.total_seconds(), config.open_for.total_seconds()
        )
        self._now = now
        self._breakers: dict[tuple[Cluster, str], Breaker] = {}
        self._veto = Veto(self._objection, soft=True, yields=config.on_all_open == "least_bad")
        self._veto.idle = True
        self._waiting = 0
        """Failed attempts that wait to be judged."""
        self._alert = False
        """Some circuit is not closed, or some attempt waits: only then is there more to do than to count."""

    def left_alone(self) -> dict[tuple[str, str], Resting]:
        """Open and half-open circuits."""
        now = self._now()
        return {
            (cluster.name, model): Resting(
                HALF_OPEN if breaker.objection(now) is None else "open", max(0.0, breaker.rests_until - now)
            )
            for (cluster, model), breaker in self._breakers.items()
            if breaker.rests_until is not None
        }

    def on_request(self, ex: Exchange) -> None:
        """From now on open circuits are passed over."""
        ex.vetoes.append(self._veto)

    def on_attempt(self, ex: Exchange, attempt: Attempt) -> None:
        """Take the permit of a half-open circuit."""
        if self._alert:
            self._begin(ex, attempt)

    def _begin(self, ex: Exchange, attempt: Attempt) -> None:
        if _Unjudged in ex.state:
            self._judge_waiting(ex, attempt.target)
        if not self._veto.idle:
            breaker = self._breakers.get((attempt.target.cluster, attempt.target.model))
            if breaker is not None and breaker.begin(attempt, attempt.started):
                self.probes += 1

    def on_attempt_end(self, ex: Exchange, attempt: Attempt) -> None:
        """Judge it, unless another endpoint may yet save it."""
        target = attempt.target
        breaker = self._breakers.get((target.cluster, target.model))
        if (
            breaker is not None
            and (attempt.ended_at or inf) < breaker.calm_until
            and attempt.error is None
            and attempt.status != BUSY
            and not (attempt.cancelled or self._waiting)
        ):
            breaker.recent += 1
        else:
            self._judge(ex, attempt)

    def _judge(self, ex: Exchange, attempt: Attempt) -> None:
        """Any end, and the first good one of a slice of time."""
        target, now = attempt.target, attempt.ended_at
        breaker = self._breaker(target)
        if breaker.probe is attempt:
            breaker.probe = None
        if now is None or attempt.cancelled:
            return
        said = verdict(attempt.error, attempt.status, in_time=now < ex.deadline)
        if said is None:
            return
        if _Unjudged in ex.state:
            self._forget_waiting(ex, target)
        if said:
            if breaker.succeed(attempt.started, now):
                self._has_closed(target)
        elif _may_be_saved(ex, attempt):
            ex.state.setdefault(_Unjudged, []).append(_Unjudged(self, attempt))
            self._wait_for(1)
        else:
            self._fail(breaker, attempt, now)

    def on_response(self, ex: Exchange, head: ResponseHead) -> None:
        """A probe whose answer has begun has shown enough: a stream may take minutes to its end."""
        if self._alert:
            self._respond(ex, head)

    def _respond(self, ex: Exchange, head: ResponseHead) -> None:
        attempt = ex.attempt
        if attempt is not None and attempt.ended_at is None and head.status < 400:
            breaker = self._breakers.get((attempt.target.cluster, attempt.target.model))
            if breaker is not None and breaker.probe is attempt:
                breaker.probe = None
                if breaker.succeed(attempt.started, self._now()):
                    self._has_closed(attempt.target)

    def on_done(self, ex: Exchange) -> None:
        """Nobody has saved what was not saved by now, and no permit outlives its exchange."""
        if self._alert:
            self._finish(ex)

    def _finish(self, ex: Exchange) -> None:
        if _Unjudged in ex.state:
            self._judge_waiting(ex, None)
        for attempt in ex.attempts:
            if attempt.ended_at is None:  # it was never begun: its provider had no room
                breaker = self._breakers.get((attempt.target.cluster, attempt.target.model))
                if breaker is not None and breaker.probe is attempt:
                    breaker.probe = None

    def _objection(self, target: Target) -> str | None:
        breaker = self._breakers.get((target.cluster, target.model))
        if breaker is None or breaker.rests_until is None:
            return None
        reason = breaker.objection(self._now())
        self.rejected += reason is not None
        return reason

    def _breaker(self, target: Target) -> Breaker:
        key = (target.cluster, target.model)
        found = self._breakers.get(key)
        if found is None:
            if len(self._breakers) >= MAX_TARGETS:
                self._make_room()
            found = self._breakers[key] = Breaker(self._settings)
        return found

    def _make_room(self) -> None:
        """Forget whom nobody has asked of late; where there is none, a tenth, those with closed circuits first."""
        now = self._now()
        for key in [key for key, breaker in self._breakers.items() if breaker.is_quiet(now)]:
            del self._breakers[key]
        if len(self._breakers) >= MAX_TARGETS:
            ranked = sorted(self._breakers, key=lambda key: self._breakers[key].rests_until is not None)
            for key in ranked[: MAX_TARGETS // 10]:
                del self._breakers[key]
            self._look_round()

    def _look_round(self) -> None:
        """Circuits have opened, closed or been forgotten."""
        self._veto.idle = all(breaker.rests_until is None for breaker in self._breakers.values())
        self._alert = self._waiting > 0 or not self._veto.idle

    def _wait_for(self, more: int) -> None:
        """So many more attempts wait to be judged, or fewer."""
        self._waiting += more
        self._alert = self._waiting > 0 or not self._veto.idle

    def _has_closed(self, target: Target) -> None:
        self.closed += 1
        self._look_round()
        log.info("circuit_closed", filter=self.name, target=_named(target))

    def _fail(self, breaker: Breaker, attempt: Attempt, now: float) -> None:
        if breaker.fail(attempt.started, now):
            self.opened += 1
            self._look_round()
            log.warning(
                "circuit_opened", filter=self.name, target=_named(attempt.target), seconds=self._settings.open_for
            )

    def _judge_waiting(self, ex: Exchange, going_on: Target | None) -> None:
        """What failed at any target but the one that is tried again now counts."""
        waiting: list[_Unjudged] = ex.state.get(_Unjudged, [])
        for one in [one for one in waiting if one.by is self and one.attempt.target is not going_on]:
            waiting.remove(one)
            self._wait_for(-1)
            self._fail(self._breaker(one.attempt.target), one.attempt, self._now())

    def _forget_waiting(self, ex: Exchange, target: Target) -> None:
        """A later attempt at the target speaks for it."""
        waiting: list[_Unjudged] = ex.state.get(_Unjudged, [])
        kept = [one for one in waiting if one.by is not self or one.attempt.target is not target]
        self._wait_for(len(kept) - len(waiting))
        waiting[:] = kept


def _may_be_saved(ex: Exchange, attempt: Attempt) -> bool:
    """Whether another attempt at the target is under way, or there is an endpoint left for one."""
    target = attempt.target
    at_target = [made for made in ex.attempts if made.target is target]
    if any(made.ended_at is None for made in at_target):
        return True
    if ex.retry is None or len(ex.attempts) >= ex.retry.attempts:
        return False
    tried = [made.host for made in at_target]
    return any(host.available and host not in tried for host in target.cluster.hosts)


def _named(target: Target) -> str:
    return f"{target.cluster.name}/{target.model}"
