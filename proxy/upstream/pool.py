"""Which connection serves which call: idle ones from the top of a stack, waiting calls from the head of a queue.

A connection of HTTP/1.1 carries one call, one of HTTP/2 as many as its provider allows: the oldest that has room comes
first, so that the others may rest and close. Which of the two an address speaks is known from its last connection;
until then, one attempt finds out for all.

The sizes are kept by four rules, and nothing else moves a connection:
- connections open + connections being opened <= `max_connections`;
- a waiting call never starts more than one attempt to connect, and takes whatever is free first, new or given back; an
  attempt counts for as many calls as its connection is expected to carry;
- an attempt belongs to the pool, not to the call that caused it: who leaves the queue leaves the attempt to the next;
- a connection is `give_back`en or `drop`ped exactly once after each call, whatever became of the call; one of HTTP/2
  says that it has room to `spare`.

A refused connection is told to the call that waits longest. A connection that does not come in time is told to
nobody: each waiting call has a deadline of its own.

Not here: bytes (h1.py, h2_connection.py), sockets (dial.py), where a provider stands (names.py).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..clock import NEVER
from ..errors import ConnectError, ConnectTimeoutError, GatewayError, PoolOverflowError, ShuttingDownError
from .dial import UNREACHABLE
from .h1 import H1Connection

if TYPE_CHECKING:
    from collections.abc import Collection

    from ..clock import Clock, Deadlines
    from .h2_connection import H2Connection
    from .negotiate import Connection, Connector
    from .resolver import Address
    from .stats import UpstreamStats

UNKNOWN = 1 << 30
"""Calls for which one attempt is enough, until it is known what an address speaks."""

SURPLUS_SECONDS = 1.0
"""How long a connection above the idle bounds is kept: a burst must not close what its next beat opens again."""


class PoolLimits(NamedTuple):
    """Bounds of one endpoint; times in seconds.

    A call without a connection is pending, whether it waits for a busy one or for one that is being opened;
    `connect_timeout` bounds either wait, and each attempt to connect. The last three are for HTTP/2: how long a
    connection with calls may be silent before it is asked whether it lives, how long it may take to answer, and how
    long a provider may take nothing of a request.
    """

    max_connections: int = 1024
    max_pending: int = 1024
    connect_timeout: float = 5.0
    idle_timeout: float = 90.0
    max_idle: int = 10
    keepalive_interval: float = 30.0
    keepalive_timeout: float = 15.0
    stall_timeout: float = 120.0


DEFAULT_LIMITS = PoolLimits()


class IdleQuota:
    """Idle connections of all endpoints together."""

    __slots__ = ("idle", "limit")

    def __init__(self, limit: int = 100) -> None:
        self.limit = limit
        self.idle = 0


class Waiter(Protocol):
    """A call without a connection."""

    deadline: float

    def on_deadline(self) -> None:
        """It waited long enough."""

    def on_connection(self, connection: Connection) -> None:
        """Served: it is no longer in the queue."""

    def on_refused(self, error: GatewayError) -> None:
        """There will be none: it is no longer in the queue."""


class _Attempt:
    """A connection being opened, in a task of the pool's."""

    __slots__ = ("_pool", "deadline", "task")

    def __init__(self, pool: Pool, deadline: float) -> None:
        self._pool = pool
        self.deadline = deadline
        self.task = asyncio.get_running_loop().create_task(pool.dial())
        self.task.add_done_callback(self._ended)

    def on_deadline(self) -> None:
        self.deadline = NEVER
        self._pool.stats.cx_connect_timeout += 1
        self.task.cancel()

    def _ended(self, _: asyncio.Task[Connection]) -> None:
        self._pool.attempt_ended(self)


class Pool:
    """The connections of one endpoint. `stats` and `limits` may be read and replaced at any time; see `update`."""

    __slots__ = (
        "_above",
        "_attempts",
        "_closing",
        "_clock",
        "_connector",
        "_deadlines",
        "_idle",
        "_open",
        "_per_attempt",
        "_queue",
        "_quota",
        "_shared",
        "limits",
        "speaks_h1",
        "stats",
    )

    def __init__(
        self,
        connector: Connector,
        limits: PoolLimits,
        *,
        clock: Clock,
        deadlines: Deadlines,
        stats: UpstreamStats,
        quota: IdleQuota,
    ) -> None:
        self._connector = connector
        self._clock = clock
        self._deadlines = deadlines
        self._quota = quota
        self.limits = limits
        self.stats = stats
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []
        self._shared: list[H2Connection] = []
        """Connections that take more than one call, the oldest first, idle ones included."""
        self._per_attempt = UNKNOWN if connector.http2 else 1
        """How many calls the next connection is expected to carry; 0 while the provider takes none."""
        self.speaks_h1 = not connector.http2
        """Its last connection did, or none can do anything else."""
        self._queue: OrderedDict[Waiter, None] = OrderedDict()
        self._attempts: set[_Attempt] = set()
        self._closing = False
        self._above = False
        """When bounds were set, there was more than they allow: some of it may still be there."""

    # For calls.

    def take(self) -> Connection | None:
        """The oldest connection with room, else the idle one that was used last, or None."""
        for shared in self._shared:
            if shared.usable:
                if not shared.busy:
                    self._wake(shared)
                return shared
        idle = self._idle
        while idle:
            connection = idle.pop()
            self._quota.idle -= 1
            if connection.usable:
                return connection
        return None

    def wait(self, waiter: Waiter) -> None:
        """Queue for a connection, and open one where the bounds allow it. Raises OverloadError."""
        if self._closing:
            raise ShuttingDownError("This provider is being removed. Try again.", retry_after=1.0)
        if len(self._queue) >= self.limits.max_pending:
            self.stats.rq_pending_overflow += 1
            raise PoolOverflowError("Too many requests wait for this provider. Try again later.", retry_after=1.0)
        self._enqueue(waiter)

    def wait_first(self, waiter: Waiter) -> None:
        """Ahead of the queue and past its bound: a call that comes back from a connection that was just dropped."""
        self._enqueue(waiter)
        self._queue.move_to_end(waiter, last=False)

    def leave(self, waiter: Waiter) -> None:
        """Wait no longer. The attempt goes on: its connection serves the next call."""
        if waiter in self._queue:
            self._dequeue(waiter)

    def timed_out(self, waiter: Waiter) -> GatewayError:
        """`waiter` has waited too long and leaves; what to tell it depends on what it waited for."""
        self.leave(waiter)
        self.stats.rq_pending_timeout += 1
        if self._attempts:
            return ConnectTimeoutError("The provider could not be reached in time.")
        message = "All connections to this provider stayed busy. Try again later."
        return PoolOverflowError(message, retry_after=1.0)

    # For connections.

    def give_back(self, connection: Connection) -> None:
        """It is ready for another call, and carries none."""
        if connection.retired or (self._above and self._is_above_bounds()):
            connection.close()
        elif self._queue:
            self._first().on_connection(connection)
        elif self._closing:
            connection.close()
        else:
            idle = self._idle
            quota = self._quota
            within = len(idle) < self.limits.max_idle and quota.idle < quota.limit
            connection.deadline = self._clock.monotonic() + (self.limits.idle_timeout if within else SURPLUS_SECONDS)
            idle.append(connection)
            quota.idle += 1

    def spare(self, connection: H2Connection) -> None:
        """It has room for more calls, or none left to carry. Harmless while it is not in the pool."""
        if connection not in self._open:
            return
        self._per_attempt = connection.session.max_streams
        if not connection.busy and connection not in self._idle:
            self.give_back(connection)
        while self._queue and connection.usable:
            if not connection.busy:
                self._wake(connection)
            self._first().on_connection(connection)
        self._replenish()

    def put_back(self, connection: Connection) -> None:
        """It was taken and not used."""
        if isinstance(connection, H1Connection):
            self.give_back(connection)
        else:
            self.spare(connection)

    def retire(self, connection: H2Connection) -> None:
        """It takes no more calls; idle, it is closed."""
        if connection in self._shared:
            self._shared.remove(connection)
        if not connection.busy:
            connection.close()

    def expire(self, connection: Connection) -> None:
        """It was idle for too long."""
        self.stats.cx_idle_timeout += 1
        connection.close()

    def drop(self, connection: Connection) -> None:
        """It is closed, and its place is free. Harmless when the pool never had it, or has it no more."""
        if connection not in self._open:
            return
        self._open.discard(connection)
        if not self._open and self._connector.name is not None:
            self._connector.name.part(self)
        self.stats.cx_active -= 1
        self._deadlines.discard(connection)
        if connection in self._idle:
            self._wake(connection)
        if connection in self._shared:
            self._shared.remove(connection)
        self._per_attempt = self._per_attempt or 1
        self._replenish()

    # For the name it was opened under.

    def leave_all_but(self, good: Collection[Address]) -> None:
        """The provider has moved: connections to addresses that are not `good` take no more calls, and close when they
        carry none."""
        for connection in [one for one in self._open if one.address not in good and not one.retired]:
            self.stats.cx_moved += 1
            connection.retire()

    # For the endpoint.

    def update(self, limits: PoolLimits) -> None:
        """New bounds: idle connections above them are closed now, busy ones after their calls."""
        self.limits = limits
        self._above = self._size > limits.max_connections
        while self._idle and self._size > limits.max_connections:
            self._idle[0].close()
        for connection in self._shared[limits.max_connections :]:
            connection.retire()
        self._replenish()

    async def aclose(self) -> None:
        """Close what is idle and give up attempts nobody waits for; connections in use close after their call."""
        self._closing = True
        self._shared.clear()
        for connection in [one for one in self._open if not one.busy]:
            connection.close()
        unwanted = list(self._attempts)[len(self._queue) :]
        for attempt in unwanted:
            attempt.task.cancel()
        if unwanted:
            await asyncio.wait([attempt.task for attempt in unwanted])

    # Inside.

    def _is_above_bounds(self) -> bool:
        """Those that go after their last call will make room by themselves."""
        return sum(not one.retired for one in self._open) > self.limits.max_connections

    @property
    def _size(self) -> int:
        return len(self._open) + len(self._attempts)

    def _enqueue(self, waiter: Waiter) -> None:
        waiter.deadline = self._clock.monotonic() + self.limits.connect_timeout
        self._queue[waiter] = None
        self._deadlines.add(waiter)
        self.stats.rq_pending_active += 1
        self._replenish()

    def _dequeue(self, waiter: Waiter) -> None:
        del self._queue[waiter]
        self._deadlines.discard(waiter)
        self.stats.rq_pending_active -= 1

    def _first(self) -> Waiter:
        waiter = next(iter(self._queue))
        self._dequeue(waiter)
        return waiter

    def _replenish(self) -> None:
        attempts, each = self._attempts, self._per_attempt
        while each and len(self._queue) > len(attempts) * each and self._size < self.limits.max_connections:
            attempt = _Attempt(self, self._clock.monotonic() + self.limits.connect_timeout)
            self._attempts.add(attempt)
            self._deadlines.add(attempt)

    def _wake(self, connection: Connection) -> None:
        """It is no longer idle."""
        self._idle.remove(connection)
        self._quota.idle -= 1

    async def dial(self) -> Connection:
        """The body of an attempt."""
        return await self._connector.open(self)

    def attempt_ended(self, attempt: _Attempt) -> None:
        """It connected, was refused, or was cancelled."""
        self._attempts.discard(attempt)
        self._deadlines.discard(attempt)
        if attempt.task.cancelled():
            self._replenish()
            return
        error = attempt.task.exception()
        if error is None:
            connection = attempt.task.result()
            if connection.alive:
                self._admit(connection)
                return
            error = ConnectError(UNREACHABLE, detail="closed as soon as it was open")
        elif not isinstance(error, ConnectError):
            context = {"message": "connecting failed in a way that is not mapped", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
            error = ConnectError(UNREACHABLE, detail=repr(error))
        self._refuse(error)

    def _admit(self, connection: Connection) -> None:
        self._open.add(connection)
        if self._connector.name is not None:
            self._connector.name.join(self)
        self._deadlines.add(connection)
        self.stats.cx_active += 1
        self.stats.cx_total += 1
        self.speaks_h1 = isinstance(connection, H1Connection)
        if isinstance(connection, H1Connection):
            self._per_attempt = 1
            self.give_back(connection)
            self._replenish()
        else:
            self.stats.cx_http2_total += 1
            if not self._closing:
                self._shared.append(connection)
            self.spare(connection)

    def _refuse(self, error: ConnectError) -> None:
        """Told to all for whom that attempt was made."""
        self.stats.cx_connect_fail += 1
        told = [self._first() for _ in range(min(len(self._queue), self._per_attempt or 1))]
        self._replenish()
        for waiter in told:
            waiter.on_refused(error)
