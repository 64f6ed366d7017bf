"""one_shot: one JSON object in, one answer out, whatever the endpoint; what it used is found under every name."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from headgate.dialects.one_shot import ONE_SHOT
from headgate.proxy.accounting.usage import Usage
from headgate.proxy.errors import (
    BrokenAnswerError,
    DuplicateFieldError,
    InvalidJsonError,
    JsonTooDeepError,
    MissingModelError,
)
from tests_support.answers import typed_event

ROWS = {row.name: row for row in ONE_SHOT}
EMBEDDINGS = ROWS["embeddings"]
MAY_LEAVE_THE_MODEL_OUT = ("moderations", "images")


def body(**fields: Any) -> bytes:
    return msgspec.json.encode(fields)


@pytest.mark.parametrize("name", ROWS)
def test_the_model_is_replaced_and_nothing_else(name: str) -> None:
    asked = ROWS[name].read(b'{"input":"x","model":"m","dimensions":1.0}', max_depth=64)
    assert (asked.model, asked.stream) == ("m", False)
    assert ROWS[name].encode(asked, "other") == b'{"input":"x","model":"other","dimensions":1.0}'
    assert ROWS[name].encode(asked, "m") == asked.body


@pytest.mark.parametrize("name", MAY_LEAVE_THE_MODEL_OUT)
@pytest.mark.parametrize("sent", [b'{"input":"x"}', b'{"input":"x","model":null}'])
def test_some_may_leave_the_model_out(name: str, sent: bytes) -> None:
    asked = ROWS[name].read(sent, max_depth=64)
    assert (asked.model, ROWS[name].encode(asked, "m")) == ("", sent)


@pytest.mark.parametrize("name", [name for name in ROWS if name not in MAY_LEAVE_THE_MODEL_OUT])
def test_the_others_must_name_one(name: str) -> None:
    with pytest.raises(MissingModelError):
        ROWS[name].read(b'{"input":"x"}', max_depth=64)


@pytest.mark.parametrize("name", MAY_LEAVE_THE_MODEL_OUT)
def test_a_model_that_is_there_must_be_one(name: str) -> None:
    with pytest.raises(MissingModelError):
        ROWS[name].read(b'{"model":5}', max_depth=64)


@pytest.mark.parametrize("name", MAY_LEAVE_THE_MODEL_OUT)
def test_a_model_that_another_reader_may_find_is_refused(name: str) -> None:
    with pytest.raises(DuplicateFieldError):
        ROWS[name].read(b'{"model":"m","input":"x","model":null}', max_depth=64)


def test_a_body_is_checked() -> None:
    with pytest.raises(InvalidJsonError):
        EMBEDDINGS.read(b"{", max_depth=64)
    with pytest.raises(JsonTooDeepError):
        EMBEDDINGS.read(b'{"model":"m","input":[[[[1]]]]}', max_depth=3)


@pytest.mark.parametrize(
    ("name", "fields", "stream"),
    [
        ("images", {"stream": True}, True),
        ("images", {"stream": "yes"}, False),
        ("speech", {"stream_format": "sse"}, True),
        ("speech", {"stream_format": "audio"}, False),
    ],
)
def test_a_stream_is_asked_for_in_either_way(name: str, fields: dict[str, Any], stream: bool) -> None:
    assert ROWS[name].read(body(model="m", **fields), max_depth=64).stream is stream


def test_each_has_its_path_and_keeps_the_query() -> None:
    assert {row.name: row.target(b"") for row in ONE_SHOT} == {
        "embeddings": b"/embeddings",
        "moderations": b"/moderations",
        "rerank": b"/rerank",
        "images": b"/images/generations",
        "speech": b"/audio/speech",
    }
    assert EMBEDDINGS.target(b"api-version=1") == b"/embeddings?api-version=1"


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        ({"prompt_tokens": 8, "total_tokens": 8}, Usage(8)),  # OpenAI's embeddings
        ({"input_tokens": 9, "output_tokens": 40, "total_tokens": 49}, Usage(9, 40)),  # images
        ({"total_tokens": 26}, Usage(26)),  # rerank of Jina and Voyage
        ({"total_tokens": -1}, None),
        ({"total_tokens": 5, "prompt_tokens": -1}, None),
        ({}, None),
        ([], None),
        ("many", None),
        (None, None),
    ],
)
def test_usage_is_found_under_every_name(reported: object, usage: Usage | None) -> None:
    assert EMBEDDINGS.read_answer(body(data=[], usage=reported)).usage == usage


def test_an_error_in_a_200_is_seen() -> None:
    assert EMBEDDINGS.read_answer(body(error={"message": "m"})).error
    assert not EMBEDDINGS.read_answer(body(error=None)).error


@pytest.mark.parametrize("answer", [b"", b"\x00\xff", b"[]", b"[" * 100_000])
def test_what_cannot_be_read_says_nothing(answer: bytes) -> None:
    facts = EMBEDDINGS.read_answer(answer)
    assert (facts.usage, facts.error, facts.text_bytes) == (None, False, 0)


@pytest.mark.parametrize(
    ("name", "terminal"), [("images", "image_generation.completed"), ("speech", "speech.audio.done")]
)
def test_streams_end_with_their_own_event(name: str, terminal: str) -> None:
    row = ROWS[name]
    reader = row.open_stream(row.read(body(model="m"), max_depth=64))
    reader.feed(typed_event("some.other"))
    assert not reader.whole
    reader.feed(typed_event(terminal, usage={"input_tokens": 3, "output_tokens": 4}))
    assert (reader.whole, reader.usage) == (True, Usage(3, 4))


def test_a_stream_of_an_endpoint_that_has_none_never_ends_by_itself() -> None:
    reader = EMBEDDINGS.open_stream(EMBEDDINGS.read(body(model="m"), max_depth=64))
    reader.feed(typed_event("response.completed"))
    assert not reader.whole


def test_errors_are_events_of_the_sdks() -> None:
    event = EMBEDDINGS.error_event(BrokenAnswerError("cut"))
    assert json.loads(event.split(b"data: ")[1])["error"]["message"] == "cut"
