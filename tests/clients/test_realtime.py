"""Realtime sessions through the middleware: the same chain and the same row, under servers that know only messages."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from headgate import GatewayMiddleware
from headgate.proxy.edge import asgi_websocket
from headgate.proxy.websocket.frames import BINARY, CONTINUATION, PING, TEXT, encode_close, encode_frame
from tests_support.asgi import WITHIN, Lifespan, served
from tests_support.caller import eventually
from tests_support.embedded import embedded_config, ledger
from tests_support.gateway import CLIENT_KEY, NOBODY, PROVIDER_KEY
from tests_support.realtime import RealtimeProvider
from tests_support.upstream import FIN, STALL, FakeUpstream, Repeat
from tests_support.websocket import Frame, frames_of, session, text

if TYPE_CHECKING:
    from pathlib import Path

HEADERS = {"authorization": f"Bearer {CLIENT_KEY}"}
SERVERS = ["websockets-sansio", "wsproto"]
TARGET = "/v1/realtime?model=gpt-realtime"


def gateway(folder: Path, upstream: RealtimeProvider | FakeUpstream | None) -> GatewayMiddleware:
    """The gateway before an application without paths."""
    url = upstream.base_url if upstream is not None else NOBODY
    providers = {"up": {"base_url": url, "api_key": PROVIDER_KEY, "list_models": False}}
    return GatewayMiddleware(Starlette(), embedded_config(folder, changes={"providers": providers}))


@pytest.mark.parametrize("ws", SERVERS)
async def test_a_session_passes_and_leaves_its_row(ws: Any, tmp_path: Path) -> None:
    async with RealtimeProvider() as provider:
        async with served(gateway(tmp_path, provider), ws=ws) as url:
            async with connect(url.replace("http", "ws") + TARGET, additional_headers=HEADERS) as client:
                assert client.response is not None
                assert client.response.headers["x-headgate-model"] == "gpt-realtime"
                assert json.loads(await client.recv())["type"] == "session.created"
                await client.send(b"\x00" * 70_000)
                assert await client.recv() == b"\x00" * 70_000
                await client.send(json.dumps({"type": "x", "text": "ü" * 40_000}))
                assert "ü" in json.loads(await client.recv())["text"]
                await asyncio.wait_for(await provider.sessions[0].connection.ping(), WITHIN)
                await client.send(json.dumps({"type": "response.create"}))
                assert json.loads([await client.recv() for _ in range(3)][-1])["type"] == "response.done"
                await client.close(3001, "enough")
            closed = (await provider.over()).closed
        [row] = ledger(tmp_path)
    assert closed[0] == 3001
    assert (row["endpoint"], row["outcome"], row["status"], row["completion_tokens"]) == ("realtime", "ok", 101, 121)


@pytest.mark.parametrize("ws", SERVERS)
async def test_the_providers_close_and_its_cut_reach_the_client(ws: Any, tmp_path: Path) -> None:
    async with RealtimeProvider() as provider, served(gateway(tmp_path, provider), ws=ws) as url:
        async with connect(url.replace("http", "ws") + TARGET, additional_headers=HEADERS) as client:
            await client.recv()
            await client.send(json.dumps({"type": "close", "code": 4001, "reason": "no more"}))
            with pytest.raises(ConnectionClosed):
                await client.recv()
            assert (client.close_code, client.close_reason) == (4001, "no more")
        async with connect(url.replace("http", "ws") + TARGET, additional_headers=HEADERS) as client:
            await client.recv()
            provider.sessions[1].connection.transport.abort()
            with pytest.raises(ConnectionClosed):
                await client.recv()
            assert client.close_code == 1011
    assert [row["outcome"] for row in ledger(tmp_path)] == ["upstream_error", "truncated"]


async def test_a_browsers_sub_protocols_open_a_session(tmp_path: Path) -> None:
    offered: Any = ["realtime", f"openai-insecure-api-key.{CLIENT_KEY}"]
    async with RealtimeProvider() as provider, served(gateway(tmp_path, provider), ws="wsproto") as url:
        async with connect(url.replace("http", "ws") + TARGET, subprotocols=offered) as client:
            assert client.subprotocol == "realtime"
        asked = (await provider.over()).connection.request
    assert asked is not None
    assert CLIENT_KEY not in str(asked.headers)


@pytest.mark.parametrize("ws", SERVERS)
async def test_a_refusal_is_json(ws: Any, tmp_path: Path) -> None:
    async with RealtimeProvider() as provider, served(gateway(tmp_path, provider), ws=ws) as url:
        with pytest.raises(InvalidStatus) as refused:
            await connect(url.replace("http", "ws") + TARGET)
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body or b"")["error"]["code"] == "invalid_api_key"


class Server:
    """A server's side of one session, by hand."""

    def __init__(self, app: Any, *, extensions: bool = True, target: str = TARGET, **changes: Any) -> None:
        path, _, query = target.partition("?")
        self.said: list[dict[str, Any]] = []
        self._app = app
        self._scope = {
            "type": "websocket",
            "path": path,
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in HEADERS.items()],
            "subprotocols": [],
            "extensions": {asgi_websocket.REFUSAL: {}} if extensions else {},
            **changes,
        }
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._spoken = asyncio.Event()
        self.slow: asyncio.Event | None = None
        """Where it is set, `send` waits for it."""
        self.fails = False
        self.tell(type="websocket.connect")

    def tell(self, **message: Any) -> None:
        """What the application receives next."""
        self._inbox.put_nowait(message)

    @property
    def waiting(self) -> int:
        """What it has not received yet."""
        return self._inbox.qsize()

    async def heard(self, n: int) -> dict[str, Any]:
        """The n-th thing it says."""
        async with asyncio.timeout(WITHIN):
            while len(self.said) < n:
                self._spoken.clear()
                await self._spoken.wait()
        return self.said[n - 1]

    async def __aenter__(self) -> Server:
        self._task = asyncio.create_task(self._app(self._scope, self._inbox.get, self._send))
        return self

    async def __aexit__(self, *_: object) -> None:
        async with asyncio.timeout(WITHIN):
            await self._task

    def cancel(self) -> None:
        """The server gives up."""
        self._task.cancel()

    async def _send(self, message: dict[str, Any]) -> None:
        if self.fails:
            raise OSError("gone")
        self.said.append(message)
        self._spoken.set()
        if self.slow is not None:
            await self.slow.wait()


async def test_messages_are_put_together_from_whatever_pieces(tmp_path: Path) -> None:
    script = session(
        text("ü")[:3],
        text("ü")[3:] + bytes((TEXT,)) + encode_frame(TEXT, b"ab")[1:] + encode_frame(PING, b"?"),
        encode_frame(CONTINUATION, b"cd") + encode_frame(BINARY, b""),
        STALL,
    )
    async with FakeUpstream(script) as upstream, Lifespan(app := gateway(tmp_path, upstream)), Server(app) as server:
        assert (await server.heard(1))["type"] == "websocket.accept"
        await server.heard(4)
        server.tell(type="websocket.receive", text="hi")
        server.tell(type="websocket.receive", bytes=b"\x01")
        server.tell(type="websocket.disconnect", code=1000)
        connection = await upstream.wait_closed()
    said = [message.get("text", message.get("bytes")) for message in server.said[1:]]
    assert said == ["ü", "abcd", b""]
    frames, rest = frames_of(bytes(connection.received).partition(b"\r\n\r\n")[2])
    assert rest == b""
    assert Frame(10, b"?") in frames
    assert [frame for frame in frames if frame.opcode != 10] == [
        Frame(TEXT, b"hi"),
        Frame(BINARY, b"\x01"),
        Frame(8, (1000).to_bytes(2)),
    ]
    [row] = ledger(tmp_path)
    assert row["outcome"] == "ok"


@pytest.mark.parametrize(
    ("steps", "code", "outcome"),
    [
        ([encode_close(1005, "")], 1000, "ok"),
        ([encode_close(1012, "again")], 1012, "upstream_error"),
        ([text("x")[:2], FIN], 1011, "truncated"),
        ([encode_frame(TEXT, b"\xff\xff")], 1007, None),
    ],
)
async def test_every_end_has_its_code(steps: Any, code: int, outcome: str | None, tmp_path: Path) -> None:
    async with FakeUpstream(session(*steps, *([] if FIN in steps else [STALL]))) as upstream:
        app = gateway(tmp_path, upstream)
        async with Lifespan(app), Server(app) as server:
            assert (await server.heard(2))["code"] == code
            server.tell(type="websocket.disconnect", code=code)
        [row] = ledger(tmp_path)
    if outcome is not None:
        assert row["outcome"] == outcome


async def test_a_client_that_vanishes_is_cancelled(tmp_path: Path) -> None:
    async with FakeUpstream(session(text("x"), STALL)) as upstream, Lifespan(app := gateway(tmp_path, upstream)):
        async with Server(app) as server:
            await server.heard(2)
            server.tell(type="websocket.disconnect", code=1006)
        connection = await upstream.wait_closed()
    [frame] = frames_of(bytes(connection.received).partition(b"\r\n\r\n")[2])[0]
    assert frame.code == 1001
    [row] = ledger(tmp_path)
    assert row["outcome"] == "cancelled"


async def test_a_message_that_is_too_large_ends_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi_websocket, "MESSAGE_BYTES", 1000)
    large = encode_frame(BINARY, bytes(600))
    script = session(large, bytes((BINARY,)) + large[1:], encode_frame(CONTINUATION, bytes(600)), large, STALL)
    async with FakeUpstream(script) as upstream, Lifespan(app := gateway(tmp_path, upstream)):
        async with Server(app) as server:
            assert len((await server.heard(2))["bytes"]) == 600
            assert (await server.heard(3))["code"] == 1009
        await upstream.wait_closed()
    assert len(server.said) == 3
    [row] = ledger(tmp_path)
    assert row["outcome"] == "cancelled"


async def test_a_server_without_the_extension_refuses_without_a_body(tmp_path: Path) -> None:
    app = gateway(tmp_path, None)
    async with Lifespan(app), Server(app, extensions=False, headers=[]) as server:
        assert await server.heard(1) == {"type": "websocket.close", "code": 1008, "reason": ""}


async def test_who_leaves_before_the_session_has_none(tmp_path: Path) -> None:
    async with FakeUpstream([STALL]) as upstream, Lifespan(app := gateway(tmp_path, upstream)):
        async with Server(app) as server:
            await upstream.wait_request()
            server.tell(type="websocket.disconnect", code=1006)
        await upstream.wait_closed()
    assert server.said == []
    [row] = ledger(tmp_path)
    assert (row["outcome"], row["status"]) == ("cancelled", 499)


async def test_a_client_that_does_not_read_holds_the_provider_back(tmp_path: Path) -> None:
    frame = encode_frame(BINARY, bytes(1 << 16))
    async with (
        FakeUpstream(session(Repeat(frame, 400), STALL)) as upstream,
        Lifespan(app := gateway(tmp_path, upstream)),
        Server(app) as server,
    ):
        server.slow = asyncio.Event()
        await server.heard(1)
        [run] = app.gateway.engine.live
        await eventually(lambda: run.ex.attempt is not None and run.ex.attempt.paused)
        server.slow.set()
        await server.heard(401)
        server.tell(type="websocket.disconnect", code=1000)
    assert {len(message["bytes"]) for message in server.said[1:]} == {1 << 16}


@pytest.mark.parametrize("how", ["cancelled", "send fails"])
async def test_a_server_that_gives_up_lets_the_provider_go(how: str, tmp_path: Path) -> None:
    async with FakeUpstream(session(text("x"), STALL)) as upstream, Lifespan(app := gateway(tmp_path, upstream)):
        server = Server(app)
        server.fails = how == "send fails"
        try:
            async with server:
                if how == "cancelled":
                    await server.heard(2)
                    server.cancel()
                await upstream.wait_closed()
        except asyncio.CancelledError:
            assert how == "cancelled"
    [row] = ledger(tmp_path)
    assert row["outcome"] == "cancelled"


async def test_a_provider_that_is_behind_holds_the_client_back(tmp_path: Path) -> None:
    async with (
        FakeUpstream(session(STALL)) as upstream,
        Lifespan(app := gateway(tmp_path, upstream)),
        Server(app) as server,
    ):
        await server.heard(1)
        connection = upstream.connections[0]
        connection._transport.pause_reading()
        for _ in range(600):
            server.tell(type="websocket.receive", bytes=bytes(1 << 16))
        await eventually(lambda: server.waiting < 600)
        await asyncio.sleep(0.2)
        assert server.waiting > 0
        connection._transport.resume_reading()
        await eventually(lambda: not server.waiting)
        server.tell(type="websocket.disconnect", code=1000)


async def test_a_client_that_takes_nothing_is_let_go(tmp_path: Path) -> None:
    async with FakeUpstream(session(text("x"), STALL)) as upstream, Lifespan(app := gateway(tmp_path, upstream)):
        async with Server(app) as server:
            server.slow = asyncio.Event()
            await server.heard(1)
            context = (await app._embedded.start()).context
            [run] = app.gateway.engine.live
            assert isinstance(run.downstream, asgi_websocket.AsgiWebSocket)
            run.downstream.on_deadline()
        await upstream.wait_closed()
        assert context.stats.write_stalls == 1
    [row] = ledger(tmp_path)
    assert row["outcome"] == "cancelled"


async def test_a_session_has_no_body(tmp_path: Path) -> None:
    async with (
        FakeUpstream(session(STALL)) as upstream,
        Lifespan(app := gateway(tmp_path, upstream)),
        Server(app) as server,
    ):
        await server.heard(1)
        [run] = app.gateway.engine.live
        with pytest.raises(NotImplementedError):
            run.downstream.read_body(1)
        with pytest.raises(NotImplementedError):
            run.downstream.stream_body(1, run)
        run.downstream.charge_body(1)
        run.crash(RuntimeError("a bug"))
        assert (await server.heard(2))["code"] == 1011
        run.downstream.abort()
        assert run.downstream.write(b"late")
        run.downstream.end()


async def test_what_does_not_begin_with_connect_is_nothing(tmp_path: Path) -> None:
    app = gateway(tmp_path, None)
    async with Lifespan(app):
        said: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.disconnect"}

        async def send(message: Any) -> None:
            said.append(message)

        await app({"type": "websocket", "path": "/v1/realtime", "query_string": b"", "headers": []}, receive, send)
    assert said == []
