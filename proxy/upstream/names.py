"""A host name and where it leads, kept up to date while there are connections to it.

The last good answer is always at hand: a new connection waits for the resolver only where there is none yet, or where
it is old because nothing was open for a while. A resolver that fails or hangs therefore changes nothing for a provider
that was reached before.

Users hear of each answer. An address that answers have not had for a while is to be left: connections to it finish what
they carry and take nothing new. Not at once, because some names give a few of many addresses, others each time, and
all of them are good.

Not here: the system's resolver (resolver.py), connecting (dial.py).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import structlog

from ..clock import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from ..clock import Clock, Deadlines
    from .resolver import Address, Found

REFRESH_SECONDS = 5.0
"""Between two lookups of a name in use; Envoy's `dns_refresh_rate`."""

LINGER_SECONDS = 15.0
"""How long an address counts that answers no longer have. With the time between two answers it stays below 30 s."""

GOOD_SECONDS = 10.0
"""How old an answer may be that a new connection takes; one that is kept up to date is never older."""

NEW_SECONDS = 1.0
"""An answer so young would be given again: who cannot reach a provider must not ask its resolver for each call."""

LOOKUP_SECONDS = 2.0
"""For one answer. A later one is welcome, but nobody waits for it."""

log = structlog.get_logger("headgate")


class LooksUp(Protocol):
    """The seam to the resolver."""

    def look_up(self, host: str, port: int, done: Callable[[Found], None]) -> None:
        """Ask, and have `done` called on this loop later, or never."""


class User(Protocol):
    """Has connections that were opened under a name."""

    def leave_all_but(self, good: Collection[Address]) -> None:
        """Connections to other addresses take nothing new, and close when they carry nothing."""


class Name:
    """One host and port. `deadline` is when it is looked up next, while there are users."""

    __slots__ = (
        "_answer", "_answered_at", "_asked_at", "_clock", "_deadlines", "_doubted", "_failure", "_host", "_port",
        "_resolver", "_seen", "_users", "_waiting", "deadline",
    )  # fmt: skip

    def __init__(self, host: str, port: int, resolver: LooksUp, clock: Clock, deadlines: Deadlines) -> None:
        self._host = host
        self._port = port
        self._resolver = resolver
        self._clock = clock
        self._deadlines = deadlines
        self._answer: Sequence[Address] = ()
        self._answered_at = -NEVER
        """When the resolver said something last, be it that it failed."""
        self._doubted = False
        """Somebody could not be reached since."""
        self._asked_at = NEVER
        """When the lookup began that is under way."""
        self._failure: OSError | None = None
        """What the resolver said last, where that was no answer."""
        self._seen: dict[Address, float] = {}
        """When an answer had it last."""
        self._users: set[User] = set()
        self._waiting: set[asyncio.Future[None]] = set()
        self.deadline = NEVER

    def __repr__(self) -> str:
        return f"<Name {self._host}:{self._port} {[one.sockaddr[0] for one in self._answer]}>"

    async def addresses(self) -> Sequence[Address]:
        """Where it leads, in the order in which to try. Raises OSError where nobody ever knew; cancelled, it leaves the
        lookup to whoever asks next."""
        now = self._clock.monotonic()
        is_good = now - self._answered_at < (NEW_SECONDS if self._doubted else GOOD_SECONDS)
        overdue = now - self._asked_at > LOOKUP_SECONDS
        if self._answer and (is_good or overdue):
            return self._answer
        self._ask(now)
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(answered)
        failure = None
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                await answered
        except TimeoutError:
            failure = OSError(f"the resolver did not answer within {LOOKUP_SECONDS:g} s")
        finally:
            self._waiting.discard(answered)
        if not self._answer:
            raise failure or self._failure or OSError("the name has no address")
        return self._answer

    def doubt(self) -> None:
        """Nobody could be reached there: the next connection asks again, unless the answer is brand new."""
        self._doubted = True

    def join(self, user: User) -> None:
        """It has connections: keep the name up to date. Harmless when it has joined already."""
        if not self._users:
            self.deadline = max(self._answered_at + REFRESH_SECONDS, self._clock.monotonic())
            self._deadlines.add(self)
        self._users.add(user)

    def part(self, user: User) -> None:
        """It has none any more. Harmless when it never had."""
        self._users.discard(user)
        if not self._users:
            self.deadline = NEVER
            self._deadlines.discard(self)

    def on_deadline(self) -> None:
        """Look it up again."""
        now = self._clock.monotonic()
        self.deadline = now + REFRESH_SECONDS
        self._ask(now)

    def _ask(self, now: float) -> None:
        if self._asked_at == NEVER:
            self._asked_at = now
            self._resolver.look_up(self._host, self._port, self._on_found)

    def _on_found(self, found: Found) -> None:
        self._asked_at = NEVER
        now = self._clock.monotonic()
        self._answered_at, self._doubted = now, False
        if isinstance(found, OSError):
            if self._failure is None:
                log.warning("name_not_resolved", host=self._host, reason=str(found), known=len(self._answer))
            self._failure = found
        else:
            self._failure = None
            self._answer = found
            self._seen = {one: at for one, at in self._seen.items() if now - at < LINGER_SECONDS}
            self._seen.update(dict.fromkeys(found, now))
            for user in tuple(self._users):
                user.leave_all_but(self._seen)
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
