"""A provider that speaks HTTP/2, over real sockets: the `h2` package judges what it is sent, the test says the rest.

    async def answer(stream: PeerStream) -> None:
        body = await stream.body()
        stream.head(200, [("content-type", "text/plain")])
        await stream.data(b"hello", end=True)

    async with H2Upstream(answer) as upstream:
        ... upstream.base_url ...
        assert upstream.peers[0].resets == []

`answer` is a task per stream, begun with the request's head and cancelled when the stream or the connection ends. What
a well-behaved server would not say goes out with `peer.raw(frames)`: the state machine does not hear of it. A request
that breaks the protocol is kept in `failures` and fails the test at exit.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame, GoAwayFrame, RstStreamFrame

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    Answer = Callable[["PeerStream"], Awaitable[None]]

WITHIN = 15.0
PREFACE_SIZE = 24


class PeerStream:
    """One request as it arrives, and its answer."""

    def __init__(self, peer: Peer, stream_id: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.peer = peer
        self.id = stream_id
        self.headers = [(name.decode(), value.decode("latin-1")) for name, value in headers]
        self.received = bytearray()
        self.ended = False
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def header(self, name: str) -> str | None:
        """The first value of `name`, pseudo fields included."""
        return next((value for key, value in self.headers if key == name), None)

    async def body(self) -> bytes:
        """All of it, once it has come."""
        while not self.ended:
            self.changed.clear()
            await self.changed.wait()
        return bytes(self.received)

    def head(self, status: int, headers: Iterable[tuple[str, str]] = (), *, end: bool = False) -> None:
        """A head; also an interim one."""
        self.peer.h2.send_headers(self.id, [(":status", str(status)), *headers], end_stream=end)
        self.peer.flush()

    async def data(self, data: bytes, *, end: bool = False) -> None:
        """Content, as fast as the windows of the other side allow."""
        h2 = self.peer.h2
        while data:
            size = min(h2.local_flow_control_window(self.id), h2.max_outbound_frame_size, len(data))
            if size <= 0:
                self.changed.clear()
                await self.changed.wait()
                continue
            h2.send_data(self.id, data[:size])
            data = data[size:]
            self.peer.flush()
            await self.peer.drained()
        if end:
            h2.end_stream(self.id)
            self.peer.flush()

    def trailers(self, headers: Iterable[tuple[str, str]]) -> None:
        """The end, with fields."""
        self.peer.h2.send_headers(self.id, headers, end_stream=True)
        self.peer.flush()

    def reset(self, code: int) -> None:
        """RST_STREAM."""
        self.peer.h2.reset_stream(self.id, code)
        self.peer.flush()


class Peer(asyncio.Protocol):
    """One connection. `frames` is all that was received, `resets` the RST_STREAMs among it."""

    def __init__(self, server: H2Upstream) -> None:
        self.server = server
        self.h2 = H2Connection(
            H2Configuration(client_side=False, header_encoding=None, validate_outbound_headers=False)
        )
        self.h2.local_settings = Settings(client=False, initial_values=server.settings)
        self.h2.max_inbound_frame_size = self.h2.local_settings.max_frame_size
        self.streams: dict[int, PeerStream] = {}
        self.frames: list[Frame] = []
        self.reads = 0
        self.lost = False
        self._unread = bytearray()
        self._preface_seen = False
        self._may_write = asyncio.Event()
        self._may_write.set()

    @property
    def resets(self) -> list[tuple[int, int]]:
        """Stream and code of each reset that was received."""
        return [(one.stream_id, one.error_code) for one in self.frames if isinstance(one, RstStreamFrame)]

    @property
    def goaway(self) -> GoAwayFrame | None:
        """The last word that was received."""
        return next((one for one in self.frames if isinstance(one, GoAwayFrame)), None)

    @property
    def open(self) -> list[int]:
        """The streams that this side takes for open."""
        return [number for number, stream in self.h2.streams.items() if not stream.closed]

    def raw(self, *frames: Frame | bytes) -> None:
        """Send what the state machine does not know of."""
        self._transport.write(b"".join(one if isinstance(one, bytes) else one.serialize() for one in frames))

    def close(self) -> None:
        """End the connection in order."""
        self._transport.close()

    def abort(self) -> None:
        """End it at once."""
        self._transport.abort()

    def stop_reading(self) -> None:
        """Take nothing more from the socket."""
        self._transport.pause_reading()

    def flush(self) -> None:
        """Send what the state machine has to say."""
        if not self.lost:
            self._transport.write(self.h2.data_to_send())

    async def drained(self) -> None:
        """Wait while the other side does not read."""
        await self._may_write.wait()
        await asyncio.sleep(0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.server.peers.append(self)
        if self.server.greeting is not None:
            self.raw(self.server.greeting)
        else:
            self.h2.initiate_connection()
            self.flush()
        self.server.changed()

    def data_received(self, data: bytes) -> None:
        self.reads += 1
        self._unread += data
        self._record()
        if self.server.deaf:
            return
        try:
            events = self.h2.receive_data(data)
        except H2Error as error:
            self.server.failures.append(error)
            self._transport.abort()
            return
        for event in events:
            self._on_event(event)
        self.flush()
        self.server.changed()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        for stream in self.streams.values():
            if stream.task is not None:
                stream.task.cancel()
        self.server.changed()

    def _record(self) -> None:
        if not self._preface_seen:
            if len(self._unread) < PREFACE_SIZE:
                return
            del self._unread[:PREFACE_SIZE]
            self._preface_seen = True
        while len(self._unread) >= 9:
            one, length = Frame.parse_frame_header(memoryview(bytes(self._unread[:9])))
            if len(self._unread) < 9 + length:
                return
            one.parse_body(memoryview(bytes(self._unread[9 : 9 + length])))
            del self._unread[: 9 + length]
            self.frames.append(one)

    def _on_event(self, event: object) -> None:
        if isinstance(event, RequestReceived):
            stream = PeerStream(self, event.stream_id, event.headers)
            self.streams[stream.id] = stream
            self.server.requests.append(stream)
            if self.server.answer is not None:
                stream.task = asyncio.get_running_loop().create_task(self._answer(stream))
        elif isinstance(event, DataReceived):
            stream = self.streams[event.stream_id]
            stream.received += event.data or b""
            if self.server.gives_back and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, stream.id)
            stream.changed.set()
        elif isinstance(event, StreamEnded):
            stream = self.streams[event.stream_id]
            stream.ended = True
            stream.changed.set()
        elif isinstance(event, StreamReset):
            stream = self.streams[event.stream_id]
            if stream.task is not None:
                stream.task.cancel()
        elif isinstance(event, WindowUpdated):
            for stream in self.streams.values():
                stream.changed.set()
        elif isinstance(event, ConnectionTerminated):
            self._transport.close()

    async def _answer(self, stream: PeerStream) -> None:
        assert self.server.answer is not None
        try:
            await self.server.answer(stream)
        except H2Error as error:
            if not self.server.lenient:
                self.server.failures.append(error)
        except Exception as error:
            self.server.failures.append(error)


async def hello(stream: PeerStream) -> None:
    """The whole request in, then `hello` out."""
    await stream.body()
    stream.head(200, [("content-length", "5")])
    await stream.data(b"hello", end=True)


class H2Upstream:
    """See the top. `settings` are the provider's; `greeting` replaces its first words; `deaf` only records; with
    `gives_back` off, a window is never opened again; `lenient` forgives a script that speaks where it may no more."""

    def __init__(
        self,
        answer: Answer | None = hello,
        *,
        settings: Mapping[SettingCodes, int] | None = None,
        greeting: bytes | None = None,
        deaf: bool = False,
        gives_back: bool = True,
        lenient: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.answer = answer
        self.settings = {SettingCodes.MAX_CONCURRENT_STREAMS: 128, **(settings or {})}
        self.greeting = greeting
        self.deaf = deaf
        self.gives_back = gives_back
        self.lenient = lenient
        self.tls = tls
        self.peers: list[Peer] = []
        self.requests: list[PeerStream] = []
        self.failures: list[BaseException] = []
        self.port = 0
        self._changed = asyncio.Event()

    @property
    def base_url(self) -> str:
        """As a provider's base_url is written."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/v1"

    def changed(self) -> None:
        """Wakes who waits."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, ready: Callable[[], object], within: float = WITHIN) -> None:
        """Wait until `ready()`, looked at after each read."""
        async with asyncio.timeout(within):
            while not ready():
                await self._changed.wait()

    async def request(self, n: int = 1) -> PeerStream:
        """The n-th request, once its head is there."""
        await self.until(lambda: len(self.requests) >= n)
        return self.requests[n - 1]

    async def __aenter__(self) -> H2Upstream:
        if self.tls is not None:
            self.tls.set_alpn_protocols(["h2", "http/1.1"])
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Peer(self), "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._server.close()
        tasks = [stream.task for stream in self.requests if stream.task is not None]
        for task in tasks:
            task.cancel()
        for peer in self.peers:
            if not peer.lost:
                peer.abort()
        if tasks:
            await asyncio.wait(tasks)
        await self._server.wait_closed()
        if kind is None and self.failures:
            raise AssertionError(f"what arrived was no HTTP/2, or the script failed: {self.failures!r}")
