"""Commands of many callers over one connection to Redis, each with its reply.

Redis answers in the order in which it was asked, so a reply belongs to the oldest command that has none. All that is
asked in one turn of the loop leaves together. A caller that leaves takes nothing along: its reply is read like any
other, and thrown away. A command that is not answered in time ends the link: its reply may yet come, so the connection
is closed, and everything under way on it fails. No connection is used after a reply was missed, so nobody can be given
the reply of somebody else.

Not here: opening connections and giving up on a server (redis_client.py), the protocol (redis_driver.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from hashlib import sha1
from math import inf
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from ...proxy.snapshot import Distribution, StoreCounters
from ...proxy.stats import STORE_BOUNDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ...proxy.clock import Clock, Timer

MOST_WAITING: Final = 4096
MOST_BYTES: Final = 64 * 1024 * 1024
"""Commands without a reply, and their bytes; what is more is refused at once."""
QUEUED_SECONDS: Final = 0.00025
MOST_QUEUED_SECONDS: Final = 0.05
"""A question waits so much longer for each one before it, and so much at most: a burst is no reason to give up a server
that answers one question after the other."""
LONGEST_LOOK: Final = 0.05
"""Seconds after which it is looked again, however patient the oldest question is."""
TURNS: Final = 3
"""Turns of the loop for which a late reply is still looked for: it is read, handed over, and noticed. So a loop that
stood still does not take its own absence for that of Redis."""


class StoreAwayError(Exception):
    """Redis could not say. Whether it has carried the command out is unknown."""


class ConnectionLostError(StoreAwayError):
    """The connection is of no use any more."""


class Refusal(NamedTuple):
    """The server's word that it did not carry a command out."""

    reason: str


class Script:
    """A Lua script, named by its digest once the server has seen it. `name` is for messages."""

    __slots__ = ("digest", "name", "text")

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text.encode()
        self.digest = sha1(self.text, usedforsecurity=False).hexdigest().encode()


class Wire(Protocol):
    """A connection that is open: see redis_driver.py."""

    async def send(self, commands: Iterable[Sequence[bytes]]) -> None:
        """All of them, in order. Raises ConnectionLostError."""

    async def receive(self) -> Any:
        """The next reply. Raises ConnectionLostError."""

    async def aclose(self) -> None:
        """At once."""


class Tally:
    """What is counted of a store, plain numbers and one writer."""

    __slots__ = ("answered", "buckets", "failed", "opened", "refused", "seconds")

    def __init__(self) -> None:
        self.answered = 0
        """Commands with a reply in time."""
        self.failed = 0
        """Commands without, and those that the server did not carry out."""
        self.refused = 0
        """Commands that were not sent: the server was away, or too many were under way."""
        self.opened = 0
        """Times that the server was given up for a while."""
        self.buckets = [0] * (len(STORE_BOUNDS) + 1)
        self.seconds = 0.0
        """Of the replies, from the question."""

    def observe(self, seconds: float) -> None:
        """A reply came."""
        self.answered += 1
        self.seconds += seconds
        at = 0
        for bound in STORE_BOUNDS:
            if seconds <= bound:
                break
            at += 1
        self.buckets[at] += 1

    def counters(self) -> StoreCounters:
        """As the admin listener has them."""
        latency = Distribution(list(self.buckets), self.seconds)
        return StoreCounters(self.answered, self.failed, self.refused, self.opened, latency)


class _Call:
    """A command that waits for its reply. `deadline` counts from when it was sent: what our own loop had to do before
    is not Redis's fault."""

    __slots__ = ("asked", "command", "deadline", "future", "size", "timeout")

    def __init__(
        self, command: Sequence[bytes], future: asyncio.Future[Any], size: int, asked: float, timeout: float
    ) -> None:
        self.command = command
        self.future = future
        self.size = size
        self.asked = asked
        self.timeout = timeout
        self.deadline = inf


class Link:
    """One connection and its callers. `serve` it in a task; it is over once that returns."""

    def __init__(self, wire: Wire, clock: Clock, tally: Tally) -> None:
        self._wire = wire
        self._clock = clock
        self._tally = tally
        self._loop = asyncio.get_running_loop()
        self._calls: deque[_Call] = deque()
        self._bytes = 0
        self._unsent: list[_Call] = []
        self._timer: Timer | None = None
        self._asked = asyncio.Event()
        self._known: set[bytes] = set()
        self._over: asyncio.Future[StoreAwayError] = self._loop.create_future()

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def over(self) -> bool:
        """It takes no more questions."""
        return self._over.done()

    def run(self, script: Script, keys: Sequence[bytes], args: Sequence[bytes], timeout: float) -> asyncio.Future[Any]:
        """See `RedisClient.run`."""
        if script.digest not in self._known:
            self.ask((b"SCRIPT", b"LOAD", script.text), timeout)
            self._known.add(script.digest)
        return self.ask((b"EVALSHA", script.digest, b"%d" % len(keys), *keys, *args), timeout)

    def ask(self, command: Sequence[bytes], timeout: float) -> asyncio.Future[Any]:
        """The reply to one command, or StoreAwayError within `timeout` seconds and what the questions before it take.
        Whoever waits for it may be cancelled.

        Raises StoreAwayError where the link is over, or too much is under way.
        """
        size = sum(map(len, command))
        if self._over.done():
            self._tally.refused += 1
            raise again(self._over.result())
        if len(self._calls) >= MOST_WAITING or (self._calls and self._bytes + size > MOST_BYTES):
            self._tally.refused += 1
            raise StoreAwayError("too many questions to Redis are under way")
        queued = min(len(self._calls) * QUEUED_SECONDS, MOST_QUEUED_SECONDS)
        now = self._clock.monotonic()
        call = _Call(command, self._loop.create_future(), size, now, timeout + queued)
        self._calls.append(call)
        self._bytes += size
        self._unsent.append(call)
        self._asked.set()
        return call.future

    async def serve(self) -> StoreAwayError:
        """Until the connection ends or is ended; returns why. Then it is closed and every caller has been told."""
        work = [self._loop.create_task(self._write()), self._loop.create_task(self._read())]
        try:
            everything: list[asyncio.Future[Any]] = [self._over, *work]
            await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.end(ConnectionLostError("the connection was closed"))
            for task in work:
                task.cancel()
            results = await asyncio.gather(*work, return_exceptions=True)
            await self._wire.aclose()
        for result in results:
            if isinstance(result, Exception):  # a bug: what a connection can do has become `_over`
                raise result
        return self._over.result()

    def end(self, error: StoreAwayError) -> None:
        """Ask nothing more; everything under way fails with `error`. Harmless when it is over."""
        if self._over.done():
            return
        self._over.set_result(error)
        calls, self._calls = self._calls, deque()
        self._tally.failed += len(calls)
        for call in calls:
            _fail(call.future, again(error))
        self._unsent.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._asked.set()

    def _watch(self, suspect: _Call | None = None, turns: int = 0) -> None:
        """Look whether the oldest question is late; of those behind it none is answered before."""
        self._timer = None
        if not self._calls:
            return
        oldest, now = self._calls[0], self._clock.monotonic()
        if oldest.deadline > now:
            when = min(oldest.deadline, now + LONGEST_LOOK)
            self._timer = self._clock.call_at(when, self._watch)
        elif oldest is not suspect or turns < TURNS:
            self._timer = self._clock.call_at(0.0, self._watch, oldest, turns + 1 if oldest is suspect else 1)
        else:
            waited = f"{(now - oldest.asked) * 1000:.0f} ms"
            self.end(ConnectionLostError(f"no answer within {waited}, see stores.redis.timeout"))

    async def _write(self) -> None:
        try:
            while True:
                await self._asked.wait()
                if self._over.done():  # a cancellation may get lost in the driver
                    return
                self._asked.clear()
                calls, self._unsent = self._unsent, []
                self._start(calls)
                await self._wire.send([call.command for call in calls])
                self._start(calls)
        except ConnectionLostError as error:
            self.end(error)

    def _start(self, calls: Sequence[_Call]) -> None:
        """They leave now."""
        now = self._clock.monotonic()
        for call in calls:
            call.deadline = now + call.timeout
        if self._timer is None and not self._over.done():
            self._watch()

    async def _read(self) -> None:
        try:
            while True:
                reply = await self._wire.receive()
                if not self._calls:
                    raise ConnectionLostError("Redis said something that nobody asked for")
                self._answer(self._calls.popleft(), reply)
        except ConnectionLostError as error:
            self.end(error)

    def _answer(self, call: _Call, reply: Any) -> None:
        self._bytes -= call.size
        if isinstance(reply, Refusal):
            self._tally.failed += 1
            _fail(call.future, StoreAwayError(f"Redis refused a command: {reply.reason}"))
            return
        self._tally.observe(self._clock.monotonic() - call.asked)
        if not call.future.done():
            call.future.set_result(reply)


def again(error: StoreAwayError) -> StoreAwayError:
    """The same for somebody else: what is raised keeps the frames that it passed."""
    return type(error)(*error.args)


def _fail(future: asyncio.Future[Any], error: StoreAwayError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # it counts as seen: of many commands nobody waits for the reply
