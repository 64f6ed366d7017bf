"""The `openai` SDK sends files through a running gateway, and through `GatewayTransport`, as to the provider itself."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import httpx
import httpx2
import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI, OpenAI

from headgate import GatewayTransport
from tests_support.answers import chat_completion, event, json_response, sse
from tests_support.gateway import CLIENT_KEY, RunningGateway, config_for, gateway_over, load, written
from tests_support.upstream import FakeUpstream, in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests_support.upstream import Request, Step

FILE: Any = {
    "id": "file-1", "object": "file", "bytes": 300_000, "created_at": 1, "filename": "a.jsonl", "purpose": "batch",
    "status": "processed",
}  # fmt: skip
BATCH: Any = {
    "id": "batch_1", "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": "file-1",
    "completion_window": "24h", "status": "validating", "created_at": 1,
}  # fmt: skip
AUDIO = b"RIFF" + bytes(range(256)) * 1200
EVENTS: list[dict[str, Any]] = [
    {"type": "transcript.text.delta", "delta": "Hel"},
    {"type": "transcript.text.delta", "delta": "lo"},
    {
        "type": "transcript.text.done",
        "text": "Hello",
        "usage": {"type": "tokens", "input_tokens": 14, "output_tokens": 45, "total_tokens": 59},
    },
]


def provider(asked: Request) -> Sequence[Step] | bytes:
    """Files, batches and transcriptions."""
    path = asked.target.partition("?")[0]
    if path == "/v1/audio/transcriptions":
        if b'name="stream"\r\n\r\ntrue' in asked.body:
            return sse([event(one) for one in EVENTS])
        return json_response({"text": "Hello", "usage": {"type": "duration", "seconds": 9}})
    if path.endswith("/content"):
        return json_response({"line": 1})
    if asked.method == "DELETE":
        return json_response({"id": "file-1", "object": "file", "deleted": True})
    what = BATCH if "batches" in path else FILE
    is_list = asked.method == "GET" and path in ("/v1/files", "/v1/batches")
    return json_response({"object": "list", "data": [what], "has_more": False} if is_list else what)


def client_for(gateway: RunningGateway) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY, max_retries=0)


async def test_files_are_made_listed_read_and_deleted() -> None:
    async with gateway_over(provider) as (gateway, upstream), client_for(gateway) as client:
        made = await client.files.create(file=("a.jsonl", AUDIO), purpose="batch")
        assert made.id == "file-1"
        assert [one.id async for one in client.files.list(limit=10)] == ["file-1"]
        assert (await client.files.retrieve("file-1")).bytes == 300_000
        assert (await client.files.content("file-1")).json() == {"line": 1}
        assert (await client.files.delete("file-1")).deleted
        rows = await gateway.rows(5)
    assert [(one.method, one.target) for one in upstream.requests] == [
        ("POST", "/v1/files"),
        ("GET", "/v1/files?limit=10"),
        ("GET", "/v1/files/file-1"),
        ("GET", "/v1/files/file-1/content"),
        ("DELETE", "/v1/files/file-1"),
    ]
    assert AUDIO in upstream.requests[0].body
    assert {row.endpoint for row in rows} == {"files"}


async def test_batches_are_made_retrieved_and_cancelled() -> None:
    async with gateway_over(provider) as (gateway, upstream), client_for(gateway) as client:
        made = await client.batches.create(
            completion_window="24h", endpoint="/v1/chat/completions", input_file_id="file-1"
        )
        assert (await client.batches.retrieve(made.id)).status == "validating"
        assert (await client.batches.cancel(made.id)).id == "batch_1"
        assert [one.id async for one in client.batches.list()] == ["batch_1"]
    assert upstream.requests[0].json()["completion_window"] == "24h"


async def test_audio_is_transcribed_whole_and_streamed() -> None:
    async with gateway_over(provider) as (gateway, upstream), client_for(gateway) as client:
        whole = await client.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", AUDIO))
        stream = await client.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", AUDIO), stream=True)
        said = [one.type async for one in stream]
        plain, streamed = await gateway.rows(2)
    assert whole.text == "Hello"
    assert said == [one["type"] for one in EVENTS]
    assert all(AUDIO in one.body for one in upstream.requests)
    assert (plain.model, plain.usage_source, plain.endpoint) == ("gpt-4o-transcribe", "reported", "transcriptions")
    assert (plain.audio_seconds, plain.prompt_tokens) == (9, 0)
    assert (streamed.prompt_tokens, streamed.completion_tokens, streamed.stream) == (14, 45, True)


async def test_the_azure_client_names_its_model_in_the_path() -> None:
    async with (
        gateway_over(json_response(chat_completion())) as (gateway, upstream),
        AsyncAzureOpenAI(
            azure_endpoint=gateway.url, api_version="2024-10-21", azure_ad_token=CLIENT_KEY, max_retries=0
        ) as client,
    ):
        answer = await client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "?"}])
    assert answer.choices[0].message.content == "Hello there."
    assert (upstream.requests[0].target, upstream.requests[0].json()["model"]) == ("/v1/chat/completions", "gpt-4o")


def _transport(upstream: FakeUpstream, folder: Path) -> GatewayTransport:
    return GatewayTransport(load(written(config_for(upstream, auth=False), folder)))


async def test_an_async_transport_streams_a_body_it_is_given_piece_by_piece(tmp_path: Path) -> None:
    async def pieces() -> Any:
        for _ in range(20):
            yield AUDIO

    async with (
        FakeUpstream(provider) as upstream,
        _transport(upstream, tmp_path) as transport,
        httpx.AsyncClient(transport=transport, base_url="http://any") as client,
    ):
        answer = await client.post("/v1/files", content=pieces())
        assert answer.json() == FILE
        assert (await client.post("/v1/files", content=AUDIO)).json() == FILE
    assert [len(one.body) for one in upstream.requests] == [20 * len(AUDIO), len(AUDIO)]
    assert upstream.requests[0].header("transfer-encoding") == "chunked"


async def test_a_body_that_breaks_in_the_application_is_an_error(tmp_path: Path) -> None:
    async def pieces() -> Any:
        yield AUDIO
        raise OSError("disk")

    async with (
        FakeUpstream(provider) as upstream,
        _transport(upstream, tmp_path) as transport,
        httpx.AsyncClient(transport=transport, base_url="http://any") as client,
    ):
        assert (await client.post("/v1/files", content=pieces())).status_code == 400
        answer = await client.post("/v1/chat/completions", content=pieces())
        assert answer.status_code == 400
    assert not upstream.requests


def test_a_sync_transport_streams_a_file(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield AUDIO

    with (
        in_thread(FakeUpstream(provider)) as upstream,
        _transport(upstream, tmp_path) as transport,
        httpx2.Client(transport=transport, base_url="http://any") as http,
    ):
        assert http.post("/v1/files", content=pieces()).json() == FILE
        with OpenAI(base_url="http://any/v1", api_key="k", max_retries=0, http_client=http) as client:
            assert client.files.create(file=io.BytesIO(AUDIO), purpose="batch").id == "file-1"
            text = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", io.BytesIO(AUDIO)))
    assert text.text == "Hello"
    assert len(upstream.requests[0].body) == 20 * len(AUDIO)
    assert AUDIO in upstream.requests[1].body


@pytest.mark.parametrize("stream", [True, False])
async def test_a_transport_answers_early_and_asks_for_no_more(tmp_path: Path, stream: bool) -> None:
    asked = 0

    async def pieces() -> Any:
        nonlocal asked
        for _ in range(1000):
            asked += 1
            yield AUDIO

    config = {**config_for(auth=False), "limits": {"upload": "1MiB", "body": "1MiB"}}
    async with (
        GatewayTransport(load(written(config, tmp_path))) as transport,
        httpx.AsyncClient(transport=transport, base_url="http://any") as client,
    ):
        path = "/v1/files" if stream else "/v1/chat/completions"
        answer = await client.post(path, content=pieces())
    assert answer.status_code in (413, 502)
    assert asked < 20
