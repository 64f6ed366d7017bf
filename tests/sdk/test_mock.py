"""The `openai` SDK against the built-in mock: no key, no provider, and everything but a model is real."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from openai import AsyncOpenAI

from tests_support.gateway import running_gateway, written

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MESSAGES: Any = [{"role": "user", "content": "hello, you"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[AsyncOpenAI]:
    """With an empty file and an empty environment, the mock answers."""
    async with (
        running_gateway(written({}, tmp_path)) as gateway,
        AsyncOpenAI(base_url=gateway.base_url, api_key="anything", max_retries=0) as client,
    ):
        yield client


async def test_answers(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="mock", messages=MESSAGES)
    assert "hello, you" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


async def test_says_the_same_streamed(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model="mock", messages=MESSAGES)
    stream = await client.chat.completions.create(model="mock", messages=MESSAGES, stream=True)
    said = [one.choices[0].delta.content or "" async for one in stream]
    assert "".join(said) == whole.choices[0].message.content
    assert len(said) > 3


async def test_calls_a_tool_then_uses_its_result(client: AsyncOpenAI) -> None:
    first = await client.chat.completions.create(model="mock", messages=MESSAGES, tools=[TOOL])
    [call] = first.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, first.choices[0].finish_reason) == ("get_weather", "tool_calls")
    assert isinstance(json.loads(call.function.arguments)["city"], str)
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "It is sunny."}
    said: Any = first.choices[0].message.model_dump(exclude_none=True)
    second = await client.chat.completions.create(model="mock", messages=[*MESSAGES, said, result], tools=[TOOL])
    assert "It is sunny." in (second.choices[0].message.content or "")


async def test_streams_a_tool_call_the_sdk_can_put_together(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model="mock", messages=MESSAGES, tools=[TOOL]) as stream:
        final = await stream.get_final_completion()
    [call] = final.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"


async def test_several_choices_and_a_limit(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="mock", messages=MESSAGES, n=2, max_tokens=1)
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]


async def test_costs_nothing_and_says_so(client: AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(model="mock", messages=MESSAGES)
    assert raw.headers["x-headgate-provider"] == "mock"
    assert float(raw.headers["x-headgate-cost-usd"]) == 0
