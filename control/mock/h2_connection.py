"""One connection of the mock's that speaks HTTP/2: every stream is a request, and the wire of its script.

The `h2` package keeps the rules that the mock itself must keep: windows, the tables of field compression, what a
client may send. What a fault sends against the rules goes past it, straight to the socket; so it does not notice, and
a client that goes on all the same is served.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import H2Error, StreamClosedError
from hpack import Encoder

from ...proxy.edge.downstream import RequestHead
from ...proxy.errors import BodyTooLargeError, GatewayError
from ...proxy.upstream.h2_frames import frame
from .player import Player
from .provider import refusal
from .shared import BODY_BYTES, reset
from .steps import Data, Frame, Head, Interim

if TYPE_CHECKING:
    from .provider import Script
    from .shared import Shared
    from .steps import Fields, Say


class H2MockConnection(asyncio.Protocol):
    """Takes over a transport whose first bytes were HTTP/2's."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.h2 = H2Connection(
            H2Configuration(client_side=False, header_encoding=None, validate_outbound_headers=False)
        )
        self.h2.encoder = _PlainEncoder()
        self._streams: dict[int, _Stream] = {}
        self._transport: asyncio.Transport
        self._full = False
        self.deaf = False
        """Nothing is read from it any more."""

    def __repr__(self) -> str:
        return f"<H2MockConnection {len(self._streams)} streams>"

    @property
    def spoiled(self) -> bool:
        """A script is being played on it, or has stalled."""
        return bool(self._streams)

    # The transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.shared.connections.add(self)
        self.h2.initiate_connection()
        self.flush()

    def data_received(self, data: bytes) -> None:
        try:
            events = self.h2.receive_data(data)
        except H2Error:
            self.flush()
            self._transport.close()
            return
        for event in events:
            match event:
                case RequestReceived(stream_id=int(id_)):
                    self._streams[id_] = _Stream(self, id_, list(event.headers or ()))
                case DataReceived(stream_id=int(id_)):
                    self._take(id_, event.data or b"", event.flow_controlled_length or 0)
                case StreamEnded(stream_id=int(id_)) if id_ in self._streams:
                    self._streams[id_].ask()
                case StreamReset(stream_id=int(id_)) if id_ in self._streams:
                    self._streams[id_].over()
                case WindowUpdated() | RemoteSettingsChanged():
                    self._go_on()
        self.flush()

    def eof_received(self) -> None:
        """Who asked has left."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.shared.connections.discard(self)
        for stream in list(self._streams.values()):
            stream.over()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._go_on()

    def abort(self) -> None:
        """End it, whatever is played."""
        self._transport.abort()

    # Its streams.

    def flush(self) -> None:
        """What the rules demand goes out."""
        self.write(self.h2.data_to_send())

    def write(self, data: bytes) -> None:
        """Bytes as they are."""
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def window(self, stream_id: int) -> int:
        """Bytes of content that may go out on a stream now."""
        if self._full:
            return 0
        return min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size)

    def forget(self, stream_id: int) -> None:
        """It is over."""
        self._streams.pop(stream_id, None)

    def close(self) -> None:
        """In order, after all that was said."""
        self._transport.close()

    def reset(self) -> None:
        """At once."""
        reset(self._transport)

    def deafen(self) -> None:
        """Read nothing more."""
        self.deaf = True
        self._transport.pause_reading()

    # Inside.

    def _take(self, stream_id: int, data: bytes, size: int) -> None:
        if size:
            self.h2.acknowledge_received_data(size, stream_id)
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.take(data)

    def _go_on(self) -> None:
        for stream in list(self._streams.values()):
            stream.go_on()


class _PlainEncoder(Encoder):
    """Without Huffman codes: the library takes seconds for those of a large field."""

    def encode(self, headers: Any, huffman: bool = False) -> bytes:
        return super().encode(headers, huffman=False)


class _Stream:
    """One request, and the wire that its script is played on."""

    def __init__(self, connection: H2MockConnection, id_: int, fields: list[tuple[bytes, bytes]]) -> None:
        self._connection = connection
        self._h2 = connection.h2
        self._id = id_
        self._fields = fields
        self._body = bytearray()
        self._too_large = False
        self._unsent = memoryview(b"")
        self._ending = False
        self._player: Player | None = None

    def take(self, data: bytes) -> None:
        """More of the request's body."""
        if len(self._body) + len(data) > BODY_BYTES:
            self._too_large = True
        else:
            self._body += data

    def ask(self) -> None:
        """The request is whole."""
        shared = self._connection.shared
        pseudo = {name: value.decode("latin-1") for name, value in self._fields if name.startswith(b":")}
        headers = [(name, value) for name, value in self._fields if not name.startswith(b":")]
        path = pseudo.get(b":path", "").partition("?")[0]
        head = RequestHead(pseudo.get(b":method", ""), path, headers, http_version="2")
        body = bytes(self._body)
        script = shared.provider.respond(head, body) if not self._too_large else refusal(_too_large())
        if shared.watcher is not None:
            shared.watcher.on_request(head, body, script)
        self._play(script)

    def _play(self, script: Script) -> None:
        shared = self._connection.shared
        speed = shared.speed if script.fault is not None else 1.0
        self._player = Player(self, script.steps, shared.clock, speed)
        self._player.start()

    def over(self) -> None:
        """Nothing more is said on it."""
        self._unsent = memoryview(b"")
        if self._player is not None:
            self._player.stop()
        self._connection.forget(self._id)

    def go_on(self) -> None:
        """There may be room again."""
        if self._unsent or self._ending:
            self._send_on()
            if not self._unsent and self._player is not None:
                self._player.resume()

    # The wire.

    def send(self, step: Say) -> bool:
        try:
            match step:
                case Interim():
                    self._head(step.status, step.fields, None)
                case Head():
                    self._head(step.status, step.fields, step.length)
                case Data():
                    self._unsent = memoryview(bytes(self._unsent) + step.data)
                    return self._send_on()
                case Frame():
                    self._connection.flush()
                    id_ = 0 if step.connection else self._id
                    self._connection.write(frame(step.kind, step.flags, id_, step.payload) * step.times)
                case _:
                    self._connection.write(step.data)
        except H2Error:  # the client has ended the stream or the connection: what it hears of that is its own doing
            self.over()
        return True

    def end(self) -> None:
        self._ending = True
        self._send_on()

    def abandon(self, code: int) -> None:
        with suppress(StreamClosedError):  # the client was faster
            self._h2.reset_stream(self._id, code)
        self._connection.flush()
        self.over()

    def deafen(self) -> None:
        self._connection.deafen()

    def close(self) -> None:
        self._connection.close()

    def reset(self) -> None:
        self._connection.reset()

    # Inside.

    def _head(self, status: int, fields: Fields, length: int | None) -> None:
        framing = [] if length is None else [(b"content-length", b"%d" % length)]
        self._h2.send_headers(self._id, [(b":status", b"%d" % status), *fields, *framing])
        self._connection.flush()

    def _send_on(self) -> bool:
        """As much content as the windows allow, and the end after the last of it; whether all of it is out."""
        connection = self._connection
        try:
            while self._unsent and (room := connection.window(self._id)) > 0:
                piece, self._unsent = self._unsent[:room], self._unsent[room:]
                self._h2.send_data(self._id, bytes(piece))
                connection.flush()
            if self._ending and not self._unsent:
                self._h2.end_stream(self._id)
                connection.flush()
                self.over()
        except H2Error:
            self.over()
        return not self._unsent


def _too_large() -> GatewayError:
    return BodyTooLargeError(f"The body is larger than {BODY_BYTES} bytes.")
