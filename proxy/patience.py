"""Is an attempt still moving, or is it late? One deadline in the coarse timer, moved by whatever happens.

Until the request has been sent it may take as long for that as for everything; a body that comes from the client is the
edge's to hurry. Once it is sent, a plain answer has a total; a stream has its first token and each silence besides; a
session over a WebSocket has its opening, and then no end that a clock would know.

The time in which the client is behind is never counted: a provider that is not read cannot be late.

Not here: what follows when it is late (attempt.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .upstream.call import CallReceiver

if TYPE_CHECKING:
    from .dialect import StreamReader
    from .engine import Engine
    from .upstream.call import Call
    from .upstream.cluster import Timeouts
    from .websocket.opening import Opening

HELD_SECONDS = 2.0
"""How long the beginning of a stream is held, from its head on."""
LINGER_SECONDS = 2.0
"""How long the rest of a message may take after its terminal event, so that its connection can be used again."""


class Patience(CallReceiver):
    """The times of an attempt, all in monotonic seconds. Its `__init__` sets what is known of them from the start: one
    here would be one more call for each."""

    __slots__ = (
        "_client_by", "_engine", "_first_token_by", "_paused_at", "_streams", "_timeouts", "_total_at",
        "deadline", "ended_at", "head_at", "opening", "sent_at", "started",
    )  # fmt: skip

    deadline: float
    """When it will be late."""
    started: float
    sent_at: float | None
    head_at: float | None
    ended_at: float | None
    _engine: Engine
    _timeouts: Timeouts
    _client_by: float
    """The caller's own deadline."""
    opening: Opening | None
    """Where it is to open a session over a WebSocket."""
    _streams: bool
    """It asks for a stream."""
    _first_token_by: float
    """Set with the head of a stream."""
    _total_at: float
    _paused_at: float | None

    @property
    def paused(self) -> bool:
        """The client is behind."""
        return self._paused_at is not None

    def on_sent(self, call: Call) -> None:
        """The clock of the answer starts."""
        timeouts, by = self._timeouts, self._client_by
        now = self.sent_at = self._engine.clock.monotonic()
        self._total_at = self.deadline = min(now + timeouts.total, by)
        if self._streams:
            self.deadline = min(now + timeouts.first_token, self._total_at)
        elif self.opening is not None:
            self.deadline = min(now + timeouts.connect, by)

    def _hold_until(self, now: float) -> None:
        """The head of a stream is here, and its beginning is awaited."""
        assert self.sent_at is not None  # noqa: S101 - narrows for the type checker: a head is not before it
        self._first_token_by = self.sent_at + self._timeouts.first_token
        self.deadline = min(self._first_token_by, self._total_at, now + HELD_SECONDS)

    def _expect(self, now: float, reader: StreamReader | None) -> None:
        """The deadline of an answer under way: a stream's first token, then its silence; and always the total."""
        if reader is None or self._paused_at is not None:
            self.deadline = self._total_at
        elif reader.committed:
            self.deadline = min(now + self._timeouts.idle, self._total_at)
        else:
            self.deadline = min(self._first_token_by, self._total_at)

    def _expect_progress(self) -> None:
        """The provider takes nothing of the request: not for longer than it may be silent."""
        self.deadline = min(self._engine.clock.monotonic() + self._timeouts.idle, self._total_at)

    def _hasten(self, now: float) -> None:
        """Whatever is still to come must come now."""
        self._total_at = min(self._total_at, now + LINGER_SECONDS)

    def _rest(self) -> None:
        """The client is behind: only the total counts on."""
        if self._paused_at is None:
            self._paused_at = self._engine.clock.monotonic()
        self.deadline = self._total_at

    def _wake(self, reader: StreamReader | None) -> None:
        """The client reads again: what it has taken is added to the time for a first token."""
        now = self._engine.clock.monotonic()
        if self._paused_at is not None:
            if reader is not None:
                self._first_token_by += now - self._paused_at
            self._paused_at = None
        self._expect(now, reader)

    def _is_overheld(self, now: float) -> bool:
        """It is late because its beginning has been held for so long, and for nothing else."""
        return now < self._total_at and now < self._first_token_by

    def _overdue(self, now: float, reader: StreamReader | None, *, sending: bool) -> str:
        """What it has not done in time. `sending`: the client's body still goes up."""
        if sending:
            return "take the request"
        if self.opening is not None:
            return "open the WebSocket"
        if now >= self._total_at:
            return "finish" if self.sent_at is not None else "take the request"
        return "go on" if reader is not None and reader.committed else "send a first token"
