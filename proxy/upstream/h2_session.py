"""One HTTP/2 connection without its socket: frames in, frames out (RFC 9113), the client's half.

A frame does one of three things: it belongs to a stream, which is told; it changes what we may send; or it breaks a
rule of the connection and raises ConnectionFaultError. What breaks a rule of one stream ends that stream alone.

The state machine of the `h2` package is not used, because it cannot keep four promises of this one: it takes no frame
after a GOAWAY, so that calls the provider still answers would be lost; it answers every frame that was under way when
we reset a stream with another reset; a bad frame takes along the good ones read with it; a malformed answer ends the
connection of all others. Its rules for settings, its error codes and the tables of its HPACK are used.

Bounds: a frame of 16 KiB, a field section of 64 KiB, `MAX_OVERHEAD` frames in a row that carry nothing for anybody.
Back-pressure is per stream: the connection's own window is given back as soon as something is read, so that a call
which is paused never starves its neighbours.

Not here: the socket and the clock (h2_connection.py), one call (h2_stream.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from h2.errors import ErrorCodes
from h2.exceptions import InvalidSettingsValueError
from h2.settings import SettingCodes, Settings

from .h2_fields import MAX_LIST, FieldDecoder, FieldsError
from .h2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_FRAME_SIZE,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER,
    HEADER_SIZE,
    HEADERS,
    MAX_STREAM_ID,
    MAX_WINDOW,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    field_section,
    frame,
    read_long,
    read_settings,
    settings,
    window_update,
)
from .h2_request import NO_TABLE

if TYPE_CHECKING:
    from .h2_sending import Sending
    from .h2_stream import H2Stream

STREAM_WINDOW = 256 * 1024
"""What a provider may send on one stream before we have passed it on; held in memory where the client is behind."""

CONNECTION_WINDOW = 16 * 1024 * 1024
_GIVE_BACK = CONNECTION_WINDOW // 4

MAX_CONTINUATIONS = 64
MAX_OVERHEAD = 1000
"""Frames in a row without content: enough for any peer that works, some milliseconds of one that does not."""

ASSUMED_STREAMS = 100
"""How many streams a provider takes before it has said so (RFC 9113, 6.5.2: it should take as many)."""

MAX_STREAMS = 1024
"""More are not asked of one connection, whatever the provider allows."""


class ConnectionFaultError(Exception):
    """The connection cannot go on."""

    def __init__(self, code: ErrorCodes, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class SessionOwner(Protocol):
    """The connection, as its session sees it."""

    def on_capacity(self) -> None:
        """The provider has changed how many streams it takes."""

    def on_goaway(self, last_stream_id: int, code: int) -> None:
        """The provider takes no more streams, and has not looked at those above `last_stream_id`."""

    def on_reset(self) -> None:
        """The provider has ended a stream."""

    def on_pong(self) -> None:
        """A PING of ours came back."""


class Session:
    """See the top. `out` is what waits to be sent; whoever adds to it sees to it that it is."""

    __slots__ = (
        "_block", "_block_ends", "_continuations", "_decoder", "_first_block", "_owner", "_rest", "_settled", "_taken",
        "block_of", "blocked", "closed", "current", "frame_size", "max_streams", "next_id", "out", "overhead",
        "queued", "streams", "window", "window_of_streams",
    )  # fmt: skip

    def __init__(self, owner: SessionOwner) -> None:
        self._owner = owner
        self._settled = False
        self._decoder = FieldDecoder()
        self._rest = b""
        self._block: list[bytes] = []
        self._block_ends = False
        self._continuations = 0
        self._first_block = True
        self._taken = 0
        self.block_of = 0
        """The stream whose field section has begun and is not whole; 0: none."""
        self.out: list[bytes] = [
            PREFACE,
            settings(
                {
                    SettingCodes.ENABLE_PUSH: 0,
                    SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                    SettingCodes.MAX_HEADER_LIST_SIZE: MAX_LIST,
                }
            ),
            window_update(0, CONNECTION_WINDOW - DEFAULT_WINDOW),
        ]
        self.streams: dict[int, H2Stream] = {}
        self.blocked: dict[Sending, None] = {}
        """Streams that have something to send and no room, those that wait longest first."""
        self.current: H2Stream | None = None
        """Whose frame is being read: whom to blame for an exception."""
        self.closed = False
        self.next_id = 1
        self.window = DEFAULT_WINDOW
        """What we may send on the connection."""
        self.window_of_streams = DEFAULT_WINDOW
        self.frame_size = DEFAULT_FRAME_SIZE
        self.max_streams = ASSUMED_STREAMS
        self.overhead = 0
        self.queued = 0
        """Bytes of request bodies in `out`."""

    @property
    def reading_head(self) -> bool:
        """A field section has begun and is not whole: nothing else can be read before it is."""
        return bool(self.block_of) or (len(self._rest) > 3 and self._rest[3] in (HEADERS, CONTINUATION))

    def open(self, stream: H2Stream, block: bytes, *, ends: bool) -> None:
        """Give `stream` its id, and send its head."""
        stream.id, self.next_id = self.next_id, self.next_id + 2
        stream.window = self.window_of_streams
        self.streams[stream.id] = stream
        if self._first_block:
            self._first_block = False
            block = NO_TABLE + block
        self.overhead = 0
        self.out.append(field_section(stream.id, block, self.frame_size, ends=ends))

    def receive(self, data: bytes) -> None:
        """Read on. Raises ConnectionFaultError, and whatever a receiver raises: then `receive(b"")` goes on after that
        frame."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at, end = 0, len(data)
        unpack, streams = HEADER.unpack_from, self.streams
        try:
            while end - at >= HEADER_SIZE and not self.closed:
                high, low, kind, flags, stream_id = unpack(data, at)
                length = high << 8 | low
                start = at + HEADER_SIZE
                after = start + length
                if length > DEFAULT_FRAME_SIZE:
                    self._no_frames_yet(data[at : at + 50])
                    raise ConnectionFaultError(ErrorCodes.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
                if after > end:
                    break
                at = after
                stream = streams.get(stream_id)
                if kind == DATA and length and stream is not None and not self.block_of and not flags & PADDED:
                    self._take(length)
                    self.current = stream
                    stream.on_data(data[start:after], length, bool(flags & END_STREAM))
                else:
                    self._receive_frame(kind, flags, stream_id & MAX_STREAM_ID, data[start:after])
            self.current = None
        finally:
            self._rest = b"" if self.closed else data[at:]

    # Inside.

    def _take(self, length: int) -> None:
        """`length` bytes of content were read: the connection's window is given back in large steps."""
        self._taken += length
        if self._taken >= _GIVE_BACK:
            self.out.append(window_update(0, self._taken))
            self._taken = 0

    def _no_frames_yet(self, begin: bytes) -> None:
        """Raise what helps an operator, where the connection has not begun with SETTINGS as RFC 9113 3.4 asks."""
        if not self._settled:
            detail = f"no HTTP/2: it begins with {begin!r}; set http2: false if the server does not speak it"
            raise ConnectionFaultError(ErrorCodes.PROTOCOL_ERROR, detail)

    def _receive_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        self.overhead += 1
        if self.overhead > MAX_OVERHEAD:
            raise ConnectionFaultError(ErrorCodes.ENHANCE_YOUR_CALM, f"{self.overhead} frames without content")
        if not self._settled:
            if kind != SETTINGS or flags & ACK:
                self._no_frames_yet(payload[:50])
            self._settled = True
        if self.block_of and (kind != CONTINUATION or stream_id != self.block_of):
            raise ConnectionFaultError(ErrorCodes.PROTOCOL_ERROR, f"frame of type {kind} within a field section")
        read = _READERS.get(kind)
        if read is not None:
            read(self, flags, stream_id, payload)

    def _find(self, stream_id: int) -> H2Stream | None:
        """The stream; None for one that is over. Raises ConnectionFaultError for one that never was."""
        if stream_id == 0 or stream_id >= self.next_id or stream_id % 2 == 0:
            raise ConnectionFaultError(ErrorCodes.PROTOCOL_ERROR, f"a frame on stream {stream_id}, which nobody opened")
        return self.streams.get(stream_id)

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        stream = self._find(stream_id)
        length = len(payload)
        self._take(length)
        if stream is not None:
            self.current = stream
            stream.on_data(_unpadded(flags, payload), length, bool(flags & END_STREAM))

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._find(stream_id)
        payload = _unpadded(flags, payload)
        if flags & WITH_PRIORITY:
            if len(payload) < 5:
                raise ConnectionFaultError(ErrorCodes.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            payload = payload[5:]
        self._block_ends = bool(flags & END_STREAM)
        if flags & END_HEADERS:
            self._on_block(stream_id, payload)
        else:
            self.block_of, self._block, self._continuations = stream_id, [payload], 0

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not self.block_of:
            raise ConnectionFaultError(ErrorCodes.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._block.append(payload)
        self._continuations += 1
        if self._continuations > MAX_CONTINUATIONS or sum(map(len, self._block)) > MAX_LIST:
            raise ConnectionFaultError(ErrorCodes.ENHANCE_YOUR_CALM, "a field section without end")
        if flags & END_HEADERS:
            block, self._block, self.block_of = b"".join(self._block), [], 0
            self._on_block(stream_id, block)

    def _on_block(self, stream_id: int, block: bytes) -> None:
        """A whole field section. It is decoded even where nobody waits for it: the table must go along."""
        try:
            fields = self._decoder.decode(block)
        except FieldsError as error:
            raise ConnectionFaultError(ErrorCodes.COMPRESSION_ERROR, f"field section: {error}") from error
        stream = self.streams.get(stream_id)
        if stream is not None:
            self.current = stream
            stream.on_fields(fields, self._block_ends)

    def _on_reset(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFaultError(ErrorCodes.FRAME_SIZE_ERROR, "RST_STREAM of a wrong size")
        stream = self._find(stream_id)
        if stream is not None:
            self._owner.on_reset()
            self.current = stream
            stream.on_reset(read_long(payload))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFaultError(ErrorCodes.PROTOCOL_ERROR, "SETTINGS on a stream")
        if len(payload) % 6 or (flags & ACK and payload):
            raise ConnectionFaultError(ErrorCodes.FRAME_SIZE_ERROR, "SETTINGS of a wrong size")
        if flags & ACK:
            return
        for code, value in dict(read_settings(payload)).items():
            self._on_setting(code, value)
        self.out.append(SETTINGS_ACK)
        self._owner.on_capacity()

    def _on_setting(self, code: int, value: int) -> None:
        try:
            _RULES.validate_received_setting(code, value)
        except InvalidSettingsValueError as error:
            raise ConnectionFaultError(error.error_code, f"setting {code}: {value}") from error
        if code == SettingCodes.MAX_CONCURRENT_STREAMS:
            self.max_streams = min(value, MAX_STREAMS)
        elif code == SettingCodes.MAX_FRAME_SIZE:
            self.frame_size = value
        elif code == SettingCodes.INITIAL_WINDOW_SIZE:
            change, self.window_of_streams = value - self.window_of_streams, value
            for stream in list(self.streams.values()):
                if stream.window + change > MAX_WINDOW:
                    raise ConnectionFaultError(ErrorCodes.FLOW_CONTROL_ERROR, "a window above its maximum")
                stream.window += change

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFaultError(ErrorCodes.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFaultError(ErrorCodes.FRAME_SIZE_ERROR, "PING of a wrong size")
        if flags & ACK:
            self._owner.on_pong()
        else:
            self.out.append(frame(PING, ACK, 0, payload))

    def _on_goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFaultError(ErrorCodes.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ConnectionFaultError(ErrorCodes.FRAME_SIZE_ERROR, "GOAWAY of a wrong size")
        self._owner.on_goaway(read_long(payload) & MAX_STREAM_ID, read_long(payload, 4))

    def _on_window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFaultError(ErrorCodes.FRAME_SIZE_ERROR, "WINDOW_UPDATE of a wrong size")
        increment = read_long(payload) & MAX_WINDOW
        if stream_id:
            stream = self._find(stream_id)
            if stream is not None:
                self.current = stream
                stream.on_window_update(increment)
            return
        self.window += increment
        if not increment or self.window > MAX_WINDOW:
            raise ConnectionFaultError(ErrorCodes.FLOW_CONTROL_ERROR, f"the connection's window grows by {increment}")

    def _on_priority(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id == 0:
            raise ConnectionFaultError(ErrorCodes.PROTOCOL_ERROR, "PRIORITY on no stream")

    def _on_push(self, flags: int, stream_id: int, payload: bytes) -> None:
        raise ConnectionFaultError(ErrorCodes.PROTOCOL_ERROR, "a pushed stream, which we had forbidden")


_RULES = Settings(client=False)
"""Which values a server may send; it keeps none."""

_READERS = {
    DATA: Session._on_data,
    HEADERS: Session._on_headers,
    PRIORITY: Session._on_priority,
    RST_STREAM: Session._on_reset,
    SETTINGS: Session._on_settings,
    PUSH_PROMISE: Session._on_push,
    PING: Session._on_ping,
    GOAWAY: Session._on_goaway,
    WINDOW_UPDATE: Session._on_window_update,
    CONTINUATION: Session._on_continuation,
}


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFaultError(ErrorCodes.PROTOCOL_ERROR, "more padding than frame")
    return payload[1 : len(payload) - payload[0]]
