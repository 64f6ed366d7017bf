"""The `openai` SDK's realtime client, sync and async, and plain WebSocket clients, through a running gateway."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from anyio import to_thread
from openai import AsyncAzureOpenAI, AsyncOpenAI, OpenAI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus

from tests_support.gateway import CLIENT_KEY, PROVIDER_KEY, RunningGateway, running_gateway
from tests_support.process import gateway_process
from tests_support.realtime import RealtimeProvider
from tests_support.websocket import USAGE

if TYPE_CHECKING:
    from pathlib import Path

    from websockets.typing import Data

pytestmark = pytest.mark.usefixtures("no_leaks")
MODEL = "gpt-realtime"
TEN_MINUTES = 600.0
SCALED = 4.0
"""Seconds of the session that every run has."""
BEATS = 40
"""How often something is said in a session, whatever its length."""


def url(gateway: RunningGateway) -> str:
    """Where a plain client connects."""
    return f"ws://127.0.0.1:{gateway.port}/v1/realtime?model={MODEL}"


def opened(gateway: RunningGateway, **options: Any) -> connect:
    """A plain client with the gateway's key."""
    return connect(url(gateway), additional_headers={"authorization": f"Bearer {CLIENT_KEY}"}, **options)


async def test_a_conversation_is_answered_and_charged() -> None:
    async with RealtimeProvider() as provider, running_gateway(provider.config()) as gateway:
        async with (
            AsyncOpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY) as client,
            client.realtime.connect(model=MODEL) as connection,
        ):
            assert (await connection.recv()).type == "session.created"
            for _ in range(2):
                await connection.response.create()
                kinds = [(await connection.recv()).type for _ in range(3)]
                assert kinds == ["response.output_text.delta"] * 2 + ["response.done"]
        session = await provider.over()
        [row] = await gateway.rows(1)
    asked = session.connection.request
    assert asked is not None
    assert asked.path == f"/v1/realtime?model={MODEL}"
    assert asked.headers["authorization"] == f"Bearer {PROVIDER_KEY}"
    assert session.closed[0] == 1000
    assert (row.endpoint, row.outcome, row.status, row.key) == ("realtime", "ok", 101, "app")
    assert (row.prompt_tokens, row.completion_tokens) == (2 * USAGE["input_tokens"], 2 * USAGE["output_tokens"])
    assert (row.audio_input_tokens, row.audio_output_tokens, row.cached_tokens) == (26, 182, 128)
    assert row.usage_source == "reported"
    assert row.cost_usd is not None
    assert row.cost_usd > 0


@pytest.mark.filterwarnings("ignore:connect:DeprecationWarning")  # the SDK's own way of calling `websockets`
async def test_the_sync_client_works_as_well() -> None:
    async with RealtimeProvider() as provider, running_gateway(provider.config()) as gateway:

        def talk() -> list[str]:
            with (
                OpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY) as client,
                client.realtime.connect(model=MODEL) as connection,
            ):
                connection.response.create()
                return [connection.recv().type for _ in range(4)]

        kinds = await to_thread.run_sync(talk)
        [row] = await gateway.rows(1)
    assert kinds[-1] == "response.done"
    assert row.completion_tokens == USAGE["output_tokens"]


async def test_a_wrong_key_is_refused_before_the_session() -> None:
    async with RealtimeProvider() as provider, running_gateway(provider.config()) as gateway:
        client = AsyncOpenAI(base_url=gateway.base_url, api_key="sk-not-this-one-not-this-one")
        with pytest.raises(InvalidStatus) as refused:
            await client.realtime.connect(model=MODEL).enter()
        await client.close()
        assert provider.sessions == []
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body or b"")["error"]["code"] == "invalid_api_key"


async def test_a_browsers_sub_protocols_open_a_session() -> None:
    offered: Any = ["realtime", f"openai-insecure-api-key.{CLIENT_KEY}"]
    async with RealtimeProvider() as provider, running_gateway(provider.config()) as gateway:
        async with connect(url(gateway), subprotocols=offered, origin=_origin(gateway)) as connection:
            assert connection.subprotocol == "realtime"
            await connection.recv()
        asked = (await provider.over()).connection.request
    assert asked is not None
    assert asked.headers["sec-websocket-protocol"] == "realtime"
    assert CLIENT_KEY not in str(asked.headers)
    assert "origin" not in asked.headers


def _origin(gateway: RunningGateway) -> Any:
    return f"http://127.0.0.1:{gateway.port}"


async def test_pings_binary_and_fragments_pass_both_ways() -> None:
    async with RealtimeProvider() as provider, running_gateway(provider.config()) as gateway:
        async with opened(gateway) as connection:
            await connection.recv()
            session = provider.sessions[0]
            await asyncio.wait_for(await connection.ping(b"from the client"), 5)
            await asyncio.wait_for(await session.connection.ping(b"from the provider"), 5)
            for message in (b"", b"\x00\xff" * 40_000):
                await connection.send(message)
                assert await connection.recv() == message
            pieces = ['{"type": "x",', ' "text": "', "ü" * 70_000, '"}']
            await connection.send(pieces)
            assert await connection.recv() == "".join(pieces)
            await session.connection.send([b"one", b"two"])
            assert [piece async for piece in connection.recv_streaming()] == [b"one", b"two", b""]
        assert session.heard[-1] == "".join(pieces)


async def test_nobody_agrees_on_compression() -> None:
    async with RealtimeProvider() as provider, running_gateway(provider.config()) as gateway:
        async with opened(gateway, compression="deflate") as connection:
            await connection.recv()
            assert connection.response is not None
            assert "sec-websocket-extensions" not in connection.response.headers
        asked = (await provider.over()).connection.request
    assert asked is not None
    assert "sec-websocket-extensions" not in asked.headers


@pytest.mark.parametrize(
    ("code", "outcome"), [(1000, "ok"), (1001, "ok"), (1011, "upstream_error"), (4999, "upstream_error")]
)
async def test_the_providers_close_reaches_the_client(code: int, outcome: str) -> None:
    async with RealtimeProvider() as provider, running_gateway(provider.config()) as gateway:
        async with opened(gateway) as connection:
            await connection.recv()
            await connection.send(json.dumps({"type": "close", "code": code, "reason": "that is it"}))
            with pytest.raises((ConnectionClosedOK, ConnectionClosedError)):
                await connection.recv()
            assert (connection.close_code, connection.close_reason) == (code, "that is it")
        [row] = await gateway.rows(1)
    assert row.outcome == outcome


async def test_the_clients_close_reaches_the_provider() -> None:
    async with RealtimeProvider() as provider, running_gateway(provider.config()) as gateway:
        async with opened(gateway) as connection:
            await connection.recv()
            await connection.close(3005, "enough")
        session = await provider.over()
        [row] = await gateway.rows(1)
    assert session.closed == (3005, "enough")
    assert row.outcome == "ok"


async def test_a_hundred_sessions_at_once_leave_a_row_each() -> None:
    async with RealtimeProvider() as provider, running_gateway(provider.config()) as gateway:

        async def talk() -> Data:
            async with opened(gateway) as connection:
                await connection.recv()
                await connection.send(json.dumps({"type": "response.create"}))
                return [await connection.recv() for _ in range(3)][-1]

        answers = await asyncio.gather(*(talk() for _ in range(100)))
        rows = await gateway.rows(100)
    assert len(set(answers)) == 1
    assert {row.completion_tokens for row in rows} == {USAGE["output_tokens"]}
    assert len(provider.sessions) == 100


@pytest.mark.parametrize("seconds", [SCALED, pytest.param(TEN_MINUTES, marks=pytest.mark.slow)])
async def test_a_session_of_its_whole_length(seconds: float) -> None:
    """Pings, text, binary and responses at every beat, an idle limit of two beats, and then a close code."""
    beat = seconds / BEATS
    async with (
        RealtimeProvider() as provider,
        running_gateway(provider.config(timeouts={"idle": f"{2000 * beat:.0f}ms", "total": "1s"})) as gateway,
    ):
        async with opened(gateway, ping_interval=None) as connection:
            await connection.recv()
            began = time.monotonic()
            for at in range(BEATS):
                await _one_of_each(connection, provider, at)
                await asyncio.sleep(max(0.0, began + (at + 1) * beat - time.monotonic()))
            await connection.close(1000, "done")
        lasted = time.monotonic() - began
        session = await provider.over()
        [row] = await gateway.rows(1)
    assert session.closed == (1000, "done")
    assert row.outcome == "ok"
    assert (row.prompt_tokens, row.completion_tokens) == (BEATS * 132, BEATS * 121)
    assert row.cost_usd is not None
    assert lasted >= seconds
    assert row.duration_ms >= seconds * 1000


async def _one_of_each(connection: ClientConnection, provider: RealtimeProvider, at: int) -> None:
    await asyncio.wait_for(await connection.ping(), 5)
    await asyncio.wait_for(await provider.sessions[0].connection.ping(), 5)
    audio = bytes([at]) * 24_000
    await connection.send(audio)
    assert await connection.recv() == audio
    await connection.send(json.dumps({"type": "response.create"}))
    kinds = [json.loads(await connection.recv())["type"] for _ in range(3)]
    assert kinds[-1] == "response.done"


async def test_the_mock_has_no_sessions_and_says_so() -> None:
    async with running_gateway({"providers": {"mock": {"base_url": "mock:"}}}) as gateway:
        with pytest.raises(InvalidStatus) as refused:
            await opened(gateway)
    assert refused.value.response.status_code == 404


async def test_azures_client_opens_a_session_by_its_deployment() -> None:
    async with RealtimeProvider() as provider, running_gateway(provider.config()) as gateway:
        async with (
            AsyncAzureOpenAI(
                azure_endpoint=gateway.url,
                websocket_base_url=f"ws://127.0.0.1:{gateway.port}/openai",
                api_key=CLIENT_KEY,
                api_version="2025-04-01-preview",
            ) as client,
            client.realtime.connect(model=MODEL) as connection,
        ):
            assert (await connection.recv()).type == "session.created"
        asked = (await provider.over()).connection.request
    assert asked is not None
    assert asked.path == f"/v1/realtime?model={MODEL}"
    assert CLIENT_KEY not in str(asked.headers)


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_session_goes_over_verified_tls_or_not_at_all(trusted: bool, tmp_path: Path) -> None:
    """To a provider that would rather speak HTTP/2, too."""
    authority = trustme.CA()
    (authority if trusted else trustme.CA()).cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.set_alpn_protocols(["h2", "http/1.1"])
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    env = {"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
    async with (
        RealtimeProvider(tls=tls) as provider,
        gateway_process(provider.config(retry=False), env=env) as gateway,
    ):
        address = f"ws://127.0.0.1:{gateway.port}/v1/realtime?model={MODEL}"
        opening = connect(address, additional_headers={"authorization": f"Bearer {CLIENT_KEY}"})
        if trusted:
            async with opening as connection:
                assert json.loads(await connection.recv())["type"] == "session.created"
            assert (await provider.over()).closed[0] == 1000
        else:
            with pytest.raises(InvalidStatus) as refused:
                await opening
            assert refused.value.response.status_code == 502
            assert provider.sessions == []
