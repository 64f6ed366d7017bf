"""Sound and speech by the `openai` SDK: what is charged by seconds or by characters is metered and priced so where it
is told, and otherwise nothing is made up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from openai import AsyncOpenAI

from tests_support.answers import LAST_CHUNK, chunk, json_response, response, response_head, typed_event
from tests_support.gateway import CLIENT_KEY, RunningGateway, gateway_over

if TYPE_CHECKING:
    from headgate.proxy.accounting.record import Done
    from tests_support.upstream import Source

SSE = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
SOUND = ("a.wav", b"RIFF", "audio/wav")
SECONDS = {"type": "duration", "seconds": 90}
TOKENS = {"type": "tokens", "input_tokens": 14, "output_tokens": 45, "total_tokens": 59,
          "input_token_details": {"text_tokens": 4, "audio_tokens": 10}}  # fmt: skip
DONE = typed_event("transcript.text.done", text="hi", usage=SECONDS)


def client_for(gateway: RunningGateway) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY, max_retries=0)


async def transcribed(answer: Source, model: str = "whisper-1", price_as: str = "openai", **options: Any) -> Done:
    """The row of one transcription."""
    async with gateway_over(answer, price_as=price_as) as (gateway, _), client_for(gateway) as client:
        made = await client.audio.transcriptions.create(model=model, file=SOUND, **options)
        if options.get("stream"):
            assert [one.type async for one in made] == ["transcript.text.done"]
        [row] = await gateway.rows(1)
    return row


@pytest.mark.parametrize(
    ("answer", "options"),
    [
        (json_response({"text": "hi", "usage": SECONDS}), {}),
        (json_response({"text": "hi", "duration": 90.0, "language": "en"}), {"response_format": "verbose_json"}),
        (json_response({"text": "hi", "duration": "90"}), {"response_format": "verbose_json"}),
        ([SSE, chunk(DONE), LAST_CHUNK], {"stream": True}),
    ],
    ids=["usage", "verbose", "verbose as text", "streamed"],
)
async def test_seconds_are_metered_and_priced(answer: Source, options: dict[str, Any]) -> None:
    row = await transcribed(answer, **options)
    assert (row.audio_seconds, row.prompt_tokens, row.completion_tokens) == (90, 0, 0)
    assert row.usage_source == "reported"
    assert row.cost_usd == pytest.approx(0.36 * 90 / 3600)  # USD an hour
    assert row.usage().audio_seconds == 90


async def test_seconds_of_a_model_that_is_priced_by_tokens_have_no_price() -> None:
    row = await transcribed(json_response({"text": "hi", "usage": SECONDS}), model="gpt-4o-transcribe")
    assert (row.audio_seconds, row.usage_source, row.cost_usd) == (90, "reported", None)


async def test_tokens_of_a_transcription_are_priced_as_such() -> None:
    row = await transcribed(json_response({"text": "hi", "usage": TOKENS}), model="gpt-4o-transcribe")
    assert (row.prompt_tokens, row.completion_tokens, row.audio_seconds) == (14, 45, 0)
    assert row.cost_usd


@pytest.mark.parametrize(
    "answer",
    [
        json_response({"text": "hi"}),
        json_response({"text": "hi", "usage": {"type": "duration", "seconds": -1}}),
        json_response({"text": "hi", "usage": {"type": "duration", "seconds": "long"}, "duration": "nan"}),
        json_response({"text": "hi", "duration": [90]}),
        response(200, b"1\n00:00:00 --> 00:00:01\nhi\n", [("content-type", "text/plain")]),
    ],
)
async def test_what_is_not_told_is_not_made_up(answer: bytes) -> None:
    async with gateway_over(answer, price_as="openai") as (gateway, _), client_for(gateway) as client:
        await client.audio.transcriptions.with_raw_response.create(model="whisper-1", file=SOUND)
        [row] = await gateway.rows(1)
    assert (row.audio_seconds, row.usage_source, row.cost_usd) == (0, "none", None)


async def spoken(model: str, text: str, *, price_as: str | None = "openai", status: int = 200) -> Done:
    answer = response(status, b"\xff\xfb" * 999, [("content-type", "audio/mpeg")])
    async with gateway_over(answer, price_as=price_as) as (gateway, _), client_for(gateway) as client:
        if status == 200:
            assert (
                await client.audio.speech.create(model=model, voice="alloy", input=text)
            ).content == b"\xff\xfb" * 999
        else:
            body = f'{{"model":"{model}","input":"{text}","voice":"alloy"}}'.encode()
            assert (await gateway.post(body, target="/v1/audio/speech")).status == status
        [row] = await gateway.rows(1)
    return row


async def test_speech_is_priced_by_its_characters_where_the_price_is() -> None:
    row = await spoken("tts-1", "grüße ☃")
    assert (row.characters, row.prompt_tokens, row.usage_source) == (7, 0, "estimated")
    assert row.cost_usd == pytest.approx(15 * 7 / 1_000_000)


@pytest.mark.parametrize(
    ("model", "options"),
    [("gpt-4o-mini-tts", {}), ("tts-1", {"status": 400}), ("nobodys-tts", {}), ("tts-1", {"empty": 1})],
)
async def test_other_speech_costs_nothing_that_is_known(model: str, options: dict[str, int]) -> None:
    text = "" if options.pop("empty", 0) else "hello"
    row = await spoken(model, text, status=options.get("status", 200))
    assert (row.characters, row.usage_source, row.cost_usd) == (0, "none", None)
