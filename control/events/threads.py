"""Blocking work of the event store, in a thread, to its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from anyio import to_thread

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Run it in a thread. Cancelled, it waits for the work first: nobody else may touch the store meanwhile."""
    turn = asyncio.ensure_future(to_thread.run_sync(work))
    try:
        return await asyncio.shield(turn)
    except asyncio.CancelledError:
        await asyncio.wait([turn])
        raise
