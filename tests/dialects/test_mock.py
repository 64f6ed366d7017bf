"""mock: the same request gets the same bytes, in the shape of the API, through the callbacks of a real provider."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.dialects.mock import CREATED, MAX_CHOICES, MAX_ECHO, MockEndpoint, answer
from headgate.proxy.upstream.call import CallReceiver, UpstreamRequest
from tests_support.traffic import data_of, events, has_done

if TYPE_CHECKING:
    from headgate.proxy.errors import GatewayError
    from headgate.proxy.upstream.call import Call, ResponseHead

USER = {"role": "user", "content": "Hello there"}
ASKED = "This is Headgate's mock model. You said: Hello there"


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [USER], **fields}).encode()


def said(**fields: Any) -> dict[str, Any]:
    made = answer(body(**fields))
    assert (made.status, len(made.pieces)) == (200, 1)
    whole: dict[str, Any] = json.loads(made.pieces[0])
    return whole


def chunks(**fields: Any) -> list[Any]:
    made = answer(body(stream=True, **fields))
    assert made.status == 200
    assert made.pieces[-1] == b"data: [DONE]\n\n"
    return [data_of(piece) for piece in made.pieces[:-1]]


def function(name: str = "f", parameters: object = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def test_a_whole_answer_has_the_shape_of_the_api() -> None:
    whole = said()
    [choice] = whole["choices"]
    assert (whole["object"], whole["model"], choice["finish_reason"]) == ("chat.completion", "m", "stop")
    assert choice["message"] == {"role": "assistant", "content": ASKED, "refusal": None}
    usage = whole["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0


def test_the_same_request_gets_the_same_bytes() -> None:
    assert answer(body()).pieces == answer(body()).pieces
    assert said()["id"] != said(seed=1)["id"]


def test_a_stream_says_the_same_word_by_word() -> None:
    made = chunks()
    assert made[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert "".join(one["choices"][0]["delta"].get("content") or "" for one in made) == ASKED
    assert [one["choices"][0]["finish_reason"] for one in made] == [None] * (len(made) - 1) + ["stop"]
    assert len({(one["id"], one["created"], one["object"]) for one in made}) == 1
    assert not any("usage" in one for one in made)


def test_a_stream_reports_usage_to_who_asks() -> None:
    made = chunks(stream_options={"include_usage": True})
    assert (made[-1]["choices"], made[-1]["usage"]["completion_tokens"]) == ([], len(ASKED.split(" ")))
    assert all(one["usage"] is None for one in made[:-1])


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_limit_cuts_the_text(field: str) -> None:
    choice = said(**{field: 3})["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("This is Headgate's", "length")
    assert said(**{field: 1000})["choices"][0]["finish_reason"] == "stop"


def test_its_bounds_and_its_date_are_those_that_tests_of_users_may_stand_on() -> None:
    assert (CREATED, MAX_CHOICES, MAX_ECHO) == (1_700_000_000, 8, 2000)
    assert said()["created"] == 1_700_000_000


def test_an_answer_names_itself_and_counts_its_tokens() -> None:
    whole = said()
    assert re.fullmatch(r"chatcmpl-mock[0-9a-f]{16}", whole["id"])
    assert whole["system_fingerprint"] == "fp_mock"
    prompt = len(json.dumps([USER], separators=(",", ":"))) // 4
    words = len(ASKED.split(" "))
    assert whole["usage"] == {"prompt_tokens": prompt, "completion_tokens": words, "total_tokens": prompt + words}


@pytest.mark.parametrize(
    ("limit", "words", "finish"), [(0, 9, "stop"), (1, 1, "length"), (8, 8, "length"), (9, 9, "stop"), (10, 9, "stop")]
)
def test_a_limit_cuts_what_is_longer_and_nothing_else(limit: int, words: int, finish: str) -> None:
    [choice] = said(max_tokens=limit)["choices"]
    assert choice["message"]["content"] == " ".join(ASKED.split(" ")[:words])
    assert choice["finish_reason"] == finish


def test_what_it_says_is_labelled_as_what_it_is() -> None:
    assert answer(body()).headers == [(b"content-type", b"application/json")]
    assert answer(b"{").headers == [(b"content-type", b"application/json")]
    streamed = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    assert answer(body(stream=True)).headers == streamed


@pytest.mark.parametrize(("n", "count"), [(2, 2), (1000, MAX_CHOICES), (0, 1), (-1, 1), ("x", 1), (None, 1)])
def test_choices_are_counted_and_bounded(n: object, count: int) -> None:
    assert [choice["index"] for choice in said(n=n)["choices"]] == list(range(count))
    made = chunks(n=n)
    assert {one["choices"][0]["index"] for one in made} == set(range(count))


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"role": "system", "content": "x"}], "This is Headgate's mock model."),
        ([USER, {"role": "tool", "content": "42"}], "The tool said: 42"),
        ([USER, {"role": "assistant", "content": "hm"}], ASKED),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}, 7]}], ASKED[:-11] + "a"),
        ([{"role": "user", "content": None}], ASKED[:-11]),
        ([{"role": "user", "content": "x" * 5000}], ASKED[:-11] + "x" * MAX_ECHO),
    ],
)
def test_it_answers_the_last_word(messages: list[dict[str, Any]], text: str) -> None:
    assert said(messages=messages)["choices"][0]["message"]["content"] == text


@pytest.mark.parametrize(
    "bad", [b"", b"[]", b"{", b"\xff", b"{}", b'{"messages":[]}', b'{"messages":"x"}', b'{"messages":[1]}', b"[" * 9999]
)
def test_what_is_no_request_is_refused(bad: bytes) -> None:
    made = answer(bad)
    assert made.status == 400
    assert set(json.loads(made.pieces[0])["error"]) == {"message", "type", "param", "code"}


# -- tools


@pytest.mark.parametrize(
    ("parameters", "arguments"),
    [
        (None, {}),
        ({}, {}),
        ({"type": "object", "properties": {"a": {"type": "string"}}}, {}),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}, {"a": "mock"}),
        (
            {
                "type": "object",
                "properties": {
                    "s": {"type": "string"},
                    "i": {"type": "integer"},
                    "f": {"type": "number"},
                    "b": {"type": "boolean"},
                    "l": {"type": "array"},
                    "e": {"enum": ["x", "y"]},
                    "o": {"type": "object", "properties": {"p": {"type": "integer"}}, "required": ["p"]},
                    "n": 7,
                },
                "required": ["s", "i", "f", "b", "l", "e", "o", "n", "missing", 7],
            },
            {"s": "mock", "i": 1, "f": 1, "b": True, "l": [], "e": "x", "o": {"p": 1}, "n": {}, "missing": {}},
        ),
    ],
)
def test_a_tool_is_called_with_the_smallest_arguments_that_fit(parameters: object, arguments: dict[str, Any]) -> None:
    choice = said(tools=[function(parameters=parameters)])["choices"][0]
    [call] = choice["message"]["tool_calls"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
    assert (call["type"], call["function"]["name"]) == ("function", "f")
    assert json.loads(call["function"]["arguments"]) == arguments


def test_a_schema_that_holds_itself_ends() -> None:
    deep: dict[str, Any] = {"type": "object", "required": ["a"]}
    inner = deep
    for _ in range(20):
        inner["properties"] = {"a": {"type": "object", "required": ["a"]}}
        inner = inner["properties"]["a"]
    assert said(tools=[function(parameters=deep)])["choices"][0]["finish_reason"] == "tool_calls"


def test_a_streamed_call_gives_id_and_name_once() -> None:
    made = chunks(tools=[function()])
    calls = [one["choices"][0]["delta"]["tool_calls"][0] for one in made if "tool_calls" in one["choices"][0]["delta"]]
    assert [("id" in call, call["function"].get("name")) for call in calls] == [(True, "f"), (False, None)]
    assert "".join(call["function"]["arguments"] for call in calls) == "{}"
    assert made[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("fields", "called"),
    [
        ({"tools": [function("a"), function("b")]}, "a"),
        ({"tools": [function("a"), function("b")], "tool_choice": {"function": {"name": "b"}}}, "b"),
        ({"tools": [function("a")], "tool_choice": {"function": {"name": "b"}}}, None),
        ({"tools": [function("a")], "tool_choice": "auto"}, "a"),
        ({"tools": [function("a")], "tool_choice": "none"}, None),
        ({"tools": [function("a")], "messages": [USER, {"role": "tool", "content": "1"}]}, None),
        ({"tools": [7, {"function": 7}]}, None),
        ({"tools": "x"}, None),
    ],
)
def test_which_tool_is_called(fields: dict[str, Any], called: str | None) -> None:
    message = said(**fields)["choices"][0]["message"]
    assert (message["tool_calls"][0]["function"]["name"] if "tool_calls" in message else None) == called


# -- the endpoint


class Heard(CallReceiver):
    """A receiver that notes what it hears, and may act on it."""

    def __init__(self, *, cancel_at: str = "", pause_at: str = "") -> None:
        self.seen: list[Any] = []
        self.ended = asyncio.Event()
        self.cancel_at, self.pause_at = cancel_at, pause_at

    def note(self, call: Call, what: str) -> None:
        if what == self.cancel_at:
            call.cancel()
        if what == self.pause_at:
            call.pause()

    def on_sent(self, call: Call) -> None:
        self.seen.append("sent")
        self.note(call, "sent")

    def on_head(self, call: Call, head: ResponseHead) -> None:
        self.seen.append(head.status)
        self.note(call, "head")

    def on_data(self, call: Call, data: bytes) -> None:
        self.seen.append(data)
        self.note(call, "data")

    def on_end(self, call: Call, clean: bool) -> None:
        self.seen.append(clean)
        self.ended.set()

    def on_error(self, call: Call, error: GatewayError) -> None:
        raise AssertionError(error)


def start(heard: Heard, *, delay: float = 0.0, target: bytes = b"/chat/completions", **fields: Any) -> Call:
    return MockEndpoint(delay=delay).start(UpstreamRequest(b"POST", target, [], body(**fields)), heard)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("delay", [0.0, 0.0001])
async def test_it_plays_an_answer_piece_by_piece(delay: float) -> None:
    heard = Heard()
    start(heard, delay=delay, stream=True)
    assert heard.seen == []
    await asyncio.wait_for(heard.ended.wait(), 5)
    assert heard.seen[:2] == ["sent", 200]
    assert heard.seen[-1] is True
    stream = b"".join(heard.seen[2:-1])
    assert has_done(stream)
    assert len(events(stream)) == len(heard.seen) - 3


async def test_a_target_it_does_not_speak_is_404() -> None:
    heard = Heard()
    start(heard, target=b"/embeddings")
    await asyncio.wait_for(heard.ended.wait(), 5)
    assert heard.seen[1] == 404


@pytest.mark.parametrize("at", ["", "sent", "head", "data"])
async def test_a_cancelled_call_is_silent(at: str) -> None:
    heard = Heard(cancel_at=at)
    call = start(heard, stream=True)
    if not at:
        call.cancel()
    await turns()
    assert len(heard.seen) == ["", "sent", "head", "data"].index(at)
    call.cancel()
    assert not heard.ended.is_set()


@pytest.mark.parametrize("at", ["head", "data"])
async def test_a_paused_call_waits_and_goes_on(at: str) -> None:
    heard = Heard(pause_at=at)
    call = start(heard, stream=True)
    await turns()
    count = len(heard.seen)
    assert count == (2 if at == "head" else 3)
    heard.pause_at = ""
    call.resume()
    call.resume()
    await asyncio.wait_for(heard.ended.wait(), 5)
    assert has_done(b"".join(heard.seen[2:-1]))


async def test_a_pause_that_is_taken_back_at_once_changes_nothing() -> None:
    heard = Heard()
    call = start(heard, stream=True)
    call.pause()
    call.resume()
    await asyncio.wait_for(heard.ended.wait(), 5)
    assert heard.seen.count(200) == 1
    await MockEndpoint().aclose()


@given(st.dictionaries(st.sampled_from(["messages", "tools", "tool_choice", "n", "max_tokens", "stream", "model"]),
                       st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                                        st.sampled_from(["role", "content", "function", "name", "type"]), inner),
                                    max_leaves=8)))  # fmt: skip
def test_any_json_object_gets_an_answer(request: dict[str, Any]) -> None:
    assert answer(json.dumps(request).encode()).status in (200, 400)
