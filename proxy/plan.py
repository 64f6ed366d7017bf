"""Which targets, in which order, and which next: decisions without I/O.

A plan is the candidates of a model, less those somebody vetoes, in strict tiers of priority, ranked inside a tier by
the scorer (config order by default). It is built once; `next_step` walks it. Retry and fallback are one thing: after a
failure the next target is tried, and the same one again only where nothing can have been done twice or nobody else is
left to ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from .errors import GatewayError, ModelNotAllowedError, NoTargetError, ProviderNotConfiguredError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from random import Random

    from .accounting.prices import Price
    from .exchange import Veto
    from .upstream.cluster import Cluster

BACKOFF_BASE = 0.025
BACKOFF_MAX = 0.25
"""Seconds; Envoy's defaults (router filter, `retry_back_off`)."""
CROWD = 8
CROWD_SECONDS = 2.0
"""Where this many retries of a provider wait already, the next ones are spread over this time."""
MAX_RETRY_AFTER = 60.0

UNCONFIGURED = "unconfigured"
STAND_IN = "stand-in"
POLICY = "policy"


class Target:
    """A cluster and the name the model has there."""

    __slots__ = ("cluster", "fields", "model", "price", "priority")

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

    def __repr__(self) -> str:
        return f"<Target {self.cluster.name}/{self.model}>"


class Scorer(Protocol):
    """Ranks the targets of one tier: the lower the score, the earlier it is tried. Equal scores keep config order."""

    name: str

    def score(self, target: Target) -> float:
        """The rank of a target, at plan time."""


class Plan(NamedTuple):
    """Targets in the order they are tried, and why the others are not."""

    targets: tuple[Target, ...]
    vetoed: tuple[tuple[Target, str], ...]


def build_plan(candidates: Sequence[Target], vetoes: Iterable[Veto], scorer: Scorer | None) -> Plan:
    """Apply the standing rules and every veto, then order what is left.

    Two rules are always there: a provider without its credential is not asked, and a stand-in (the mock) answers
    only while every other target of the model is unconfigured, never as a fallback from a failure.
    """
    real = False
    for target in candidates:
        if not (target.cluster.stand_in or target.cluster.unconfigured):
            real = True
            break
    allowed: list[Target] = []
    vetoed: list[tuple[Target, str]] = []
    for target in candidates:
        reason = None
        if target.cluster.unconfigured:
            reason = UNCONFIGURED
        elif real and target.cluster.stand_in:
            reason = STAND_IN
        for veto in vetoes:
            if reason is not None:
                break
            reason = veto.check(target)
        if reason is None:
            allowed.append(target)
        else:
            vetoed.append((target, reason))
    if len(allowed) > 1:
        if scorer is None:
            allowed.sort(key=lambda target: target.priority)
        else:
            allowed.sort(key=lambda target: (target.priority, scorer.score(target)))
    return Plan(tuple(allowed), tuple(vetoed))


def rejection(model: str, vetoed: Sequence[tuple[Target, str]]) -> GatewayError:
    """The error for a plan with nobody left; its message names the reasons."""
    reasons = {reason for _, reason in vetoed} - {STAND_IN}
    if reasons == {UNCONFIGURED}:
        names = ", ".join(sorted({_what_is_missing(target) for target, reason in vetoed if reason == UNCONFIGURED}))
        return ProviderNotConfiguredError(f"No provider of the model '{model}' has a credential: set {names}.")
    if reasons == {POLICY}:
        return ModelNotAllowedError(f"This key may not use the model '{model}'.", param="model")
    why = ", ".join(sorted(f"{target.cluster.name}: {reason}" for target, reason in vetoed if reason != STAND_IN))
    return NoTargetError(f"No target of the model '{model}' is available now ({why}).")


def _what_is_missing(target: Target) -> str:
    return target.cluster.credential_origin or f"providers.{target.cluster.name}.api_key"


class RetryPolicy:
    """What the `retry` filter installs: how often, and after what. Pure; the retry *budget* is counted in the
    cluster."""

    __slots__ = ("attempts", "budget_min_per_second", "budget_percent", "on")

    def __init__(
        self, attempts: int, on: frozenset[str], *, budget_percent: float = 20.0, budget_min_per_second: float = 10.0
    ) -> None:
        self.attempts = attempts
        self.on = on
        self.budget_percent = budget_percent
        self.budget_min_per_second = budget_min_per_second

    def allows(self, error: GatewayError, made: int) -> bool:
        """Whether another attempt may follow after `made` of them, the last of which failed with `error`."""
        return made < self.attempts and error.condition is not None and error.condition in self.on


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
) -> Step | None:
    """Where to go after a failure, or None.

    The next untried target comes first. The same one again only after a failure that cannot have reached the provider
    (`ConnectError`), or after a 429 when it is the only one and its Retry-After fits `remaining` seconds.
    """
    for target in plan.targets:
        if not any(target is other for other in tried) and not vetoed(target):
            return Step(target, backoff(len(tried), rng, waiting=target.cluster.retries_waiting))
    last = tried[-1]
    if vetoed(last):
        return None
    delay = backoff(len(tried), rng, waiting=last.cluster.retries_waiting)
    if error.condition == "connect-failure":
        return Step(last, delay)
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
