"""How much of one limit one caller has used: the arithmetic alone.

Whole numbers throughout, time in microseconds, so "exactly the limit" needs no tolerance. `limit` is passed in at every
step and not kept: a reload may change it while what has been used stays.

A `Window` is opened by the first call after the last one closed, and admits `limit` in its `length`. A `Debt` is paid
back at `limit` per `length` all the time, and may grow to `limit`: the generic cell rate algorithm with a burst of the
limit. `Slots` are held and given back, and know no time.

What was taken may be corrected once (`settle`), when it is known what a call has really used. That may lead beyond the
limit: then nothing is admitted until it is made up for. A window that has closed since takes no correction; the window
after it never heard of that call.

Not here: whose meter it is, and how many there may be (memory.py).
"""

from __future__ import annotations

from typing import Final, Protocol

SLOT_WAIT: Final = 1_000_000
"""Nobody knows when a slot is given back: ask again after a second."""


class Meter(Protocol):
    """One caller's use of one limit."""

    def idle(self, now: int, limit: int) -> bool:
        """It is as good as new: forgetting it gives nobody more than the limit."""

    def wait(self, limit: int, amount: int, now: int) -> int:
        """0: `amount` may be taken, else the microseconds until it may. For amounts up to `limit`."""

    def take(self, limit: int, amount: int, now: int) -> int:
        """Take it, without asking. Returns a stamp for `settle`."""

    def settle(self, limit: int, stamp: int, taken: int, used: int, now: int) -> None:
        """Of what was `taken` so much has really been `used`; once."""

    def left(self, limit: int, now: int) -> int:
        """What may be taken now."""

    def resets(self, limit: int, now: int) -> int:
        """Microseconds until it is as good as new, if nothing more is taken."""


class Window:
    """Admits `limit` in each window of `length` microseconds. `closes`: the time; no two of its windows have one."""

    __slots__ = ("closes", "length", "used")

    def __init__(self, length: int, closes: int = 0) -> None:
        self.length = length
        self.closes = closes
        self.used = 0

    def idle(self, now: int, limit: int) -> bool:
        """It is closed."""
        return now >= self.closes

    def wait(self, limit: int, amount: int, now: int) -> int:
        """Until the window closes, if there is not enough left in it."""
        return 0 if now >= self.closes or self.used + amount <= limit else self.closes - now

    def take(self, limit: int, amount: int, now: int) -> int:
        """The stamp is the window's."""
        if now >= self.closes:
            self.closes = now + self.length
            self.used = 0
        self.used += amount
        return self.closes

    def settle(self, limit: int, stamp: int, taken: int, used: int, now: int) -> None:
        """Only in the window of the stamp."""
        if stamp == self.closes:
            self.used += used - taken

    def left(self, limit: int, now: int) -> int:
        """All of it, once the window is closed."""
        return limit if now >= self.closes else max(0, limit - self.used)

    def resets(self, limit: int, now: int) -> int:
        """Until it closes."""
        return max(0, self.closes - now)


class Debt:
    """Pays back `limit` in `length` microseconds; `owed` is in units of 1 / `length`, as of the time `at`."""

    __slots__ = ("at", "length", "owed")

    def __init__(self, length: int, at: int = 0, owed: int = 0) -> None:
        self.length = length
        self.at = at
        self.owed = owed

    def _owes(self, limit: int, now: int) -> int:
        return max(0, self.owed - (now - self.at) * limit)

    def idle(self, now: int, limit: int) -> bool:
        """Nothing is owed."""
        return not self._owes(limit, now)

    def wait(self, limit: int, amount: int, now: int) -> int:
        """Until enough is paid back."""
        over = self._owes(limit, now) + (amount - limit) * self.length
        return max(0, -(-over // limit))

    def take(self, limit: int, amount: int, now: int) -> int:
        """No stamp: there is but one debt."""
        self.owed = self._owes(limit, now) + amount * self.length
        self.at = now
        return 0

    def settle(self, limit: int, stamp: int, taken: int, used: int, now: int) -> None:
        """What was paid back meanwhile is not paid back twice."""
        self.owed = max(0, self._owes(limit, now) + (used - taken) * self.length)
        self.at = now

    def left(self, limit: int, now: int) -> int:
        """Whole units."""
        return max(0, (limit * self.length - self._owes(limit, now)) // self.length)

    def resets(self, limit: int, now: int) -> int:
        """Until nothing is owed."""
        return -(-self._owes(limit, now) // limit)


class Slots:
    """`limit` at once."""

    __slots__ = ("used",)

    def __init__(self, used: int = 0) -> None:
        self.used = used

    def idle(self, now: int, limit: int) -> bool:
        """Nobody holds one."""
        return not self.used

    def wait(self, limit: int, amount: int, now: int) -> int:
        """A guess: slots keep no time."""
        return 0 if self.used + amount <= limit else SLOT_WAIT

    def take(self, limit: int, amount: int, now: int) -> int:
        """Held until it is settled."""
        self.used += amount
        return 0

    def settle(self, limit: int, stamp: int, taken: int, used: int, now: int) -> None:
        """Given back, whatever it was used for."""
        self.used -= taken

    def left(self, limit: int, now: int) -> int:
        """Free ones."""
        return max(0, limit - self.used)

    def resets(self, limit: int, now: int) -> int:
        """As `wait`."""
        return SLOT_WAIT if self.used else 0
