"""A request body on an HTTP/2 stream: out as far as the provider's windows allow, the rest waits.

A body that is all there waits here, and its connection notices when nothing is taken of it for too long; one that
arrives while it is sent makes its client wait.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf
from typing import TYPE_CHECKING, Protocol

from .h2_frames import DATA, END_STREAM, frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..errors import GatewayError
    from .call import BodySource
    from .h1 import H1Call
    from .h2_session import Session
    from .h2_stream import H2Stream


class StreamOwner(Protocol):
    """The connection, as a stream sees it."""

    session: Session

    def call_soon(self, fn: Callable[[], None]) -> None:
        """Call it from the next turn of the loop."""

    def flush_soon(self) -> None:
        """Something waits to be sent."""

    def room(self) -> int:
        """Bytes that may still be queued in this turn of the loop."""

    def on_blocked(self, stream: Sending) -> None:
        """It has something to send, and may not."""

    def on_sent(self, stream: Sending) -> None:
        """Its request is queued to its end."""

    def on_over(self, stream: H2Stream, *, reset: bool) -> None:
        """It is no longer on the connection."""

    def on_bug(self, error: Exception) -> GatewayError:
        """A receiver raised."""


class Sending(ABC):
    """What a stream sends, after its head."""

    __slots__ = ("_owner", "_source", "_source_waits", "_unsent", "blocked_at", "call", "id", "request_sent", "window")

    def __init__(self, owner: StreamOwner, call: H1Call) -> None:
        self._owner = owner
        self.call = call
        self.id = 0
        self.window = 0
        """What we may send."""
        self.blocked_at = inf
        """Since when it could send nothing."""
        self.request_sent = False
        self._unsent: memoryview | None = None
        self._source: BodySource | None = None
        self._source_waits = False

    def start(self) -> None:
        """Its head is queued: now the body."""
        call = self.call
        if call.source is not None:
            self._source = call.source
            self._owner.call_soon(self._start_source)
        elif call.body:
            self._unsent = memoryview(call.body)
            self.send_on()
        else:
            self._sent()

    @property
    def may_send(self) -> bool:
        """It has something to send, and its own window is open."""
        return self.window > 0 and self._unsent is not None

    def send_on(self, frames: int = 1 << 30) -> None:
        """Queue as much of the body as the windows allow, at most so many frames."""
        owner = self._owner
        session = owner.session
        unsent = self._unsent
        while unsent:
            frames -= 1
            size = 0 if frames < 0 else min(len(unsent), self.window, session.window, session.frame_size, owner.room())
            if size <= 0:
                self._unsent = unsent
                owner.on_blocked(self)
                return
            piece, unsent = unsent[:size], unsent[size:]
            self.window -= size
            session.window -= size
            session.queued += size
            session.overhead = 0
            self.blocked_at = inf
            ends = not unsent and self._source is None
            session.out.append(frame(DATA, END_STREAM if ends else 0, self.id, bytes(piece)))
            owner.flush_soon()
        self._unsent = None
        session.blocked.pop(self, None)
        source = self._source
        if source is None:
            self._sent()
        elif self._source_waits:
            self._source_waits = False
            source.resume()

    def put(self, data: bytes) -> None:
        """From the source of a streamed body."""
        source = self._source
        if source is None:
            return
        self._unsent = memoryview(data if self._unsent is None else bytes(self._unsent) + data)
        self.send_on()
        if self._unsent is not None and not self._source_waits:
            self._source_waits = True
            source.pause()

    def finish(self) -> None:
        """From the source: that was all."""
        if self._source is None:
            return
        self._source = None
        if self._unsent is None:
            self._owner.session.out.append(frame(DATA, END_STREAM, self.id))
            self._owner.flush_soon()
            self._sent()

    @abstractmethod
    def announce(self) -> None:
        """The request was handed to the transport to its end."""

    @abstractmethod
    def stalled(self, seconds: float) -> None:
        """The provider has taken nothing of the request for so long."""

    def _start_source(self) -> None:
        if self._source is not None:
            self._source.start(self)

    def _sent(self) -> None:
        self.request_sent = True
        self._owner.on_sent(self)

    def stop_sending(self) -> None:
        """Nobody takes it any more."""
        source, self._source = self._source, None
        self._unsent = None
        if source is not None:
            source.cancel()
