"""One HTTP/1.1 connection to a provider: a request out, its answer in, and then the next one.

A bare asyncio protocol over httptools, because every event of every stream passes here: a callback costs 0.1 µs where
an await that really waits costs 3, and a stream reader would copy each byte twice.

What makes it correct: a message is over for the receiver only after the parser has come back with the whole read.
Only then is it known whether bytes followed the end (such a connection is dirty and is closed), and only then may a
receiver that starts its next call find this connection free. Nothing that was read for one call can reach another.

Not here: which call gets the connection (pool.py), time limits on the answer (the dispatcher's).
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import TYPE_CHECKING, Protocol, cast

from ..clock import NEVER
from ..errors import GatewayError, ProtocolError
from .call import Call
from .h1_answer import AnswerReader
from .plain_head import read_plain_head

if TYPE_CHECKING:
    from ..clock import Clock
    from .call import BodySource, CallReceiver, UpstreamRequest
    from .resolver import Address

HEAD_SECONDS = 10.0
"""A head that has begun must be whole in this time."""

JOINED = 16 * 1024
"""A body up to this size leaves in one piece with the head: copying it is cheaper than a second buffer."""

PIECE = 256 * 1024
"""What of a larger body is handed to the transport at a time."""


class H1Call(Call):
    """A call as its connection sees it: what to send, whom to tell, and who hears when the two part."""

    __slots__ = ("announced", "body", "carrier", "content_expected", "head", "receiver", "request", "source", "upgrade")

    head: bytes
    """In HTTP/1.1; empty until it is needed."""
    request: UpstreamRequest | None
    """None once it cannot be sent again."""
    body: bytes
    source: BodySource | None
    """Gives the body instead of `body`."""
    receiver: CallReceiver
    carrier: Carrier | None
    """What it rides on, while it does; set by who sends it."""
    content_expected: bool
    """False for HEAD: whatever the head says, nothing follows it."""
    announced: bool
    """`on_sent` was called."""
    upgrade: bool
    """A 101 answers it; only then `source` is started, and nothing is framed any more."""

    @abstractmethod
    def on_over(self) -> None:
        """The answer is whole or ended with the connection; `on_end` or `on_whole` follows."""

    @abstractmethod
    def on_failed(self, error: GatewayError, carrier: Carrier) -> None:
        """It will not be whole. What carried it is closed."""


class Carrier(Protocol):
    """What a call rides on, once it is sent: a connection of HTTP/1.1, a stream of HTTP/2."""

    refused: bool
    """The provider has said that it did not look at the request: it may be sent once more, whatever it asks for."""
    reused: bool
    """The connection had carried a call before."""
    sent_at: float

    def pause(self) -> None:
        """Read no more of the answer."""

    def resume(self) -> None:
        """Read on."""

    def close(self) -> None:
        """End it at once; the call is forgotten, not told. Idempotent."""


class ConnectionOwner(Protocol):
    """The pool, as a connection sees it."""

    def give_back(self, connection: H1Connection) -> None:
        """Ready for another call."""

    def expire(self, connection: H1Connection) -> None:
        """Idle for too long."""

    def drop(self, connection: H1Connection) -> None:
        """Closed."""


class H1Connection(asyncio.Protocol):
    """Carries one call at a time. `deadline` is the idle one between calls, and that of a head that has begun."""

    __slots__ = (
        "_answer", "_call", "_closed", "_connected", "_loop", "_monotonic", "_owner", "_paused", "_source",
        "_transport", "_unsent", "_write_paused", "address", "deadline", "retired", "reused", "sent_at",
    )  # fmt: skip

    _transport: asyncio.Transport
    _loop: asyncio.AbstractEventLoop

    address: Address
    """Where it leads; set once it is open."""
    multiplexed = False
    refused = False

    def __init__(self, owner: ConnectionOwner, clock: Clock) -> None:
        self._owner = owner
        self._monotonic = clock.monotonic
        self._answer = AnswerReader()
        self._call: H1Call | None = None
        self._unsent: memoryview | None = None
        self._source: BodySource | None = None
        self._connected = False
        self._closed = False
        self._paused = False
        self._write_paused = False
        self.reused = False
        """It has carried a call before."""
        self.retired = False
        """It is closed after the call that it carries."""
        self.sent_at = 0.0
        self.deadline = NEVER

    def __repr__(self) -> str:
        state = "closed" if self._closed else "idle" if self._call is None else "busy"
        return f"<H1Connection {state}>"

    # For the pool and for calls.

    @property
    def usable(self) -> bool:
        """Whether a request may be sent: open as far as anyone knows."""
        return not self._closed and not self._transport.is_closing()

    @property
    def alive(self) -> bool:
        """Open as far as anyone knows."""
        return self.usable

    @property
    def busy(self) -> bool:
        """It carries a call."""
        return self._call is not None

    def send(self, call: H1Call) -> None:
        """Send its request; from here on its receiver hears of it, and first that all has gone out, where it has."""
        self._call = call
        call.carrier = self
        self.deadline = NEVER
        self.sent_at = self._monotonic()
        body = call.body
        if call.source is not None and not call.upgrade:
            self._source = call.source
            self._transport.write(call.head)
            self._loop.call_soon(self._start_source, call)
        elif len(body) <= JOINED:
            self._transport.write(call.head + body)
            if not call.announced:
                call.announced = True
                call.receiver.on_sent(call)
        else:
            self._unsent = memoryview(body)[PIECE:]
            self._transport.writelines((call.head, memoryview(body)[:PIECE]))
            self._loop.call_soon(self._send_on, call)

    def pause(self) -> None:
        """Read no more; a head that is not read cannot be late."""
        if not self._paused:
            self._paused = True
            self.deadline = NEVER
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def retire(self) -> None:
        """Take no more calls, and close after the one it carries."""
        self.retired = True
        if self._call is None:
            self.close()

    def close(self) -> None:
        """Close at once; a call that it carries is forgotten, not told. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._call = self._unsent = None
        self._answer.stop()
        if self._source is not None:
            self._source.cancel()
            self._source = None
        if self._connected:
            self._transport.abort()
        self._owner.drop(self)

    def abort(self) -> None:
        """The same: HTTP/1.1 has no word for it."""
        self.close()

    def on_deadline(self) -> None:
        """Idle for too long, or a head that does not come to its end."""
        if self._call is None:
            self._owner.expire(self)
        else:
            detail = f"the head was not whole after {HEAD_SECONDS:g} s"
            self._fail(ProtocolError("The provider's answer did not begin properly.", detail=detail))

    # The transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()
        self._connected = True

    def data_received(self, data: bytes) -> None:
        call = self._call
        if call is None:
            self.close()  # nobody asked: whatever it is, it must not meet the next call
            return
        answer = self._answer
        if answer.call is None:
            if call.announced and call.content_expected and call.receiver.takes_wholes:
                plain = read_plain_head(data)
                if plain is not None:
                    head, end, length, keep_alive = plain
                    if end + length == len(data):
                        self._finish(call, keep_alive)
                        call.receiver.on_whole(call, head, data[end:])
                        return
            answer.start(call)
        try:
            if answer.upgraded:
                call.receiver.on_data(call, data)
                return
            answer.feed(data)
        except Exception as error:
            self._fail(error if isinstance(error, GatewayError) else self._bug(error))
            return
        if answer.upgraded:
            self._switch(call)
        elif answer.whole:
            keep_alive = answer.keep_alive
            answer.stop()
            self._finish(call, keep_alive)
            call.receiver.on_end(call, True)
        elif answer.head_seen or not answer.overhead:
            self.deadline = NEVER
            call.body = b""  # it cannot be needed again, and may be large
            call.request = None
        elif self.deadline == NEVER:
            self.deadline = self._monotonic() + HEAD_SECONDS

    def eof_received(self) -> None:
        self._lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc)

    def pause_writing(self) -> None:
        self._write_paused = True
        if self._source is not None:
            self._source.pause()

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._call is not None and self._unsent is not None:
            self._send_on(self._call)
        elif self._source is not None:
            self._source.resume()

    # The source of a streamed body.

    def put(self, data: bytes) -> None:
        source = self._source
        if source is None:
            return
        if source.length is None and not self._answer.upgraded:
            self._transport.writelines((b"%x\r\n" % len(data), data, b"\r\n"))
        else:
            self._transport.write(data)

    def finish(self) -> None:
        source, self._source = self._source, None
        call = self._call
        if source is None or call is None:
            return
        if self._answer.upgraded:
            self._transport.close()  # once all of it has gone; `connection_lost` follows
            return
        if source.length is None:
            self._transport.write(b"0\r\n\r\n")
        self._announce(call)

    # Inside.

    def _start_source(self, call: H1Call) -> None:
        if self._call is call and self._source is not None:
            self._source.start(self)

    def _switch(self, call: H1Call) -> None:
        """After a 101: let bytes flow up, and hand on those that came with it."""
        self.deadline = NEVER
        if self._call is not call or call.source is None:
            return  # the receiver did not want it
        self._source = call.source
        self._source.start(self)
        rest = self._answer.rest
        if rest and self._call is call:
            self._answer.rest = b""
            self.data_received(rest)

    def _send_on(self, call: H1Call) -> None:
        """The rest of a large body, as fast as the provider takes it."""
        while self._unsent and not self._write_paused:
            piece, self._unsent = self._unsent[:PIECE], self._unsent[PIECE:]
            self._transport.write(piece)
        if not self._unsent:
            self._unsent = None
            self._announce(call)

    def _announce(self, call: H1Call) -> None:
        if self._call is call and not self._answer.head_seen and not call.announced:
            call.announced = True
            call.receiver.on_sent(call)

    def _finish(self, call: H1Call, keep_alive: bool) -> None:
        """The answer is whole, and all that came with it was seen: before its receiver is told, the connection is free
        for the next call."""
        self._call = None
        if keep_alive and self._unsent is None and self._source is None and not self._write_paused:
            if self._paused:
                self.resume()
            self.reused = True
            self._owner.give_back(self)
        else:
            self.close()
        call.on_over()

    def _fail(self, error: GatewayError) -> None:
        call = self._call
        self.close()
        if call is not None:
            call.on_failed(error, self)

    def _lost(self, exc: Exception | None) -> None:
        """The other side ended the connection, or it broke."""
        call = self._call
        error = self._answer.ended_by(exc)
        self.close()
        if call is None:
            return
        if error is not None:
            call.on_failed(error, self)
        else:
            call.on_over()
            call.receiver.on_end(call, False)

    def _bug(self, error: Exception) -> GatewayError:
        """A receiver raised: its exchange must hear of an end all the same, and so must the log."""
        context = {"message": "the receiver of an answer raised", "exception": error, "protocol": self}
        self._loop.call_exception_handler(context)
        return GatewayError("Internal error.", detail=repr(error))
