"""The client and the provider of a benchmark: both ends of the gateway, in one thread over one epoll.

Because one loop holds both ends, each knows what the other has seen. The provider writes event n+1 of a stream only
when the client has received event n, so no two events of a stream ever meet in a socket buffer and every event is a
read and a write of its own in the gateway: what a model that decodes token by token does, at the highest rate that
flow control allows. Many streams at once keep the gateway busy meanwhile. A gateway that holds an event back would
stall its stream; when all is quiet for `QUIET` seconds the next event of each stream is sent regardless, and counted
in `Sample.stalls`.

While it presses it never sleeps but polls: a gateway that writes to a sleeping peer on the same machine pays for
waking it, which it would not pay to a network card, and a slow gateway would pay more often than a fast one.

It parses only what it needs, from whole messages, and speaks to loopback alone: no use as an HTTP implementation.
"""

import contextlib
import gc
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from . import traffic

PROVIDER_ADDRESSES = ("127.0.0.1", "127.0.0.2")
"""One provider at one port, as two endpoints for those that balance."""

QUIET = 0.5
STRETCH = 6
ENOUGH = 0.3
"""A window lasts until the gateway had this share of it as CPU time, and at most so many times its length: where
others use the core too, a window of wall time may hold next to nothing."""

RECV = 32768


@dataclass(slots=True)
class Sample:
    """What went through the gateway in one window, and what it cost there."""

    wall: float = 0.0
    cpu: float = 0.0
    requests: int = 0
    streams: int = 0
    events: int = 0
    failed: int = 0
    stalls: int = 0
    rig_cpu: float = 0.0
    latencies: list[float] = field(default_factory=list)


class Load:
    """`plain` and `streams` press as hard as the gateway answers, `paced` at a fixed rate; one at a time."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.readers: dict[int, Callable[[], None]] = {}
        self.sockets: dict[int, socket.socket] = {}
        self.served: dict[int, _ProviderConnection] = {}
        self.sample = Sample()
        self.events_per_stream = 0
        self._contents: list[bytes] = []
        self.provider_port = 0
        for address in PROVIDER_ADDRESSES:
            listener = socket.create_server((address, self.provider_port), backlog=512)
            listener.setblocking(False)
            self.provider_port = listener.getsockname()[1]
            self.watch(listener, partial(self._accept, listener))

    def watch(self, sock: socket.socket, reader: Callable[[], None]) -> None:
        self.readers[sock.fileno()] = reader
        self.sockets[sock.fileno()] = sock
        self.epoll.register(sock.fileno(), select.EPOLLIN)

    def forget(self, sock: socket.socket) -> None:
        number = sock.fileno()
        if number in self.readers:
            del self.readers[number], self.sockets[number]
            self.epoll.unregister(number)
            sock.close()

    def _accept(self, listener: socket.socket) -> None:
        sock, _ = listener.accept()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.watch(sock, _ProviderConnection(self, sock).read)

    def once(self, port: int, request: bytes, timeout: float, *, events: int = 0) -> bytes | None:
        """One exchange; the whole answer, or None when there was none in time."""
        self._prepare(events)
        try:
            client = _OneShot(self, port, request)
        except OSError:
            return None
        try:
            end = time.monotonic() + timeout
            self._turn(end, stop=client.is_done)
            return bytes(client.received) if client.is_done() else None
        finally:
            self.forget(client.sock)

    def plain(
        self, port: int, request: bytes, probe: Callable[[], float], *, connections: int, warm: float, seconds: float
    ) -> Sample:
        """Each connection sends its next request as soon as its last one is answered."""
        clients = [_PlainClient(self, port, request) for _ in range(connections)]
        return self._measure(clients, probe, warm, seconds)

    def streams(
        self, port: int, requests: list[bytes], probe: Callable[[], float], *, events: int, warm: float, seconds: float
    ) -> Sample:
        """One connection per request, each stream `events` content events long; the next begins as soon as one has
        ended.
        """
        self._prepare(events)
        clients = [_StreamClient(self, port, request) for request in requests]
        return self._measure(clients, probe, warm, seconds)

    def paced(self, port: int, request: bytes, *, connections: int, rate: float, seconds: float) -> Sample:
        """Requests at a fixed rate whether or not earlier ones were answered; latency counts from the time each was
        due.
        """
        sample = self.sample = Sample()
        idle: deque[_PlainClient] = deque()
        clients = [_PlainClient(self, port, request, idle) for _ in range(connections)]
        idle.extend(clients)
        start = due = time.monotonic()
        gc.disable()
        try:
            while due < start + seconds:
                now = time.monotonic()
                while due <= now and idle:
                    idle.popleft().send(due)
                    due += 1 / rate
                # epoll rounds up to whole milliseconds: sleep short of the due time, then poll
                self._poll(max(0.0, due - now - 0.001) if idle else 0.02)
            self._turn(time.monotonic() + 5.0, stop=lambda: len(idle) >= len(clients))
        finally:
            gc.enable()
            self._close(clients)
        sample.failed += len(clients) - len(idle)
        return sample

    def close(self) -> None:
        for sock in list(self.sockets.values()):
            self.forget(sock)
        self.epoll.close()

    def _prepare(self, events: int) -> None:
        self.events_per_stream = events
        self._contents = [traffic.content(n) for n in range(events)]
        self.served.clear()
        self.sample = Sample()

    def content(self, n: int) -> bytes:
        return self._contents[n]

    def _measure(
        self,
        clients: "list[_PlainClient] | list[_StreamClient]",
        probe: Callable[[], float],
        warm: float,
        seconds: float,
    ) -> Sample:
        gc.collect()
        gc.disable()
        try:
            for client in clients:
                client.send()
            self._turn(time.monotonic() + warm)
            sample = self.sample = Sample()
            cpu, rig, start = probe(), time.process_time(), time.monotonic()
            for _ in range(STRETCH):
                self._turn(time.monotonic() + seconds)
                if probe() - cpu >= ENOUGH * seconds:
                    break
            sample.cpu, sample.rig_cpu, sample.wall = probe() - cpu, time.process_time() - rig, time.monotonic() - start
            return sample
        finally:
            gc.enable()
            self._close(clients)

    def _close(self, clients: "list[_PlainClient] | list[_StreamClient]") -> None:
        self.sample = Sample()  # what the closing of the connections causes is not part of the measurement
        self.served.clear()
        for client in clients:
            self.forget(client.sock)
        self._turn(time.monotonic() + 0.05)

    def _turn(self, end: float, stop: Callable[[], bool] | None = None) -> None:
        quiet_since = now = time.monotonic()
        while now < end and not (stop is not None and stop()):
            busy = self._poll()
            now = time.monotonic()
            if busy:
                quiet_since = now
            elif now - quiet_since > QUIET:
                quiet_since = now
                for provider in list(self.served.values()):
                    self.sample.stalls += 1
                    provider.send_next()

    def _poll(self, timeout: float = 0) -> bool:
        ready = self.epoll.poll(timeout)
        for fd, _ in ready:
            reader = self.readers.get(fd)
            if reader is not None:
                reader()
        return bool(ready)


class _ProviderConnection:
    """One connection that the gateway holds to the provider."""

    def __init__(self, load: Load, sock: socket.socket) -> None:
        self.load = load
        self.sock = sock
        self.pending = b""
        self.stream: int | None = None
        self.sent = 0
        self.usage = b""

    def read(self) -> None:
        data = _receive(self.sock)
        if data is None:
            return
        if not data:
            if self.stream is not None:
                self.load.served.pop(self.stream, None)
            self.load.forget(self.sock)
            return
        if self.pending:
            data = self.pending + data
        if not traffic.is_complete(data):
            self.pending = data
            return
        self.pending = b""
        self.stream = traffic.stream_id(data)
        if self.stream is None:
            _send(self.sock, traffic.answer_to(data))
            return
        self.usage = traffic.USAGE if b"include_usage" in data else b""
        self.load.served[self.stream] = self
        self.load.sample.streams += 1
        self.sent = 0
        # A gateway may hold a stream back until its first content, so the role chunk cannot wait for its arrival.
        _send(self.sock, traffic.STREAM_HEAD + traffic.ROLE)
        self.send_next()

    def send_next(self) -> None:
        """The next content event, or what ends the stream."""
        load = self.load
        if self.sent < load.events_per_stream:
            _send(self.sock, load.content(self.sent))
            self.sent += 1
            load.sample.events += 1
        elif self.stream is not None:
            load.served.pop(self.stream, None)
            self.stream = None
            _send(self.sock, traffic.FINISH + self.usage + traffic.DONE)


class _PlainClient:
    """One client connection that sends a request after the other, or (with `idle`) when it is told to."""

    def __init__(self, load: Load, port: int, request: bytes, idle: "deque[_PlainClient] | None" = None) -> None:
        self.load = load
        self.port = port
        self.request = request
        self.idle = idle
        self.pending = b""
        self.due = 0.0
        self._connect()

    def _connect(self) -> None:
        self.sock = _dial(self.port)
        self.load.watch(self.sock, self.read)

    def send(self, due: float = 0.0) -> None:
        self.due = due
        _send(self.sock, self.request)

    def read(self) -> None:
        load = self.load
        data = _receive(self.sock)
        if data is None:
            return
        if not data:
            load.sample.failed += 1
            load.forget(self.sock)
            self.pending = b""
            self._connect()
        else:
            if self.pending:
                data = self.pending + data
            if not traffic.is_complete(data):
                self.pending = data
                return
            self.pending = b""
            if data.startswith(b"HTTP/1.1 200"):
                load.sample.requests += 1
            else:
                load.sample.failed += 1
        if self.idle is None:
            self.send()
        else:
            load.sample.latencies.append(time.monotonic() - self.due)
            self.idle.append(self)


class _StreamClient:
    """One client connection that reads a stream after the other and acknowledges each event to the provider's end."""

    def __init__(self, load: Load, port: int, request: bytes) -> None:
        self.load = load
        self.port = port
        self.request = request
        self.id = traffic.stream_id(request) or 0
        self._connect()

    def _connect(self) -> None:
        self.sock = _dial(self.port)
        self.load.watch(self.sock, self.read)

    def send(self) -> None:
        self.awaited = 0
        self.marker = traffic.marker(0)
        self.tail = b""
        _send(self.sock, self.request)

    def read(self) -> None:
        load = self.load
        data = _receive(self.sock)
        if data is None:
            return
        if not data:
            load.sample.failed += 1
            load.forget(self.sock)
            self._connect()
            self.send()
            return
        if not self.tail and not data.startswith(b"HTTP/1.1 200"):
            load.sample.failed += 1
        data = self.tail + data
        arrived = self.awaited
        while self.marker in data:
            self.awaited += 1
            self.marker = traffic.marker(self.awaited)
        if self.awaited > arrived:
            provider = load.served.get(self.id)
            if provider is not None and provider.sent <= self.awaited:
                provider.send_next()
        if data.endswith(b"0\r\n\r\n"):
            load.sample.requests += 1
            self.send()
        else:
            self.tail = data[-8:]


class _OneShot:
    """One exchange, kept whole, for looking at what a gateway does to it."""

    def __init__(self, load: Load, port: int, request: bytes) -> None:
        self.load = load
        self.received = bytearray()
        self.acknowledged = 0
        self.id = traffic.stream_id(request)
        self.gone = False
        self.sock = _dial(port)
        load.watch(self.sock, self.read)
        _send(self.sock, request)

    def is_done(self) -> bool:
        return self.gone or traffic.is_complete(bytes(self.received))

    def read(self) -> None:
        data = _receive(self.sock)
        if data is None:
            return
        self.gone = not data
        self.received += data
        provider = self.load.served.get(self.id) if self.id is not None else None
        if provider is not None and traffic.marker(provider.sent - 1) in self.received:
            provider.send_next()
        if self.gone:
            self.load.forget(self.sock)


def _send(sock: socket.socket, data: bytes) -> None:
    """Writes all of it: messages are small, and of each connection one at a time is under way."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the next read says that the other side is gone
        if sock.send(data) < len(data):
            raise BufferError(f"{len(data)} bytes did not fit into the socket buffer")


def _receive(sock: socket.socket) -> bytes | None:
    """What has arrived: empty once the other side is gone, None when nothing has (a reused descriptor)."""
    try:
        return sock.recv(RECV)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _dial(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=2.0)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
