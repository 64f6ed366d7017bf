"""The request body reaches the provider byte for byte; only what must change does (wire 7, 11, 22)."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests_support.answers import chat_chunks, chat_completion, json_response, sse
from tests_support.gateway import RunningGateway, config_for, running_gateway
from tests_support.upstream import FakeUpstream, Request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

SPACE = st.text(" \t\r\n", max_size=3)
NUMBERS = st.sampled_from(
    ["0", "-0", "1.0", "1e3", "1E+3", "-1.50e-07", "12345678901234567890", "0.1000", "9007199254740993"]
)
STRINGS = st.sampled_from(
    [
        '""',
        '"model"',
        r'"\"model\": \"x\""',
        r'"\u0041\ud83d\ude00"',
        '"é ü 漢字 😀"',
        '"\u2028\u2029\u0085"',
        r'"a\/b\\"',
        r'"\b\f\n\r\t"',
    ]
)
NAMES = st.sampled_from(
    ['"top_k"', '"chat_template_kwargs"', '"MODEL"', '"models"', '"m"', '"é"', r'"a\u0062"', '"temperature"']
)
NESTED_NAMES = st.one_of(NAMES, st.sampled_from(['"model"', '"stream"', '"stream_options"', r'"mod\u0065l"']))


def lexemes() -> st.SearchStrategy[str]:
    """JSON values spelled in every odd way, nested ones holding `model`s of their own."""
    leaves = st.one_of(NUMBERS, STRINGS, st.sampled_from(["true", "false", "null"]))
    return st.recursive(leaves, lambda inner: st.one_of(arrays(inner), objects(NESTED_NAMES, inner)), max_leaves=8)


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    items = draw(st.lists(inner, max_size=3))
    return "[" + ",".join(draw(SPACE) + item + draw(SPACE) for item in items) + "]"


@st.composite
def members(draw: st.DrawFn, names: st.SearchStrategy[str], values: st.SearchStrategy[str]) -> str:
    return draw(SPACE) + draw(names) + draw(SPACE) + ":" + draw(SPACE) + draw(values) + draw(SPACE)


@st.composite
def objects(draw: st.DrawFn, names: st.SearchStrategy[str], values: st.SearchStrategy[str]) -> str:
    return "{" + ",".join(draw(st.lists(members(names, values), max_size=3))) + "}"


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A request before and after its model's value, which stands anywhere among the other members."""
    before = draw(st.lists(members(NAMES, lexemes()), max_size=3))
    after = draw(st.lists(members(NAMES, lexemes()), max_size=3))
    key = draw(st.sampled_from(['"model"', r'"mod\u0065l"', r'"\u006dodel"']))
    head = (
        draw(SPACE) + "{" + "".join(one + "," for one in before) + draw(SPACE) + key + draw(SPACE) + ":" + draw(SPACE)
    )
    tail = draw(SPACE) + "".join("," + one for one in after) + "}" + draw(SPACE)
    return head.encode(), tail.encode()


def answer(request: Request) -> Sequence[bytes]:
    return sse(chat_chunks()) if request.json().get("stream") else [json_response(chat_completion())]


class Relay:
    """One gateway for all examples: it sends `same` on as it is, and `alias` as `org/real-1`."""

    def __init__(self, gateway: RunningGateway, upstream: FakeUpstream) -> None:
        self.gateway = gateway
        self.upstream = upstream

    async def __call__(self, body: bytes) -> bytes:
        """What the provider gets for this body."""
        self.upstream.requests.clear()
        reply = await self.gateway.post(body)
        assert reply.status == 200, (body, reply.body)
        return self.upstream.requests[0].body


@pytest.fixture(scope="module")
async def relay() -> AsyncIterator[Relay]:
    async with FakeUpstream(answer) as upstream:
        models = {
            "same": {"targets": [{"provider": "up"}]},
            "alias": {"targets": [{"provider": "up", "model": "org/real-1"}]},
        }
        async with running_gateway({**config_for(upstream), "models": models}) as gateway:
            yield Relay(gateway, upstream)


MANY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@MANY
@given(body=bodies())
async def test_a_body_that_needs_no_change_goes_up_byte_for_byte(relay: Relay, body: tuple[bytes, bytes]) -> None:
    """Wire 7."""
    whole = b'"same"'.join(body)
    assert await relay(whole) == whole


@MANY
@given(body=bodies())
async def test_only_the_models_own_bytes_change(relay: Relay, body: tuple[bytes, bytes]) -> None:
    """Wire 7."""
    assert await relay(b'"alias"'.join(body)) == b'"org/real-1"'.join(body)


@pytest.mark.parametrize("spelled", [rb'"s\u0061me"', rb'"\u0073\u0061\u006d\u0065"'])
async def test_an_escaped_model_is_the_model_and_keeps_its_spelling(relay: Relay, spelled: bytes) -> None:
    """Wire 7."""
    body = b'{"model": %b, "messages": []}' % spelled
    assert await relay(body) == body


def grown(before: bytes, after: bytes) -> bytes:
    """The bytes that were put in, if putting in is all that was done."""
    start = 0
    while start < len(before) and before[start] == after[start]:
        start += 1
    rest = len(before) - start
    assert before[start:] == after[len(after) - rest :], (before, after)
    return after[start : len(after) - rest]


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"same","stream":true}',
        b'{ "stream" : true , "model" : "same" }',
        b'{"messages":[{"content":"\\"stream_options\\": 1"}],"model":"same","stream":true,"n":1e0}',
        b'{"x":{"stream_options":{"include_usage":true}},"stream":true,"model":"same"}',
        '{"model":"same","é":1.0,"stream":true}\n'.encode(),
    ],
)
async def test_a_stream_that_does_not_ask_for_usage_gets_the_wish_and_nothing_else(relay: Relay, body: bytes) -> None:
    """Wire 11."""
    sent = await relay(body)
    grown(body, sent)
    assert json.loads(sent) == {**json.loads(body), "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("options", "becomes"),
    [
        ('{"include_usage": false}', {"include_usage": True}),
        ("{}", {"include_usage": True}),
        ("null", {"include_usage": True}),
        ('{"include_obfuscation" :false}', {"include_obfuscation": False, "include_usage": True}),
        ('{"a":1,"include_usage":null,"b":2}', {"a": 1, "include_usage": True, "b": 2}),
    ],
)
async def test_stream_options_without_usage_change_in_their_own_place(relay: Relay, options: str, becomes: Any) -> None:
    """Wire 11."""
    head, tail = '{"top_k" : 1.0, "stream":true, "stream_options" : ', ' , "model":"same", "seed":1e0}'
    sent = (await relay((head + options + tail).encode())).decode()
    assert sent.startswith(head)
    assert sent.endswith(tail)
    assert json.loads(sent)["stream_options"] == becomes
    assert len(re.findall("include_usage", sent)) == 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"same","stream":true,"stream_options":{"include_usage":true}}',
        b'{"model":"same","stream":true, "stream_options" : { "include_usage" : true , "continuous":true } }',
        b'{"model":"same","stream":false}',
        b'{"model":"same","stream":null}',
        b'{"model":"same"}',
    ],
)
async def test_a_body_that_asks_for_usage_or_is_no_stream_is_left_alone(relay: Relay, body: bytes) -> None:
    """Wire 7, 22."""
    assert await relay(body) == body


async def test_a_large_body_passes_whole(relay: Relay) -> None:
    """Wire 7."""
    body = b'{"model":"same","messages":[{"role":"user","content":"%b"}]}' % (b"\\u00e9x" * 500_000)
    assert await relay(body) == body
