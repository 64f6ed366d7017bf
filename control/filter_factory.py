"""Which filter do settings make, and what is it given to work with?

A filter knows its settings and what it is handed, never the gateway: so the same settings make one that counts in
memory, in memory that workers share, or in Redis, and `headgate check` makes one that only shows whether it can be had.

Which class stands for which settings is known here alone. Not here: which of them a reload keeps (filter_set.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..config import (
    AccessLogConfig,
    AuthConfig,
    BudgetConfig,
    CacheConfig,
    CircuitBreakerConfig,
    GuardConfig,
    HeadersConfig,
    RateLimitConfig,
    RetryConfig,
    UseConfig,
)
from ..filters.access_log import AccessLog
from ..filters.auth import Auth
from ..filters.budget import Budget
from ..filters.budget_remote import RemoteBudget
from ..filters.cache import Cache
from ..filters.cache_remote import RemoteCache
from ..filters.circuit_breaker import CircuitBreaker
from ..filters.guard import make_guard
from ..filters.headers import Headers
from ..filters.rate_limit import RateLimit
from ..filters.rate_limit_remote import RemoteRateLimit
from ..filters.retry import Retry
from ..filters.stores.memory import MemoryStore
from ..proxy.clock import monotonic_time, wall_time
from .filter_set import users_filter

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from ..config import GatewayConfig
    from ..config.stores import Stores
    from ..filters.guard_service import OpenService
    from ..filters.stores.redis_answers import RedisAnswers
    from ..filters.stores.redis_limits import RedisStore
    from ..filters.stores.rules import RemoteStore, Store
    from ..proxy.accounting.record import Reserved, Spent
    from ..proxy.clock import Clock
    from ..proxy.exchange import Exchange
    from ..proxy.filter import Filter
    from ..proxy.plan import Target


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


def open_redis(config: GatewayConfig, worker: str, clock: Clock, rng: Random) -> RedisStore | None:
    """Where `worker` counts limits, if the config has it in Redis. To be started."""
    settings = config.stores.redis
    if settings is None or not config.stores.in_redis:
        return None
    from ..filters.stores.redis_limits import open_store  # the driver costs 0.1 s and 19 MB

    place = int(worker) if worker.isdecimal() else 0
    return open_store(settings, clock, rng, workers=config.workers, place=place, name=worker)


def open_answers(stores: Stores, worker: str, clock: Clock, settings: CacheConfig) -> RedisAnswers | None:
    """What a cache of these `settings` keeps its answers in, if that is Redis. To be started."""
    if stores.redis is None or not (settings.store == "redis" or (settings.store == "auto" and stores.in_redis)):
        return None
    from ..filters.stores import redis_answers  # as above

    return redis_answers.open_answers(
        stores.redis,
        clock,
        max_entry=settings.max_entry,
        ttl=settings.ttl.total_seconds(),
        name=worker,
    )
