"""One HTTP/1.1 connection to a provider: a request out, its answer in, and then the next one.

A bare asyncio protocol over httptools, because every event of every stream passes here: a callback costs 0.1 µs where
an await that really waits costs 3, and a stream reader would copy each byte twice.

What makes it correct: a message is over for the receiver only after the parser has come back with the whole read.
Only then is it known whether bytes followed the end (such a connection is dirty and is closed), and only then may a
receiver that starts its next call find this connection free. Nothing that was read for one call can reach another.

httptools is strict about most of RFC 9112; the rest is refused here: a transfer-coding other than `chunked`, HTTP/1.0
with chunks, 101 that nobody asked for, heads without bound. It has no word for the end of the input, so that is
decided here too.

Not here: which call gets the connection (pool.py), time limits on the answer (the dispatcher's).
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from ..clock import NEVER
from ..errors import BrokenAnswerError, GatewayError, ProtocolError, ResetError
from .call import Call, ResponseHead

if TYPE_CHECKING:
    from ..clock import Clock
    from ..edge.downstream import Headers
    from .call import CallReceiver, UpstreamRequest

MAX_HEAD = 64 * 1024
"""Bytes of an answer that are not content: the head, or the chunk extensions or trailers in a row."""

MAX_FIELDS = 200
MAX_INTERIM = 10
HEAD_SECONDS = 10.0
"""A head that has begun must be whole in this time."""

JOINED = 16 * 1024
"""A body up to this size leaves in one piece with the head: copying it is cheaper than a second buffer."""

PIECE = 256 * 1024

_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
_NO_CONTENT = frozenset((b"GET", b"HEAD", b"DELETE", b"OPTIONS"))
_BROKEN = "The provider's answer broke off."
_NOT_HTTP = "The provider's answer is not valid HTTP."


class H1Call(Call):
    """A call as its connection sees it: what to send, whom to tell, and who hears when the two part."""

    __slots__ = ("announced", "body", "content_expected", "head", "receiver")

    head: bytes
    body: bytes
    receiver: CallReceiver
    content_expected: bool
    """False for HEAD: whatever the head says, nothing follows it."""
    announced: bool
    """`on_sent` was called."""

    @abstractmethod
    def on_over(self) -> None:
        """The answer is whole or ended with the connection; `on_end` follows."""

    @abstractmethod
    def on_failed(self, error: GatewayError, connection: H1Connection) -> None:
        """It will not be whole. The connection is closed."""


class ConnectionOwner(Protocol):
    """The pool, as a connection sees it."""

    def give_back(self, connection: H1Connection) -> None:
        """Ready for another call."""

    def expire(self, connection: H1Connection) -> None:
        """Idle for too long."""

    def drop(self, connection: H1Connection) -> None:
        """Closed."""


def encode_head(request: UpstreamRequest, base: bytes, fixed: bytes) -> bytes:
    """Request line and fields. `fixed` is ` HTTP/1.1` and the endpoint's own field lines, without the last line end.

    Raises GatewayError when a line break or NUL hides in any part: there must be exactly the line ends that are put
    here.
    """
    headers = request.headers
    length = len(request.body)
    lines = b"\r\n".join([fixed, *map(b": ".join, headers)])
    breaks = fixed.count(b"\n") + len(headers) + 2
    if length or request.method not in _NO_CONTENT:
        breaks += 1
        ending = b"\r\ncontent-length: %d\r\n\r\n" % length
    else:
        ending = b"\r\n\r\n"
    head = b"".join((request.method, b" ", base, request.target, lines, ending))
    if head.count(b"\r") != breaks or head.count(b"\n") != breaks or b"\0" in head or b" " in request.target:
        raise GatewayError(
            "The request holds a field that cannot be sent.",
            detail="a line break or NUL in a field, or a space in the target",
        )
    return head


class H1Connection(asyncio.Protocol):
    """Carries one call at a time. `deadline` is the idle one between calls, and that of a head that has begun."""

    __slots__ = (
        "_call", "_closed", "_connected", "_head_seen", "_headers", "_interim", "_keep_alive", "_loop", "_monotonic",
        "_owner", "_parser", "_paused", "_transport", "_unproductive", "_unsent", "_until_close", "_whole",
        "_write_paused", "deadline", "reused", "sent_at",
    )  # fmt: skip

    _transport: asyncio.Transport
    _loop: asyncio.AbstractEventLoop

    def __init__(self, owner: ConnectionOwner, clock: Clock) -> None:
        self._owner = owner
        self._monotonic = clock.monotonic
        self._parser = httptools.HttpResponseParser(self)
        self._call: H1Call | None = None
        self._headers: Headers = []
        self._unsent: memoryview | None = None
        self._head_seen = self._whole = self._until_close = False
        self._keep_alive = True
        self._interim = self._unproductive = 0
        self._connected = False
        self._closed = False
        self._paused = False
        self._write_paused = False
        self.reused = False
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

    def send(self, call: H1Call) -> None:
        """Send its request; from here on its receiver hears of it, first from the next turn of the loop."""
        self._call = call
        self._head_seen = self._whole = self._until_close = False
        self._keep_alive = True
        self._interim = self._unproductive = 0
        self.deadline = NEVER
        self.sent_at = self._monotonic()
        body = call.body
        if len(body) <= JOINED:
            self._transport.write(call.head + body)
            self._loop.call_soon(self._announce, call)
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

    def close(self) -> None:
        """Close at once; a call that it carries is forgotten, not told. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._call = self._unsent = None
        if self._connected:
            self._transport.abort()
        self._owner.drop(self)

    def on_deadline(self) -> None:
        """Idle for too long, or a head that does not come to its end."""
        if self._call is None:
            self._owner.expire(self)
        else:
            self._fail(ProtocolError(_NOT_HTTP, detail=f"the head was not whole after {HEAD_SECONDS:g} s"))

    # The transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()
        self._connected = True

    def data_received(self, data: bytes) -> None:
        if self._call is None:
            self.close()  # nobody asked: whatever it is, it must not meet the next call
            return
        self._unproductive += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._stopped(error)
            return
        if self._whole:
            self._finish()
        elif self._unproductive > MAX_HEAD:
            self._fail(ProtocolError(_NOT_HTTP, detail=f"{self._unproductive} bytes without content"))
        elif not self._head_seen and self.deadline == NEVER:
            self.deadline = self._monotonic() + HEAD_SECONDS

    def eof_received(self) -> None:
        self._lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc)

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._call is not None and self._unsent is not None:
            self._send_on(self._call)

    # The parser.

    def on_message_begin(self) -> None:
        if self._whole:
            raise ProtocolError(_NOT_HTTP, detail="bytes after the end of the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        headers = self._headers
        self._headers = []
        call = self._call
        if call is None:
            return
        if len(headers) > MAX_FIELDS or (self._unproductive > MAX_HEAD and _size(headers) > MAX_HEAD):
            raise ProtocolError(_NOT_HTTP, detail=f"a head of {len(headers)} fields, {_size(headers)} bytes")
        self._unproductive = 0
        self.deadline = NEVER
        status = self._parser.get_status_code()
        if not 200 <= status <= 599:
            self._interim += 1
            if not 100 <= status <= 199 or status == 101 or self._interim > MAX_INTERIM:
                raise ProtocolError(_NOT_HTTP, detail=f"status {status}, interim answer {self._interim}")
            return
        framing = [field for field in headers if field[0] in _FRAMING]
        if not framing:
            self._until_close = status not in (204, 304)
        elif framing[0][0] == b"transfer-encoding":
            self._check_coding(framing)
        self._head_seen = True
        call.body = b""  # it cannot be needed again, and may be large
        call.receiver.on_head(call, ResponseHead(status, headers))
        if not call.content_expected:
            self._whole = self._call is not None
            self._keep_alive = False
            raise _HeadOnlyError

    def on_body(self, data: bytes) -> None:
        call = self._call
        if call is not None:
            self._unproductive = 0
            call.receiver.on_data(call, data)

    def on_message_complete(self) -> None:
        self._headers.clear()  # trailers: dropped, and never the first fields of the next answer
        if self._head_seen and self._call is not None:
            self._whole = True
            self._keep_alive = self._parser.should_keep_alive()

    # Inside.

    def _check_coding(self, framing: Headers) -> None:
        """httptools would take `gzip, chunked`, an unknown coding until the connection ends, and chunks in HTTP/1.0."""
        if len(framing) > 1 or framing[0][1].strip().lower() != b"chunked" or self._parser.get_http_version() != "1.1":
            raise ProtocolError(_NOT_HTTP, detail=f"transfer-encoding {framing!r}")

    def _send_on(self, call: H1Call) -> None:
        """The rest of a large body, as fast as the provider takes it."""
        if self._call is not call:
            return
        while self._unsent and not self._write_paused:
            piece, self._unsent = self._unsent[:PIECE], self._unsent[PIECE:]
            self._transport.write(piece)
        if not self._unsent:
            self._unsent = None
            self._announce(call)

    def _announce(self, call: H1Call) -> None:
        if self._call is call and not self._head_seen and not call.announced:
            call.announced = True
            call.receiver.on_sent(call)

    def _finish(self) -> None:
        """The answer is whole, and the parser has seen all that came with it."""
        call = self._call
        if call is None:
            return
        self._call = None
        if self._keep_alive and self._unsent is None:
            self.resume()
            self.reused = True
            self._owner.give_back(self)
        else:
            self.close()
        call.on_over()
        call.receiver.on_end(call, True)

    def _stopped(self, error: httptools.HttpParserError) -> None:
        """The parser went no further: bad bytes, an answer refused in a callback, or a receiver that raised."""
        call = self._call
        if call is None:
            return
        if self._whole:
            self._keep_alive = False
            self._finish()
            return
        cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
        if cause is None:
            self._fail(ProtocolError(_NOT_HTTP, detail=str(error)))
        elif isinstance(cause, ProtocolError):
            self._fail(cause)
        else:
            context = {"message": "a receiver of an answer raised", "exception": cause, "protocol": self}
            self._loop.call_exception_handler(context)
            self._fail(GatewayError("Internal error.", detail=repr(cause)))

    def _fail(self, error: GatewayError) -> None:
        call = self._call
        self.close()
        if call is not None:
            call.on_failed(error, self)

    def _lost(self, exc: Exception | None) -> None:
        """The other side ended the connection, or it broke."""
        if self._call is None:
            self.close()
        elif not (self._head_seen or self._unproductive or self._interim):
            self._fail(ResetError("The provider closed the connection without an answer.", detail=repr(exc)))
        elif self._until_close and exc is None:
            call = self._call
            self.close()
            call.on_over()
            call.receiver.on_end(call, False)
        else:
            self._fail(BrokenAnswerError(_BROKEN, detail=repr(exc) if exc else "closed too early"))


class _HeadOnlyError(Exception):
    """The answer to HEAD ends with its head; stops a parser that waits for more."""


def _size(headers: Headers) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers)
