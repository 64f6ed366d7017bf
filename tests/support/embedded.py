"""A gateway inside the application: configs for it, the openai SDK over it, and the ledger it leaves.

async with sdk(Way(httpx2, sync=False), config) as client:
    answer = await client.create(model="m", messages=[])
[row] = ledger(folder)
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import httpx2
from anyio import to_thread
from openai import AsyncOpenAI, OpenAI

from headgate.clients.transport import GatewayTransport

from .gateway import CLIENT_KEY, config_for, load, written

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from headgate.config import GatewayConfig

    from .upstream import FakeUpstream

MESSAGES: Any = [{"role": "user", "content": "hello"}]


def embedded_config(
    folder: Path, *upstreams: FakeUpstream, changes: Mapping[str, Any] | None = None, **options: Any
) -> GatewayConfig:
    """One provider per upstream, records in `folder`, and nothing about listeners."""
    complete = json.loads(written({**config_for(*upstreams, **options), **(changes or {})}, folder))
    if "listeners" not in (changes or {}):
        del complete["listeners"]
    return load(json.dumps(complete))


def ledger(folder: Path) -> list[dict[str, Any]]:
    """Every row of the event store, in the order they began."""
    with closing(sqlite3.connect(folder / "events.db")) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute("SELECT * FROM usage ORDER BY at, id")]


@dataclass(frozen=True)
class Way:
    """One of the packages, and one of the ways to call it."""

    package: Any
    sync: bool

    def __str__(self) -> str:
        return f"{self.package.__name__}-{'sync' if self.sync else 'async'}"


WAYS = [Way(package, sync) for package in (httpx, httpx2) for sync in (False, True)]


class Sdk:
    """The openai SDK over a `GatewayTransport`; its sync form runs in a thread."""

    def __init__(self, transport: GatewayTransport, asynchronous: AsyncOpenAI | None, sync: OpenAI | None) -> None:
        self.transport = transport
        self._async = asynchronous
        self._sync = sync

    async def use(self, work: Callable[[Any], Any]) -> Any:
        """What `work(client)` gives, awaited where it must be."""
        if self._sync is not None:
            return await to_thread.run_sync(work, self._sync)
        return await work(self._async)

    async def create(self, **fields: Any) -> Any:
        """One chat completion."""
        sent = {"model": "gpt-4o-mini", "messages": MESSAGES, **fields}
        return await self.use(lambda client: client.chat.completions.create(**sent))

    async def read(self, into: list[str], *, leave_after: int | None = None, **fields: Any) -> None:
        """The texts of a streamed chat completion, as far as it goes, or until `leave_after` of them are there."""
        sent = {"model": "gpt-4o-mini", "messages": MESSAGES, "stream": True, **fields}
        if self._async is not None:
            stream = await self._async.chat.completions.create(**sent)
            async with stream, aclosing(stream.__aiter__()) as chunks:
                async for one in chunks:
                    into.append(one.choices[0].delta.content or "")
                    if len(into) == leave_after:
                        return
        else:
            await to_thread.run_sync(self._read, into, leave_after, sent)

    def _read(self, into: list[str], leave_after: int | None, sent: dict[str, Any]) -> None:
        assert self._sync is not None
        with self._sync.chat.completions.create(**sent) as stream:
            for one in stream:
                into.append(one.choices[0].delta.content or "")
                if len(into) == leave_after:
                    return


@asynccontextmanager
async def sdk(way: Way, config: GatewayConfig, **options: Any) -> AsyncIterator[Sdk]:
    """An SDK with nothing changed but its transport; closed at the end."""
    transport = GatewayTransport(config)
    settings: dict[str, Any] = {"api_key": CLIENT_KEY, "max_retries": 0, **options}
    if way.sync:
        with OpenAI(http_client=way.package.Client(transport=transport), **settings) as client:
            yield Sdk(transport, None, client)
            await to_thread.run_sync(client.close)
    else:
        async with AsyncOpenAI(http_client=way.package.AsyncClient(transport=transport), **settings) as client:
            yield Sdk(transport, client, None)
