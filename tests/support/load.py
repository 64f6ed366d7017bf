"""Steady load from clients as applications have them, with pools of connections that they keep.

    async with providers() as config, gateway_process(config, workers=2) as gateway:
        load = Load(gateway.base_url, rate=300, streams=100)
        async with load.running():
            ...
        load.assert_flawless()

One request in ten and one stream in ten come from `httpx` and from the OpenAI SDK. The others come from a lean pool
that does what those do (the connection used last first, one that was closed meanwhile never), so that the load is the
gateway's and not the test's. Nothing is tried again: what fails is a failure. Each stream is held against what it must
say, byte by byte but for the SDK's.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import httptools
import httpx
from openai import AsyncOpenAI

from headgate.control.mock.fault import body
from headgate.dialects.mock import answer

from .command import mock_provider
from .gateway import CLIENT_KEY, bearer
from .raw import CHAT, request
from .traffic import without_ours

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

QUICK, SLOW = "quick", "slow"
QUESTION = "hello"
ADMIN_KEY = "hg-root-9vKq2LxTzR4mWc7P"
KEYS = [{"name": "app", "key": CLIENT_KEY}, {"name": "root", "key": ADMIN_KEY, "roles": ["admin"]}]
LATE_SECONDS = 30.0
LIBRARIES_EVERY = 10
MOST_WAITING = 200
"""Requests under way above which no more are sent: a test that was itself kept waiting owes nobody the rest."""
MOST_IN_LIBRARY = 20
"""What `httpx` does for a request grows with all those that wait in its pool."""


@asynccontextmanager
async def providers(quick_ms: int = 5, slow_ms: int = 200) -> AsyncIterator[dict[str, Any]]:
    """A config over two providers in processes of their own: one for plain answers, one whose streams take time."""
    async with mock_provider("--delay", str(quick_ms)) as quick, mock_provider("--delay", str(slow_ms)) as slow:
        yield {
            "providers": {
                QUICK: {"base_url": quick, "api_key": "sk-quick"},
                SLOW: {"base_url": slow, "api_key": "sk-slow"},
            },
            "models": {name: {"targets": [{"provider": name}]} for name in (QUICK, SLOW)},
            "filters": [{"auth": {"keys": KEYS}}],
        }


class PooledAnswer:
    """A whole one."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""


class _PooledConnection(asyncio.Protocol):
    """Serves one request at a time, and goes back to its pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._answer = PooledAnswer()
        self._waiting: asyncio.Future[PooledAnswer] | None = None

    def ask(self, data: bytes) -> asyncio.Future[PooledAnswer]:
        """Send; the answer comes, or ConnectionError."""
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return self._waiting

    def close(self) -> None:
        """At once."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError(f"closed before the answer was whole: {exc!r}"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._answer.headers[name.lower()] = value

    def on_body(self, data: bytes) -> None:
        self._answer.body += data

    def on_message_complete(self) -> None:
        answer, self._answer = self._answer, PooledAnswer()
        answer.status = self._parser.get_status_code()
        waiting, self._waiting = self._waiting, None
        if self._parser.should_keep_alive():
            self._pool.idle.append(self)
        else:
            self._transport.close()
        assert waiting is not None
        if not waiting.done():
            waiting.set_result(answer)


class Pool:
    """As many connections as are needed at once; all are kept."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.idle: list[_PooledConnection] = []
        self.open: set[_PooledConnection] = set()

    async def ask(self, data: bytes) -> PooledAnswer:
        """One request. Raises ConnectionError, TimeoutError."""
        async with asyncio.timeout(LATE_SECONDS):
            if self.idle:
                connection = self.idle.pop()
            else:
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(lambda: _PooledConnection(self), "127.0.0.1", self._port)
                self.open.add(connection)
            return await connection.ask(data)

    def forget(self, connection: _PooledConnection) -> None:
        """It is closed."""
        self.open.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)

    def close(self) -> None:
        """All of them."""
        for connection in list(self.open):
            connection.close()


class Load:
    """`rate` plain requests a second, and `streams` live ones of about `words` events each."""

    def __init__(self, base_url: str, *, rate: float, streams: int, words: int = 20) -> None:
        self.base_url = base_url
        self.rate = rate
        self.streams = streams
        self.answered = 0
        self.streamed = 0
        self.failures: Counter[str] = Counter()
        self.slowest = 0.0
        self.told_to_close = 0
        """Answers that said `connection: close`."""
        self.versions: set[str] = set()
        self._words = " ".join(["word"] * words)
        self._ask_plain = _chat({"model": QUICK, "messages": [{"role": "user", "content": QUESTION}]})
        streamed = {
            "model": SLOW,
            "stream": True,
            "stream_options": {"include_usage": True},
            "messages": [{"role": "user", "content": self._words}],
        }
        self._ask_stream = _chat(streamed)
        self._says = body(answer(json.dumps(streamed).encode()))
        self._stop = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Under load until the end of the block; what is asked by then is answered."""
        pool = Pool(httpx.URL(self.base_url).port or 80)
        headers = {"authorization": f"Bearer {CLIENT_KEY}"}
        async with (
            httpx.AsyncClient(base_url=self.base_url, headers=headers, timeout=LATE_SECONDS, trust_env=False) as client,
            AsyncOpenAI(base_url=self.base_url, api_key=CLIENT_KEY, max_retries=0, timeout=LATE_SECONDS) as sdk,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(self._ask_steadily(pool, client, group))
            for number in range(self.streams):
                group.create_task(self._stream_again(pool, sdk if number % LIBRARIES_EVERY == 0 else None))
            try:
                yield
            finally:
                self._stop.set()
        pool.close()

    def assert_flawless(self) -> None:
        """No request failed and no stream was cut."""
        assert not self.failures, f"{self!r}: {self.failures}"

    async def _ask_steadily(self, pool: Pool, client: httpx.AsyncClient, group: asyncio.TaskGroup) -> None:
        """Open loop: a gateway that is late gets the next request all the same."""
        began = time.monotonic()
        asked = 0
        waiting: set[asyncio.Task[None]] = set()
        in_library: set[asyncio.Task[None]] = set()
        while not self._stop.is_set():
            due = int((time.monotonic() - began) * self.rate)
            for number in range(asked, due):
                if len(waiting) >= MOST_WAITING:
                    break
                by_library = number % LIBRARIES_EVERY == 0 and len(in_library) < MOST_IN_LIBRARY
                task = group.create_task(self._ask(pool, client if by_library else None))
                for tasks in (waiting, in_library) if by_library else (waiting,):
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
            asked = due
            await asyncio.sleep(0.005)

    async def _ask(self, pool: Pool, client: httpx.AsyncClient | None) -> None:
        began = time.monotonic()
        try:
            if client is None:
                told = await pool.ask(self._ask_plain)
                status, fields, content = told.status, told.headers, told.body
            else:
                got = await client.post("/chat/completions", content=self._ask_plain.partition(b"\r\n\r\n")[2])
                status, fields, content = got.status_code, dict(got.headers.raw), got.content
        except (OSError, httpx.HTTPError) as error:
            self.failures[f"{'httpx' if client else 'pool'}: {error!r}"] += 1
            return
        self.slowest = max(self.slowest, time.monotonic() - began)
        if status != 200 or QUESTION not in json.loads(content)["choices"][0]["message"]["content"]:
            self.failures[f"request: {status} {content[:200]!r}"] += 1
            return
        self.answered += 1
        self.told_to_close += fields.get(b"connection") == b"close"
        self.versions.add(fields[b"x-headgate-config"].decode())

    async def _stream_again(self, pool: Pool, sdk: AsyncOpenAI | None) -> None:
        while not self._stop.is_set():
            try:
                text = await (self._stream_lean(pool) if sdk is None else self._stream_sdk(sdk))
            except Exception as error:
                self.failures[f"stream of {'the SDK' if sdk else 'the pool'}: {error!r}"] += 1
                await asyncio.sleep(1)
                continue
            if self._words not in text:
                self.failures[f"stream: {text[-50:]!r}"] += 1
            else:
                self.streamed += 1

    async def _stream_lean(self, pool: Pool) -> str:
        told = await pool.ask(self._ask_stream)
        self.told_to_close += told.headers.get(b"connection") == b"close"
        events = [line[6:] for line in told.body.split(b"\n") if line.startswith(b"data: ")]
        assert told.status == 200
        assert without_ours(told.body) == self._says
        assert events[-1] == b"[DONE]"
        choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
        assert choices[-1]["finish_reason"] == "stop"
        return "".join(choice["delta"].get("content") or "" for choice in choices)

    async def _stream_sdk(self, sdk: AsyncOpenAI) -> str:
        text, finish = "", None
        async with await sdk.chat.completions.create(
            model=SLOW, stream=True, messages=[{"role": "user", "content": self._words}]
        ) as stream:
            async for event in stream:
                for choice in event.choices:
                    text += choice.delta.content or ""
                    finish = choice.finish_reason or finish
        assert finish == "stop"
        return text

    def __repr__(self) -> str:
        return (
            f"<Load {self.answered} answers, {self.streamed} streams, {self.failures.total()} failures, "
            f"slowest {self.slowest:.2f} s, {self.told_to_close} told to close>"
        )


def _chat(asked: dict[str, Any]) -> bytes:
    return request(
        "POST", CHAT, json.dumps(asked).encode(), [*bearer(CLIENT_KEY), ("content-type", "application/json")]
    )
