"""When a Redis is given up for a while, and when it is tried again.

    CLOSED ── FAILURES in a row, or MOST_SECONDS without success ──▶ OPEN ── REST_SECONDS ──▶ one probe
       ▲                                                               ▲                        │
       └────────────────────────── it succeeds ────────────────────────┼────────────────────────┤
                                                                       └──────── it fails ──────┘

Open, nobody waits: the decision is made without Redis at once. The probe is a connection of our own with a write that
must be done within the time that a decision has; no request is risked for it. The success of a probe alone does not
make up for failures while it is closed: only commands that serve do.

Pure: the time is an argument, in monotonic seconds.
"""

from __future__ import annotations

from typing import Final

FAILURES: Final = 5
MOST_SECONDS: Final = 1.0
"""A slow Redis is worse than a dead one: whoever waits for it in vain waits no more than five times, or a second."""
REST_SECONDS: Final = 1.0


class StoreBreaker:
    """Of one server, in one worker."""

    __slots__ = ("_failures", "_since", "open")

    def __init__(self) -> None:
        self.open = False
        self._failures = 0
        self._since = 0.0

    def succeed(self) -> None:
        """A command was answered in time."""
        self._failures = 0

    def fail(self, now: float) -> bool:
        """One was not, or there was no connection; returns whether that opens it."""
        if self.open:
            return False
        if not self._failures:
            self._since = now
        self._failures += 1
        self.open = self._failures >= FAILURES or now - self._since >= MOST_SECONDS
        return self.open

    def close(self) -> bool:
        """A probe succeeded; returns whether that closes it."""
        was_open, self.open = self.open, False
        if was_open:
            self._failures = 0
        return was_open
