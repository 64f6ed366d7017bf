"""What one worker holds in Redis: a lease on its slots, and the slots.

The worker knows best which of its calls run, so it keeps the count (`held`) and Redis has a copy, which it makes anew
on every connection under a new name: what was under way on the last one may have arrived or not, and its name is
struck. A worker that dies renews nothing; its slots are free when its lease ends, LEASE_SECONDS after its last word.

With the answer to each renewal Redis says how many workers live, on all hosts, and how many of them stand before this
one: so each can say which part of a limit is its own while Redis is away (`share`). Together the parts are the limit.
"""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from .redis_scripts import ADD, HOLD, LEASE, LEAVE

if TYPE_CHECKING:
    import asyncio
    from random import Random

    from ...proxy.clock import Clock, Timer
    from .redis_client import RedisClient

LEASE_SECONDS: Final = 20.0
RENEW_SECONDS: Final = 5.0
FIRST_SECONDS: Final = 1.0
"""After it began: others begin at the same time, and each shall hear of all."""
_CHUNK: Final = 256
"""Slots in one command: Redis does nothing else while it runs."""


class Lease:
    """Of one process; `workers` of this host and `place` say what its part is as long as Redis has never been heard."""

    def __init__(self, client: RedisClient, clock: Clock, rng: Random, *, workers: int, place: int) -> None:
        self.held: dict[bytes, int] = {}
        """Calls that run, by the key of their slots, however they were let in."""
        self.workers = self._least = workers
        self.place = min(place, workers - 1)
        self.id = b""
        self._client = client
        self._clock = clock
        self._name = f"{rng.getrandbits(64):016x}"
        self._times = 0
        self.key = client.key("workers")
        self._timer: Timer | None = None
        client.on_up(self._begin)

    def share(self, limit: int) -> int:
        """The part of `limit` that is this worker's; all parts together are `limit`."""
        return limit * (self.place + 1) // self.workers - limit * self.place // self.workers

    def hold(self, key: bytes, *, counted: bool) -> None:
        """A call has begun there; `counted`: Redis has it under our name."""
        self.held[key] = self.held.get(key, 0) + 1
        if not counted:
            self._client.tell(ADD, [key], [self.id])

    def give_back(self, key: bytes) -> None:
        """A call has ended there; that Redis hears of it is the caller's business."""
        left = self.held.get(key, 0) - 1
        if left > 0:
            self.held[key] = left
        else:
            self.held.pop(key, None)

    async def leave(self) -> None:
        """This process holds nothing any more: free its slots at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._client.forget(self._begin)
        if self._client.up:
            await self._client.run(LEAVE, [self.key], [self.id])

    def _begin(self) -> None:
        """A new connection: a new name, and what runs is told under it."""
        was, self._times = self.id, self._times + 1
        self.id = f"{self._name}-{self._times}".encode()
        self._renew(was)
        held = iter(list(self.held.items()))
        for some in iter(lambda: list(islice(held, _CHUNK)), []):
            self._client.tell(HOLD, [key for key, _ in some], [self.id, *(b"%d" % count for _, count in some)])

    def _renew(self, was: bytes | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        pause = RENEW_SECONDS if was is None else FIRST_SECONDS
        self._timer = self._clock.call_at(self._clock.monotonic() + pause, self._renew)
        if self._client.up:
            arguments = [self.id, was or b"", b"%d" % int(LEASE_SECONDS * 1e6)]
            future = self._client.run(LEASE, [self.key], arguments)
            future.add_done_callback(partial(self._renewed, began=was is not None))

    def _renewed(self, future: asyncio.Future[Any], *, began: bool) -> None:
        if future.cancelled() or future.exception() is not None:
            return
        ran, alive, self.place = future.result()
        self.workers = max(alive, self._least)  # the others of this host are coming, or coming back
        if not ran and not began and self._client.up:
            self._begin()  # it came too late: others may have taken its slots for free
