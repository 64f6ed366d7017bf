"""guard: what a rule finds does not pass, in either direction and however it is cut; all else passes unchanged."""

from __future__ import annotations

import json
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI

from headgate.config import ConfigError, GuardConfig, parse_config
from headgate.filters.guard import AnswerGuard, Guard, make_guard
from headgate.filters.guard_stream import MOST_TRACKS
from headgate.filters.json_strings import Spelt, texts
from headgate.proxy.errors import AnswerRefusedError, GuardUnreadableError
from headgate.proxy.filter import Event
from headgate.proxy.upstream.call import ResponseHead
from tests_support.answers import (
    DONE,
    USAGE,
    chat_chunk,
    chat_completion,
    error_response,
    event,
    json_response,
    response,
    sse,
)  # fmt: skip
from tests_support.gateway import CLIENT_KEY, RunningGateway, config_for, gateway_over, running_gateway
from tests_support.upstream import RST, FakeUpstream, Request, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headgate.proxy.exchange import Exchange

EMAIL, CARD = "ann@example.com", "4111 1111 1111 1111"
REDACT: list[dict[str, Any]] = [
    {"name": "email", "pattern": "email", "action": "redact"},
    {"name": "card", "pattern": "credit_card", "action": "redact"},
]
BLOCK: list[dict[str, Any]] = [{"name": "project", "regex": "PRJ-[0-9]{4,8}"}]
EX: Any = None


def guard(rules: list[dict[str, Any]], **settings: Any) -> AnswerGuard:
    made = make_guard(GuardConfig.model_validate({"rules": rules, **settings}))
    assert isinstance(made, AnswerGuard)
    return made


def over(script: Any, rules: list[dict[str, Any]], **settings: Any) -> Any:
    return gateway_over(script, auth=False, changes={"filters": [{"guard": {"rules": rules, **settings}}]})


def guard_of(gateway: RunningGateway) -> Guard:
    [link] = [one for one in gateway.half.engine.graph.default.chain.filters if isinstance(one, Guard)]
    return link


def through(rules: list[dict[str, Any]], events: Sequence[bytes]) -> bytes:
    """What goes down of one stream."""
    link, state = guard(rules), dict[object, Any]()
    return b"".join([link.on_event(EX, Event(raw, state)).raw for raw in events])


def said(stream: bytes) -> list[Any]:
    return [
        json.loads(line[6:]) for line in stream.split(b"\n") if line.startswith(b"data: ") and b"[DONE]" not in line
    ]


def content(stream: bytes, index: int = 0, field: str = "content") -> str:
    return "".join(
        choice["delta"].get(field) or ""
        for one in said(stream)
        for choice in one["choices"]
        if choice["index"] == index
    )


# -- requests


async def test_a_request_is_redacted_in_place_and_no_other_byte_changes() -> None:
    body = (
        '{ "messages" : [ {"role":"user", "content":"caf\\u00e9 %s, \\ud83d\\ude00\\n%s."},'
        '{"role":"user","content":[{"type":"text","text":"to %s"}]} ],\n "model":"gpt-4o-mini", "seed":1e2 }'
    )
    async with over(json_response(chat_completion()), REDACT) as (gateway, upstream):
        answer = await gateway.post((body % (EMAIL, CARD, EMAIL)).encode(), key=None)
        assert guard_of(gateway).redacted == 3
    assert answer.status == 200
    assert upstream.requests[0].body == (body % ("[email]", "[card]", "[email]")).encode()


async def test_a_request_without_anything_passes_byte_for_byte() -> None:
    body = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"h\\u0069"}], "n":1}'
    async with over(json_response(chat_completion()), REDACT) as (gateway, upstream):
        await gateway.post(body, key=None)
    assert upstream.requests[0].body == body


async def test_the_models_place_and_the_wish_for_usage_are_found_after_a_change() -> None:
    changes = {
        "filters": [{"guard": {"rules": REDACT}}],
        "models": {"alias": {"targets": [{"provider": "up", "model": "real-model"}]}},
    }
    body = b'{"messages":[{"role":"user","content":"%b"}],"model":"alias","stream":true}' % EMAIL.encode()
    stream = sse([chat_chunk({"content": "hi"}), chat_chunk({}, finish_reason="stop"), DONE])
    async with gateway_over(stream, auth=False, changes=changes) as (gateway, upstream):
        answer = await gateway.post(body, key=None)
    sent = upstream.requests[0].json()
    assert answer.status == 200
    assert sent["model"] == "real-model"
    assert sent["messages"][0]["content"] == "[email]"
    assert sent["stream_options"] == {"include_usage": True}


async def test_a_blocked_request_is_400_with_the_rules_name_and_goes_nowhere() -> None:
    async with over(json_response(chat_completion()), BLOCK) as (gateway, upstream):
        body = b'{"model":"m","messages":[{"role":"user","content":"about PRJ-123456"}]}'
        answer = await gateway.post(body, key=None)
        assert guard_of(gateway).request_blocked == 1
        [row] = await gateway.rows(1)
    assert (answer.status, answer.error["code"]) == (400, "guard_blocked")
    assert "'project'" in answer.error["message"]
    assert "PRJ-123456" not in answer.body.decode()
    assert (len(upstream.requests), row.outcome, row.error_code) == (0, "refused", "guard_blocked")


async def test_what_is_no_text_is_not_looked_through() -> None:
    content_ = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{CARD}"}},
        {"type": "input_audio", "input_audio": {"data": CARD, "format": "wav"}},
    ]
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": content_}]}).encode()
    async with over(json_response(chat_completion()), REDACT) as (gateway, upstream):
        await gateway.post(body, key=None)
    assert upstream.requests[0].body == body


async def test_what_cannot_be_looked_into_is_refused() -> None:
    async with over(json_response({"text": "hi"}), REDACT, max_text=1024) as (gateway, upstream):
        form = (
            b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b\r\n'
            b'content-disposition: form-data; name="file"; filename="a"\r\n\r\n%b\r\n--b--\r\n' % EMAIL.encode()
        )
        sent = [("content-type", "multipart/form-data; boundary=b")]
        upload = await gateway.post(form, sent, key=None, target="/v1/audio/transcriptions")
        large = await gateway.post(json.dumps({"model": "m", "messages": [{"content": "x" * 2000}]}).encode(), key=None)
        assert guard_of(gateway).unreadable == 2
    assert (upload.status, upload.error["code"]) == (400, "guard_unreadable")
    assert (large.status, large.error["code"]) == (413, "guard_text_too_large")
    assert not upstream.requests


async def test_ids_and_encoded_vectors_are_no_text() -> None:
    body = json.dumps(
        {"data": [{"embedding": "4111111111111111" * 40_000}], "previous_response_id": "r_4111111111111111"}
    )
    head: Any = ResponseHead(200, [])
    result = guard(REDACT).on_answer(EX, head, body.encode())
    assert (result if isinstance(result, bytes) else await result) == body.encode()


def test_a_session_is_refused() -> None:
    link = guard(REDACT)
    with pytest.raises(GuardUnreadableError):
        link.on_request(cast("Exchange", SimpleNamespace(face=SimpleNamespace(websocket=True))))
    assert link.unreadable == 1


async def test_an_event_that_is_too_large_to_be_read_ends_the_stream() -> None:
    large = chat_chunk({"content": f"{EMAIL} " * 20_000})
    stream = sse([chat_chunk({"content": "Hello. "}), large, chat_chunk({}, finish_reason="stop"), DONE])
    async with over(stream, REDACT) as (gateway, _):
        answer = await gateway.post(b'{"model":"m","stream":true,"messages":[]}', key=None)
        [row] = await gateway.rows(1)
    assert EMAIL.encode() not in answer.body
    assert DONE not in answer.body
    assert row.outcome == "truncated"


# -- whole answers


async def test_a_whole_answer_is_redacted_and_its_logprobs_go() -> None:
    made = chat_completion(f"Write to {EMAIL}")
    made["choices"][0]["logprobs"] = {"content": [{"token": EMAIL, "logprob": -1}]}
    async with over(json_response(made), REDACT) as (gateway, _):
        answer = await gateway.post(key=None)
    made["choices"][0]["logprobs"] = None
    made["choices"][0]["message"]["content"] = "Write to [email]"
    assert answer.json() == made
    assert answer.header("content-length") == str(len(answer.body))


async def test_a_blocked_answer_is_403_and_its_cost_is_kept() -> None:
    async with over(json_response(chat_completion("see PRJ-12345")), BLOCK) as (gateway, _):
        answer = await gateway.post(key=None)
        assert guard_of(gateway).answer_blocked == 1
        [row] = await gateway.rows(1)
    assert (answer.status, answer.error["code"]) == (403, "guard_blocked")
    assert "PRJ-12345" not in answer.body.decode()
    assert (row.status, row.error_code, row.completion_tokens) == (403, "guard_blocked", USAGE["completion_tokens"])


@pytest.mark.parametrize("kind", ["text/plain", "text/html", "application/json"])
async def test_an_error_of_the_provider_is_looked_through_even_where_it_is_no_json(kind: str) -> None:
    script = [error_response(400, f"no {EMAIL}")] if "json" in kind else []
    script = script or [response(400, f"no {EMAIL}".encode(), [("content-type", kind)])]
    async with over(script, REDACT) as (gateway, _):
        answer = await gateway.post(key=None)
    assert answer.status == 400
    assert b"[email]" in answer.body
    assert EMAIL.encode() not in answer.body


@pytest.mark.parametrize(
    ("kind", "more", "status"),
    [
        ("application/x-ndjson", [], 403),
        ("application/json", [("content-encoding", "gzip")], 403),
        ("text/event-stream", [("content-encoding", "gzip")], 403),
        ("audio/mpeg", [], 200),
    ],
)
async def test_an_answer_that_cannot_be_read_is_refused_but_sounds_pass(
    kind: str, more: list[tuple[str, str]], status: int
) -> None:
    script = [response(200, f'{{"a":"{EMAIL}"}}'.encode(), [("content-type", kind), *more])]
    async with over(script, REDACT) as (gateway, _):
        answer = await gateway.post(key=None)
    assert answer.status == status
    assert (EMAIL.encode() in answer.body) is (status == 200)


# -- streams


def chat_events(pieces: Sequence[str], field: str = "content") -> list[bytes]:
    return [
        event(chat_chunk({"role": "assistant", "content": ""})),
        *[event(chat_chunk({field: piece})) for piece in pieces],
        event(chat_chunk({}, finish_reason="stop")),
        DONE,
    ]


@given(
    st.text("ab .", max_size=20),
    st.sampled_from([EMAIL, CARD]),
    st.text(" .\n", max_size=3),
    st.lists(st.integers(0, 60), max_size=12),
    st.sampled_from(["content", "reasoning_content", "refusal"]),
)
def test_a_secret_never_goes_down_however_the_stream_is_split(
    before: str, secret: str, after: str, cuts: list[int], field: str
) -> None:
    text = f"{before} {secret}{after}"
    places = [0, *sorted({min(cut, len(text)) for cut in cuts}), len(text)]
    down = through(REDACT, chat_events([text[a:b] for a, b in pairwise(places)], field))
    assert content(down, field=field) == f"{before} {'[email]' if secret == EMAIL else '[card]'}{after}"
    assert said(down)[-1]["choices"][0]["finish_reason"] == "stop"
    assert down.endswith(DONE)


def test_what_is_held_comes_before_the_finish_and_repeats_nothing() -> None:
    down = said(through(REDACT, chat_events(["mail ann@", "example.com"])))
    assert [choice["finish_reason"] for one in down for choice in one["choices"]] == [None] * (len(down) - 1) + ["stop"]
    assert sum("role" in choice["delta"] for one in down for choice in one["choices"]) == 1


def test_a_finish_in_the_last_event_with_text_takes_it_along() -> None:
    events = [
        event(chat_chunk({"content": "ann@exam"})),
        event(chat_chunk({"content": "ple.com"}, finish_reason="stop")),
    ]
    down = through(REDACT, events)
    assert (content(down), len(said(down))) == ("[email]", 2)


def test_a_stream_without_anything_in_it_passes_byte_for_byte_but_for_what_is_held() -> None:
    events = chat_events(["Hello. ", "There? ", "Yes! \u00e9"])[:-2]
    assert content(through(REDACT, events)) == "Hello. There? Yes! \u00e9"


def test_choices_and_tool_calls_have_texts_of_their_own() -> None:
    def call(index: int, arguments: str, **more: Any) -> dict[str, Any]:
        return {"tool_calls": [{"index": index, **more, "function": {"arguments": arguments}}]}

    events = [
        event(chat_chunk(call(0, '{"to":"ann@', id="call_1", type="function"))),
        event(chat_chunk(call(1, '{"to":"bob@', id="call_2", type="function"))),
        event(chat_chunk(call(0, 'example.com"}'))),
        event(chat_chunk(call(1, "example.org"))),
        event(chat_chunk({}, finish_reason="tool_calls")),
        DONE,
    ]
    made = {0: "", 1: ""}
    ids = []
    for one in said(through(REDACT, events)):
        for part in one["choices"][0]["delta"].get("tool_calls", []):
            made[part["index"]] += part["function"]["arguments"]
            ids += [part["id"]] if "id" in part else []
    assert made == {0: '{"to":"[email]"}', 1: '{"to":"[email]'}
    assert ids == ["call_1", "call_2"]


def responses_events(pieces: Sequence[str]) -> list[bytes]:
    whole = "".join(pieces)
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}

    def typed(kind: str, **fields: Any) -> bytes:
        return b"event: %b\n" % kind.encode() + event({"type": kind, **fields})

    part = {"type": "output_text", "text": whole, "annotations": []}
    item = {"id": "msg_1", "type": "message", "content": [part]}
    return [
        typed("response.created", response={"id": "resp_1"}),
        *[typed("response.output_text.delta", delta=piece, logprobs=[{"token": piece}], **where) for piece in pieces],
        typed("response.output_text.done", text=whole, **where),
        typed("response.output_item.done", output_index=0, item=item),
        typed("response.completed", response={"id": "resp_1", "output": [item], "usage": None}),
    ]


@given(st.lists(st.integers(0, 30), max_size=10))
def test_typed_events_and_what_they_repeat_at_the_end_are_redacted_alike(cuts: list[int]) -> None:
    text = f"write to {EMAIL}"
    places = [0, *sorted({min(cut, len(text)) for cut in cuts}), len(text)]
    down = through(REDACT, responses_events([text[a:b] for a, b in pairwise(places)]))
    events = said(down)
    assert "".join(one.get("delta", "") for one in events) == "write to [email]"
    assert EMAIL.encode() not in down
    assert down.count(b"write to [email]") >= 3
    kinds = [one["type"] for one in events]
    assert kinds.index("response.output_text.done") > max(
        at for at, kind in enumerate(kinds) if kind == "response.output_text.delta"
    )


def test_an_event_that_cannot_be_read_and_too_many_texts_are_refused() -> None:
    with pytest.raises(AnswerRefusedError):
        through(REDACT, [b'data: {"choices": [\n\n'])
    with pytest.raises(AnswerRefusedError):
        through(REDACT, [b"data: [1]\n\n"])
    choices = [{"index": n, "delta": {"content": "a"}} for n in range(MOST_TRACKS + 1)]
    with pytest.raises(AnswerRefusedError):
        through(REDACT, [event({"choices": choices})])


def test_several_data_lines_comments_and_other_line_ends_are_read() -> None:
    down = through(
        REDACT,
        [
            f": by {EMAIL}\n\n".encode(),
            b'data: {"choices":[{"index":0,\r\ndata: "delta":{"content":"%b "}}]}\r\n\r\n' % EMAIL.encode(),
        ],
    )
    assert EMAIL.encode() not in down
    assert b": by [email]\n\n" in down
    assert b'"delta":{"content":"[email] "}}]}' in down.replace(b'[email]"', b'[email] "')


async def test_a_cut_stream_ends_in_an_error_and_gives_nothing_half_out() -> None:
    def script(_: Request) -> Sequence[Step]:
        return [*sse([chat_chunk({"content": "Hello. mail ann@exa"})])[:-1], RST]

    async with over(script, REDACT) as (gateway, _):
        body = b'{"model":"m","stream":true,"messages":[]}'
        answer = await gateway.post(body, key=None)
        [row] = await gateway.rows(1)
    assert b"ann@exa" not in answer.body
    assert b'"error"' in answer.body
    assert DONE not in answer.body
    assert row.outcome == "truncated"


async def test_a_blocked_stream_is_cut_with_an_error_event() -> None:
    pieces = [chat_chunk({"content": one}) for one in ("Hello there. ", "see PRJ-", "12345", " now. ")]
    async with over(sse([*pieces, chat_chunk({}, finish_reason="stop"), DONE]), BLOCK) as (gateway, _):
        answer = await gateway.post(b'{"model":"m","stream":true,"messages":[]}', key=None)
        [row] = await gateway.rows(1)
        assert guard_of(gateway).answer_blocked == 1
    assert answer.status == 200
    assert b"Hello there." in answer.body
    assert b"PRJ-1" not in answer.body
    assert b'"guard_blocked"' in answer.body
    assert DONE not in answer.body
    assert (row.outcome, row.error_code) == ("truncated", "guard_blocked")


async def test_a_stream_that_is_blocked_before_it_begins_is_403() -> None:
    async with over(sse([chat_chunk({"content": "PRJ-12345. "}), DONE]), BLOCK) as (gateway, _):
        answer = await gateway.post(b'{"model":"m","stream":true,"messages":[]}', key=None)
        await gateway.rows(1)
    assert (answer.status, answer.error["code"]) == (403, "guard_blocked")


async def test_an_attempt_that_failed_leaves_nothing_in_the_next_ones_text() -> None:
    first: list[Step] = [*sse([chat_chunk({"role": "assistant", "reasoning": ""}), b": ann@\n\n"])[:-1], RST]
    async with FakeUpstream(first) as up, FakeUpstream(sse(chat_texts("example.com. "))) as up2:
        config = config_for(up, up2)
        config["filters"].append({"guard": {"rules": REDACT}})
        async with running_gateway(config) as gateway:
            answer = await gateway.post(b'{"model":"m","stream":true,"messages":[]}')
    assert content(answer.body) == "example.com. "


def chat_texts(*pieces: str) -> list[Any]:
    return [*[chat_chunk({"content": piece}) for piece in pieces], chat_chunk({}, finish_reason="stop"), DONE]


async def test_the_openai_sdk_reads_guarded_streams_and_refusals() -> None:
    pieces = ["Write", " to", " ann", "@exam", "ple", ".com", " or pay with 4111 ", "1111 1111", " 1111", "."]
    rules = [*REDACT, *BLOCK]

    def provider(asked: Request) -> Sequence[Step]:
        if asked.json().get("stream"):
            return sse([*[chat_chunk({"content": one}) for one in pieces], chat_chunk({}, finish_reason="stop"), DONE])
        return [json_response(chat_completion(f"mail {EMAIL}"))]

    async with FakeUpstream(provider) as upstream:
        config = config_for(upstream)
        config["filters"].append({"guard": {"rules": rules}})
        async with (
            running_gateway(config) as gateway,
            AsyncOpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY, max_retries=0) as client,
        ):
            ask: Callable[..., Any] = client.chat.completions.create
            messages: Any = [{"role": "user", "content": f"from {EMAIL}"}]
            whole = await ask(model="m", messages=messages)
            text = ""
            async for chunk in await ask(model="m", messages=messages, stream=True):
                text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            with pytest.raises(openai.BadRequestError) as caught:
                await ask(model="m", messages=[{"role": "user", "content": "PRJ-4711"}])
    assert whole.choices[0].message.content == "mail [email]"
    assert text == "Write to [email] or pay with [card]."
    assert caught.value.code == "guard_blocked"
    assert EMAIL.encode() not in upstream.requests[0].body


async def test_a_chain_with_it_leaves_the_byte_path_and_a_route_may_switch_it_off() -> None:
    changes = {
        "filters": [{"guard": {"rules": REDACT}}],
        "routes": [{"name": "bare", "match": {"model": "bare"}, "filters": {"guard": "off"}}],
    }
    async with gateway_over(json_response(chat_completion(EMAIL)), auth=False, changes=changes) as (gateway, _):
        graph = gateway.half.engine.graph
        answer = await gateway.post(b'{"model":"bare","messages":[]}', key=None)
    assert not graph.default.chain.byte_path
    assert graph.routes[0].chain.byte_path
    assert EMAIL.encode() in answer.body


async def test_rules_on_requests_alone_leave_answers_on_the_byte_path() -> None:
    rules = [{**rule, "on": ["request"]} for rule in REDACT]
    async with over(json_response(chat_completion(EMAIL)), rules) as (gateway, _):
        chain = gateway.half.engine.graph.default.chain
        answer = await gateway.post(key=None)
    assert (chain.byte_path, chain.answers) == (True, ())
    assert EMAIL.encode() in answer.body


async def test_rules_on_answers_alone_leave_requests_as_they_are() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"%b"}]}' % EMAIL.encode()
    async with over(json_response(chat_completion(EMAIL)), [{**REDACT[0], "on": ["answer"]}]) as (gateway, upstream):
        answer = await gateway.post(body, key=None)
    assert upstream.requests[0].body == body
    assert b"[email]" in answer.body


# -- settings, and the reader


@pytest.mark.parametrize(
    ("rules", "said_"),
    [
        ("[]", "1 to 32 rules"),
        ("[{name: a}]", "a pattern, a regex or http"),
        ("[{name: a, pattern: email, regex: abc}]", "a pattern, a regex or http"),
        ("[{name: a, pattern: mail}]", "rules[0].pattern"),
        ("[{name: a, regex: '(a+)+'}]", "bound every repeat"),
        ("[{name: a, pattern: email, on: []}]", "request, answer, or both"),
        ("[{name: a, pattern: email}, {name: a, pattern: iban}]", "same name"),
        ("[{name: a, url: 'http://127.0.0.1:1/'}]", "url: unknown key"),
    ],
)
def test_settings_that_mean_nothing_are_refused(rules: str, said_: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"filters: [{{guard: {{rules: {rules}}}}}]", env={})
    assert said_ in str(caught.value)


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(JSONS, st.booleans(), st.sampled_from([None, 1]))
def test_every_string_value_is_found_where_it_stands(value: Any, ascii_: bool, indent: int | None) -> None:
    source = json.dumps(value, ensure_ascii=ascii_, indent=indent)

    def walk(one: Any, path: tuple[Any, ...]) -> list[tuple[tuple[Any, ...], str]]:
        if isinstance(one, str):
            return [(path, one)]
        pairs = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
        return [found for key, inner in pairs for found in walk(inner, (*path, key))]

    found = [(path, Spelt(source, start, end).text) for path, start, end in texts(source)]
    assert found == walk(value, ())
    for _, start, end in texts(source):
        spelt = Spelt(source, start, end)
        assert (spelt.place(0), spelt.place(len(spelt.text))) == (start, end)
