"""mock: to the openai SDK a provider like any other, on a port of its own."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest

from headgate.control.mock.catalogue import FAULTS
from tests_support.command import command
from tests_support.process import environment
from tests_support.raw import CHAT, RawClient, request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headgate.control.mock.provider import MockProvider
    from tests_support.command import InProcess

HELLO: Any = [{"role": "user", "content": "one two three"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@contextmanager
def mock(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Running, its base URL and its process; killed if the test has not ended it."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "headgate", "mock", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        assert process.stdout is not None
        found = re.match(r"headgate mock: an OpenAI API at (http://\S+/v1), ", process.stdout.readline())
        assert found is not None
        yield found[1], process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """One for the whole file."""
    with mock() as (url, process):
        yield url
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    """The real SDK."""
    with openai.OpenAI(base_url=base_url, api_key="any", max_retries=0, timeout=20) as sdk:
        yield sdk


def test_a_completion(client: openai.OpenAI) -> None:
    answer: Any = client.chat.completions.create(model="any-model", messages=HELLO)
    assert answer.choices[0].message.content == "This is Headgate's mock model. You said: one two three"
    assert answer.model == "any-model"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="m", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks: list[Any] = list(stream)
    text = "".join(choice.delta.content or "" for one in chunks for choice in one.choices)
    assert text == "This is Headgate's mock model. You said: one two three"
    assert chunks[-1].usage.completion_tokens > 0
    assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] == "stop"


def test_tools_and_their_results(client: openai.OpenAI) -> None:
    answer: Any = client.chat.completions.create(model="m", messages=HELLO, tools=[TOOL])
    [call] = answer.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city":"mock"}')
    result = [*HELLO, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    answer = client.chat.completions.create(model="m", messages=result, tools=[TOOL])
    assert answer.choices[0].message.content == "The tool said: rain"


async def test_the_async_sdk(base_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0, timeout=20) as sdk:
        answers = await asyncio.gather(*(sdk.chat.completions.create(model=str(n), messages=HELLO) for n in range(5)))
    assert [answer.model for answer in answers] == ["0", "1", "2", "3", "4"]


def test_the_list_of_models_and_what_it_does_not_have(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["mock"]
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model="m", messages=[])
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="m", input="text")


async def test_another_method_is_405(base_url: str) -> None:
    async with RawClient(port_of(base_url)) as raw:
        await raw.send(request("GET", CHAT))
        answer = await raw.answer()
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")


def port_of(url: str) -> int:
    """Of a base URL."""
    return int(url.rpartition(":")[2].partition("/")[0])


def test_delay_comes_before_each_event_and_a_client_may_leave() -> None:
    with mock("--delay", "50") as (url, process):
        with openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=20) as sdk:
            started = time.monotonic()
            stream = sdk.chat.completions.create(model="m", messages=HELLO, stream=True)
            events = len(list(stream))
            assert time.monotonic() - started > 0.05 * (events - 1)
            left = sdk.chat.completions.create(model="m", messages=HELLO, stream=True)
            next(iter(left))
            left.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


async def test_a_taken_port_names_the_option() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = await command("mock", "--port", str(port))
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"headgate: port {port} of 127.0.0.1 is in use: stop what listens there, or set --port to another\n"
    )


async def test_faults_are_listed_by_group() -> None:
    done = await command("mock", "--list-faults")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"^stream: .+$", done.out, re.MULTILINE)
    assert re.search(r"^  close-in-body +closed in the middle of the body$", done.out, re.MULTILINE)


async def test_a_fault_that_does_not_exist_is_answered_with_the_nearest() -> None:
    done = await command("mock", "--fault", "close-in-bodi")
    assert (done.code, done.out) == (2, "")
    assert done.err == "headgate: there is no fault 'close-in-bodi', did you mean 'close-in-body'?\n"


def test_the_sdk_meets_the_fault_its_model_names(client: openai.OpenAI) -> None:
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="mock-fault-429", messages=HELLO)
    with pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(model="mock-fault-reset-before-head", messages=HELLO)
    with pytest.raises(openai.APIConnectionError):
        list(client.chat.completions.create(model="mock-fault-close-in-body", messages=HELLO, stream=True))


def test_all_of_them_fail_in_turn_every_second_time_and_faster_than_in_life() -> None:
    arguments = ("--fault", "500", "--fault", "late-head", "--every", "2", "--times", "2", "--speed", "1000")
    with mock(*arguments) as (url, _), openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=20) as sdk:
        raw = sdk.chat.completions.with_raw_response
        assert raw.create(model="m", messages=HELLO).status_code == 200
        with pytest.raises(openai.InternalServerError):
            raw.create(model="m", messages=HELLO)
        for _ in range(4):
            assert raw.create(model="m", messages=HELLO).status_code == 200


def test_all_is_every_fault_there_is(headgate: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[MockProvider] = []

    async def run_mock(address: str, port: int, provider: MockProvider, announce: object, *, speed: float) -> int:
        served.append(provider)
        return 0

    monkeypatch.setattr("headgate.control.process.mock_server.run_mock", run_mock)
    assert headgate("mock", "--fault", "all", "--fault", "500").code == 0
    assert served[0].schedule._faults == (*FAULTS.values(), FAULTS["500"])
