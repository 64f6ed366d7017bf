"""Many streams at once: what slow readers cost in memory, and how late events are when 500 of them flow.

The provider and the clients are bare protocols of this process, so that they can be faster than what they measure.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import pytest

from tests_support.answers import DONE, chat_chunk, event
from tests_support.gateway import CLIENT_KEY
from tests_support.process import gateway_process
from tests_support.raw import CHAT, request
from tests_support.traffic import without_ours

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ASK = request(
    "POST",
    CHAT,
    b'{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"hi"}]}',
    [("authorization", f"Bearer {CLIENT_KEY}")],
)
MIB = 1024 * 1024


@asynccontextmanager
async def provider(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """Serves each connection by `answer`; cuts what is left."""
    open_now: set[asyncio.StreamWriter] = set()
    nobody = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_now.add(writer)
        try:
            await answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # the gateway left, as it should when its client does
        finally:
            open_now.discard(writer)
            writer.close()
            if not open_now:
                nobody.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        nobody.clear()
        for writer in open_now:
            writer.transport.abort()
        if open_now:
            await asyncio.wait_for(nobody.wait(), 10)


def config(port: int) -> dict[str, object]:
    return {
        "providers": {"up": {"base_url": f"http://127.0.0.1:{port}/v1", "list_models": False}},
        "filters": [{"auth": {"keys": [{"name": "app", "key": CLIENT_KEY}]}}],
    }


async def read_request(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    await reader.readexactly(length)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm", "rb") as statm:
        return int(statm.read().split()[1]) * 4096


@pytest.mark.slow
async def test_200_slow_readers_of_a_100_mb_stream_cost_512_kib_each() -> None:
    readers, size = 200, 100 * MIB
    block = chunk(event(chat_chunk({"content": "x" * 16_000})) * 4)
    sent: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        at = len(sent)
        sent.append(0)
        writer.write(HEAD)
        while sent[at] < size:
            writer.write(block)
            sent[at] += len(block)
            await writer.drain()

    async with provider(answer) as port, gateway_process(config(port), workers=1) as process:
        before = resident(process.pid)
        clients = []
        for _ in range(readers):
            reader, writer = await asyncio.open_connection("127.0.0.1", process.port, limit=4096)
            writer.write(ASK)
            clients.append((reader, writer))
        for reader, _ in clients:
            await reader.readuntil(b"\r\n\r\n")
        held, quiet = 0, 0
        while quiet < 20:  # until nobody sends any more, although everybody could
            now = sum(sent)
            quiet = quiet + 1 if now == held else 0
            held = now
            await asyncio.sleep(0.05)
        grown = resident(process.pid) - before
        print(
            f"{readers} readers: {grown / readers / 1024:.0f} KiB each, of {held / readers / MIB:.1f} MiB sent to each"
        )
        assert held < readers * size / 2
        assert grown <= readers * 512 * 1024
        for _, writer in clients:
            writer.transport.abort()


class Reader(asyncio.Protocol):
    """Takes a stream apart as it comes: `delays` in seconds, from the time that stands in each event."""

    def __init__(self, done: asyncio.Future[None]) -> None:
        self._done = done
        self.received = bytearray()
        self.delays: list[float] = []
        self._looked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(ASK)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self.received += data
        while (at := self.received.find(b'"at ', self._looked)) >= 0 and (end := self.received.find(b'"', at + 4)) >= 0:
            self.delays.append(now - float(self.received[at + 4 : end]))
            self._looked = end
        if self.received.endswith(b"0\r\n\r\n") and not self._done.done():
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionResetError())

    @property
    def body(self) -> bytes:
        _, _, rest = bytes(self.received).partition(b"\r\n\r\n")
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            body += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
        return body


async def flow(port: int, streams: int) -> list[Reader]:
    """Read `streams` streams to their end."""
    loop = asyncio.get_running_loop()
    waiting = []
    readers = []
    for _ in range(streams):
        done: asyncio.Future[None] = loop.create_future()
        _, reader = await loop.create_connection(lambda done=done: Reader(done), "127.0.0.1", port)  # type: ignore[misc]
        waiting.append(done)
        readers.append(reader)
    async with asyncio.timeout(60):
        await asyncio.gather(*waiting)
    return readers


def p99(readers: list[Reader]) -> float:
    delays = sorted(delay for reader in readers for delay in reader.delays)
    return delays[int(0.99 * len(delays))]


@pytest.mark.slow
async def test_500_streams_of_10_events_a_second_pass_byte_for_byte_and_in_time() -> None:
    streams, events, period = 500, 80, 0.1
    said: dict[int, bytes] = {}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(HEAD)
            body = []
            for n in range(events):
                await asyncio.sleep(period)
                one = event(chat_chunk({"content": f"{n}"})).replace(
                    f'"content":"{n}"'.encode(), b'"content":"at %.6f"' % time.monotonic()
                )
                body.append(one)
                writer.write(chunk(one))
            end = event(chat_chunk({}, finish_reason="stop")) + DONE
            writer.write(chunk(end) + b"0\r\n\r\n")
            said[len(said)] = b"".join(body) + end

    async with provider(answer) as port:
        direct = p99(await flow(port, streams))
        said.clear()
        async with gateway_process(config(port), workers=1) as process:
            readers = await flow(process.port, streams)
        through = p99(readers)
    print(f"p99 of an event: {direct * 1e3:.1f} ms directly, {through * 1e3:.1f} ms through the gateway")
    assert sorted(without_ours(reader.body) for reader in readers) == sorted(said.values())
    assert through - direct <= 0.025
