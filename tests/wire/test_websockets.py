"""WebSockets over real sockets, byte for byte: handshakes, ends, back-pressure, and what is refused before any 101."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from headgate.proxy.websocket.frames import BINARY, CLOSE, PING, encode_close, encode_frame
from tests_support.answers import json_response
from tests_support.caller import eventually
from tests_support.gateway import (
    CLIENT_KEY,
    PROVIDER_KEY,
    config_for,
    gateway_over,
    gateway_over_two,
    load,
    running_gateway,
    written,
)
from tests_support.raw import RawClient, request
from tests_support.upstream import FIN, RST, STALL, FakeUpstream, Pause, Repeat, Sleep
from tests_support.websocket import (
    HANDSHAKE,
    MASK,
    REALTIME,
    Frame,
    RawSocket,
    frames_of,
    response_done,
    session,
    text,
)

if TYPE_CHECKING:
    from tests_support.upstream import Step

pytestmark = pytest.mark.usefixtures("no_leaks")

HELLO = text("hello")
PROMPT = 0.1
"""Seconds in which the other side of who left must be closed."""
MEGABYTE = encode_frame(BINARY, bytes(1 << 20))
KIB = 1024


async def test_a_session_passes_and_its_usage_is_on_the_ledger() -> None:
    script = session(text(response_done()), HELLO, STALL, fields=[("x-request-id", "req_up")])
    async with gateway_over(script) as (gateway, upstream):
        async with RawSocket(gateway.port) as client:
            assert client.answer.status == 101
            assert client.answer.header("connection") == "Upgrade"
            assert client.answer.header("x-request-id") == "req_up"
            assert client.answer.header("x-headgate-model") == "gpt-realtime"
            assert len(await client.frames(2)) == 2
            assert gateway.server.snapshot().websockets == 1
            await client.send(text("up", MASK) + encode_close(1000, "", MASK))
        connection = await upstream.wait_closed()
        [row] = await gateway.rows(1)
        assert gateway.server.snapshot().websockets == 0
    assert connection.received.endswith(text("up", MASK) + encode_close(1000, "", MASK))
    assert (row.endpoint, row.status, row.outcome, row.model) == ("realtime", 101, "ok", "gpt-realtime")
    assert (row.prompt_tokens, row.completion_tokens, row.audio_output_tokens) == (132, 121, 91)
    assert row.cost_usd is not None


async def test_the_browsers_key_lets_in_and_goes_no_further() -> None:
    offered = ("sec-websocket-protocol", f"realtime, openai-insecure-api-key.{CLIENT_KEY}")
    script = session(HELLO, FIN, fields=[("sec-websocket-protocol", "realtime")])
    async with (
        gateway_over(script) as (gateway, upstream),
        RawSocket(gateway.port, headers=[offered], key=None) as client,
    ):
        assert client.answer.status == 101
        assert client.answer.header("sec-websocket-protocol") == "realtime"
        sent = await upstream.wait_request()
        assert CLIENT_KEY.encode() not in sent.raw
        assert sent.header("authorization") == f"Bearer {PROVIDER_KEY}"
        assert sent.header("sec-websocket-protocol") == "realtime"
        await client.heard_all()
        [row] = await gateway.rows(1)
    assert row.key == "app"


async def test_the_header_goes_before_the_browsers_key() -> None:
    offered = ("sec-websocket-protocol", f"realtime, openai-insecure-api-key.{CLIENT_KEY}")
    async with (
        gateway_over(session(FIN)) as (gateway, upstream),
        RawSocket(gateway.port, headers=[offered], key="another-key-of-nobody") as client,
    ):
        assert (await client.client.rest()).error["code"] == "invalid_api_key"
        assert upstream.requests == []


WITHOUT: dict[str, tuple[int, str, list[tuple[str, str]]]] = {
    "no upgrade": (426, "upgrade_required", [("connection", "keep-alive")]),
    "another version": (
        426,
        "upgrade_required",
        [*HANDSHAKE[:2], ("sec-websocket-version", "8"), HANDSHAKE[3]],
    ),
    "no key": (400, "invalid_request", [*HANDSHAKE[:3]]),
    "a short key": (400, "invalid_request", [*HANDSHAKE[:3], ("sec-websocket-key", "YQ==")]),
    "a key that is not base64": (400, "invalid_request", [*HANDSHAKE[:3], ("sec-websocket-key", "*" * 24)]),
    "no connection": (400, "invalid_request", [*HANDSHAKE[1:]]),
    "a body": (400, "invalid_request", [*HANDSHAKE, ("content-length", "3")]),
    "a sub-protocol that is no token": (400, "invalid_request", [*HANDSHAKE, ("sec-websocket-protocol", "a b")]),
}


@pytest.mark.parametrize("wrong", WITHOUT)
async def test_a_bad_handshake_is_refused_in_json_and_the_connection_closed(wrong: str) -> None:
    status, code, headers = WITHOUT[wrong]
    async with gateway_over(session(STALL)) as (gateway, upstream):
        answer = await gateway.send("GET", REALTIME, headers=headers)
        assert (answer.status, answer.error["code"]) == (status, code)
        assert upstream.requests == []
        if status == 426:
            assert answer.header("sec-websocket-version") == "13"
        await gateway.rows(0)


@pytest.mark.parametrize(
    ("method", "target"), [("GET", "/v1/models"), ("GET", "/healthz"), ("GET", "/v1/nothing"), ("POST", REALTIME)]
)
async def test_no_other_path_and_method_opens_a_websocket(method: str, target: str) -> None:
    async with gateway_over(session(STALL)) as (gateway, _), RawClient(gateway.port) as client:
        frames = encode_frame(PING, b"", MASK)
        await client.send(request(method, target, headers=[*HANDSHAKE, ("authorization", f"Bearer {CLIENT_KEY}")]))
        await client.send(frames)
        answer = await client.answer()
        assert answer.status in (400, 404)
        assert answer.error
        assert answer.header("connection") == "close"


@pytest.mark.parametrize("key", [None, "wrong-key-wrong-key-wrong"])
async def test_without_a_key_there_is_no_session(key: str | None) -> None:
    async with gateway_over(session(STALL)) as (gateway, upstream), RawSocket(gateway.port, key=key) as client:
        answer = await client.client.rest()
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert upstream.requests == []


async def test_a_page_of_another_origin_opens_no_session() -> None:
    headers = [("origin", "https://evil.example")]
    async with gateway_over(session(STALL)) as (gateway, _), RawSocket(gateway.port, headers=headers) as client:
        assert (await client.client.rest()).error["code"] == "origin_not_allowed"


async def test_while_no_key_is_asked_for_only_this_machines_names_open_a_session() -> None:
    async with gateway_over(session(STALL), auth=False) as (gateway, _), RawClient(gateway.port) as client:
        await client.send(request("GET", REALTIME, headers=HANDSHAKE, host="rebound.example"))
        assert (await client.answer()).error["code"] == "host_not_allowed"


async def test_the_providers_refusal_comes_before_any_101() -> None:
    refusal = json_response({"error": {"message": "no such model", "code": "x"}}, 404)
    async with gateway_over(refusal) as (gateway, _), RawSocket(gateway.port) as client:
        answer = await client.client.rest()
        [row] = await gateway.rows(1)
    assert (answer.status, answer.error["code"], row.outcome) == (404, "x", "upstream_error")


async def test_a_refusal_of_our_credential_is_ours_to_explain() -> None:
    refusal = json_response({"error": {"message": "bad key"}}, 401)
    async with gateway_over(refusal) as (gateway, _), RawSocket(gateway.port) as client:
        assert (await client.client.rest()).error["code"] == "upstream_auth_failed"


@pytest.mark.parametrize("first", ["refused", "reset", "500"])
async def test_the_next_provider_takes_over_before_the_101(first: str) -> None:
    steps: dict[str, list[Step]] = {"reset": [RST], "500": [json_response({"error": {}}, 500)], "refused": []}
    async with gateway_over_two(steps[first], session(HELLO, FIN)) as (gateway, one, _):
        if first == "refused":
            await one.__aexit__(None, None, None)
        async with RawSocket(gateway.port) as client:
            frames, _ = await client.heard_all()
        [row] = await gateway.rows(1)
    assert frames[0].payload == b"hello"
    assert (row.attempts, row.provider) == (2, "up2")


async def test_an_azure_style_path_names_the_deployment() -> None:
    async with (
        gateway_over(session(FIN)) as (gateway, upstream),
        RawSocket(gateway.port, "/openai/realtime?api-version=2025-04-01&deployment=gpt%2Drt") as client,
    ):
        assert client.answer.status == 101
        assert (await upstream.wait_request()).target == "/v1/realtime?model=gpt%2Drt"
        [row] = await gateway.rows(1)
    assert row.model == "gpt-rt"


async def test_the_targets_model_is_spliced_into_the_query() -> None:
    async with FakeUpstream(session(FIN)) as upstream:
        config = config_for(upstream)
        config["models"] = {"voice": {"targets": [{"provider": "up", "model": "gpt-realtime&x"}]}}
        async with (
            running_gateway(config) as gateway,
            RawSocket(gateway.port, "/v1/realtime?a=%20b&model=voice&c") as client,
        ):
            assert client.answer.header("x-headgate-model") == "gpt-realtime&x"
            assert (await upstream.wait_request()).target == "/v1/realtime?a=%20b&model=gpt-realtime%26x&c"


@pytest.mark.parametrize("end", [FIN, RST])
async def test_a_provider_that_vanishes_is_never_a_clean_close(end: Any) -> None:
    async with gateway_over(session(HELLO, end)) as (gateway, _), RawSocket(gateway.port) as client:
        frames, rest = await client.heard_all()
        [row] = await gateway.rows(1)
    assert [frame.payload for frame in frames[:-1]] == [b"hello"]
    assert (frames[-1].opcode, frames[-1].code, rest) == (CLOSE, 1011, b"")
    assert row.outcome == "truncated"


async def test_a_provider_that_vanishes_in_mid_frame_is_a_cut_connection() -> None:
    async with gateway_over(session(HELLO + HELLO[:4], FIN)) as (gateway, _), RawSocket(gateway.port) as client:
        frames, rest = await client.heard_all()
    assert (frames, rest) == ([Frame(1, b"hello")], HELLO[:4])


@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_vanishes_takes_the_providers_side_along_at_once(reset: bool) -> None:
    async with gateway_over(session(HELLO, STALL)) as (gateway, upstream), RawSocket(gateway.port) as client:
        await client.frames(1)
        left = time.monotonic()
        client.client.leave(reset=reset)
        connection = await upstream.wait_closed()
        [row] = await gateway.rows(1)
    assert connection.closed_at is not None
    assert connection.closed_at - left < PROMPT
    frames, rest = frames_of(bytes(connection.received).partition(b"\r\n\r\n")[2])
    assert [frame.code for frame in frames] == [1001]
    assert rest == b""
    assert (row.outcome, row.status) == ("cancelled", 101)


async def test_a_provider_that_vanishes_takes_the_client_along_at_once() -> None:
    pause = Pause()
    async with gateway_over(session(HELLO, pause, FIN)) as (gateway, _), RawSocket(gateway.port) as client:
        await client.frames(1)
        ended = time.monotonic()
        pause.go()
        await client.heard_all()
        assert time.monotonic() - ended < PROMPT


async def test_silence_ends_a_session_and_frames_of_either_side_keep_it() -> None:
    script = session(HELLO, Sleep(0.6), HELLO, STALL)
    async with (
        gateway_over(script, timeouts={"idle": "1s"}) as (gateway, upstream),
        RawSocket(gateway.port) as client,
    ):
        began = time.monotonic()
        await client.frames(2)
        await asyncio.sleep(0.6)
        await client.send(encode_frame(PING, b"", MASK))
        frames, _ = await client.heard_all()
        assert time.monotonic() - began >= 2.2
        connection = await upstream.wait_closed()
        [row] = await gateway.rows(1)
    assert frames[-1].code == 1001
    assert b"too long" in frames[-1].payload
    assert connection.closed_by == "peer"
    assert (row.outcome, row.error_code) == ("truncated", "idle_timeout")


async def test_a_session_past_the_grace_hears_1001_and_has_its_row() -> None:
    """Faults D2."""
    async with FakeUpstream(session(HELLO, STALL)) as upstream:
        config = {**config_for(upstream), "limits": {"drain": "300ms"}}
        async with running_gateway(config) as gateway:
            async with RawSocket(gateway.port) as client:
                await client.frames(1)
                drained = asyncio.create_task(gateway.server.drain())
                frames, _ = await client.heard_all()
            await drained
            [row] = await gateway.rows(1)
        connection = await upstream.wait_closed()
    assert frames[-1].code == 1001
    up = frames_of(bytes(connection.received).partition(b"\r\n\r\n")[2])[0]
    assert [frame.code for frame in up] == [1001]
    assert (row.outcome, row.error_code) == ("truncated", "shutting_down")


async def test_a_message_of_17_mb_and_ten_thousand_pings_pass() -> None:
    """There is nothing to be held of either: the provider judges what it takes."""
    large, pings = encode_frame(BINARY, bytes(17 << 20), MASK), encode_frame(PING, b"", MASK) * 10_000
    async with (
        gateway_over(session(STALL)) as (gateway, upstream),
        RawSocket(gateway.port) as client,
    ):
        connection = (await upstream.wait_request()).connection
        await client.send(large)
        await client.send(pings)
        size = connection.received.index(b"\r\n\r\n") + 4 + len(large) + len(pings)
        await eventually(lambda: len(connection.received) >= size, 15)
        assert connection.received.endswith(pings)


async def test_a_client_that_half_closes_has_left() -> None:
    async with gateway_over(session(HELLO, STALL)) as (gateway, upstream), RawSocket(gateway.port) as client:
        await client.frames(1)
        client.client._writer.write_eof()
        await upstream.wait_closed()
        [row] = await gateway.rows(1)
    assert row.outcome == "cancelled"


async def test_a_session_outlives_a_reload() -> None:
    async with FakeUpstream(session(HELLO, STALL)) as upstream:
        config = config_for(upstream)
        async with running_gateway(config) as gateway, RawSocket(gateway.port) as client:
            await client.frames(1)
            config["providers"]["up"]["api_key"] = "another-key-of-the-provider"
            await gateway.server.reload(load(written(config, gateway.folder)))
            await client.send(text("still here", MASK))
            connection = upstream.connections[0]
            await eventually(lambda: connection.received.endswith(text("still here", MASK)))
            await client.send(encode_close(1000, "", MASK))
            await upstream.wait_closed()
            [row] = await gateway.rows(1)
    assert row.outcome == "ok"


async def test_frames_that_come_before_the_101_are_not_lost() -> None:
    async with (
        gateway_over(session(STALL)) as (gateway, upstream),
        RawSocket(gateway.port, early=text("early", MASK)) as client,
    ):
        await client.send(text("late", MASK))
        connection = (await upstream.wait_request()).connection
        await eventually(lambda: connection.received.endswith(text("early", MASK) + text("late", MASK)))


async def test_a_client_that_does_not_read_holds_the_provider_back_in_little_memory() -> None:
    async with (
        gateway_over(session(Repeat(MEGABYTE, 100), STALL)) as (gateway, upstream),
        RawSocket(gateway.port) as client,
    ):
        client.client.pause()
        connection = (await upstream.wait_request()).connection
        tracemalloc.start()
        await _settled(lambda: connection.written)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert connection.written < 40 << 20
        assert held < 1024 * KIB
        client.client.unpause()
        got = 0
        while got < 100 * len(MEGABYTE):
            got += len(await client.client.piece())


async def test_a_client_that_never_reads_again_is_let_go() -> None:
    async with gateway_over(session(Repeat(MEGABYTE, 100), STALL)) as (gateway, upstream):
        context = gateway.server.context
        context.limits = replace(context.limits, write_stall=0.6)
        async with RawSocket(gateway.port) as client:
            client.client.pause()
            await upstream.wait_closed()
            [row] = await gateway.rows(1)
    assert context.stats.write_stalls == 1
    assert (row.outcome, row.error_code) == ("cancelled", "")


async def test_a_provider_that_does_not_read_holds_the_client_back_and_loses_nothing() -> None:
    frame = encode_frame(BINARY, bytes(1 << 20), MASK)
    pause = Pause()
    async with (
        gateway_over(session(pause, STALL)) as (gateway, upstream),
        RawSocket(gateway.port) as client,
    ):
        connection = (await upstream.wait_request()).connection
        await pause.reached()
        connection._transport.pause_reading()
        sending = asyncio.create_task(_send_all(client, frame, 30))
        await _settled(lambda: len(connection.received))
        assert not sending.done()
        connection._transport.resume_reading()
        await sending
        size = connection.received.index(b"\r\n\r\n") + 4 + 30 * len(frame)
        await eventually(lambda: len(connection.received) >= size)
        assert connection.received.endswith(frame)


async def _send_all(client: RawSocket, frame: bytes, times: int) -> None:
    for _ in range(times):
        await client.send(frame)


async def _settled(value: Any) -> None:
    """Until it stops changing."""
    last = None
    while last != value():
        last = value()
        await asyncio.sleep(0.1)
