"""One connection of the mock's: requests in, the scripts of their answers out, one after the other.

A bare asyncio protocol, because a script decides about segments, resets and what is never read, which no server lets
it do. Requests are read by the grammar of the gateway's own edge.

Only after a script that came to `END` is the next request read. What arrives on a connection that was spoiled is
counted and dropped: nobody may use it again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from ...proxy.edge.body import RequestBody
from ...proxy.edge.request_head import read_head
from ...proxy.errors import GatewayError
from ...proxy.upstream.h2_frames import PREFACE
from .h1_wire import H1Encoder
from .h2_connection import H2MockConnection
from .player import Player
from .provider import refusal
from .shared import BODY_BYTES, reset

if TYPE_CHECKING:
    from ...proxy.edge.request_head import HttpRequestHead
    from .provider import Script
    from .shared import Shared
    from .steps import Say

UNREAD_BYTES = 1 << 20
"""What may wait behind a request that is being answered."""


class MockConnection(asyncio.Protocol):
    """See the top. It is the wire of the script that is being played."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._encoder = H1Encoder()
        self._unread = b""
        self._head: HttpRequestHead | None = None
        self._body: RequestBody | None = None
        self._player: Player | None = None
        self._keep = True
        self._full = False
        self._transport: asyncio.Transport
        self.spoiled = False
        """A fault is, or was, played on it, and has not come to an end that leaves it of use."""
        self.deaf = False
        """Nothing is read from it any more, not even that the other side has closed."""
        self.asked = 0
        """Requests that came whole."""

    def __repr__(self) -> str:
        state = "spoiled" if self.spoiled else "idle" if self._player is None else "busy"
        return f"<MockConnection {state}>"

    # The transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._shared.connections.add(self)
        script = self._shared.provider.at_accept()
        if script is not None:
            if self._shared.watcher is not None:
                self._shared.watcher.on_accept(script)
            self._begin(script)

    def data_received(self, data: bytes) -> None:
        if self.spoiled:
            self._shared.strays += self.asked > 0
            return
        self._unread += data
        if not self.asked and self._head is None and PREFACE.startswith(self._unread[: len(PREFACE)]):
            self._become_http2()
        elif self._player is None:
            self._read()
        elif len(self._unread) > UNREAD_BYTES:
            self._transport.pause_reading()

    def eof_received(self) -> None:
        """Who asked has left."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.connections.discard(self)
        if self._player is not None:
            self._player.stop()
            self._player = None
        if self._body is not None:
            self._body.release()
            self._body = None

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self._player is not None:
            self._player.resume()

    def abort(self) -> None:
        """End it, whatever it was doing."""
        self._transport.abort()

    # The wire.

    def send(self, step: Say) -> bool:
        self._transport.write(self._encoder.encode(step))
        return not self._full

    def end(self) -> None:
        self._transport.write(self._encoder.end())
        self._player = None
        self.spoiled = False
        if not self._keep:
            self._transport.close()
            return
        self._transport.resume_reading()
        if self._unread:
            self._shared.clock.call_at(self._shared.clock.monotonic(), self._next)

    def deafen(self) -> None:
        self.deaf = True
        self._transport.pause_reading()

    def close(self) -> None:
        self._transport.close()

    def reset(self) -> None:
        reset(self._transport)

    def abandon(self, code: int) -> None:
        """Not here: there are no streams."""

    # Inside.

    def _become_http2(self) -> None:
        """The first bytes are those of HTTP/2: another protocol takes the transport over."""
        if len(self._unread) < len(PREFACE):
            return
        self._shared.connections.discard(self)
        other = H2MockConnection(self._shared)
        self._transport.set_protocol(other)
        other.connection_made(self._transport)
        other.data_received(self._unread)

    def _read(self) -> None:
        """As much of a request as is there, and its answer once it is whole."""
        shared = self._shared
        try:
            if self._head is None:
                read = read_head(self._unread, shared.limits, "")
                if read is None:
                    return
                self._head, end = read
                self._unread = self._unread[end:]
                self._body = RequestBody(self._head.length, shared.budget)
                if self._head.expects_continue and not self._unread:
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert self._body is not None  # noqa: S101 - narrows for the type checker: made with the head
            if not self._body.complete:
                data, self._unread = self._unread, b""
                self._unread = self._body.collect(data, BODY_BYTES)
                if not self._body.complete:
                    return
        except GatewayError as error:
            self._keep = False
            self._begin(refusal(error))
            return
        head, body = self._head, self._body
        content = body.content()
        body.release()
        self._head = self._body = None
        self._keep = head.keep_alive
        self.asked += 1
        script = shared.provider.respond(head, content)
        if shared.watcher is not None:
            shared.watcher.on_request(head, content, script)
        self._begin(script)

    def _begin(self, script: Script) -> None:
        self.spoiled = script.fault is not None
        speed = self._shared.speed if self.spoiled else 1.0
        self._player = Player(self, script.steps, self._shared.clock, speed)
        self._player.start()

    def _next(self) -> None:
        if self._player is None and self._unread and not self._transport.is_closing():
            self._read()
