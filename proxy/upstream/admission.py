"""Whether a cluster has room for one more call, and the calls that wait for some.

What holds is what is configured, or fewer requests where first tokens have taught so (gradient.py). A call that finds
no room is refused at once, or waits for `queue_seconds` at most; one that waits and could never have a place, because
the limits have changed, is told so as they change.

Not here: the counting and the order of the queue (limits.py), who takes a call that has a place (cluster.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import PoolOverflowError
from .gradient import Gradient, GradientSettings
from .limits import Limits

if TYPE_CHECKING:
    from ..clock import Deadlines
    from ..errors import GatewayError
    from .limits import LimitSettings
    from .queued import QueuedCall


class Admission(Limits["QueuedCall"]):
    """The limits of one cluster as they hold now. Without `deadlines` nothing ever waits."""

    __slots__ = ("_bounds", "_deadlines", "_gradient", "queue_seconds")

    def __init__(self, bounds: LimitSettings, queue_seconds: float, deadlines: Deadlines | None) -> None:
        super().__init__(bounds)
        self.queue_seconds = queue_seconds
        """How long a call may wait for a place; with 0 it never does."""
        self._bounds = bounds
        """As configured."""
        self._gradient: Gradient | None = None
        self._deadlines = deadlines

    @property
    def refuses(self) -> bool:
        """The next call finds neither a place nor room to wait for one."""
        return self.is_full and not (self.queue_seconds and self.has_queue_room)

    @property
    def adapts(self) -> bool:
        """It learns from first tokens."""
        return self._gradient is not None

    # -- the queue

    def enqueue(self, waiter: QueuedCall) -> bool:
        """As in Limits; False, too, where calls do not wait."""
        if not self.queue_seconds or self._deadlines is None:
            self.overflow += 1
            return False
        if not super().enqueue(waiter):
            return False
        self._deadlines.add(waiter)
        return True

    def leave(self, waiter: QueuedCall) -> None:
        """It waits no longer. Harmless when it does not."""
        super().leave(waiter)
        if self._deadlines is not None:
            self._deadlines.discard(waiter)

    def serve(self, now: float) -> None:
        """Begin those who wait, in their order, as far as there is room."""
        while (queued := self.admit()) is not None:
            self.leave(queued)
            queued.begin(now)

    # -- what holds

    def bound(self, bounds: LimitSettings, queue_seconds: float) -> bool:
        """Bounds from now on; whether that changed what holds. Who waits may be next: `serve`."""
        self._bounds = bounds
        self.queue_seconds = queue_seconds
        changed = self._apply()
        for hopeless in self.hopeless():
            hopeless.refuse()
        return changed

    def adapt(self, on: bool) -> bool:
        """Whether first tokens that come late lower the limit on requests; returns whether that changed what holds.
        What was learned is forgotten when it is turned off."""
        if on and self._gradient is None:
            self._gradient = Gradient(GradientSettings())
        elif not on:
            self._gradient = None
        return self._apply()

    def on_first_token(self, seconds: float, prompt_tokens: int, now: float) -> bool:
        """A stream's first token came, `seconds` after its request began; whether that changed what holds."""
        if self._gradient is None:
            return False
        self._gradient.on_sample(seconds, prompt_tokens, self.requests, now)
        return self._apply()

    def _apply(self) -> bool:
        limits = self._bounds
        if self._gradient is not None:
            limits = limits._replace(requests=min(limits.requests, self._gradient.limit()))
        if limits == self.settings:
            return False
        self.settings = limits
        return True


def overflow() -> GatewayError:
    """The error for a call that found no room."""
    return PoolOverflowError("Too many requests are under way to this provider. Try again later.", retry_after=1.0)
