"""rate_limit where a server counts: a decision takes a moment, so it is waited for, and may not come.

A filter of its own, because only an `async def` costs a task for each request: who counts in memory does not pay it.

Not here: what is done while the server is away (stores/redis_limits.py).

Status: stable. Trusts: nothing for requests; upstream for the tokens it reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..proxy.errors import OverloadError
from .rate_limit import RateLimiting, used
from .stores.rules import Granted

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import RateLimitConfig
    from ..proxy.exchange import Exchange
    from .stores.rules import RemoteLimits, RemoteStore, Verdict

NOTES: Final[dict[Verdict, str]] = {
    "counted": "counted in Redis",
    "local": "Redis is away: counted under this worker's share",
    "uncounted": "Redis is away: let in uncounted",
}


class RemoteRateLimit(RateLimiting):
    """As `RateLimit`; `store` is a server's."""

    def __init__(
        self,
        config: RateLimitConfig,
        *,
        place: str,
        store: RemoteStore,
        monotonic: Callable[[], float],
        estimate: Callable[[Exchange], int],
    ) -> None:
        super().__init__(config, monotonic=monotonic, estimate=estimate)
        self.local = 0  # calls that were decided under this worker's share
        self.uncounted = 0  # calls that were let in uncounted
        self.closed = 0  # calls that were refused because nobody could count them
        self._limits: RemoteLimits = store.open(place, self._rules)

    async def on_request(self, ex: Exchange) -> None:
        """Count it under every limit, or under none and raise RateLimitError; OverloadError where nobody may count it.
        Cancelled, it holds nothing."""
        tokens = self._tokens(ex)
        try:
            result, verdict = await self._limits.take(self._callers_of(ex), tokens)
        except OverloadError:
            self.closed += 1
            ex.note(self.name, "Redis is away: this limit is closed")
            raise
        self.local += verdict == "local"
        self.uncounted += verdict == "uncounted" and isinstance(result, Granted)
        ex.note(self.name, NOTES[verdict])
        self._decide(ex, result, int(self._monotonic() * 1e6))

    def on_done(self, ex: Exchange) -> None:
        """Give slots back, and correct the tokens; nobody waits for it."""
        granted = self._to_settle(ex)
        if granted is not None:
            self._limits.settle(granted, used(ex))
