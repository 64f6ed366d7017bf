"""What the random walks over pools of connections share: a way there that cannot be relied on, and what must hold."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Collection, Iterable

    from .caller import Recorder


def unsteady(connect: Any, rng: random.Random) -> Any:
    """`dial.sock_connect`, which now and then is refused, slow, or never comes back."""

    async def sock_connect(sock: Any, address: Any) -> None:
        chance = rng.random()
        if chance < 0.1:
            raise ConnectionRefusedError
        if chance < 0.15:
            await asyncio.get_running_loop().create_future()
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        await connect(sock, address)

    return sock_connect


def check_calls(calls: Iterable[tuple[bytes, Recorder]], ends: Collection[str]) -> None:
    """Each call with its canary heard nothing but that, came to one of `ends`, and was whole where it says so."""
    for canary, heard in calls:
        assert heard.outcome is None or heard.outcome in ends
        assert canary.startswith(heard.body)
        if heard.outcome == "clean":
            assert heard.body == canary
        assert (heard.outcome is not None) or heard.cancelled
