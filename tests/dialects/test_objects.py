"""objects: of an answer only what the provider itself says of its objects is believed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.dialects.chat_stream import StoredChat
from headgate.dialects.objects import ResponseWatch, read_id, read_object, read_response
from headgate.dialects.responses import _EVENTS, StoredStream
from headgate.proxy.stateful import NOTHING, Said
from tests_support.answers import chat_chunks, event, response_events, response_object, typed_event


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"id": "file-a", "object": "file"}, Said("file-a")),
        ({"id": "file-a", "deleted": True}, Said("file-a", (), True)),
        ({"id": "file-a", "deleted": False}, Said("file-a", (), False)),
        (
            {"id": "batch_1", "output_file_id": "file-o", "error_file_id": "file-e", "input_file_id": "file-i"},
            Said("batch_1", (("files", "file-o"), ("files", "file-e"))),
        ),
        ({"id": "upload_1", "file": {"id": "file-a"}}, Said("upload_1", (("files", "file-a"),))),
        ({"id": "ftjob-1", "result_files": ["file-a", None]}, Said("ftjob-1", (("files", "file-a"),))),
        (
            {"id": "resp_1", "output": [{"type": "message"}, *[{"container_id": "cntr_1"}] * 2, 1]},
            Said("resp_1", (("containers", "cntr_1"),)),
        ),
        ({"id": 7, "file": "x", "result_files": "x", "output": "x", "deleted": "yes"}, NOTHING),
        ({"object": "list", "data": [{"id": "file-a"}]}, NOTHING),
        ({"metadata": {"id": "file-a", "output_file_id": "file-b"}}, NOTHING),
    ],
)  # fmt: skip
def test_an_object_says_what_it_is(answer: dict[str, Any], said: Said) -> None:
    assert read_object(encoded(answer)) == said


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"\xff", b'"id"', b"{" * 2000])
def test_what_is_no_object_says_nothing(body: bytes) -> None:
    assert (read_object(body), read_response(body), read_id(body)) == (NOTHING, NOTHING, NOTHING)


def test_half_an_object_says_its_id_where_that_comes_first() -> None:
    whole = encoded({"id": "resp_1", "output": ["x" * 100]})
    assert read_id(whole[:-20]) == read_response(whole[:-20]) == read_object(whole[:-20]) == Said("resp_1")
    assert read_id(b'{"output":[{"id":"resp_1"') == NOTHING


def test_a_response_names_itself_and_its_containers() -> None:
    answer = response_object()
    assert read_response(encoded(answer)) == Said("resp_test")
    answer["output"].append({"type": "code_interpreter_call", "container_id": "cntr_1"})
    assert read_response(encoded(answer)) == Said("resp_test", (("containers", "cntr_1"),))
    answer["output"] = "container_id"
    assert read_response(encoded({**answer, "x": {"container_id": 1}})) == Said("resp_test")


def named_by(stream: StoredStream | StoredChat, data: bytes) -> Said | None:
    """What is named together with the first bytes that `data` lets down."""
    stream.feed(data)
    said, stream.named = stream.named, None
    return said


@given(st.integers(1, 200))
def test_the_first_bytes_of_a_response_come_with_its_id_however_it_is_cut(size: int) -> None:
    stream, data = StoredStream(_EVENTS), b"".join(response_events())
    for at in range(0, len(data), size):
        ready = stream.feed(data[at : at + size])
        if ready:
            assert stream.named == Said("resp_test")
            break
    assert named_by(stream, data[at + size :]) == Said("resp_test")  # what was not taken away yet
    assert stream.named is None


def test_a_container_comes_with_the_event_that_names_it() -> None:
    stream = StoredStream(_EVENTS)
    first, *others = response_events()
    assert named_by(stream, first) == Said("resp_test")
    assert named_by(stream, others[0]) is None
    item = {"type": "code_interpreter_call", "container_id": "cntr_1"}
    assert named_by(stream, typed_event("response.output_item.added", item=item)) == Said(
        "", (("containers", "cntr_1"),)
    )
    assert named_by(stream, others[1] + typed_event("x", item={"container_id": 3})) is None


def test_a_response_that_does_not_begin_by_its_id_still_has_one_at_its_end() -> None:
    stream = StoredStream(_EVENTS)
    *others, last = response_events()
    assert named_by(stream, b"".join(others[2:])) is None
    assert named_by(stream, last) == Said("resp_test")


def test_the_first_part_of_an_event_too_large_to_be_held_is_looked_at() -> None:
    stream = StoredStream(_EVENTS)
    begun = {"id": "resp_1", "instructions": "x" * 600_000}
    assert named_by(stream, typed_event("response.created", response=begun)) == Said("resp_1")
    assert ResponseWatch().look(b"event: response.created\ndata: {") is None


@given(st.integers(1, 300))
def test_the_first_bytes_of_a_stored_chat_come_with_its_id(size: int) -> None:
    stream = StoredChat(hide_usage=True, choices=1)
    data = b": hello\n\n" + b"".join(event(one) for one in chat_chunks())
    for at in range(0, len(data), size):
        ready = stream.feed(data[at : at + size])
        if b"data" in ready:
            assert stream.named == Said("chatcmpl-test")
            return
        assert stream.named is None
