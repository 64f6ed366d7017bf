"""How much may run at a cluster at once, in requests and in tokens, and who waits for a place.

First come, first served: nobody passes a queue that has formed, and a large request at its head is not starved by
small ones behind it. A place that falls free is given to the head of the queue in the same call that hands it out, so
it cannot be taken twice.

The structure is passive. Its owner asks `admit` after each `release` or `leave`, and `hopeless` after a change.

Not here: how long anybody waits (admission.py), connections (pool.py).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, NamedTuple, Protocol, TypeVar


class LimitSettings(NamedTuple):
    """Envoy's circuit breaker thresholds, for a cluster and worker."""

    requests: int = 1024
    tokens: int | None = None
    """Estimated tokens of the requests in flight; None is no limit. A request that is larger on its own never runs."""
    pending: int = 1024
    """Requests that may wait; 0 refuses at once."""


class Waiting(Protocol):
    """A request in the queue. Compared by identity."""

    tokens: int


W = TypeVar("W", bound=Waiting)


class Limits(Generic[W]):
    """See the top. `overflow` counts requests that were refused [upstream_rq_pending_overflow]."""

    __slots__ = ("overflow", "queue", "requests", "settings", "tokens")

    def __init__(self, settings: LimitSettings) -> None:
        self.settings = settings
        """May be replaced at any time; what runs already is not touched. Ask `hopeless` and `admit` after it."""
        self.requests = 0
        self.tokens = 0
        self.overflow = 0
        self.queue: OrderedDict[W, None] = OrderedDict()
        """Who waits, in order. To be read."""

    @property
    def pending(self) -> int:
        """How many wait."""
        return len(self.queue)

    @property
    def is_full(self) -> bool:
        """A request of any size has to wait, or to go elsewhere."""
        settings = self.settings
        if self.queue or self.requests >= settings.requests:
            return True
        return settings.tokens is not None and self.tokens >= settings.tokens

    @property
    def has_queue_room(self) -> bool:
        """One more may wait."""
        return len(self.queue) < self.settings.pending

    def try_acquire(self, tokens: int) -> bool:
        """Take a place for a request of `tokens`, if one is free and nobody waits. Each True is owed one `release`."""
        settings = self.settings
        if settings.tokens is None:  # the usual case, without a call
            if self.queue or self.requests >= settings.requests:
                return False
        elif self.queue or not self._fits(tokens):
            return False
        self.requests += 1
        self.tokens += tokens
        return True

    def enqueue(self, waiter: W) -> bool:
        """Wait for a place; False when too many do already, or when it could never have one."""
        limit = self.settings.tokens
        if len(self.queue) >= self.settings.pending or (limit is not None and waiter.tokens > limit):
            self.overflow += 1
            return False
        self.queue[waiter] = None
        return True

    def leave(self, waiter: W) -> None:
        """Wait no longer; harmless for one that does not wait."""
        self.queue.pop(waiter, None)

    def release(self, tokens: int) -> None:
        """Give back what `try_acquire` or `admit` took."""
        self.requests -= 1
        self.tokens -= tokens

    def admit(self) -> W | None:
        """The next of the queue, now holding its place, as `try_acquire` would give it; None when it has to wait.
        To be asked again until then."""
        queue = self.queue
        if not queue:
            return None
        waiter = next(iter(queue))
        if not self._fits(waiter.tokens):
            return None
        del queue[waiter]
        self.requests += 1
        self.tokens += waiter.tokens
        return waiter

    def hopeless(self) -> list[W]:
        """Take out of the queue those that could never have a place under a lower limit, and would hold up the rest."""
        limit = self.settings.tokens
        over = [waiter for waiter in self.queue if limit is not None and waiter.tokens > limit]
        for waiter in over:
            del self.queue[waiter]
        return over

    def _fits(self, tokens: int) -> bool:
        settings = self.settings
        return self.requests < settings.requests and (
            settings.tokens is None or self.tokens + tokens <= settings.tokens
        )
