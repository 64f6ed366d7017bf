"""GatewayTransport: the openai SDK behaves over it as over the network, with httpx and httpx2, sync and async."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import httpx
import httpx2
import openai
import pytest
from anyio import to_thread
from openai import AsyncOpenAI, OpenAI

from headgate import GatewayTransport
from headgate.clients.answer_stream import UNREAD_BYTES
from headgate.config import ConfigError
from tests_support.answers import (
    LAST_CHUNK,
    chat_chunk,
    chat_chunks,
    chat_completion,
    chunk,
    error_response,
    event,
    json_response,
    response_head,
    sse,
)
from tests_support.asgi import ask
from tests_support.embedded import MESSAGES, WAYS, Way, embedded_config, ledger, sdk
from tests_support.gateway import CLIENT_KEY
from tests_support.upstream import FIN, RST, STALL, FakeUpstream, Repeat, Request, Step, in_thread

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SSE = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
EVENTS = [event(one) for one in chat_chunks(done=False)]
every_way = pytest.mark.parametrize("way", WAYS, ids=str)
one_way = Way(httpx2, sync=False)


def provider(asked: Request) -> Sequence[Step]:
    """Streams to who asks for a stream."""
    if asked.json().get("stream"):
        return sse(chat_chunks(), headers=[("x-request-id", "req_up")])
    return [json_response(chat_completion(), headers=[("x-request-id", "req_up")])]


@every_way
async def test_a_completion_comes_back_and_is_on_the_ledger(way: Way, tmp_path: Path) -> None:
    async with FakeUpstream(provider) as upstream, sdk(way, embedded_config(tmp_path, upstream)) as client:
        answer = await client.create()
        raw = await client.use(
            lambda sdk: sdk.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=MESSAGES)
        )
    assert answer.choices[0].message.content == "Hello there."
    assert answer._request_id == "req_up"
    assert float(raw.headers["x-headgate-cost-usd"]) > 0
    assert upstream.requests[0].json() == {"model": "gpt-4o-mini", "messages": MESSAGES}
    assert upstream.requests[0].header("accept-encoding") == "identity"
    rows = ledger(tmp_path)
    assert [(row["outcome"], row["status"], row["key"], row["attempts"]) for row in rows] == [("ok", 200, "app", 1)] * 2


@every_way
async def test_a_stream_comes_back_piece_by_piece(way: Way, tmp_path: Path) -> None:
    got: list[str] = []
    async with FakeUpstream(provider) as upstream, sdk(way, embedded_config(tmp_path, upstream)) as client:
        await client.read(got)
    assert got == ["", "Hel", "lo ", "there.", ""]
    [row] = ledger(tmp_path)
    assert (row["outcome"], row["stream"], row["usage_source"]) == ("ok", 1, "estimated")


@every_way
async def test_a_wrong_key_is_an_authentication_error(way: Way, tmp_path: Path) -> None:
    config = embedded_config(tmp_path, *[])
    async with sdk(way, config, api_key="sk-wrong-key-00001") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.create()
    assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
    assert ledger(tmp_path) == []


@every_way
async def test_errors_raise_their_own_class(way: Way, tmp_path: Path) -> None:
    script = error_response(429, "slow down", headers=[("retry-after", "7"), ("x-request-id", "req_up")])
    models = {"known": {"targets": [{"provider": "up"}]}}
    async with FakeUpstream(script) as upstream:
        config = embedded_config(tmp_path, upstream, retry=False, changes={"models": models})
        async with sdk(way, config) as client:
            with pytest.raises(openai.RateLimitError, match="slow down") as caught:
                await client.create(model="known")
            with pytest.raises(openai.NotFoundError) as unknown:
                await client.create(model="unknown")
            with pytest.raises(openai.BadRequestError) as bad:
                await client.create(model="known", stream="yes")
    assert (caught.value.request_id, caught.value.response.headers["retry-after"]) == ("req_up", "7")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert bad.value.param == "stream"
    assert [row["outcome"] for row in ledger(tmp_path)] == ["upstream_error", "refused", "refused"]


@every_way
async def test_leaving_a_stream_early_closes_the_providers_connection(way: Way, tmp_path: Path) -> None:
    script: list[Step] = [SSE, *map(chunk, EVENTS[:3]), STALL]
    got: list[str] = []
    async with FakeUpstream(script) as upstream, sdk(way, embedded_config(tmp_path, upstream)) as client:
        await client.read(got, leave_after=2)
        left = time.monotonic()
        connection = await upstream.wait_closed()
    assert got == ["", "Hel"]
    assert (connection.closed_at or 0) - left < 1.0
    assert [row["outcome"] for row in ledger(tmp_path)] == ["cancelled"]


@every_way
@pytest.mark.parametrize("stream", [False, True])
async def test_the_clients_own_patience_is_kept(way: Way, stream: bool, tmp_path: Path) -> None:
    """Its ReadTimeout, which the SDK turns into its APITimeoutError; and the provider hears of it."""
    script: list[Step] = [SSE, *map(chunk, EVENTS[:3]), STALL] if stream else [STALL]
    got: list[str] = []
    async with FakeUpstream(script) as upstream, sdk(way, embedded_config(tmp_path, upstream), timeout=0.3) as client:
        with pytest.raises(openai.APITimeoutError) as caught:
            await (client.read(got) if stream else client.create())
        await upstream.wait_closed()
    assert isinstance(caught.value.__cause__, way.package.ReadTimeout)
    assert got == (["", "Hel", "lo "] if stream else [])
    assert [row["outcome"] for row in ledger(tmp_path)] == ["cancelled"]


@every_way
@pytest.mark.parametrize("end", [FIN, RST, LAST_CHUNK], ids=["fin", "rst", "last chunk"])
async def test_a_stream_that_is_cut_raises_an_api_error(way: Way, end: Step, tmp_path: Path) -> None:
    script = [SSE, *map(chunk, EVENTS[:3]), end]
    got: list[str] = []
    async with (
        FakeUpstream(script) as upstream,
        sdk(way, embedded_config(tmp_path, upstream, retry=False)) as client,
    ):
        with pytest.raises(openai.APIError, match="provider"):
            await client.read(got)
    assert got == ["", "Hel", "lo "]
    assert [row["outcome"] for row in ledger(tmp_path)] == ["truncated"]


@every_way
async def test_a_body_that_is_cut_is_the_clients_own_protocol_error(way: Way, tmp_path: Path) -> None:
    """What is no stream of events has no other way to say that it is not whole."""
    head = response_head(200, [("content-type", "audio/mpeg"), ("transfer-encoding", "chunked")])
    async with (
        FakeUpstream([head, chunk(b"sound" * 100), FIN]) as upstream,
        sdk(way, embedded_config(tmp_path, upstream)) as client,
    ):
        with pytest.raises((openai.APIConnectionError, way.package.RemoteProtocolError)):
            await client.use(lambda sdk: sdk.audio.speech.create(model="tts-1", voice="alloy", input="hello"))


@every_way
async def test_an_answer_that_breaks_before_its_first_byte_is_the_clients_own_error(way: Way, tmp_path: Path) -> None:
    head = response_head(200, [("content-type", "audio/mpeg"), ("transfer-encoding", "chunked")])
    async with FakeUpstream([head, FIN]) as upstream, sdk(way, embedded_config(tmp_path, upstream)) as client:
        with pytest.raises(openai.APIConnectionError) as caught:
            await client.use(lambda sdk: sdk.audio.speech.create(model="tts-1", voice="alloy", input="hello"))
    assert isinstance(caught.value.__cause__, way.package.RemoteProtocolError)
    assert [row["outcome"] for row in ledger(tmp_path)] == ["truncated"]


@every_way
async def test_a_slow_reader_does_not_make_us_buffer(way: Way, tmp_path: Path) -> None:
    """Back-pressure reaches the provider: of 64 MiB it can send only what fits the bounds on the way."""
    piece = chunk(event(chat_chunk({"content": "x" * 4000})))
    script: list[Step] = [SSE, Repeat(piece, 16_384), chunk(EVENTS[-1]), chunk(b"data: [DONE]\n\n"), LAST_CHUNK]
    got: list[str] = []
    async with FakeUpstream(script) as upstream, sdk(way, embedded_config(tmp_path, upstream)) as client:
        await client.read(got, leave_after=1)
        [connection] = upstream.connections
        await upstream.wait_closed()
    assert connection.written < UNREAD_BYTES + 16 * 1024 * 1024
    assert connection.written < 40 * 1024 * 1024


async def test_what_is_not_read_is_bounded_here(tmp_path: Path) -> None:
    """Between the provider's socket and the reader lies no more than the bound and one read of the socket."""
    piece = chunk(event(chat_chunk({"content": "x" * 4000})))
    script: list[Step] = [SSE, Repeat(piece, 4096), STALL]
    body = {"model": "m", "stream": True, "messages": MESSAGES}
    async with FakeUpstream(script) as upstream:
        transport = GatewayTransport(embedded_config(tmp_path, upstream, auth=False))
        async with (
            httpx2.AsyncClient(transport=transport) as client,
            client.stream("POST", "http://gateway/v1/chat/completions", json=body) as answer,
        ):
            pieces = answer.aiter_raw()
            first = await anext(pieces)
            await asyncio.sleep(0.3)
            second = await anext(pieces)
    assert len(first) + len(second) < UNREAD_BYTES + 1024 * 1024


@every_way
async def test_many_at_once_do_not_mix(way: Way, tmp_path: Path) -> None:
    def script(asked: Request) -> Sequence[Step]:
        said = asked.json()["messages"][0]["content"]
        return sse(chat_chunks([said, f" {said}"]))

    async def one(n: int) -> None:
        got: list[str] = []
        await client.read(got, messages=[{"role": "user", "content": str(n)}])
        assert "".join(got) == f"{n} {n}"

    async with FakeUpstream(script) as upstream, sdk(way, embedded_config(tmp_path, upstream)) as client:
        await asyncio.gather(*(one(n) for n in range(30)))
    assert [row["outcome"] for row in ledger(tmp_path)] == ["ok"] * 30


@every_way
async def test_two_gateways_in_one_process_share_nothing(way: Way, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with (
        FakeUpstream(provider) as first,
        FakeUpstream(error_response(500, "no")) as second,
        sdk(way, embedded_config(tmp_path / "a", first)) as one,
        sdk(way, embedded_config(tmp_path / "b", second, retry=False)) as other,
    ):
        assert (await one.create()).choices
        with pytest.raises(openai.InternalServerError):
            await other.create()
    assert [row["outcome"] for row in ledger(tmp_path / "a")] == ["ok"]
    assert [row["outcome"] for row in ledger(tmp_path / "b")] == ["upstream_error"]


@every_way
async def test_closing_leaves_nothing_behind(way: Way, tmp_path: Path, no_leaks: None) -> None:
    """No thread, and by `no_leaks` no task and no descriptor. Threads of the test's own loop are the loop's."""

    def threads() -> set[threading.Thread]:
        own = ("AnyIO",) if way.sync else ("AnyIO", "uvloop")
        return {thread for thread in threading.enumerate() if not thread.name.startswith(own)}

    before = threads()
    async with FakeUpstream(provider) as upstream, sdk(way, embedded_config(tmp_path, upstream)) as client:
        await client.create()
    assert threads() <= before


@every_way
async def test_closing_ends_a_stream_that_nobody_reads(way: Way, tmp_path: Path) -> None:
    """As a closed connection would: at once, whatever `limits.drain` says."""
    script: list[Step] = [SSE, *map(chunk, EVENTS[:3]), STALL]
    async with FakeUpstream(script) as upstream, sdk(way, embedded_config(tmp_path, upstream)) as client:
        stream = await client.create(stream=True)
        began = time.monotonic()
        await client.use(lambda sdk: sdk.close())
        assert time.monotonic() - began < 10
        await upstream.wait_closed()
        with pytest.raises((openai.APIError, way.package.HTTPError)):
            await (to_thread.run_sync(list, stream) if way.sync else anext(stream.__aiter__()))
    assert [row["outcome"] for row in ledger(tmp_path)] == ["cancelled"]


async def test_a_task_that_is_cancelled_cancels_the_provider(tmp_path: Path) -> None:
    async with FakeUpstream([STALL]) as upstream, sdk(one_way, embedded_config(tmp_path, upstream)) as client:
        task = asyncio.create_task(client.create())
        await upstream.wait_request()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await upstream.wait_closed()
    assert [row["outcome"] for row in ledger(tmp_path)] == ["cancelled"]


async def test_a_failing_provider_is_replaced_before_anything_was_seen(tmp_path: Path) -> None:
    async with (
        FakeUpstream(error_response(500, "no")) as first,
        FakeUpstream(provider) as second,
        sdk(one_way, embedded_config(tmp_path, first, second)) as client,
    ):
        assert (await client.create()).choices
    [row] = ledger(tmp_path)
    assert (row["provider"], row["attempts"], row["outcome"]) == ("up2", 2, "ok")


async def test_the_models_are_listed_here(tmp_path: Path) -> None:
    models = {name: {"targets": [{"provider": "up"}]} for name in ("fast", "org/model:free")}
    async with FakeUpstream(provider) as upstream:
        config = embedded_config(tmp_path, upstream, changes={"models": models})
        async with sdk(one_way, config) as client:
            listed = await client.use(lambda sdk: sdk.models.list())
            found = await client.use(lambda sdk: sdk.models.retrieve("org/model:free"))
            with pytest.raises(openai.NotFoundError):
                await client.use(lambda sdk: sdk.models.retrieve("unknown"))
    assert [model.id for model in listed.data] == ["fast", "org/model:free"]
    assert found.id == "org/model:free"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/nowhere", 404),
        ("GET", "/", 404),
        ("GET", "/v1/chat/completions", 405),
        ("HEAD", "/v1/chat/completions", 405),
        ("POST", "/v1/chat/../secret", 404),
    ],
)
async def test_any_path_is_answered_in_json(method: str, path: str, status: int, tmp_path: Path) -> None:
    async with httpx.AsyncClient(transport=GatewayTransport(embedded_config(tmp_path))) as client:
        answer = await client.request(method, f"http://any.host{path}")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert (answer.content == b"") is (method == "HEAD")
    assert answer.headers["x-request-id"]


async def test_a_body_above_the_limit_is_refused(tmp_path: Path) -> None:
    config = embedded_config(tmp_path, changes={"limits": {"body": "1KiB"}})
    async with httpx.AsyncClient(transport=GatewayTransport(config)) as client:
        headers = {"authorization": f"Bearer {CLIENT_KEY}"}
        answer = await client.post("http://x/v1/chat/completions", content=b"x" * 2000, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


async def test_a_header_that_would_smuggle_a_line_in_is_refused(tmp_path: Path) -> None:
    async with FakeUpstream(provider) as upstream:
        transport = GatewayTransport(embedded_config(tmp_path, upstream, auth=False))
        async with httpx.AsyncClient(transport=transport) as client:
            with pytest.raises(httpx.LocalProtocolError):
                await client.post("http://x/v1/chat/completions", headers={"x-a": "b\r\nhost: evil"}, json={})
    assert upstream.connections == []


async def test_requests_of_a_class_of_ones_own_are_answered_too(tmp_path: Path) -> None:
    class Traced(httpx.Request):
        pass

    async with GatewayTransport(embedded_config(tmp_path)) as transport:
        answer = await transport.handle_async_request(Traced("GET", "http://x/v1/models"))
        assert isinstance(answer, httpx.Response)
        assert await answer.aread()


async def test_admin_is_there_to_be_mounted(tmp_path: Path) -> None:
    async with GatewayTransport(embedded_config(tmp_path)) as transport:
        ready = await ask(transport.admin, "GET", "/ready")
        metrics = await ask(transport.admin, "GET", "/metrics", headers=[("host", "localhost")])
        assert transport.gateway.ready
    assert (ready.status, metrics.status) == (200, 401)


def test_a_sync_answer_that_outlives_its_transport_is_cut(tmp_path: Path) -> None:
    with in_thread(FakeUpstream([SSE, *map(chunk, EVENTS[:3]), STALL])) as upstream:
        transport = GatewayTransport(embedded_config(tmp_path, upstream, auth=False))
        body = {"model": "m", "stream": True, "messages": MESSAGES}
        request = httpx.Request("POST", "http://x/v1/chat/completions", json=body)
        with transport:
            answer = transport.handle_request(request)
        with pytest.raises(httpx.RemoteProtocolError):
            answer.read()
        answer.close()


async def test_it_runs_on_one_loop_at_a_time(tmp_path: Path) -> None:
    """And says so, instead of waiting for ever."""
    config = embedded_config(tmp_path)
    transport = GatewayTransport(config)
    async with httpx.AsyncClient(transport=transport) as client:
        await client.get("http://x/v1/models")
        with pytest.raises(RuntimeError, match="another event loop"):
            await to_thread.run_sync(httpx.Client(transport=transport).get, "http://x/v1/models")
    await to_thread.run_sync(transport.close)


def test_it_may_be_used_again_on_another_loop(tmp_path: Path) -> None:
    """Closed on the first, or forgotten with it."""
    transport = GatewayTransport(embedded_config(tmp_path))

    async def ask(*, close: bool) -> int:
        request = httpx.Request("GET", "http://x/v1/models")
        answer = await transport.handle_async_request(request)
        await answer.aread()
        if close:
            await transport.aclose()
        return int(answer.status_code)

    assert [asyncio.run(ask(close=close)) for close in (True, False, False, True)] == [401] * 4


def test_a_sync_client_that_is_forgotten_does_not_keep_the_program(tmp_path: Path) -> None:
    client = OpenAI(
        http_client=httpx2.Client(transport=GatewayTransport(embedded_config(tmp_path))), api_key="x", max_retries=0
    )
    with pytest.raises(openai.AuthenticationError):
        client.models.list()
    [thread] = [thread for thread in threading.enumerate() if thread.name == "headgate"]
    assert thread.daemon
    client.close()
    assert not thread.is_alive()
    client.close()


def test_a_bad_file_is_refused_where_it_is_named(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("filtres: []\n")
    with pytest.raises(ConfigError, match="filters"):
        GatewayTransport(file)


async def test_start_up_is_short(tmp_path: Path) -> None:
    """After the imports, and with the price table compiled. Printed, because a busy machine says nothing about us."""
    async with GatewayTransport(embedded_config(tmp_path)) as warm:
        await warm.handle_async_request(httpx.Request("GET", "http://x/v1/models"))
    folder = tmp_path / "second"
    folder.mkdir()
    config = embedded_config(folder)
    began = time.perf_counter()
    async with AsyncOpenAI(
        http_client=httpx2.AsyncClient(transport=GatewayTransport(config)), api_key=CLIENT_KEY
    ) as client:
        built = time.perf_counter()
        assert (await client.models.list()).data == []
        print(f"client {1000 * (built - began):.1f} ms, first answer {1000 * (time.perf_counter() - built):.1f} ms")
