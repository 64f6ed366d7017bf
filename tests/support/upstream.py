"""A provider made of bytes, over real sockets: it says exactly what its script says and remembers all it heard.

    async with FakeUpstream([b"HTTP/1.1 200 OK\r\n", Sleep(0.1), b"content-length: 5\r\n\r\nhel", RST]) as upstream:
        ... upstream.base_url ...
        request = await upstream.wait_request()

A script is a list of steps: bytes, `Sleep(seconds)`, `Pause()` (goes on when the test calls its `go()`), `Repeat(data,
times)`, and as the last one `FIN`, `RST` or `STALL`. Without one of these three the connection is kept for the next
request. The same script answers every request; a callable is asked for the script of each; `in_turn(a, b, …)` plays
them one after the other and repeats the last. `greeting` is played before anything is read: `[RST]` is a provider that
accepts and resets.

Nothing here can hang a test: a script is given up after `patience` seconds, and so is every `wait_…`.

From a test without a loop: `with in_thread(FakeUpstream(...)) as upstream`, and `upstream.requests` as usual.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from anyio.from_thread import start_blocking_portal

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

T = TypeVar("T")
PATIENCE = 30.0
WITHIN = 15.0


class End(Enum):
    """How a script may end the connection."""

    FIN = "close in order"
    RST = "reset"
    STALL = "say nothing more until the other side closes"


FIN, RST, STALL = End.FIN, End.RST, End.STALL


@dataclass(frozen=True)
class Sleep:
    """Wait in mid-script."""

    seconds: float


@dataclass(frozen=True)
class Repeat:
    """The same bytes many times; stops while the other side does not read."""

    data: bytes
    times: int


class Pause:
    """Wait until the test says `go()`; the test may wait until the script has come here with `reached()`."""

    def __init__(self) -> None:
        self._here = asyncio.Event()
        self._go = asyncio.Event()

    def go(self) -> None:
        """Let the script go on."""
        self._go.set()

    async def reached(self, within: float = WITHIN) -> None:
        """Wait until the script stands here."""
        async with asyncio.timeout(within):
            await self._here.wait()

    async def wait(self) -> None:
        """The script's side."""
        self._here.set()
        await self._go.wait()


Step = bytes | Sleep | Pause | Repeat | End
Source: TypeAlias = "Sequence[Step] | bytes | Callable[[Request], Sequence[Step] | bytes]"


@dataclass
class Request:
    """What arrived. `raw` is every byte of it, `headers` in order with lower-case names, `body` without framing."""

    raw: bytes
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: Connection = field(repr=False)

    def header(self, name: str) -> str | None:
        """The first value of `name`."""
        return next((value for key, value in self.headers if key == name.lower()), None)

    @property
    def request_id(self) -> str | None:
        """The `x-request-id` that came along."""
        return self.header("x-request-id")

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class Connection(asyncio.Protocol):
    """One connection: what was read, what was written, and how it ended."""

    def __init__(self, server: FakeUpstream) -> None:
        self.server = server
        self.received = bytearray()
        self.written = 0
        self.requests: list[Request] = []
        self.opened_at = 0.0
        self.closed_at: float | None = None
        self.closed_by: str | None = None
        """`peer`, `peer-reset`, `script`, or None while open. A peer's RST after our own close is not seen."""
        self._unread = bytearray()
        self._heard = asyncio.Event()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._ending = False
        self._playing = False
        self._task: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """It waits for the next request, and has read nothing of one."""
        return not self._playing and not self._unread

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.opened_at = time.monotonic()
        self.server.connections.append(self)
        self._task = asyncio.get_running_loop().create_task(self._play_all())
        self.server.changed()

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._unread += data
        self._heard.set()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed_at = time.monotonic()
        if self.closed_by is None:
            self.closed_by = "script" if self._ending else "peer-reset" if isinstance(exc, OSError) else "peer"
        if self._task is not None:
            self._task.cancel()
        self.server.changed()

    async def aclose(self) -> None:
        """End it, whatever it was doing."""
        self._ending = True
        self._transport.abort()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=WITHIN)

    async def _play_all(self) -> None:
        try:
            await self._play(self.server.greeting)
            while not self._ending:
                request = await self._read_request()
                self.requests.append(request)
                self.server.requests.append(request)
                self.server.changed()
                self._playing = True
                async with asyncio.timeout(self.server.patience):
                    await self._play(self.server.script_for(request))
                self._playing = False
        except asyncio.CancelledError:
            pass  # the connection is gone: connection_lost has written down how
        except BaseException as error:
            self.server.failures.append(error)
            self._ending = True
            self._transport.abort()

    async def _play(self, script: Sequence[Step]) -> None:
        for step in script:
            if isinstance(step, bytes):
                await self._write(step)
            elif isinstance(step, Repeat):
                for _ in range(step.times):
                    await self._write(step.data)
            elif isinstance(step, Sleep):
                await asyncio.sleep(step.seconds)
            elif isinstance(step, Pause):
                await step.wait()
            elif step is STALL:
                await asyncio.get_running_loop().create_future()
            else:
                await self._end(step)
                return

    async def _write(self, data: bytes) -> None:
        await self._may_write.wait()
        self._transport.write(data)
        self.written += len(data)
        await asyncio.sleep(0)  # uvloop sends at the end of a turn: each step is a segment of its own

    async def _end(self, how: End) -> None:
        self._ending = True
        if how is RST:
            if self.server.tls is None:  # uvloop's TLS transport never says that such a buffer is empty
                self._transport.set_write_buffer_limits(high=0)
                await self._may_write.wait()
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        else:
            self._transport.close()

    async def _more(self) -> None:
        self._heard.clear()
        await self._heard.wait()

    async def _until(self, mark: bytes, start: int = 0) -> int:
        while (at := self._unread.find(mark, start)) < 0:
            await self._more()
        return at + len(mark)

    async def _read_request(self) -> Request:
        head_end = await self._until(b"\r\n\r\n")
        first, *lines = bytes(self._unread[: head_end - 4]).decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        pairs = [line.split(":", 1) for line in lines]
        headers = [(name.lower(), value.strip()) for name, value in pairs]
        fields = dict(headers)
        if "chunked" in fields.get("transfer-encoding", ""):
            body, end = await self._read_chunks(head_end)
        else:
            end = head_end + int(fields.get("content-length", "0"))
            while len(self._unread) < end:
                await self._more()
            body = bytes(self._unread[head_end:end])
        raw = bytes(self._unread[:end])
        del self._unread[:end]
        return Request(raw, method, target, headers, body, self)

    async def _read_chunks(self, at: int) -> tuple[bytes, int]:
        body = b""
        while True:
            line_end = await self._until(b"\r\n", at)
            size = int(bytes(self._unread[at : line_end - 2]).split(b";")[0], 16)
            if size == 0:
                return body, await self._until(b"\r\n", line_end)
            while len(self._unread) < line_end + size + 2:
                await self._more()
            body += self._unread[line_end : line_end + size]
            at = line_end + size + 2


class FakeUpstream:
    """See the top. `tls` serves HTTPS; `failures` holds what went wrong inside and fails the test at exit."""

    def __init__(
        self,
        script: Source = b"",
        *,
        greeting: Sequence[Step] = (),
        patience: float = PATIENCE,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.script = script
        self.greeting = greeting
        self.patience = patience
        self.tls = tls
        self.requests: list[Request] = []
        self.connections: list[Connection] = []
        self.failures: list[BaseException] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._changed = asyncio.Event()

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """As a provider's base_url is written, with the API's prefix."""
        return f"{self.url}/v1"

    @property
    def open_connections(self) -> list[Connection]:
        """Those that nobody has closed yet."""
        return [one for one in self.connections if one.closed_at is None]

    def script_for(self, request: Request) -> Sequence[Step]:
        """The steps that answer this request."""
        script = self.script(request) if callable(self.script) else self.script
        return [script] if isinstance(script, bytes) else script

    def changed(self) -> None:
        """Something was recorded: wakes who waits."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_until(self, ready: Callable[[], T | None], what: str, within: float = WITHIN) -> T:
        """Wait until `ready()` gives something; a test that waits in vain is told what for."""
        deadline = time.monotonic() + within
        while not (found := ready()):
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._changed.wait()
            except TimeoutError:
                raise AssertionError(f"waited {within} s for {what}: {self!r}") from None
        return found

    async def wait_request(self, n: int = 1, within: float = WITHIN) -> Request:
        """The n-th request, once it is read whole."""
        await self.wait_until(lambda: len(self.requests) >= n, f"request {n}", within)
        return self.requests[n - 1]

    async def wait_closed(self, n: int = 1, within: float = WITHIN) -> Connection:
        """The n-th connection that the other side closed."""

        def closed() -> Connection | None:
            gone = [one for one in self.connections if one.closed_by in ("peer", "peer-reset")]
            return gone[n - 1] if len(gone) >= n else None

        return await self.wait_until(closed, f"close {n} by the peer", within)

    async def __aenter__(self) -> FakeUpstream:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), "127.0.0.1", self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self.connections:
            await connection.aclose()
        await self._server.wait_closed()
        if kind is None and self.failures:
            raise AssertionError(f"the fake upstream itself failed: {self.failures!r}")

    def __repr__(self) -> str:
        ends = [one.closed_by or "open" for one in self.connections]
        return f"<FakeUpstream :{self.port} requests={len(self.requests)} connections={ends}>"


def in_turn(*scripts: Sequence[Step] | bytes) -> Callable[[Request], Sequence[Step] | bytes]:
    """One script for each request, in the order they come; the last one goes on for ever."""
    left = list(scripts)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


@contextmanager
def in_thread(manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Enter an async context manager on a loop in a thread, for tests that have no loop of their own."""
    with (
        start_blocking_portal("asyncio", backend_options={"use_uvloop": True}) as portal,
        portal.wrap_async_context_manager(manager) as entered,
    ):
        yield entered
