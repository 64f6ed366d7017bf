"""The `openai` SDK on every other endpoint: it behaves as against the provider, and each call is metered and priced."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI

from headgate.__main__ import main
from headgate.control.events.tailer import Tailer
from tests_support.answers import (
    LAST_CHUNK,
    RESPONSE_USAGE,
    chat_completion,
    chunk,
    event,
    json_response,
    response,
    response_events,
    response_head,
    response_object,
    sse,
    typed_event,
)
from tests_support.gateway import (
    CLIENT_KEY,
    RunningGateway,
    config_for,
    gateway_over,
    gateway_over_two,
    running_gateway,
)
from tests_support.upstream import FIN, STALL, FakeUpstream, Step

if TYPE_CHECKING:
    from pathlib import Path

    from tests_support.upstream import Request

SSE = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
VECTOR = [0.5, -0.25, 1.0]
BASE64 = base64.b64encode(struct.pack("<3f", *VECTOR)).decode()
SPEECH = bytes(range(256)) * 900


def client_for(gateway: RunningGateway, **options: Any) -> AsyncOpenAI:
    return AsyncOpenAI(**{"base_url": gateway.base_url, "api_key": CLIENT_KEY, "max_retries": 0, **options})


def text_completion(text: str = "there") -> dict[str, Any]:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    base = {"id": "cmpl-test", "object": "text_completion", "created": 1, "model": "gpt-3.5-turbo-instruct"}
    return {**base, "choices": [choice], "usage": usage}


def provider(asked: Request) -> list[Step]:
    """Answers every endpoint."""
    sent = asked.json()
    match asked.target.removeprefix("/v1"):
        case "/responses" if sent.get("stream"):
            return [SSE, *map(chunk, response_events()), LAST_CHUNK]
        case "/responses":
            return [json_response(response_object(model=sent["model"]))]
        case "/completions" if sent.get("stream"):
            usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
            texts = [{"index": 0, "text": text, "finish_reason": end} for text, end in (("a", None), ("b", "stop"))]
            chunks: list[Any] = [{"id": "cmpl", "object": "text_completion", "choices": [one]} for one in texts]
            return [*sse([*chunks, {"choices": [], "usage": usage}, b"data: [DONE]\n\n"])]
        case "/completions":
            return [json_response(text_completion())]
        case "/embeddings":
            vector = BASE64 if sent.get("encoding_format") == "base64" else VECTOR
            data = [{"object": "embedding", "index": 0, "embedding": vector}]
            usage = {"prompt_tokens": 8, "total_tokens": 8}
            return [json_response({"object": "list", "data": data, "model": sent["model"], "usage": usage})]
        case "/moderations":
            result = {"flagged": False, "categories": {}, "category_scores": {}, "category_applied_input_types": {}}
            return [json_response({"id": "modr", "model": "omni-moderation-latest", "results": [result]})]
        case "/images/generations" if sent.get("stream"):
            usage = {"input_tokens": 5, "output_tokens": 50, "total_tokens": 55}
            partial = typed_event("image_generation.partial_image", b64_json="QUJD", partial_image_index=0)
            last = typed_event("image_generation.completed", b64_json="A" * 600_000, usage=usage)
            return [SSE, chunk(partial), chunk(last), LAST_CHUNK]
        case "/images/generations":
            usage = {"input_tokens": 5, "output_tokens": 40, "total_tokens": 45}
            return [json_response({"created": 1, "data": [{"b64_json": "QUJD"}], "usage": usage})]
        case "/audio/speech" if sent.get("stream_format") == "sse":
            usage = {"input_tokens": 4, "output_tokens": 90, "total_tokens": 94}
            delta, done = typed_event("speech.audio.delta", audio="QUJD"), typed_event("speech.audio.done", usage=usage)
            return [SSE, chunk(delta), chunk(done), LAST_CHUNK]
        case "/audio/speech":
            head = response_head(200, [("content-type", "audio/mpeg"), ("transfer-encoding", "chunked")])
            return [head, chunk(SPEECH[:100]), chunk(SPEECH[100:]), LAST_CHUNK]
        case "/rerank":
            return [json_response({"results": [{"index": 0, "relevance_score": 0.5}], "usage": {"total_tokens": 26}})]
    return [json_response(chat_completion())]


async def test_a_response_comes_back_as_the_provider_made_it() -> None:
    async with gateway_over(provider) as (gateway, upstream), client_for(gateway) as client:
        answer = await client.responses.create(model="gpt-4o-mini", input="hello", extra_body={"x": 1.5})
        [row] = await gateway.rows(1)
    assert answer.output_text == "Hello there."
    assert upstream.requests[0].json() == {"model": "gpt-4o-mini", "input": "hello", "x": 1.5}
    assert (row.endpoint, row.outcome, row.usage_source, row.stream) == ("responses", "ok", "reported", False)
    assert (row.prompt_tokens, row.completion_tokens, row.cached_tokens, row.reasoning_tokens) == (36, 11, 4, 5)
    assert row.cost_usd is not None
    assert row.cost_usd > 0


async def test_a_streamed_response_comes_back_event_by_event() -> None:
    async with gateway_over(provider) as (gateway, _), client_for(gateway) as client:
        stream = await client.responses.create(model="gpt-4o-mini", input="hello", stream=True)
        kinds = [one.type async for one in stream]
        async with client.responses.stream(model="gpt-4o-mini", input="hello") as helped:
            final = await helped.get_final_response()
        rows = await gateway.rows(2)
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[4:] == [*["response.output_text.delta"] * 3, "response.completed"]
    assert final.output_text == "Hello there."
    assert final.usage is not None
    assert final.usage.total_tokens == RESPONSE_USAGE["total_tokens"]
    for row in rows:
        assert (row.stream, row.prompt_tokens, row.completion_tokens, row.usage_source) == (True, 36, 11, "reported")
        assert row.ttft_ms is not None


async def read_kinds(client: AsyncOpenAI, into: list[str]) -> None:
    """The types of a stream's events, as far as it goes."""
    async for one in await client.responses.create(model="m", input="hello", stream=True):
        into.append(one.type)  # noqa: PERF401 - what came before an error counts


@pytest.mark.parametrize("end", [[FIN], [LAST_CHUNK]], ids=["fin", "last chunk"])
async def test_a_streamed_response_that_is_cut_raises(end: list[Step]) -> None:
    script = [SSE, *map(chunk, response_events(end=None)), *end]
    got: list[str] = []
    async with gateway_over(script, retry=False) as (gateway, _), client_for(gateway) as client:
        with pytest.raises(openai.APIError, match="provider"):
            await read_kinds(client, got)
        [row] = await gateway.rows(1)
    assert got[-1] == "response.output_text.delta"
    assert (row.outcome, row.usage_source) == ("truncated", "estimated")


async def test_a_response_that_fails_before_content_is_made_good_by_another() -> None:
    failed = response_events([], end="response.failed", error={"code": "server_error", "message": "m"}, usage=None)
    first: list[Step] = [SSE, *map(chunk, failed), LAST_CHUNK]
    async with gateway_over_two(first, provider) as (gateway, _, _), client_for(gateway) as client:
        stream = await client.responses.create(model="gpt-4o-mini", input="hello", stream=True)
        kinds = [one.type async for one in stream]
        [row] = await gateway.rows(1)
    assert (kinds.count("response.created"), kinds[-1]) == (1, "response.completed")
    assert (row.provider, row.attempts, row.outcome) == ("up2", 2, "ok")


async def test_an_error_event_of_the_spec_comes_through() -> None:
    """The SDK hands it on as an event."""
    last = typed_event("error", code="server_error", message="m", param=None, sequence_number=5)
    script = [SSE, *map(chunk, [*response_events(end=None), last]), LAST_CHUNK]
    got: list[str] = []
    async with gateway_over(script, retry=False) as (gateway, _), client_for(gateway) as client:
        await read_kinds(client, got)
        [row] = await gateway.rows(1)
    assert (got[-1], row.outcome) == ("error", "upstream_error")


async def test_an_error_object_in_a_stream_is_raised() -> None:
    last = typed_event("error", error={"message": "said so", "code": "x"})
    script = [SSE, *map(chunk, [*response_events(end=None), last]), LAST_CHUNK]
    async with gateway_over(script, retry=False) as (gateway, _), client_for(gateway) as client:
        with pytest.raises(openai.APIError, match="said so"):
            await read_kinds(client, [])
        [row] = await gateway.rows(1)
    assert row.outcome == "upstream_error"


async def test_leaving_a_streamed_response_closes_the_providers_connection() -> None:
    script: list[Step] = [SSE, *map(chunk, response_events(end=None)), STALL]
    async with gateway_over(script) as (gateway, upstream), client_for(gateway) as client:
        async with await client.responses.create(model="m", input="hello", stream=True) as stream:
            async for one in stream:
                if one.type == "response.output_text.delta":
                    break
        await upstream.wait_closed()
        [row] = await gateway.rows(1)
    assert (row.outcome, row.usage_source) == ("cancelled", "estimated")


async def test_completions_whole_and_streamed() -> None:
    async with gateway_over(provider) as (gateway, upstream), client_for(gateway) as client:
        answer = await client.completions.create(model="gpt-3.5-turbo-instruct", prompt="hello")
        stream = await client.completions.create(model="gpt-3.5-turbo-instruct", prompt="hello", stream=True)
        texts = [one.choices[0].text async for one in stream]
        whole, streamed = await gateway.rows(2)
    assert (answer.choices[0].text, texts) == ("there", ["a", "b"])
    assert "stream_options" in upstream.requests[1].json()
    assert (whole.endpoint, whole.prompt_tokens, whole.completion_tokens) == ("completions", 5, 7)
    assert (streamed.endpoint, streamed.prompt_tokens, streamed.completion_tokens) == ("completions", 5, 2)
    assert whole.cost_usd
    assert streamed.cost_usd


async def test_embeddings_in_base64_pass_untouched() -> None:
    """The SDK asks for base64 on its own, and decodes it."""
    async with gateway_over(provider) as (gateway, upstream), client_for(gateway) as client:
        answer = await client.embeddings.create(model="text-embedding-3-small", input="hello")
        raw = await client.embeddings.with_raw_response.create(
            model="text-embedding-3-small", input="hello", encoding_format="base64"
        )
        floats = await client.embeddings.create(model="text-embedding-3-small", input="hello", encoding_format="float")
        rows = await gateway.rows(3)
    assert answer.data[0].embedding == floats.data[0].embedding == VECTOR
    assert json.loads(raw.content)["data"][0]["embedding"] == BASE64
    assert upstream.requests[0].json()["encoding_format"] == "base64"
    for row in rows:
        assert (row.endpoint, row.prompt_tokens, row.completion_tokens) == ("embeddings", 8, 0)
        assert row.cost_usd


async def test_moderations_go_to_the_first_provider_when_they_name_no_model() -> None:
    async with gateway_over(provider) as (gateway, upstream), client_for(gateway) as client:
        answer = await client.moderations.create(input="hello")
        named = await client.moderations.create(input="hello", model="omni-moderation-latest")
        first, second = await gateway.rows(2)
    assert not answer.results[0].flagged
    assert named.model == "omni-moderation-latest"
    assert [one.json().get("model") for one in upstream.requests] == [None, "omni-moderation-latest"]
    assert (first.endpoint, first.model, first.provider, first.usage_source) == ("moderations", "", "up", "none")
    assert (second.model, second.upstream_model) == ("omni-moderation-latest", "omni-moderation-latest")
    assert first.cost_usd is None


async def test_a_route_may_say_who_takes_what_names_no_model() -> None:
    async with FakeUpstream(provider) as up, FakeUpstream(provider) as up2:
        route = {"name": "watch", "match": {"path": "/v1/moderations"}, "provider": "up2"}
        config = {**config_for(up, up2), "routes": [route]}
        async with running_gateway(config) as gateway, client_for(gateway) as client:
            assert (await client.moderations.create(input="hello")).id == "modr"
            [row] = await gateway.rows(1)
    assert (row.provider, row.route, len(up.requests)) == ("up2", "watch", 0)


async def test_images_whole_and_streamed() -> None:
    async with gateway_over(provider) as (gateway, _), client_for(gateway) as client:
        answer = await client.images.generate(model="gpt-image-1", prompt="a cat")
        unnamed = await client.images.generate(prompt="a cat")
        stream = await client.images.generate(model="gpt-image-1", prompt="a cat", stream=True, partial_images=1)
        kinds = [(one.type, len(one.b64_json)) async for one in stream]
        whole, plain, streamed = await gateway.rows(3)
    assert answer.data is not None
    assert answer.data[0].b64_json == "QUJD"
    assert unnamed.data is not None
    assert kinds == [("image_generation.partial_image", 4), ("image_generation.completed", 600_000)]
    assert (whole.endpoint, whole.prompt_tokens, whole.completion_tokens) == ("images", 5, 40)
    assert (plain.model, plain.completion_tokens) == ("", 40)
    assert (streamed.prompt_tokens, streamed.completion_tokens, streamed.outcome) == (5, 50, "ok")
    assert whole.cost_usd
    assert streamed.cost_usd


async def test_speech_is_relayed_byte_for_byte_and_may_be_a_stream_of_events() -> None:
    async with gateway_over(provider) as (gateway, _), client_for(gateway) as client:
        answer = await client.audio.speech.create(model="gpt-4o-mini-tts", voice="alloy", input="hello")
        raw = await client.audio.speech.with_raw_response.create(
            model="gpt-4o-mini-tts", voice="alloy", input="hello", stream_format="sse"
        )
        binary, streamed = await gateway.rows(2)
    assert answer.content == SPEECH
    assert answer.response.headers["content-type"] == "audio/mpeg"
    assert b"event: speech.audio.done" in raw.content
    assert (binary.endpoint, binary.outcome, binary.usage_source, binary.bytes_out) == (
        "speech",
        "ok",
        "none",
        len(SPEECH),
    )
    assert (streamed.prompt_tokens, streamed.completion_tokens) == (4, 90)
    assert streamed.cost_usd


async def test_speech_that_is_cut_is_a_connection_error() -> None:
    head = response_head(200, [("content-type", "audio/mpeg"), ("transfer-encoding", "chunked")])
    async with gateway_over([head, chunk(SPEECH), FIN]) as (gateway, _), client_for(gateway) as client:
        with pytest.raises((openai.APIConnectionError, openai.APIError)):
            await client.audio.speech.create(model="tts-1", voice="alloy", input="hello")
        [row] = await gateway.rows(1)
    assert row.outcome == "truncated"


async def test_rerank_is_metered_by_its_total() -> None:
    body = b'{"model":"rerank-2","query":"q","documents":["a","b"]}'
    async with gateway_over(provider) as (gateway, upstream):
        answer = await gateway.post(body, target="/v1/rerank")
        [row] = await gateway.rows(1)
    assert json.loads(answer.body)["results"][0]["relevance_score"] == 0.5
    assert upstream.requests[0].body == body
    assert (row.endpoint, row.prompt_tokens, row.usage_source, row.cost_usd) == ("rerank", 26, "reported", None)


@pytest.mark.parametrize("path", ["completions", "embeddings", "rerank", "audio/speech"])
async def test_a_request_without_a_model_is_refused_in_json(path: str) -> None:
    async with gateway_over(provider) as (gateway, upstream):
        answer = await gateway.post(b'{"input":"x"}', target=f"/v1/{path}")
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "missing_model", "model")
    assert upstream.requests == []


@pytest.mark.parametrize("path", ["responses", "completions", "embeddings", "rerank", "audio/speech"])
async def test_a_form_or_another_method_is_refused_in_json(path: str) -> None:
    async with gateway_over(provider) as (gateway, upstream):
        form = await gateway.post(b"--x", [("content-type", "multipart/form-data; boundary=x")], target=f"/v1/{path}")
        got = await gateway.send("GET", f"/v1/{path}")
    assert (form.status, form.error["code"]) == (415, "unsupported_media_type")
    assert (got.status, got.error["code"], got.header("allow")) == (405, "method_not_allowed", "POST")
    assert upstream.requests == []


async def test_a_provider_that_fails_is_replaced_on_every_endpoint() -> None:
    """An error before the answer, and another provider makes it good."""
    bodies = {
        "/v1/responses": b'{"model":"m","input":"x"}',
        "/v1/completions": b'{"model":"m","prompt":"x"}',
        "/v1/embeddings": b'{"model":"m","input":"x"}',
        "/v1/rerank": b'{"model":"m","query":"x","documents":[]}',
        "/v1/images/generations": b'{"model":"m","prompt":"x"}',
        "/v1/audio/speech": b'{"model":"m","input":"x","voice":"v"}',
    }
    failing = response(500, b"{}", [("content-type", "application/json")])
    async with gateway_over_two(failing, provider) as (gateway, _, _):
        for path, body in bodies.items():
            answer = await gateway.post(body, target=path)
            assert (answer.status, answer.header("x-headgate-attempts")) == (200, "2"), path
        rows = await gateway.rows(len(bodies))
    assert {row.provider for row in rows} == {"up2"}


async def test_usage_is_told_by_endpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with gateway_over(provider) as (gateway, _), client_for(gateway) as client:
        await client.responses.create(model="gpt-4o-mini", input="hello")
        await client.embeddings.create(model="text-embedding-3-small", input="hello")
        await client.moderations.create(input="hello")
        await gateway.rows(3)
        store = tmp_path / "events.db"
        tailer = Tailer(store, gateway.folder / "spool", retention=3600.0, max_size=1 << 30, clock=gateway.half.clock)
        assert await tailer.flush()
        tailer.close()
    config = tmp_path / "gateway.yaml"
    config.write_text(f"routing: {{mode: direct}}\nevents: {{path: {store}}}\n")
    assert await asyncio.to_thread(main, ["usage", "--by", "endpoint", "--json", "--config", str(config)]) == 0
    told = {row["endpoint"]: row for row in json.loads(capsys.readouterr().out)["data"]}
    assert {name: row["requests"] for name, row in told.items()} == {"responses": 1, "embeddings": 1, "moderations": 1}
    assert told["embeddings"]["prompt_tokens"] == 8
    assert told["responses"]["cost_usd"] > 0


async def test_an_event_of_chat_is_no_part_of_a_typed_stream() -> None:
    """A provider that mixes its dialects: everything passes, and the end is where it says so."""
    script: list[Step] = [SSE, chunk(event({"choices": []})), *map(chunk, response_events(["x"])), LAST_CHUNK]
    async with gateway_over(script) as (gateway, _):
        answer = await gateway.post(b'{"model":"m","stream":true,"input":"x"}', target="/v1/responses")
        [row] = await gateway.rows(1)
    assert (answer.status, row.outcome) == (200, "ok")
