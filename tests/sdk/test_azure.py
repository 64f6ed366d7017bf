"""The `AzureOpenAI` client: its paths name the deployment, its key comes in a header of its own, and every endpoint
that Azure addresses by deployment is the same exchange as below /v1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncAzureOpenAI

from tests_support.answers import json_response, response, response_object
from tests_support.gateway import CLIENT_KEY, RunningGateway, bearer, config_for, gateway_over, running_gateway
from tests_support.raw import RawClient, request
from tests_support.upstream import FakeUpstream

if TYPE_CHECKING:
    from tests_support.upstream import Request

MIB = 1 << 20
BOUNDARY = "0123456789abcdef"
FORM = ("content-type", f"multipart/form-data; boundary={BOUNDARY}")
TRANSCRIBE = "/openai/deployments/fast/audio/transcriptions?api-version=2025-01-01"
USAGE = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}


def provider(asked: Request) -> bytes:
    match asked.target.removeprefix("/v1/"):
        case "responses":
            return json_response(response_object())
        case "embeddings":
            data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
            return json_response({"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 8}})
        case "audio/transcriptions" | "audio/translations":
            return json_response({"text": "hi", "usage": {"type": "tokens", **USAGE}})
        case "images/generations" | "images/edits":
            return json_response({"created": 1, "data": [{"b64_json": "QUJD"}], "usage": USAGE})
        case "audio/speech":
            return response(200, b"\xff\xfb", [("content-type", "audio/mpeg")])
    return json_response({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})


def azure(gateway: RunningGateway, key: str = CLIENT_KEY) -> AsyncAzureOpenAI:
    return AsyncAzureOpenAI(
        azure_endpoint=gateway.url,
        api_key=key,
        api_version="2025-01-01",
        max_retries=0,
        _strict_response_validation=False,
    )


def aliased(upstream: FakeUpstream, **limits: str) -> dict[str, Any]:
    """`fast` is another model at the provider."""
    models = {"fast": {"targets": [{"provider": "up", "model": "big"}]}, "*": {"targets": [{"provider": "up"}]}}
    return {**config_for(upstream), "models": models, **({"limits": limits} if limits else {})}


async def test_every_endpoint_that_azure_addresses_by_deployment() -> None:
    image = ("a.png", b"\x89PNG", "image/png")
    sound = ("a.wav", b"RIFF", "audio/wav")
    async with (
        FakeUpstream(provider) as upstream,
        running_gateway(aliased(upstream)) as gateway,
        azure(gateway) as client,
    ):
        await client.chat.completions.create(model="fast", messages=[{"role": "user", "content": "hello"}])
        await client.completions.create(model="fast", prompt="hello")
        await client.embeddings.create(model="fast", input="hello")
        await client.images.generate(model="fast", prompt="a cat")
        await client.images.edit(model="fast", prompt="a cat", image=image)
        await client.audio.transcriptions.create(model="fast", file=sound)
        with pytest.deprecated_call():
            await client.audio.translations.create(model="fast", file=sound)
        assert (await client.audio.speech.create(model="fast", voice="alloy", input="hello")).content == b"\xff\xfb"
        await client.responses.create(model="fast", input="hello")
        rows = await gateway.rows(9)
    paths = [
        "chat/completions", "completions", "embeddings", "images/generations", "images/edits", "audio/transcriptions",
        "audio/translations", "audio/speech", "responses",
    ]  # fmt: skip
    assert [one.target for one in upstream.requests] == [f"/v1/{path}" for path in paths]
    assert [one.header("api-key") for one in upstream.requests] == [None] * 9
    assert all(b'"big"' in one.body or b"\r\nbig\r\n" in one.body for one in upstream.requests)
    assert {(row.model, row.upstream_model, row.key, row.outcome) for row in rows} == {("fast", "big", "app", "ok")}
    assert [row.endpoint for row in rows] == [
        "chat", "completions", "embeddings", "images", "image_edits", "transcriptions", "translations", "speech",
        "responses",
    ]  # fmt: skip
    assert [row.usage_source for row in rows if row.endpoint != "speech"] == ["reported"] * 8


async def test_its_key_header_counts_on_its_paths_alone() -> None:
    async with gateway_over(provider) as (gateway, upstream), azure(gateway, "wrong-key-0123456789") as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.embeddings.create(model="m", input="hello")
        answer = await gateway.post(headers=[("api-key", CLIENT_KEY)], key=None)
        assert answer.status == 401
    assert upstream.requests == []


def part(name: str, value: bytes) -> bytes:
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


@pytest.mark.parametrize("size", [100, 200_000, 3 * MIB])
@pytest.mark.parametrize("lead", [b"", b"\r\n"])
async def test_a_form_without_a_model_gets_the_one_of_the_path(size: int, lead: bytes) -> None:
    file = part("file", b"x" * size)
    async with (
        FakeUpstream(provider) as upstream,
        running_gateway(aliased(upstream, body="1MiB")) as gateway,
    ):
        answer = await gateway.send("POST", TRANSCRIBE, lead + form(file), [FORM])
        [row] = await gateway.rows(1)
    assert answer.status == 200
    [asked] = upstream.requests
    assert asked.body == lead + form(part("model", b"big"), file)
    assert asked.header("content-length") == str(len(asked.body))
    assert (row.model, row.upstream_model, row.prompt_tokens) == ("fast", "big", 3)


@pytest.mark.parametrize("said", [b"fast", b"other", b"big"])
async def test_a_model_in_the_form_gives_way_to_that_of_the_path(said: bytes) -> None:
    file = part("file", b"x" * 200_000)
    async with FakeUpstream(provider) as upstream, running_gateway(aliased(upstream)) as gateway:
        answer = await gateway.send("POST", TRANSCRIBE, form(part("model", said), file), [FORM])
        [row] = await gateway.rows(1)
    assert answer.status == 200
    assert upstream.requests[0].body == form(part("model", b"big"), file)
    assert row.model == "fast"


async def test_a_model_behind_more_than_may_be_held_is_a_second_one() -> None:
    late = form(part("file", b"x" * 3 * MIB), part("model", b"other"))
    async with FakeUpstream(provider) as upstream, running_gateway(aliased(upstream, body="1MiB")) as gateway:
        async with RawClient(gateway.port) as client:
            await client.send(request("POST", TRANSCRIBE, late, [FORM, *bearer(CLIENT_KEY)]))
            answer = await client.answer()
        [row] = await gateway.rows(1)
    assert (answer.status, answer.error["code"], row.outcome) == (400, "duplicate_field", "refused")
    assert upstream.requests == []


async def test_a_second_model_field_is_refused_whatever_the_path_says() -> None:
    async with gateway_over(provider) as (gateway, _):
        twice = form(part("model", b"a"), part("model", b"b"))
        assert (await gateway.send("POST", TRANSCRIBE, twice, [FORM])).error["code"] == "duplicate_field"
        twice = b'{"model":"a","model":"b","input":"x"}'
        answer = await gateway.post(twice, target="/openai/deployments/m/embeddings")
        assert answer.error["code"] == "duplicate_field"
