"""Tells Redis what was spent before, on behalf of a process that counts nothing itself.

In Redis the count is the truth, and it outlives gateways. Whether a Redis is new, or has lost what it knew, says a mark
for each budget: the first who finds none adds all that its ledger has, also to meters that workers have opened since,
for they come back at the same time. After that only a meter that is not there is set. So it may be told as often as one
likes, and is on every new connection (control/redis_watch.py). Where Redis is away nothing is told.
"""

from __future__ import annotations

from contextlib import suppress
from secrets import token_bytes
from typing import TYPE_CHECKING, Final

from .redis_client import RedisClient
from .redis_driver import connect
from .redis_limits import restoring
from .redis_link import StoreAwayError
from .redis_scripts import RESTORE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...config import Redis
    from ...proxy.clock import Clock
    from .rules import Kind

RESTORE_SECONDS: Final = 2.0


class RedisTotals:
    """The Redis of a config."""

    def __init__(self, settings: Redis, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock

    async def restore(self, name: str, kind: Kind, spent: Mapping[str, int], now: int) -> None:
        """See `Store.restore`. Returns when Redis has them, or is away."""
        client = RedisClient(self._settings, connect, self._clock, name="totals")
        try:
            await client.start()
            with suppress(StoreAwayError):
                for keys, arguments in restoring(client, name, kind, spent, token_bytes(8)):
                    await client.run(RESTORE, keys, arguments, timeout=RESTORE_SECONDS)
        finally:
            await client.aclose()
