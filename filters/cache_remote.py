"""The cache whose answers are in Redis: one call in all, over all workers and hosts.

In each process requests share flights as ever; only the first of each asks Redis. There it finds the answer, or gets
the lease and makes the call, or waits until the one who has the lease has kept its answer, and looks again. It waits at
most `wait`, and not at all for a Redis that is away: then it makes the call. So Redis saves calls, and is never what an
answer depends on.

Who waits for another process gets a stream when it is whole; live events are for those of the same process.

Not here: what is asked of Redis (stores/redis_answers.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..proxy.tape import Recorded
from .cache import Cache
from .stores.redis_answers import RENEW_SECONDS, Lease
from .stores.redis_link import StoreAwayError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from ..config import CacheConfig
    from ..proxy.clock import Timer
    from ..proxy.flight import Flight
    from .stores.redis_answers import RedisAnswers

FIRST_LOOK: Final = 0.01
LAST_LOOK: Final = 0.2
"""Seconds between two looks for an answer that another process waits for: the first, and at most."""


class RemoteCache(Cache):
    """`answers` keeps them. `start` before the first exchange."""

    def __init__(
        self,
        config: CacheConfig,
        *,
        monotonic: Callable[[], float],
        wall: Callable[[], float],
        answers: RedisAnswers,
    ) -> None:
        super().__init__(config, monotonic=monotonic, wall=wall)
        self.away = 0
        """Times that Redis could not be asked."""
        self._remote = answers
        self._clock = answers.clock
        self._wait = config.wait.total_seconds()
        self._asking: dict[Flight, asyncio.Task[None]] = {}
        self._leases: dict[Flight, tuple[Lease, Timer]] = {}

    async def start(self) -> None:
        """Connect, or begin to try."""
        await self._remote.start()

    async def aclose(self) -> None:
        """Nobody asks it any more."""
        await self._remote.aclose()

    def at_hand(self, key: bytes) -> Recorded | None:
        """Nothing is, in this process."""
        return None

    def begins(self, flight: Flight) -> None:
        """Ask Redis before anybody else."""
        self._asking[flight] = task = flight.engine.spawn(self._ask(flight))
        task.add_done_callback(lambda _: self._asking.pop(flight, None))

    def keep(self, flight: Flight, recorded: Recorded) -> bool:
        """For everybody."""
        held = self._leases.pop(flight, None)
        if held is not None:
            held[1].cancel()
        lease = held[0] if held is not None else None
        if self._remote.put(flight.key, recorded, lease):
            return True
        if lease is not None:
            self._remote.release(lease)
        return False

    def landed(self, flight: Flight, recorded: Recorded | None) -> None:
        """Let the others know."""
        task = self._asking.pop(flight, None)
        if task is not None and flight.called:
            task.cancel()
        super().landed(flight, recorded)
        held = self._leases.pop(flight, None)
        if held is not None:
            held[1].cancel()
            self._remote.release(held[0])

    async def _ask(self, flight: Flight) -> None:
        now = self._clock.monotonic
        until, pause = now() + self._wait, FIRST_LOOK
        while flight.joinable:
            try:
                said = await self._remote.claim(flight.key)
            except StoreAwayError:
                self.away += 1
                break
            if not flight.joinable:
                if isinstance(said, Lease):
                    self._remote.release(said)
                return
            if isinstance(said, Recorded):
                flight.found(said)
                return
            if said is not None:
                self._leases[flight] = (said, self._later(flight))
                break
            if now() >= until:
                break
            await self._clock.sleep(min(pause, until - now()))
            pause = min(LAST_LOOK, pause * 1.5)
        if flight.joinable:
            flight.lead()

    def _renew(self, flight: Flight) -> None:
        held = self._leases.get(flight)
        if held is not None:
            self._remote.renew(held[0])
            self._leases[flight] = (held[0], self._later(flight))

    def _later(self, flight: Flight) -> Timer:
        return self._clock.call_at(self._clock.monotonic() + RENEW_SECONDS, self._renew, flight)
