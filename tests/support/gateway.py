"""The whole data half in this process, on a port of its own, with what a test wants to ask it.

    async with gateway_over(json_response(chat_completion())) as (gateway, upstream):
        answer = await gateway.post()
        [row] = await gateway.rows(1)

Records are read back from the spool, so a row is there only if it would survive a kill -9.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headgate.config import GatewayConfig, parse_config
from headgate.control.process.data_server import DataServer
from headgate.gateway import Gateway
from headgate.proxy.accounting.record import Done, Opened, decode
from headgate.proxy.edge.listen import bind

from .raw import CHAT, Answer, RawClient, request
from .upstream import FakeUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from headgate.proxy.accounting.record import Record
    from headgate.proxy.clock import Clock

    from .upstream import Source

CLIENT_KEY = "kQ7m2xV9sLd4TzKpR8wN1cYb"
PROVIDER_KEY = "Zf3Wn8cB6yHg1JtXeU5vRq0D"
CHAT_BODY = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hello"}]}'
NOBODY = "http://127.0.0.1:9/v1"


def config_for(
    *upstreams: FakeUpstream,
    auth: bool = True,
    retry: bool = True,
    provider_key: str | None = PROVIDER_KEY,
    timeouts: Mapping[str, str] | None = None,
    price_as: str | None = None,
    list_models: bool = False,
) -> dict[str, Any]:
    """A config with one provider per upstream, `up`, `up2`, …, tried in this order for every model. They hear of
    exchanges alone, unless `list_models`."""
    urls = [upstream.base_url for upstream in upstreams] or [NOBODY]
    names = ["up", *(f"up{n}" for n in range(2, len(urls) + 1))]
    settings: dict[str, Any] = {"list_models": list_models}
    if provider_key is not None:
        settings["api_key"] = provider_key
    if timeouts is not None:
        settings["timeouts"] = dict(timeouts)
    if price_as is not None:
        settings["price_as"] = price_as
    filters: list[Any] = [{"auth": {"keys": [{"name": "app", "key": CLIENT_KEY}]}}] if auth else []
    config: dict[str, Any] = {
        "providers": {name: {"base_url": url, **settings} for name, url in zip(names, urls, strict=True)},
        "filters": [*filters, *(["retry"] if retry else [])],
    }
    if len(names) > 1:
        config["models"] = {"*": {"targets": [{"provider": name} for name in names]}}
    return config


def written(config: Mapping[str, Any], folder: Path) -> str:
    """The text of the file: ports of the system's choice, records in `folder`. (JSON is YAML.)

    The loop is often the test's own, and the machine has other work: how late it is turns nobody away.
    """
    complete = {
        "listeners": {"data": {"port": 0}, "admin": {"port": 0}},
        "events": {"path": str(folder / "events.db"), "spool": {"path": str(folder / "spool")}},
        **config,
        "limits": {"loop_lag": "0s", **config.get("limits", {})},
    }
    return json.dumps(complete, indent=1)


def spooled(folder: Path) -> list[Record]:
    """Every record in the spools of `folder`, in order within each file."""
    records: list[Record] = []
    for segment in sorted(folder.glob("spool/*.seg")):
        try:
            lines = segment.read_bytes().split(b"\n")
        except FileNotFoundError:  # consumed in between
            continue
        records += [decode(line) for line in lines[:-1] if line]
    return records


class Asking:
    """Sends raw requests to `port`."""

    port: int

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """What an SDK is given."""
        return f"{self.url}/v1"

    async def raw(self, data: bytes) -> Answer:
        """These bytes on a connection of their own, and the answer."""
        async with RawClient(self.port) as client:
            await client.send(data)
            return await client.answer()

    async def send(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: Iterable[tuple[str, str]] = (),
        *,
        key: str | None = CLIENT_KEY,
    ) -> Answer:
        """One request, with the client's key unless `key` is None."""
        return await self.raw(request(method, target, body, [*headers, *bearer(key)]))

    async def post(
        self,
        body: bytes = CHAT_BODY,
        headers: Iterable[tuple[str, str]] = (),
        *,
        key: str | None = CLIENT_KEY,
        target: str = CHAT,
    ) -> Answer:
        """One chat completion."""
        return await self.send("POST", target, body, headers, key=key)


def bearer(key: str | None) -> list[tuple[str, str]]:
    """The field that carries a key."""
    return [] if key is None else [("authorization", f"Bearer {key}")]


class RunningGateway(Asking):
    """See the top. `half` is the product's own object."""

    def __init__(self, half: Gateway, server: DataServer, port: int, folder: Path) -> None:
        self.half = half
        self.server = server
        self.port = port
        self.folder = folder

    async def rows(self, n: int, within: float = 15.0) -> list[Done]:
        """The `done` records, once there are `n` of them; fails when there are more, or an exchange has none yet."""
        deadline = time.monotonic() + within
        while True:
            records = spooled(self.folder)
            done = [record for record in records if isinstance(record, Done)]
            opened = [record.id for record in records if isinstance(record, Opened)]
            if len(done) == n and sorted(opened) == sorted(row.id for row in done):
                return done
            assert len(done) <= n, f"{len(done)} rows instead of {n}: {done}"
            assert time.monotonic() < deadline, f"opened {opened}, done {done}"
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running_gateway(
    config: Mapping[str, Any] | str, *, env: Mapping[str, str] | None = None, clock: Clock | None = None
) -> AsyncIterator[RunningGateway]:
    """Serve `config` (a mapping, or the text of a file) until the end of the block, then drain. `clock`: the real one
    where none is given."""
    with tempfile.TemporaryDirectory(prefix="headgate-test-") as name:
        folder = Path(name)
        text = config if isinstance(config, str) else written(config, folder)
        half = Gateway(load(text, env), clock=clock)
        await half.start()
        server = DataServer(half, "test")
        socket = bind("127.0.0.1", 0)
        await server.open([socket])
        try:
            yield RunningGateway(half, server, socket.getsockname()[1], folder)
        finally:
            await server.drain()


@asynccontextmanager
async def gateway_over(
    script: Source, *, changes: Mapping[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[RunningGateway, FakeUpstream]]:
    """A gateway before one provider. `options` are those of `config_for`, `changes` top-level keys of the config."""
    async with FakeUpstream(script) as upstream:
        config = {**config_for(upstream, **options), **(changes or {})}
        async with running_gateway(config) as gateway:
            yield gateway, upstream


@asynccontextmanager
async def gateway_over_two(
    first: Source, second: Source, **options: Any
) -> AsyncIterator[tuple[RunningGateway, FakeUpstream, FakeUpstream]]:
    """A gateway before two providers, which are tried in this order for every model."""
    async with (
        FakeUpstream(first) as up,
        FakeUpstream(second) as up2,
        running_gateway(config_for(up, up2, **options)) as gateway,
    ):
        yield gateway, up, up2


def load(text: str, env: Mapping[str, str] | None = None) -> GatewayConfig:
    """The config of a text, in an environment that holds nothing else."""
    return parse_config(text, env=env or {})
