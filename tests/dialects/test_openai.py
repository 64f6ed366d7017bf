"""openai: one value of a request changes, nothing of an answer, and an answer is read however the network cuts it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.dialects.chat_stream import ChatStream
from headgate.dialects.openai import Chat, OpenAI
from headgate.dialects.sse import EventSplitter
from headgate.proxy.accounting.usage import Usage
from headgate.proxy.errors import BrokenAnswerError, GatewayError
from tests_support.answers import DONE, USAGE, chat_chunk, chat_chunks, chat_completion, event

CHAT = Chat()
COMMENT = b": ours\n\n"


def read(body: bytes) -> Any:
    return CHAT.read(body, max_depth=64)


def stream(*, hide: bool = True, choices: int = 1) -> ChatStream:
    return ChatStream(hide_usage=hide, choices=choices)


def fed(*pieces: bytes, hide: bool = True, choices: int = 1) -> tuple[ChatStream, bytes]:
    reader = stream(hide=hide, choices=choices)
    reader.before_terminal = lambda: COMMENT
    return reader, b"".join(reader.feed(piece) for piece in pieces)


# -- the request


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'{"model":"m"', "invalid_json"),
        (b'{"model":"m"}x', "invalid_json"),
        (b'{"model":"\xff"}', "invalid_json"),
        (b'{"model":"m","a":NaN}', "invalid_json"),
        (b'{"model":"m","a":' + b"[" * 100 + b"]" * 100 + b"}", "json_too_deep"),
        (b'{"model":"m","a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "json_too_deep"),
        (b"{}", "missing_model"),
        (b'{"model":null}', "missing_model"),
        (b'{"model":""}', "missing_model"),
        (b'{"model":7}', "missing_model"),
        (b'{"model":"a\\u0000"}', "missing_model"),
        (b'{"model":"%b"}' % (b"x" * 257), "missing_model"),
        (b'{"model":"a","model":"b"}', "duplicate_field"),
        (b'{"model":"a","\\u006dodel":"b"}', "duplicate_field"),
        (b'{"model":"m","stream":1}', "invalid_request"),
    ],
)
def test_what_must_be_checked_here_is(body: bytes, code: str) -> None:
    with pytest.raises(GatewayError) as raised:
        read(body)
    assert (raised.value.status, raised.value.code) == (400, code)


def test_what_limits_need_to_know_is_read() -> None:
    facts = read(b'{"model":"m","stream":true,"max_tokens":5,"max_completion_tokens":7,"n":3}')
    assert (facts.model, facts.stream, facts.max_tokens, facts.n, facts.wants_usage) == ("m", True, 7, 3, False)
    facts = read(b'{"model":"m","stream":null,"max_tokens":-1,"n":true}')
    assert (facts.stream, facts.max_tokens, facts.n) == (False, None, 1)


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b'{"model":"m","stream":true}', b'{"model":"m","stream_options":{"include_usage":true},"stream":true}'),
        (
            b'{"stream":true,"stream_options":{},"model":"m"}',
            b'{"stream":true,"stream_options":{"include_usage":true},"model":"m"}',
        ),
        (
            b'{"stream":true,"stream_options":null,"model":"m"}',
            b'{"stream":true,"stream_options":{"include_usage":true},"model":"m"}',
        ),
        (
            b'{"stream":true,"stream_options":[1],"model":"m"}',
            b'{"stream":true,"stream_options":{"include_usage":true},"model":"m"}',
        ),
        (
            b'{"stream":true,"stream_options":{"include_usage":false,"x":1},"model":"m"}',
            b'{"stream":true,"stream_options":{"include_usage":true,"x":1},"model":"m"}',
        ),
        (
            b'{"a":{"stream_options":1},"stream":true,"stream_options":{"x":1},"model":"m"}',
            b'{"a":{"stream_options":1},"stream":true,"stream_options":{"x":1,"include_usage":true},"model":"m"}',
        ),
        (b'{"stream":true,"stream_options":{"include_usage":true},"model":"m"}', None),
        (b'{"stream":false,"model":"m"}', None),
        (b'{"stream_options":{"x":1},"model":"m"}', None),
    ],
)
def test_a_stream_that_does_not_ask_for_usage_gets_the_wish(body: bytes, sent: bytes | None) -> None:
    facts = read(body)
    assert CHAT.encode(facts, "m") == (sent or body)


def test_model_and_wish_are_spliced_together_and_each_target_gets_its_own() -> None:
    facts = read(b'{"model" : "m", "stream":true, "x": 1.0}')
    wish = b',"stream_options":{"include_usage":true}'
    for model in ("other", "m", 'q"uote'):
        name = msgspec.json.encode(model)
        assert CHAT.encode(facts, model) == b'{"model" : %b%b, "stream":true, "x": 1.0}' % (name, wish)
    assert CHAT.encode(facts, "m") is CHAT.encode(facts, "m")


def test_the_query_passes() -> None:
    assert CHAT.target(b"a=1") == b"/chat/completions?a=1"
    assert CHAT.target(b"") == b"/chat/completions"


def test_a_key_is_a_bearer_token() -> None:
    assert OpenAI().credential("k") == [(b"authorization", b"Bearer k")]


# -- whole answers


def test_usage_and_text_of_a_whole_answer_are_read() -> None:
    answer = chat_completion("Hello", service_tier="flex")
    facts = CHAT.read_answer(json.dumps(answer).encode())
    assert facts.usage == Usage(9, 12, service_tier="flex")
    assert (facts.error, facts.usage_is_final) == (False, True)
    del answer["usage"]
    facts = CHAT.read_answer(json.dumps(answer).encode())
    assert (facts.usage, facts.error, facts.text_bytes, facts.usage_is_final) == (None, False, 5, True)


@pytest.mark.parametrize("body", [b"", b"[]", b"x", b"\xff", b"[" * 100_000, b'{"choices":7}'])
def test_what_cannot_be_read_says_nothing(body: bytes) -> None:
    facts = CHAT.read_answer(body)
    assert (facts.usage, facts.error, facts.text_bytes) == (None, False, 0)


def test_an_error_in_an_answer_is_seen() -> None:
    assert CHAT.read_answer(b'{"error":{"message":"no"}}').error
    assert not CHAT.read_answer(b'{"error":null}').error


def test_an_odd_index_does_not_cost_the_report() -> None:
    body = json.dumps(chat_completion()).replace('"index": 0', '"index": 0.0').encode()
    assert CHAT.read_answer(body).usage == Usage(9, 12)


def test_the_error_event_is_one_that_sdks_raise() -> None:
    sent = CHAT.error_event(BrokenAnswerError("cut"))
    assert sent.startswith(b"data: ")
    assert sent.endswith(b"\n\n")
    assert set(json.loads(sent[6:])["error"]) == {"message", "type", "param", "code"}


# -- streams: what goes down


@pytest.mark.parametrize("asks", [True, False])
def test_only_usage_that_we_asked_for_is_hidden(asks: bool) -> None:
    chunks = [event(one) for one in chat_chunks(usage=USAGE)]
    reader, given = fed(*chunks, hide=not asks)
    kept = chunks if asks else [*chunks[:-2], chunks[-1]]
    assert given == b"".join(kept[:-1]) + COMMENT + kept[-1]
    assert reader.usage == Usage(9, 12)


def test_a_stream_that_nobody_asked_for_passes_as_it_is() -> None:
    chat = Chat()
    reader = chat.open_stream(chat.read(b'{"model":"m","messages":[]}', max_depth=64))
    assert reader is not None
    sent = b"".join(event(one) for one in chat_chunks(usage=USAGE))
    assert reader.feed(sent) == sent


@pytest.mark.parametrize(
    ("one", "shown"),
    [
        ({"choices": [], "usage": USAGE}, False),
        ({"choices": [], "usage": {"prompt_tokens": -1}}, False),
        ({"choices": [], "usage": {}}, False),
        ({"choices": [], "usage": None}, True),
        ({"choices": []}, True),
        ({"usage": USAGE}, True),
        ({"choices": None, "usage": USAGE}, True),
        ({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": USAGE}, True),
        ({"choices": [], "usage": USAGE, "error": {"message": "no"}}, True),
        ({"choices": [], "prompt_filter_results": [], "id": "", "created": 0}, True),
        ({"choices": [], "x_groq": {"usage": USAGE}}, True),
    ],
)
def test_which_events_are_hidden(one: dict[str, Any], shown: bool) -> None:
    raw = event(one)
    assert fed(raw)[1] == (raw if shown else b"")
    assert fed(raw + b": x\n\n")[1] == (raw if shown else b"") + b": x\n\n"
    assert fed(raw, hide=False)[1] == raw


def test_nothing_follows_done() -> None:
    reader, given = fed(DONE + event(chat_chunk({"content": "x"})), b"more\n\n")
    assert reader.finished
    assert given == COMMENT + DONE


@pytest.mark.parametrize(
    "done", [b"data: [DONE]\n\n", b"data:[DONE]\r\n\r\n", b"data: [DONE] \n\n", b"event: x\ndata: [DONE]\n\n"]
)
def test_done_is_known_in_every_spelling(done: bytes) -> None:
    reader, given = fed(done)
    assert reader.finished
    assert given == COMMENT + done


def test_done_inside_a_text_is_text() -> None:
    reader, _ = fed(event(chat_chunk({"content": "[DONE]"})), b"data: [DONE]ish\n\n")
    assert not reader.finished


@pytest.mark.parametrize(
    "events",
    [
        [b"id: 1\ndata: {}\n\n"],
        [b"\xef\xbb\xbfid: 1\ndata: {}\n\n"],
        [b"data: {}\rid: 1\r\r"],
        [b"data: {}\nid\n\n"],
        [event(chat_chunk({"content": "x"})), b"data: {}\nid: 1\n\n"],
    ],
)
def test_numbered_events_get_no_comment(events: list[bytes]) -> None:
    """A comment block between them breaks openai-python."""
    assert fed(*events, DONE)[1] == b"".join(events) + DONE


def test_a_comment_needs_somebody_who_makes_it() -> None:
    assert stream().feed(DONE) == DONE


def test_events_are_rewritten_one_by_one_and_our_comment_is_not() -> None:
    reader = stream()
    reader.before_terminal = lambda: COMMENT
    seen: list[bytes] = []

    def rewrite(raw: bytes) -> bytes:
        seen.append(raw)
        return raw.upper()

    reader.rewrite = rewrite
    text = event(chat_chunk({"content": "x"}))
    assert reader.feed(text + event({"choices": [], "usage": USAGE}) + DONE) == text.upper() + COMMENT + DONE.upper()
    assert seen == [text, DONE]


# -- streams: what is understood


@pytest.mark.parametrize(
    ("choice", "text", "committed"),
    [
        ({"delta": {"content": "Hi"}}, 2, True),
        ({"delta": {"content": "é"}}, 2, True),
        ({"delta": {"content": ""}}, 0, False),
        ({"delta": {"role": "assistant", "content": None}}, 0, False),
        ({"delta": {"reasoning": "abc"}}, 3, True),
        ({"delta": {"reasoning_content": "abc"}}, 3, True),
        ({"delta": {"reasoning": "abc", "reasoning_content": "abc"}}, 3, True),
        ({"delta": {"refusal": "no"}}, 2, True),
        ({"delta": {"content": "Hi", "refusal": None, "tool_calls": []}}, 2, True),
        ({"delta": {"content": [{"text": "x"}]}}, 14, True),
        ({"delta": {"tool_calls": [{"index": 0}]}}, 13, True),
        ({"delta": {"function_call": {"name": "f"}}}, 12, True),
        ({"delta": {"audio": {"id": "a"}}}, 0, True),
        ({"delta": {"audio": None}}, 0, False),
        ({"delta": None}, 0, False),
        ({"text": "Hi"}, 2, True),
        ({"text": ""}, 0, False),
        ({"text": 7}, 0, False),
        ({"delta": {}, "finish_reason": "stop"}, 0, True),
        ({"delta": {}, "finish_reason": ""}, 0, False),
        ({"delta": {}, "finish_reason": 3}, 0, False),
    ],
)
def test_content_is_seen_and_measured(choice: dict[str, Any], text: int, committed: bool) -> None:
    reader, _ = fed(event({"choices": [{"index": 0, **choice}]}))
    assert (reader.text_bytes, reader.committed) == (text, committed)
    finish_or_nothing = "finish_reason" in choice or not committed
    assert reader.text_events == (0 if finish_or_nothing else 1)


@pytest.mark.parametrize(
    ("finished", "choices", "whole"),
    [([0], 1, True), ([], 1, False), ([0], 2, False), ([0, 1], 2, True), ([0, 1, 1], 2, True), ([1], 1, True)],
)
def test_a_clean_end_is_whole_when_every_choice_has_finished(finished: list[int], choices: int, whole: bool) -> None:
    pieces = [event({"choices": [{"index": n, "delta": {}, "finish_reason": "stop"}]}) for n in finished]
    reader, _ = fed(*pieces, choices=choices)
    assert reader.end() == (b"", whole)


def test_a_choice_that_goes_on_keeps_the_answer_open() -> None:
    reader, _ = fed(
        event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
        event({"choices": [{"index": 1, "delta": {"content": "x"}}]}),
    )
    assert reader.end() == (b"", False)


@pytest.mark.parametrize(
    ("tail", "last", "whole"),
    [
        (event(chat_chunk({}, finish_reason="stop")).rstrip(b"\n"), True, True),
        (DONE.rstrip(b"\n"), True, True),
        (b'data: {"choices":[', False, False),
        (b": comment", False, False),
        (b"", False, False),
    ],
)
def test_an_unterminated_event_counts_if_its_data_parses(tail: bytes, last: bool, whole: bool) -> None:
    reader, given = fed(tail)
    assert given == b""
    comment = COMMENT if tail.startswith(b"data: [") else b""
    assert reader.end() == (comment + tail if last else b"", whole)


@pytest.mark.parametrize(
    ("raw", "failed"),
    [
        (b'data: {"error":{"message":"x"}}\n\n', True),
        (b'data: {"error":"x"}\n\n', True),
        (b'event: error\ndata: {"message":"x"}\n\n', True),
        (b"event: error\ndata: not JSON\n\n", True),
        (b'data: {"error":null,"choices":[]}\n\n', False),
        (b'event: message\ndata: {"choices":[]}\n\n', False),
    ],
)
def test_the_providers_own_error_is_seen(raw: bytes, failed: bool) -> None:
    reader, given = fed(raw)
    assert (reader.failed, given) == (failed, raw)


def test_an_error_with_a_finish_is_an_error_and_commits_nothing() -> None:
    """OpenRouter ends a failed stream so; before content, another may still make it good."""
    error = {"error": {"code": 502}, "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}]}
    reader, _ = fed(event({**error, "usage": USAGE}))
    assert (reader.failed, reader.committed, reader.usage) == (True, False, Usage(9, 12))


def test_content_after_an_error_still_counts() -> None:
    reader, _ = fed(event({"error": "hm"}), event(chat_chunk({"content": "four"})))
    assert (reader.failed, reader.text_bytes) == (True, 4)


@pytest.mark.parametrize(
    "usage",
    [{"usage": USAGE}, {"x_groq": {"id": "req", "usage": USAGE}}, {"usage": USAGE, "x_groq": "odd"}],
)
def test_usage_is_found_where_providers_put_it(usage: dict[str, Any]) -> None:
    reader, _ = fed(event(chat_chunk({}, finish_reason="stop", service_tier="flex", **usage)))
    assert reader.usage == Usage(9, 12, service_tier="flex")
    assert reader.facts().usage_is_final


@pytest.mark.parametrize("extra", [{"x_groq": "odd"}, {"x_groq": {}}, {"usage": "odd"}, {"service_tier": 7}])
def test_odd_extras_cost_nothing_else(extra: dict[str, Any]) -> None:
    reader, _ = fed(event(chat_chunk({"content": "x"}, **extra)))
    assert (reader.committed, reader.usage) == (True, None)


def test_a_report_before_the_last_content_is_not_the_last_word() -> None:
    reader, _ = fed(event(chat_chunk({}, usage=USAGE)), event(chat_chunk({"content": "x"})))
    facts = reader.facts()
    assert (facts.usage, facts.usage_is_final, facts.text_events, facts.text_bytes) == (Usage(9, 12), False, 1, 1)


def test_odd_indexes_are_the_first_choice() -> None:
    for index in ("0", None, 0.0, [0], True):
        reader, _ = fed(event({"choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]}))
        assert reader.end()[1]


def test_a_flood_of_choices_is_bounded() -> None:
    reader = stream()
    for start in range(0, 20_000, 100):
        finish = {"delta": {}, "finish_reason": "stop"}
        reader.feed(event({"choices": [{"index": start + n, **finish} for n in range(100)]}))
    assert len(reader._seen) == len(reader._ended) <= 1024
    assert reader.committed


HUGE = event(chat_chunk({"content": "x" * 300_000}))


@pytest.mark.parametrize("size", [1000, 65_536, 1_000_000])
def test_an_event_too_large_to_be_read_counts_as_text(size: int) -> None:
    """Who leaves after it pays for it, and nobody else answers in its place."""
    whole = HUGE + event(chat_chunk({"content": "four"})) + DONE
    reader, given = fed(*(whole[at : at + size] for at in range(0, len(whole), size)))
    assert given == whole.removesuffix(DONE) + COMMENT + DONE
    assert reader.committed
    assert 300_000 <= reader.text_bytes <= len(HUGE) + 4
    assert not reader.mid_event


def test_what_looks_like_an_event_inside_a_large_one_is_text() -> None:
    reader, _ = fed(HUGE[:-3] + b"x" * 10, b"data: [DONE]\n", b'data: {"error":1}\n\n')
    assert (reader.finished, reader.failed) == (False, False)


def test_the_end_of_a_large_event_is_not_held_back() -> None:
    finish = event(chat_chunk({}, finish_reason="stop"))
    reader, given = fed(finish + HUGE.rstrip(b"\n"))
    assert reader.mid_event
    last, whole = reader.end()
    assert (given + last, whole) == (finish + HUGE.rstrip(b"\n"), True)


# -- streams: how the network cuts

ODD_EVENTS = [
    b'data: {"choices":[{"index":0,\ndata: "delta":{"content":"two lines"}}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\nid: 7\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n: after\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\r\n\r\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\r\rdata: {"usage":{"prompt_tokens":1}}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\r\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n odd: 1\n\n',
    b"data: {not json\n\n",
    b"data: {}x\n\n",
    b": comment\n\n",
    b"data: [DONE]\n\n",
    event(chat_chunk({"content": "\u2028 \u0085 é"})),
    event(chat_chunk({}, finish_reason="stop")),
    event({"choices": [], "usage": USAGE}),
    event({"error": {"message": "no"}}),
]


def outcome(pieces: list[bytes]) -> tuple[Any, ...]:
    reader, given = fed(*pieces)
    last, whole = reader.end()
    return (
        given + last, whole, reader.finished, reader.failed, reader.committed, reader.usage, reader.text_bytes,
        reader.text_events, reader.facts().usage_is_final,
    )  # fmt: skip


@pytest.mark.parametrize("first", ODD_EVENTS)
def test_one_cut_anywhere_changes_nothing(first: bytes) -> None:
    whole = first + event(chat_chunk({"content": "rest"})) + DONE
    expected = outcome([whole])
    for at in range(1, len(whole)):
        assert outcome([whole[:at], whole[at:]]) == expected, whole[:at]


@pytest.mark.parametrize("first", ODD_EVENTS)
def test_what_has_gone_down_ends_with_an_event(first: bytes) -> None:
    """An error event after half an event would be a JSON error in every SDK."""
    for at in range(1, len(first)):
        splitter = EventSplitter()
        splitter.feed(fed(first[:at])[1] + b"data: next")
        assert splitter.flush() == b"data: next", first[:at]


@given(st.lists(st.sampled_from(ODD_EVENTS), max_size=8), st.lists(st.integers(0, 900), max_size=10))
def test_any_cuts_change_nothing(events: list[bytes], places: list[int]) -> None:
    whole = b"".join(events)
    cuts = sorted({min(place, len(whole)) for place in places})
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert outcome(pieces) == outcome([whole])


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_any_bytes_are_taken(pieces: list[bytes]) -> None:
    outcome(pieces)


@pytest.mark.parametrize(
    ("sent", "goes_up"),
    [
        (b'{"model":"m","n":2}', b'{"model":"m","max_completion_tokens":7,"n":2}'),
        (b'{"max_tokens": null, "model":"m"}', b'{"max_tokens": 7, "model":"m"}'),
        (b'{"max_tokens":null,"max_completion_tokens":-1,"model":"m"}',
         b'{"max_tokens":null,"max_completion_tokens":7,"model":"m"}'),
        (b'{"a":{"max_tokens":1},"model":"m"}', b'{"a":{"max_tokens":1},"model":"m","max_completion_tokens":7}'),
    ],
)  # fmt: skip
def test_an_answer_is_limited_where_the_request_does_not_say(sent: bytes, goes_up: bytes) -> None:
    chat = Chat()
    facts = chat.read(sent, max_depth=64)
    assert chat.encode(facts, "m") == sent
    assert facts.limit_output(7)
    assert chat.encode(facts, "m") == goes_up
    assert facts.max_tokens == 7


def test_a_stream_that_is_limited_is_asked_for_its_usage_too_and_both_fit_another_model() -> None:
    chat = Chat()
    facts = chat.read(b'{"model":"m","stream":true}', max_depth=64)
    assert facts.limit_output(7)
    assert json.loads(chat.encode(facts, "longer")) == {
        "model": "longer",
        "stream": True,
        "max_completion_tokens": 7,
        "stream_options": {"include_usage": True},
    }
    assert facts.respell(b'{"user":"x","model":"m","stream":true}')
    assert json.loads(chat.encode(facts, "m"))["max_completion_tokens"] == 7


def test_a_limit_of_the_callers_own_stays_and_what_has_no_field_for_one_is_left_alone() -> None:
    facts = Chat().read(b'{"model":"m","max_tokens":3}', max_depth=64)
    assert not facts.limit_output(7)
    assert facts.max_tokens == 3
    operations = OpenAI().operations
    embedding = operations["embeddings"].read(b'{"model":"m","input":"x"}', max_depth=64)
    assert not embedding.limit_output(7)


@pytest.mark.parametrize(
    ("operation", "sent", "goes_up"),
    [
        ("completions", b'{"model":"m"}', b'{"model":"m","max_tokens":7}'),
        ("responses", b'{"model":"m"}', b'{"model":"m","max_output_tokens":7}'),
        ("responses", b" {}", b' {"max_output_tokens":7}'),
        ("responses", b'{ "input":1}', b'{"max_output_tokens":7, "input":1}'),
    ],
)
def test_each_endpoint_has_its_own_field_for_it(operation: str, sent: bytes, goes_up: bytes) -> None:
    endpoint = OpenAI().operations[operation]
    facts = endpoint.read(sent, max_depth=64)
    assert facts.limit_output(7)
    assert endpoint.encode(facts, facts.model) == goes_up
