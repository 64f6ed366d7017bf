"""responses: a request is checked and spliced; a stream is whole with its terminal event; usage is where it is said."""

from __future__ import annotations

import msgspec
import pytest

from headgate.dialects.responses import Responses
from headgate.proxy.accounting.usage import Usage
from headgate.proxy.errors import (
    BrokenAnswerError,
    DownstreamError,
    DuplicateFieldError,
    InvalidRequestError,
    MissingModelError,
)
from tests_support.answers import RESPONSE_USAGE, response_events, response_object, typed_event

OPERATION = Responses()
USAGE = Usage(36, 11, cached_tokens=4, reasoning_tokens=5)


def read(body: bytes) -> object:
    return OPERATION.read(body, max_depth=64)


def test_the_model_is_replaced_and_nothing_else() -> None:
    asked = OPERATION.read(b'{"input":"hi", "model":"m","stream":true,"max_output_tokens":9}', max_depth=64)
    assert (asked.model, asked.stream, asked.max_tokens) == ("m", True, 9)
    changed = OPERATION.encode(asked, "other")
    assert changed == b'{"input":"hi", "model":"other","stream":true,"max_output_tokens":9}'
    assert OPERATION.encode(asked, "m") == asked.body


@pytest.mark.parametrize(
    "sent", [b'{"prompt":{"id":"pmpt_1"}}', b'{"input":"hi"}', b'{"conversation":"c","model":null}']
)
def test_the_model_may_be_left_out(sent: bytes) -> None:
    asked = OPERATION.read(sent, max_depth=64)
    assert (asked.model, OPERATION.encode(asked, "m")) == ("", sent)


def test_a_stored_prompt_may_be_asked_of_another_model() -> None:
    named = OPERATION.read(b'{"prompt":{"id":"pmpt_1"},"model":"m"}', max_depth=64)
    assert OPERATION.encode(named, "n") == b'{"prompt":{"id":"pmpt_1"},"model":"n"}'


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"model":""}', MissingModelError),
        (b'{"model":5,"prompt":{}}', MissingModelError),
        (b'{"model":"m","stream":1}', InvalidRequestError),
        (b'{"model":"m","model":"n"}', DownstreamError),
        (b'{"model":"m","model":null}', DuplicateFieldError),
        (b"[]", DownstreamError),
    ],
)
def test_what_cannot_be_routed_is_refused(body: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        read(body)


def test_the_path_keeps_the_query() -> None:
    assert (OPERATION.target(b""), OPERATION.target(b"a=1")) == (b"/responses", b"/responses?a=1")


def test_a_whole_response_says_what_it_used() -> None:
    facts = OPERATION.read_answer(msgspec.json.encode(response_object(service_tier="flex")))
    assert facts.usage == msgspec.structs.replace(USAGE, service_tier="flex")
    assert (facts.error, facts.text_bytes > 12) == (False, True)


def test_a_failed_response_is_an_error() -> None:
    answer = response_object(None, status="failed", usage=None, error={"code": "server_error", "message": "m"})
    facts = OPERATION.read_answer(msgspec.json.encode(answer))
    assert (facts.usage, facts.error) == (None, True)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"usage":{"input_tokens":-1}}', b'{"usage":5,"output":null}'])
def test_what_cannot_be_read_says_nothing(body: bytes) -> None:
    facts = OPERATION.read_answer(body)
    assert (facts.usage, facts.error) == (None, False)


@pytest.mark.parametrize("end", ["response.completed", "response.incomplete"])
def test_a_stream_begins_with_content_and_ends_with_its_terminal(end: str) -> None:
    reader = OPERATION.open_stream(OPERATION.read(b'{"model":"m","stream":true}', max_depth=64))
    *begun, delta, last = response_events(["Hello"], end=end)
    reader.feed(b"".join(begun))
    assert (reader.committed, reader.whole) == (False, False)
    reader.feed(delta)
    assert (reader.committed, reader.whole, reader.text_bytes) == (True, False, 5)
    reader.feed(last)
    assert (reader.whole, reader.failed, reader.usage) == (True, False, USAGE)


def test_a_stream_may_fail_before_it_has_content() -> None:
    reader = OPERATION.open_stream(OPERATION.read(b'{"model":"m","stream":true}', max_depth=64))
    reader.feed(b"".join(response_events([], end="response.failed", error={"message": "m"}, usage=None)))
    assert (reader.failed, reader.committed, reader.whole) == (True, False, True)


@pytest.mark.parametrize(
    "kind", ["response.reasoning_summary_text.delta", "response.function_call_arguments.delta", "response.new"]
)
def test_reasoning_calls_and_what_is_new_are_content(kind: str) -> None:
    reader = OPERATION.open_stream(OPERATION.read(b'{"model":"m"}', max_depth=64))
    reader.feed(typed_event(kind, delta="x"))
    assert reader.committed


def test_usage_of_every_part() -> None:
    reported = {**RESPONSE_USAGE, "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 30}}
    facts = OPERATION.read_answer(msgspec.json.encode(response_object(usage=reported)))
    assert facts.usage == Usage(36, 11, cached_tokens=4, cache_write_tokens=30, reasoning_tokens=5)


def test_errors_are_events_of_the_sdks() -> None:
    assert OPERATION.error_event(BrokenAnswerError("cut")).startswith(b"event: error\ndata: {")
