"""Which targets, in which order, and which next: decisions without I/O.

A plan is the candidates of a model, less those somebody vetoes, in strict tiers of priority, ranked inside a tier by
the scorer (config order by default). It is built once; `next_step` walks it. Retry and fallback are one thing: after a
failure another endpoint or credential of the same target is tried, then the next target; what has failed is asked again
only where nothing can have been done twice, or nobody else is left to ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from .errors import (
    BudgetExceededError,
    GatewayError,
    ModelNotAllowedError,
    NoTargetError,
    OverloadError,
    PriceUnknownError,
    ProviderNotConfiguredError,
    UpstreamAuthError,
    UpstreamRateLimitedError,
)
from .upstream.cluster import COOLING, OVERLOADED, REFUSED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from random import Random

    from .accounting.prices import Price
    from .exchange import Veto
    from .upstream.cluster import Cluster
    from .upstream.hedge import HedgeSettings

BACKOFF_BASE = 0.025
BACKOFF_MAX = 0.25
"""Seconds; Envoy's defaults (router filter, `retry_back_off`)."""
CROWD = 8
CROWD_SECONDS = 2.0
"""Where this many retries of a provider wait already, the next ones are spread over this time."""
MAX_RETRY_AFTER = 60.0
CREDENTIAL = "credential"
"""The condition of an error about our own credential."""

UNCONFIGURED = "unconfigured"
STAND_IN = "stand-in"
POLICY = "policy"
BUDGET = "budget"
PRICE_UNKNOWN = "price unknown"
"""Why a target is not asked, whatever its cluster says (`Cluster.objection`)."""
MONEY = frozenset((BUDGET, PRICE_UNKNOWN))


class Target:
    """A cluster and the name the model has there."""

    __slots__ = ("alone", "cluster", "fields", "listed", "model", "price", "priority")

    def __init__(self, cluster: Cluster, model: str, *, priority: int = 0, price: Price | None = None) -> None:
        self.cluster = cluster
        self.model = model
        self.fields = [(b"x-headgate-provider", cluster.name.encode())]
        """What its answers carry."""
        if model:
            self.fields.append((b"x-headgate-model", model.encode()))
        self.priority = priority
        self.price = price
        """The price written at the target itself; None leaves it to the rest of the price order (graph.py)."""
        self.listed: Price | None = None
        """What that has found, where it holds for ever."""
        self.alone = Plan((self,), ())
        """The plan of a model that has no other target, while nobody objects to this one."""

    def __repr__(self) -> str:
        return f"<Target {self.cluster.name}/{self.model}>"


class Scorer(Protocol):
    """Ranks the targets of one tier: the lower the score, the earlier it is tried. Equal scores keep config order."""

    name: str

    def score(self, target: Target) -> float:
        """The rank of a target, at plan time."""


class Vetoed(NamedTuple):
    """A target that is not asked, and why. `soft`: it could be, and may be when nobody better is left. `error`: what
    the client is told where all are not asked for such a reason."""

    target: Target
    reason: str
    soft: bool
    error: GatewayError | None = None


class Plan(msgspec.Struct, frozen=True):
    """Targets in the order they are tried, and why the others are not."""

    targets: tuple[Target, ...]
    vetoed: tuple[Vetoed, ...]
    scores: tuple[float, ...] = ()
    """Of each target, where a scorer had several to rank."""


NO_PLAN = Plan((), ())


def build_plan(
    candidates: Sequence[Target], vetoes: Iterable[Veto], scorer: Scorer | None, now: float, *, soft: bool = True
) -> Plan:
    """Apply the standing rules and every veto, then order what is left. `soft` False leaves out the soft ones.

    Three rules are always there: a provider without its credential is not asked; a stand-in (the mock) answers only
    while every other target of the model is unconfigured, never as a fallback from a failure; and, softly, a cluster
    may be unable to take the call now.
    """
    if vetoes:
        vetoes = [veto for veto in vetoes if not veto.idle]
    if len(candidates) == 1 and not vetoes:  # the commonest model, ready
        target = candidates[0]
        if not (target.cluster.unconfigured or target.cluster.strained):
            return target.alone
    real = False
    for target in candidates:
        if not (target.cluster.stand_in or target.cluster.unconfigured):
            real = True
            break
    allowed: list[Target] = []
    vetoed: list[Vetoed] = []
    for target in candidates:
        cluster = target.cluster
        if cluster.unconfigured:
            vetoed.append(Vetoed(target, UNCONFIGURED, soft=False))
            continue
        if real and cluster.stand_in:
            vetoed.append(Vetoed(target, STAND_IN, soft=False))
            continue
        refused = _first(target, vetoes, soft=soft) if vetoes else None
        if refused is None and soft and cluster.strained:
            reason = cluster.objection(target.model, now)
            refused = Vetoed(target, reason, soft=True) if reason is not None else None
        if refused is None:
            allowed.append(target)
        else:
            vetoed.append(refused)
    if len(allowed) > 1:
        if scorer is not None:
            ranked = sorted((target.priority, scorer.score(target), at) for at, target in enumerate(allowed))
            scores = tuple(score for _, score, _ in ranked)
            return Plan(tuple(allowed[at] for _, _, at in ranked), tuple(vetoed), scores)
        allowed.sort(key=lambda target: target.priority)
    return Plan(tuple(allowed), tuple(vetoed))


def _first(target: Target, vetoes: Iterable[Veto], *, soft: bool) -> Vetoed | None:
    """The first objection; a hard one is never hidden behind a soft one."""
    found = None
    for veto in vetoes:
        if (soft or not veto.soft) and (found is None or not veto.soft):
            reason = veto.check(target)
            if reason is not None:
                found = Vetoed(target, reason, veto.soft)
                if not veto.soft:
                    break
    return found


def rejection(model: str, vetoed: Sequence[Vetoed], now: float) -> GatewayError:
    """The error for a plan with nobody left; its message names the reasons."""
    meant = [one for one in vetoed if one.reason != STAND_IN]
    if all(one.reason == UNCONFIGURED for one in meant) and meant:
        names = ", ".join(sorted({_what_is_missing(one.target) for one in meant}))
        return ProviderNotConfiguredError(f"No provider of the model '{model}' has a credential: set {names}.")
    reasons = {one.reason for one in meant} - {UNCONFIGURED}
    if reasons == {POLICY}:
        what = f"use the model '{model[:128]}'" if model else "do what names no model: its paths do not say so"
        return ModelNotAllowedError(f"This key may not {what}.", param="model")
    if reasons & MONEY and reasons <= MONEY | {POLICY}:
        return _unpaid(model, meant)
    resting = (one.target for one in meant if one.soft)
    soonest = min((target.cluster.rests_for(target.model, now) for target in resting), default=0.0)
    if reasons == {COOLING}:
        message = f"Every provider of the model '{model}' is rate limiting. Try again later."
        return UpstreamRateLimitedError(message, retry_after=min(max(1.0, soonest), MAX_RETRY_AFTER))
    if reasons == {REFUSED}:
        names = ", ".join(sorted({one.target.cluster.name for one in meant}))
        return UpstreamAuthError(f"The gateway's credential was refused by {names}: check its api_key.")
    if reasons == {OVERLOADED}:
        message = f"Too many requests are under way to every provider of the model '{model}'. Try again later."
        return OverloadError(message, retry_after=1.0)
    why = ", ".join(sorted(f"{one.target.cluster.name}: {one.reason}" for one in meant))
    return NoTargetError(
        f"No target of the model '{model}' is available now ({why}).",
        retry_after=min(max(1.0, soonest), MAX_RETRY_AFTER),
    )


def _what_is_missing(target: Target) -> str:
    return target.cluster.credential_origin or f"providers.{target.cluster.name}.api_key"


def _unpaid(model: str, vetoed: Sequence[Vetoed]) -> GatewayError:
    for one in vetoed:
        if one.error is not None:
            return one.error
    if any(one.reason == BUDGET for one in vetoed):
        return BudgetExceededError(f"What is left of the budget does not pay for the model '{model[:128]}'.")
    return PriceUnknownError(f"The price of the model '{model[:128]}' is not known, and money is counted here.")


class RetryPolicy:
    """What the `retry` filter installs: how often, and after what. Pure; the retry *budget* is counted in the
    cluster."""

    __slots__ = ("attempts", "budget_min_per_second", "budget_percent", "hedge", "on")

    def __init__(
        self,
        attempts: int,
        on: frozenset[str],
        *,
        budget_percent: float = 20.0,
        budget_min_per_second: float = 10.0,
        hedge: HedgeSettings | None = None,
    ) -> None:
        self.attempts = attempts
        self.on = on
        self.budget_percent = budget_percent
        self.budget_min_per_second = budget_min_per_second
        self.hedge = hedge
        """Whether a stream that is late is asked for a second time (hedging.py)."""

    def allows(self, error: GatewayError, made: int) -> bool:
        """Whether another attempt may follow after `made` of them, the last of which failed with `error`.

        A refused credential is always worth another one: nothing was done, and the caller cannot mend it."""
        condition = error.condition
        return made < self.attempts and condition is not None and (condition in self.on or condition == CREDENTIAL)


class Step(NamedTuple):
    """Try `target` after `delay` seconds."""

    target: Target
    delay: float


def next_step(
    plan: Plan,
    tried: Sequence[Target],
    error: GatewayError,
    *,
    remaining: float,
    rng: Random,
    vetoed: Callable[[Target], bool],
    strained: Callable[[Target], bool],
    spare: Callable[[Target], bool],
) -> Step | None:
    """Where to go after a failure, or None.

    `vetoed`: a filter objects to the target; `strained`: its cluster does; `spare`: it has another endpoint or
    credential, which this exchange has not tried. Such a one comes first, then the next untried target. What was tried
    comes again only after a failure that cannot have reached the provider (`ConnectError`), or after a 429 when it is
    the only one and its Retry-After fits `remaining` seconds.
    """
    last = tried[-1]
    lost = vetoed(last)
    if not lost and spare(last):
        return Step(last, backoff(len(tried), rng, waiting=last.cluster.retries_waiting))
    for target in plan.targets:
        if not any(target is other for other in tried) and not vetoed(target) and not strained(target):
            return Step(target, backoff(len(tried), rng, waiting=target.cluster.retries_waiting))
    if lost:
        return None
    delay = backoff(len(tried), rng, waiting=last.cluster.retries_waiting)
    if error.condition == "connect-failure":
        return None if strained(last) else Step(last, delay)
    if error.condition == "429" and len(plan.targets) == 1 and error.retry_after is not None:
        wait = max(delay, error.retry_after)
        if wait <= min(remaining, MAX_RETRY_AFTER):
            return Step(last, wait)
    return None


def backoff(made: int, rng: Random, *, waiting: int = 0) -> float:
    """Full jitter: uniform in [0, min(250 ms, 25 ms · 2^(made-1))); in [0, 2 s) behind a crowd of `waiting` retries."""
    if waiting >= CROWD:
        return rng.random() * CROWD_SECONDS
    return rng.random() * min(BACKOFF_MAX, BACKOFF_BASE * 2.0 ** (made - 1))
