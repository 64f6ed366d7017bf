"""One HTTP/2 connection to a provider: many calls at once over one socket.

Whatever the calls of one turn of the loop want to say is written in one piece at its end: with a hundred calls under
way that is one system call instead of a hundred, and one TLS record.

A connection that has died in silence would take all its calls along for minutes. So where calls wait and nothing was
heard for `keepalive_interval`, a PING goes out, and the connection is given up when it is not answered in time; a
connection that has rested for a while sends one along with its next request.

Not here: what frames mean (h2_session.py), one call (h2_stream.py), which connection (pool.py).
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, Final, Protocol, cast

from h2.errors import ErrorCodes

from ..clock import NEVER
from ..errors import GatewayError, ProtocolError
from .h1 import HEAD_SECONDS
from .h2_answer import NOT_HTTP
from .h2_frames import MAX_STREAM_ID, PING, frame, goaway
from .h2_request import encode_block, encode_common
from .h2_session import ConnectionFaultError, Session
from .h2_stream import H2Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..clock import Clock
    from .call import UpstreamRequest
    from .h1 import H1Call
    from .h2_sending import Sending
    from .negotiate import Destination
    from .pool import PoolLimits
    from .resolver import Address
    from .stats import UpstreamStats

TURN: Final = 256 * 1024
"""Bytes of request bodies that are queued in one turn of the loop."""

UNREAD: Final = 1024 * 1024
"""A provider that reads nothing while it makes us answer is given up when this much waits for it."""

RESTED_SECONDS: Final = 10.0
"""A connection that has heard nothing for so long is asked whether it lives, along with the next request."""

_PING = frame(PING, 0, 0, b"headgate")


class H2Owner(Protocol):
    """The pool, as a connection sees it."""

    limits: PoolLimits
    stats: UpstreamStats

    def spare(self, connection: H2Connection) -> None:
        """It may take more calls, or has none left."""

    def retire(self, connection: H2Connection) -> None:
        """It takes no more calls."""

    def expire(self, connection: H2Connection) -> None:
        """Idle for too long."""

    def drop(self, connection: H2Connection) -> None:
        """Closed."""


class H2Connection(asyncio.Protocol):
    """See the top. `deadline` is the idle one between calls, and else the next time to look at what may be overdue."""

    __slots__ = (
        "_announce", "_closed", "_common", "_connected", "_flushing", "_heard_at", "_idle_until", "_loop", "_monotonic",
        "_owner", "_pong_by", "_quiet_since", "_reading_head_since", "_reused", "_transport",
        "_write_paused", "address", "deadline", "retired", "session",
    )  # fmt: skip

    _transport: asyncio.Transport
    _loop: asyncio.AbstractEventLoop

    address: Address
    """Where it leads; set once it is open."""
    multiplexed = True

    def __init__(self, owner: H2Owner, clock: Clock, to: Destination) -> None:
        self._owner = owner
        self._monotonic = clock.monotonic
        self._common = encode_common(to)
        self.session = Session(self)
        self._announce: list[Sending] = []
        self._connected = False
        self._closed = False
        self._flushing = False
        self._write_paused = False
        self._reused = False
        self._heard_at = 0.0
        self._quiet_since = 0.0
        """Nothing was heard since then, though calls wait."""
        self._idle_until = 0.0
        """When it is idle for too long, where a PING that is not answered is looked for before that."""
        self._pong_by = NEVER
        self._reading_head_since = NEVER
        self.retired = False
        """It takes no more calls, and is closed after the last one."""
        self.deadline = NEVER

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self.session.streams)} of {self.session.max_streams}"
        return f"<H2Connection {state}>"

    # For the pool and for calls.

    @property
    def alive(self) -> bool:
        """Open as far as anyone knows."""
        return not self._closed and not self._transport.is_closing()

    @property
    def usable(self) -> bool:
        """Whether a request may be sent: open, and with room for one."""
        session = self.session
        return len(session.streams) < session.max_streams and not self.retired and self.alive

    @property
    def busy(self) -> bool:
        """It carries calls."""
        return bool(self.session.streams)

    def send(self, call: H1Call) -> None:
        """Send its request; from here on its receiver hears of it, first from the next turn of the loop. Raises
        GatewayError when it cannot be sent."""
        block = encode_block(cast("UpstreamRequest", call.request), self._common)
        session = self.session
        now = self._monotonic()
        if not session.streams:
            self._begin(now)
        stream = H2Stream(self, call, reused=self._reused, sent_at=now)
        self._reused = True
        body = call.source is not None or bool(call.body)
        session.open(stream, block, ends=not body)
        self.flush_soon()
        stream.start()
        call.carrier = stream
        if session.next_id > MAX_STREAM_ID:
            self.retire()

    def retire(self) -> None:
        """Take no more calls, and close after the last one."""
        if not self.retired:
            self.retired = True
            self._owner.retire(self)

    def close(self) -> None:
        """Close at once; calls that it carries are forgotten, not told. Idempotent."""
        self._close(goaway(ErrorCodes.NO_ERROR))

    def abort(self) -> None:
        """As `close`, without a word: for a connection whose opening was given up."""
        self._close(None)

    def on_deadline(self) -> None:
        """Idle for too long, or time to look whether something is overdue."""
        session = self.session
        now = self._monotonic()
        limits = self._owner.limits
        if not session.streams and now < self._pong_by:
            if now < self._idle_until:
                self.deadline = min(self._pong_by, self._idle_until)
            else:
                self._owner.expire(self)
            return
        if now >= self._reading_head_since + HEAD_SECONDS:
            self._fault(
                ConnectionFaultError(ErrorCodes.ENHANCE_YOUR_CALM, f"the head was not whole after {HEAD_SECONDS:g} s")
            )
            return
        if now >= self._pong_by:
            self._owner.stats.cx_keepalive_timeout += 1
            self._lost(f"no answer to a PING in {limits.keepalive_timeout:g} s")
            return
        if self._pong_by == NEVER and now >= self._quiet_since + limits.keepalive_interval:
            self._ping(now)
        for stream in [one for one in session.blocked if now >= one.blocked_at + limits.stall_timeout]:
            stream.stalled(limits.stall_timeout)
        if session.streams and not self._closed:
            self._watch()

    # The transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()
        self._connected = True
        self._heard_at = self._monotonic()
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._quiet_since = self._monotonic()
        self._pong_by = NEVER  # whatever it is, it lives
        session = self.session
        while True:
            try:
                session.receive(data)
            except ConnectionFaultError as fault:
                self._fault(fault)
                return
            except Exception as error:
                self._blame(error)
                data = b""
                continue
            break
        if self._closed:
            return
        if session.reading_head:
            self._reading_head_since = min(self._reading_head_since, self._heard_at)
            self.deadline = min(self.deadline, self._reading_head_since + HEAD_SECONDS)
        else:
            self._reading_head_since = NEVER
        if session.blocked:
            self._send_blocked()
        if session.out and not self._flushing:
            self._flush()

    def eof_received(self) -> None:
        self._lost("closed by the provider")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(repr(exc))

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if not self._closed and self.session.blocked:
            self._send_blocked()

    # Its session.

    def on_capacity(self) -> None:
        if not self._closed:
            self._owner.spare(self)

    def on_goaway(self, last_stream_id: int, code: int) -> None:
        self._owner.stats.cx_close_notify += 1
        self.retire()
        for stream in reversed([one for one in self.session.streams.values() if one.id > last_stream_id]):
            stream.refused = not stream.answered
            stream.fail(stream.broken(f"not looked at before GOAWAY, code {code}"))

    def on_reset(self) -> None:
        self._owner.stats.rq_rx_reset += 1

    def on_pong(self) -> None:
        """Any byte tells that it lives."""

    # Its streams.

    def call_soon(self, fn: Callable[[], None]) -> None:
        self._loop.call_soon(fn)

    def flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def room(self) -> int:
        return 0 if self._write_paused else TURN - self.session.queued

    def on_blocked(self, stream: Sending) -> None:
        blocked = self.session.blocked
        blocked.pop(stream, None)
        blocked[stream] = None  # behind the others: they take turns
        if stream.blocked_at == inf:
            stream.blocked_at = self._monotonic()
            self.deadline = min(self.deadline, stream.blocked_at + self._owner.limits.stall_timeout)

    def on_sent(self, stream: Sending) -> None:
        self._announce.append(stream)

    def on_over(self, stream: H2Stream, *, reset: bool) -> None:
        session = self.session
        session.streams.pop(stream.id, None)
        session.blocked.pop(stream, None)
        if reset:
            self._owner.stats.rq_tx_reset += 1
        if self._closed:
            return
        stall = self._owner.limits.stall_timeout
        if stream.blocked_at != inf and self._monotonic() >= stream.blocked_at + stall:
            self.retire()  # no other call would fare better
        elif session.block_of == stream.id:
            self.retire()  # the rest of its head may never come, and until then nobody else's can
        elif reset and not self.retired and self._heard_at <= stream.sent_at and self._pong_by == NEVER:
            self._ping(self._monotonic())  # given up in silence: is anybody there at all?
        if not session.streams:
            self.deadline = NEVER
            if self.retired:
                self.close()
                return
        if not self.retired:
            self._owner.spare(self)
        if not session.streams:
            self._idle_until, self.deadline = self.deadline, min(self.deadline, self._pong_by)

    def on_bug(self, error: Exception) -> GatewayError:
        context = {"message": "the receiver of an answer raised", "exception": error, "protocol": self}
        self._loop.call_exception_handler(context)
        return GatewayError("Internal error.", detail=repr(error))

    # Inside.

    def _close(self, last_words: bytes | None) -> None:
        """Words are for who listens: where the provider is behind with reading, it hears nothing more."""
        if self._closed:
            return
        self._closed = self.session.closed = True
        self._announce.clear()
        if self._connected:
            transport = self._transport
            if last_words is None or self._write_paused or transport.is_closing() or transport.get_write_buffer_size():
                transport.abort()
            else:
                transport.write(b"".join((*self.session.out, last_words)))
                transport.close()
        self._owner.drop(self)

    def _begin(self, now: float) -> None:
        """The first call after a rest."""
        if now >= self._heard_at + RESTED_SECONDS and self._pong_by == NEVER:
            self._ping(now)
        self._quiet_since = now
        self._idle_until = 0.0
        self._watch()

    def _watch(self) -> None:
        """Look again when the first of all that may be overdue would be."""
        limits = self._owner.limits
        ping = self._pong_by if self._pong_by != NEVER else self._quiet_since + limits.keepalive_interval
        stalls = [stream.blocked_at + limits.stall_timeout for stream in self.session.blocked]
        self.deadline = min(ping, self._reading_head_since + HEAD_SECONDS, *stalls)

    def _ping(self, now: float) -> None:
        self._pong_by = now + self._owner.limits.keepalive_timeout
        self.session.out.append(_PING)
        self.flush_soon()

    def _send_blocked(self) -> None:
        """Each in turn one frame, until nobody may send any more."""
        session = self.session
        progress = True
        while progress and session.window > 0 and self.room() > 0:
            progress = False
            for stream in list(session.blocked):
                if stream.may_send and session.window > 0 and self.room() > 0:
                    stream.send_on(1)
                    progress = True

    def _flush(self) -> None:
        self._flushing = False
        session = self.session
        if self._closed:
            return
        if session.out:
            data = b"".join(session.out)
            session.out.clear()
            self._transport.write(data)
            if self._write_paused and self._transport.get_write_buffer_size() > UNREAD:
                self._fault(ConnectionFaultError(ErrorCodes.ENHANCE_YOUR_CALM, "reads nothing, and makes us answer"))
                return
        if session.queued:
            session.queued = 0
            if session.blocked:
                self._send_blocked()
        if self._announce:
            announce, self._announce = self._announce, []
            for stream in announce:
                stream.announce()

    def _blame(self, error: Exception) -> None:
        """A receiver raised: its exchange must hear of an end all the same, and so must the log."""
        stream = self.session.current
        bug = self.on_bug(error)
        if stream is not None:
            stream.fail(bug, ErrorCodes.INTERNAL_ERROR)

    def _fault(self, fault: ConnectionFaultError) -> None:
        """It broke the protocol: calls that have nothing of an answer are told the same as the others."""
        self._owner.stats.cx_protocol_error += 1
        streams = self._take_streams()
        self._close(goaway(fault.code, fault.detail))
        for stream in streams:
            stream.fail(ProtocolError(NOT_HTTP, detail=f"{fault.code.name}: {fault.detail}"))

    def _lost(self, detail: str) -> None:
        """The other side ended the connection, or it broke."""
        streams = self._take_streams()
        self._close(None)
        for stream in reversed(streams):  # each that is sent again goes to the head of the queue
            stream.fail(stream.broken(detail))

    def _take_streams(self) -> list[H2Stream]:
        streams = list(self.session.streams.values())
        if streams:
            self._owner.stats.cx_destroy_with_active_rq += 1
        self.session.streams.clear()
        self.session.blocked.clear()
        return streams
