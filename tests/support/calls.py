"""A provider without a socket: an `Endpoint` whose calls the test answers by hand with raw HTTP/1.1 bytes.

    call = endpoint.calls[0]
    call.sent()
    call.feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel")
    call.fin()                  # or rst(), or nothing at all: a stall is an advance of the clock

Bytes may be cut anywhere: framing is parsed by the real parser (httptools), and an end is reported as the seam demands,
clean or not, reset or broken. After the engine cancelled, whatever is fed is lost, as on a closed socket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httptools

from headgate.proxy.errors import BrokenAnswerError, ProtocolError, ResetError
from headgate.proxy.upstream.call import Call, Endpoint, ResponseHead
from headgate.proxy.upstream.plain_head import read_plain_head

if TYPE_CHECKING:
    from collections.abc import Callable

    from headgate.proxy.edge.downstream import Headers
    from headgate.proxy.errors import GatewayError
    from headgate.proxy.upstream.call import CallReceiver, UpstreamRequest


class FakeCall(Call):
    """One attempt, answered by hand. `paused` and `cancelled` are what the engine asked for."""

    __slots__ = (
        "_events",
        "_fields",
        "_has_length",
        "_parser",
        "_saw_bytes",
        "announced",
        "cancelled",
        "ended",
        "headed",
        "finished",
        "paused",
        "receiver",
        "request",
        "taken",
        "upgraded",
    )

    def __init__(self, request: UpstreamRequest, receiver: CallReceiver) -> None:
        self.request = request
        self.receiver = receiver
        self.paused = False
        self.announced = False
        self.cancelled = False
        self.headed = False
        self.ended = False
        self.upgraded = False
        """After a 101 that was asked for: what is fed and `taken` is not HTTP."""
        self.taken = b""
        """What a source has given."""
        self.finished = False
        self._parser = httptools.HttpResponseParser(self)
        self._fields: Headers = []
        self._events: list[Callable[[], None]] = []
        self._saw_bytes = False
        self._has_length = False

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled else "ended" if self.ended else "open"
        return f"<FakeCall {self.request.target!r}, {state}>"

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def cancel(self) -> None:
        self.cancelled = True
        self._let_go()

    @property
    def over(self) -> bool:
        """Nothing that is fed arrives any more."""
        return self.ended or self.cancelled

    def sent(self) -> None:
        """The request is on its way."""
        if not self.over:
            self.announced = True
            self.receiver.on_sent(self)

    def feed(self, data: bytes) -> None:
        """Bytes of the answer, cut anywhere. A plain one that comes at once, after `sent`, is told at once."""
        if self.over or not data:
            return
        if self.announced and not self._saw_bytes and self.receiver.takes_wholes and self.request.method != b"HEAD":
            plain = read_plain_head(data)
            if plain is not None and plain[1] + plain[2] == len(data):
                self.headed = self.ended = True
                self._let_go()
                self.receiver.on_whole(self, plain[0], data[plain[1] :])
                return
        self._saw_bytes = True
        broken = None
        rest = b""
        if self.upgraded:
            self.receiver.on_data(self, data)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            broken = error
        events, self._events = self._events, []
        for deliver in events:
            if not self.over:
                deliver()
        if broken is not None:
            self.fail(ProtocolError("the answer is not HTTP", detail=str(broken)))
        elif self.upgraded and not self.over:
            assert self.request.source is not None
            self.request.source.start(self)
            if rest:
                self.receiver.on_data(self, rest)

    def fin(self) -> None:
        """The provider closes in order. Harmless when the answer was whole."""
        if self.headed and not self._has_length:
            self._end(clean=False)
        else:
            self.rst()

    def rst(self) -> None:
        """The connection breaks. Harmless when the answer was whole."""
        self.fail(BrokenAnswerError("the answer was cut") if self._saw_bytes else ResetError("the connection broke"))

    def fail(self, error: GatewayError) -> None:
        """End with this error: `ConnectError(...)` before `sent()`, say."""
        if not self.over:
            self.ended = True
            self._let_go()
            self.receiver.on_error(self, error)

    def put(self, data: bytes) -> None:
        """From the source."""
        assert not self.over
        assert not self.finished
        self.taken += data

    def finish(self) -> None:
        """The source has no more."""
        self.finished = True

    def _end(self, clean: bool) -> None:
        if not self.over:
            self.ended = True
            self._let_go()
            self.receiver.on_end(self, clean)

    def _let_go(self) -> None:
        """As a connection that closes: nobody takes more of the source."""
        if self.upgraded and self.request.source is not None:
            self.request.source.cancel()

    # What follows is called by the parser, from inside `feed_data`; the receiver hears of it only afterwards.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        fields, self._fields = self._fields, []
        if status == 101 and self.request.upgrade:
            self.upgraded = True
        elif 100 <= status < 200:
            return
        head = ResponseHead(status, fields)
        self._has_length = head.header(b"content-length") is not None or head.header(b"transfer-encoding") is not None
        self._events.append(lambda: self._on_head(head))

    def _on_head(self, head: ResponseHead) -> None:
        self.headed = True
        self.receiver.on_head(self, head)

    def on_body(self, data: bytes) -> None:
        self._events.append(lambda: self.receiver.on_data(self, data))

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self._events.append(lambda: self._end(clean=True))


class FakeEndpoint(Endpoint):
    """Remembers its calls, for the test to answer."""

    __slots__ = ("calls", "closed")

    def __init__(self, name: str = "http://fake") -> None:
        self.name = name
        self.calls: list[FakeCall] = []
        self.closed = False

    @property
    def last(self) -> FakeCall:
        """The latest attempt."""
        assert self.calls, f"{self.name} was not called"
        return self.calls[-1]

    def start(self, request: UpstreamRequest, receiver: CallReceiver) -> FakeCall:
        call = FakeCall(request, receiver)
        self.calls.append(call)
        return call

    async def aclose(self) -> None:
        self.closed = True
