"""Notices that Redis is there, or there again, for a process that has a ledger and asks Redis for nothing else.

A Redis that comes back may have lost what it knew, and budgets would begin anew. So each time there is a connection it
is told what the ledger has, which harms nothing where Redis knows (filters/stores/redis_totals.py).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..config import Redis
    from ..proxy.clock import Clock


async def on_each_connection(settings: Redis, clock: Clock, tell: Callable[[], Awaitable[None]]) -> None:
    """Call `tell` for each connection, one after the other, for ever. Cancelled, it leaves no connection."""
    from ..filters.stores.redis_client import RedisClient
    from ..filters.stores.redis_driver import connect  # the driver costs 0.1 s and 19 MB

    client = RedisClient(settings, connect, clock, name="control")
    up = asyncio.Event()
    client.on_up(up.set)
    try:
        await client.start()
        while True:
            await up.wait()
            up.clear()
            await tell()
    finally:
        await client.aclose()
