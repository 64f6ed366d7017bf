"""The `openai` SDK, sync and async, through a running gateway: it behaves as against the provider itself."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import openai
import pytest
from anyio import to_thread
from openai import AsyncOpenAI, OpenAI

from tests_support.answers import (
    DONE,
    USAGE,
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
from tests_support.gateway import CLIENT_KEY, RunningGateway, gateway_over, gateway_over_two
from tests_support.upstream import FIN, STALL, Request, Sleep, Step, in_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MESSAGES: Any = [{"role": "user", "content": "hello"}]
MODEL = "gpt-4o-mini"
SSE = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
EVENTS = [event(one) for one in chat_chunks(done=False)]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def provider(asked: Request) -> Sequence[Step]:
    """Streams to who asks for a stream, with usage to who asks for usage."""
    body = asked.json()
    if not body.get("stream"):
        return [json_response(chat_completion(), headers=[("x-request-id", "req_up")])]
    wants_usage = (body.get("stream_options") or {}).get("include_usage")
    return sse(chat_chunks(usage=USAGE if wants_usage else None), headers=[("x-request-id", "req_up")])


def client_for(gateway: RunningGateway, **options: Any) -> AsyncOpenAI:
    """The SDK with nothing changed but its base_url, and no retries of its own unless asked."""
    return AsyncOpenAI(**{"base_url": gateway.base_url, "api_key": CLIENT_KEY, "max_retries": 0, **options})


async def sync(gateway: RunningGateway, use: Callable[[OpenAI], Any], **options: Any) -> Any:
    """The same, in a thread, with the sync client."""

    def run() -> Any:
        with OpenAI(**{"base_url": gateway.base_url, "api_key": CLIENT_KEY, "max_retries": 0, **options}) as client:
            return use(client)

    return await to_thread.run_sync(run)


async def test_a_completion_comes_back_as_the_provider_made_it() -> None:
    async with gateway_over(provider) as (gateway, _), client_for(gateway) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
        again = await sync(gateway, lambda client: client.chat.completions.create(model=MODEL, messages=MESSAGES))
    assert answer == again
    assert answer.choices[0].message.content == "Hello there."
    assert answer.usage is not None
    assert answer.usage.total_tokens == 21
    assert answer._request_id == "req_up"


async def test_a_stream_comes_back_piece_by_piece() -> None:
    async with gateway_over(provider) as (gateway, _), client_for(gateway) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        chunks = [one async for one in stream]
        again = await sync(
            gateway,
            lambda client: list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)),
        )
    assert chunks == again
    assert [one.choices[0].delta.content for one in chunks] == ["", "Hel", "lo ", "there.", None]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(one.usage is None for one in chunks)


async def test_usage_of_a_stream_comes_to_who_asks() -> None:
    """Wire 22, 11: the chunk of usage is the last one, and it is not there for who did not ask."""
    async with gateway_over(provider) as (gateway, _), client_for(gateway) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [one async for one in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 21


async def test_the_stream_helper_puts_the_answer_together() -> None:
    """Wire 22-26."""
    options: Any = {"model": MODEL, "messages": MESSAGES, "stream_options": {"include_usage": True}}
    async with (
        gateway_over(provider) as (gateway, _),
        client_for(gateway) as client,
        client.chat.completions.stream(**options) as stream,
    ):
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "Hello there."
    assert final.choices[0].message.role == "assistant"
    assert final.usage is not None
    assert final.usage.completion_tokens == 12


def tool_chunks() -> list[dict[str, Any] | bytes]:
    """Wire 24."""
    function = {"name": "get_weather", "arguments": ""}
    first = {"index": 0, "id": "call_1", "type": "function", "function": function}
    more = [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in ('{"ci', 'ty":"Bonn"}')]
    return [
        chat_chunk({"role": "assistant", "content": None}),
        chat_chunk({"tool_calls": [first]}),
        *map(chat_chunk, more),
        chat_chunk({}, finish_reason="tool_calls"),
        DONE,
    ]


async def test_tool_calls_come_back_whole_and_streamed() -> None:
    """Wire 24."""
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Bonn"}'}}
    whole = json_response(chat_completion(None, message={"tool_calls": [call]}, finish_reason="tool_calls"))
    script = in_turn(whole, sse(tool_chunks()))
    async with gateway_over(script) as (gateway, upstream), client_for(gateway) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=TOOLS)
        async with client.chat.completions.stream(model=MODEL, messages=MESSAGES, tools=TOOLS) as stream:
            final = await stream.get_final_completion()
    for completion in (answer, final):
        [made] = completion.choices[0].message.tool_calls or []
        assert made.type == "function"
        assert (made.id, made.function.name) == ("call_1", "get_weather")
        assert made.function.arguments == '{"city":"Bonn"}'
    assert upstream.requests[0].json()["tools"] == TOOLS


async def test_raw_responses_show_the_providers_headers_and_ours() -> None:
    async with gateway_over(provider) as (gateway, _), client_for(gateway) as client:
        raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES)
        async with client.chat.completions.with_streaming_response.create(
            model=MODEL, messages=MESSAGES, stream=True
        ) as streamed:
            lines = [line async for line in streamed.iter_lines()]
    assert raw.headers["x-request-id"] == "req_up"
    assert raw.headers["x-headgate-provider"] == "up"
    assert float(raw.headers["x-headgate-cost-usd"]) > 0
    assert raw.parse().choices[0].message.content == "Hello there."
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert [line for line in lines if line][-1] == "data: [DONE]"


async def test_extra_fields_headers_and_queries_reach_the_provider() -> None:
    """Wire 7."""
    async with gateway_over(provider) as (gateway, upstream), client_for(gateway) as client:
        await client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            extra_body={"top_k": 5, "chat_template_kwargs": {"thinking": False}},
            extra_headers={"x-team": "red", "Idempotency-Key": "ik-1"},
            extra_query={"api-version": "1"},
        )
    request = upstream.requests[0]
    assert request.json()["top_k"] == 5
    assert request.json()["chat_template_kwargs"] == {"thinking": False}
    assert (request.header("x-team"), request.header("idempotency-key")) == ("red", "ik-1")
    assert request.target.endswith("?api-version=1")
    assert request.header("x-stainless-lang") == "python"
    assert request.header("accept-encoding") == "identity"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_wrong_key_is_an_authentication_error(stream: bool) -> None:
    """Wire 15."""
    async with (
        gateway_over(provider) as (gateway, upstream),
        client_for(gateway, api_key="sk-wrong-key-00001") as client,
    ):
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=stream)
    assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
    assert caught.value.request_id
    assert upstream.connections == []


async def test_an_unknown_model_is_a_not_found_error() -> None:
    """Wire 10."""
    changes = {"models": {"known": {"targets": [{"provider": "up"}]}}}
    async with gateway_over(provider, changes=changes) as (gateway, _), client_for(gateway) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="unknown", messages=MESSAGES)
    assert (caught.value.code, caught.value.param, caught.value.type) == (
        "model_not_found",
        "model",
        "invalid_request_error",
    )


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
async def test_a_providers_error_raises_its_own_class(status: int, kind: type[openai.APIStatusError]) -> None:
    """Wire 15."""
    error = {"message": "said so", "type": "t", "param": "p", "code": None}
    script = json_response({"error": error}, status, [("x-request-id", "req_up")])
    async with gateway_over(script, retry=False) as (gateway, _), client_for(gateway) as client:
        with pytest.raises(kind) as caught:
            await client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert (caught.value.status_code, caught.value.request_id) == (status, "req_up")
    assert "said so" in str(caught.value)


async def test_the_sdks_own_timeout_closes_the_providers_connection() -> None:
    """Wire 34."""
    async with gateway_over([STALL]) as (gateway, upstream), client_for(gateway, timeout=0.3) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(model=MODEL, messages=MESSAGES)
        given_up = time.monotonic()
        connection = await upstream.wait_closed()
        [row] = await gateway.rows(1)
    assert (connection.closed_at or 0) - given_up < 0.1
    assert (row.outcome, row.status) == ("cancelled", 499)


async def test_leaving_a_stream_early_closes_the_providers_connection() -> None:
    """Wire 34: within 100 ms."""
    script: list[Step] = [SSE, *map(chunk, EVENTS[:3]), STALL]
    async with gateway_over(script) as (gateway, upstream), client_for(gateway) as client:
        async with await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True) as stream:
            async for one in stream:
                if one.choices[0].delta.content:
                    break
        left = time.monotonic()
        connection = await upstream.wait_closed()

        def leave(client: OpenAI) -> None:
            with client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True) as stream:
                next(iter(stream))

        await sync(gateway, leave)
        await upstream.wait_closed(2)
        rows = await gateway.rows(2)
    assert (connection.closed_at or 0) - left < 0.1
    assert [row.outcome for row in rows] == ["cancelled", "cancelled"]
    assert all(row.usage_source == "estimated" for row in rows)


@pytest.mark.parametrize("end", [[FIN], [b"0\r\n\r\n"]])
async def test_a_stream_cut_in_the_middle_raises_an_api_error(end: list[Step]) -> None:
    """Wire 32: without the gateway the SDK would take it for whole."""
    script = [SSE, *map(chunk, EVENTS[:3]), *end]
    async with gateway_over(script, retry=False) as (gateway, _), client_for(gateway) as client:
        got: list[str | None] = []

        async def read_all() -> None:
            async for one in await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True):
                got.append(one.choices[0].delta.content)  # noqa: PERF401 - what came before the error counts

        with pytest.raises(openai.APIError, match="provider"):
            await read_all()

        def read(client: OpenAI) -> None:
            with pytest.raises(openai.APIError, match="provider"):
                list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))

        await sync(gateway, read)
    assert got == ["", "Hel", "lo "]


async def test_an_overloaded_provider_is_retried_by_the_sdk_where_we_did_not() -> None:
    """Wire 16, 17: `retry-after` comes through, and the client's second try is an exchange of its own."""
    script = in_turn(
        error_response(429, "slow down", headers=[("retry-after-ms", "20")]), json_response(chat_completion())
    )
    async with gateway_over(script, retry=False) as (gateway, upstream), client_for(gateway, max_retries=2) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
        rows = await gateway.rows(2)
    assert answer.choices[0].message.content == "Hello there."
    assert [row.outcome for row in rows] == ["upstream_error", "ok"]
    assert [one.header("x-stainless-retry-count") for one in upstream.requests] == ["0", "1"]


async def test_a_rate_limit_tells_when_to_come_back() -> None:
    """Wire 13."""
    script = error_response(429, "slow down", headers=[("retry-after", "7"), ("x-ratelimit-remaining-requests", "0")])
    async with gateway_over(script, retry=False) as (gateway, _), client_for(gateway) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert caught.value.response.headers["retry-after"] == "7"
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"


async def test_the_sdk_does_not_multiply_tries_that_are_spent() -> None:
    """Wire 16: `x-should-retry: false` wins over the status."""
    failing = error_response(500, "no")
    async with gateway_over_two(failing, failing) as (gateway, up, up2), client_for(gateway, max_retries=5) as client:
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert len(up.requests) + len(up2.requests) == 2


async def test_models_are_listed_and_retrieved() -> None:
    """Wire §1.1."""
    models = {name: {"targets": [{"provider": "up"}]} for name in ("fast", "org/model:free")}
    async with gateway_over(provider, changes={"models": models}) as (gateway, _), client_for(gateway) as client:
        assert [model.id async for model in client.models.list()] == ["fast", "org/model:free"]
        assert (await client.models.retrieve("org/model:free")).id == "org/model:free"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("unknown")
        names = await sync(gateway, lambda client: [model.id for model in client.models.list()])
    assert names == ["fast", "org/model:free"]


async def test_many_at_once_do_not_mix() -> None:
    """Faults A7 in small: each answer belongs to its request."""

    async def slowly(n: int, client: AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": str(n)}], stream=True
        )
        said = "".join([one.choices[0].delta.content or "" async for one in stream])
        assert said == f"{n} {n} {n}"

    def script(asked: Request) -> list[Step]:
        n = asked.json()["messages"][0]["content"]
        events: list[Step] = []
        for one in sse(chat_chunks([n, f" {n}", f" {n}"])):
            events += [one, Sleep(0.002)]
        return events

    async with gateway_over(script) as (gateway, _), client_for(gateway) as client:
        async with asyncio.TaskGroup() as group:
            for n in range(50):
                group.create_task(slowly(n, client))
        assert len(await gateway.rows(50)) == 50
