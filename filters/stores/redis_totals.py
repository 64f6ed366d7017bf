"""Tells Redis what was spent before, on behalf of a process that counts nothing itself.

Redis remembers by itself, so only what it knows nothing of is told: after it has lost its data, or of a budget that was
counted elsewhere. Where it is away nothing is told, and nothing is let in either before it is back.
"""

from __future__ import annotations

from contextlib import suppress
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
        if not spent:
            return
        client = RedisClient(self._settings, connect, self._clock, name="totals")
        try:
            await client.start()
            with suppress(StoreAwayError):
                for keys, arguments in restoring(client, name, kind, spent):
                    await client.run(RESTORE, keys, arguments, timeout=RESTORE_SECONDS)
        finally:
            await client.aclose()
