"""chunk_shape: what fits a shape means what decoding would have found; what might mean anything else does not fit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.dialects.chat_stream import ChatStream
from headgate.dialects.chunk_shape import Shape, find_shape
from tests_support.answers import DONE, USAGE

PADDING = "kT3n"


def chunk(delta: dict[str, Any], *, padding: str | None = None, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    body: dict[str, Any] = {"id": "chatcmpl-1", "model": "m", "choices": [choice], **fields}
    if padding is not None:
        body["obfuscation"] = padding
    return b"data: " + json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def read(events: list[bytes], *, shapes: bool) -> tuple[ChatStream, list[bytes]]:
    reader = ChatStream(hide_usage=True, choices=1)
    if not shapes:
        reader._shapes_left = 0
    return reader, [event if reader.passes(event) else reader.feed(event) for event in events]


def facts(reader: ChatStream) -> tuple[object, ...]:
    said = reader.facts()
    return (
        said.usage, said.text_bytes, said.text_events, reader.committed, reader.finished, reader.failed, reader.whole,
        reader.end(),
    )  # fmt: skip


def learned(*events: bytes) -> Shape:
    reader, _ = read([chunk({"content": "first"}), *events], shapes=True)
    assert reader._shape is not None
    return reader._shape


@pytest.mark.parametrize("key", ["content", "reasoning_content", "reasoning"])
@pytest.mark.parametrize("padding", [None, PADDING])
def test_the_next_chunk_is_measured(key: str, padding: str | None) -> None:
    first = chunk({key: " one"}, padding=padding)
    reader, _ = read([first, first], shapes=True)
    assert reader._shape is not None
    assert reader._shape.measure(chunk({key: " and two"}, padding=padding and "x")) == 8
    assert reader._shape.measure(chunk({key: ""}, padding=padding)) == 0


@pytest.mark.parametrize(
    "other",
    [
        chunk({"content": 'a "quote"'}),
        chunk({"content": "a\\b"}),
        chunk({"content": "line\nend"}),
        chunk({"content": "ü"}),
        chunk({"content": "one"}, usage=USAGE),
        chunk({"content": "one"}, padding="x"),
        chunk({"content": "one", "refusal": "no"}),
        chunk({"refusal": "one"}),
        chunk({"content": "one"}, error={"message": "no"}),
        chunk({"content": "one"}).replace(b'"index":0', b'"index":1'),
        chunk({"content": "one"}).replace(b"null}]", b'"stop"}]'),
        chunk({"content": "one"}).replace(b"one", b"one\x00"),
        chunk({"content": "one"}).replace(b"one", b"one\x01"),
        chunk({"content": "one"}).replace(b"one", b"one\x7f"),
        chunk({"content": "one"}).replace(b"one", b"one\xff"),
        chunk({"content": "one"})[:-1],
        chunk({"content": "one"}) * 2,
        b": ping\n\n",
        DONE,
    ],
)
def test_a_chunk_that_says_more_than_text_does_not_fit(other: bytes) -> None:
    assert learned(chunk({"content": "second"})).measure(other) == -1


def test_halves_that_overlap_do_not_fit() -> None:
    shape = Shape(b'data: {"a":"', b"", b'"}\n\n')
    assert shape.measure(b'data: {"a":"}\n\n') == -1
    assert shape.measure(b'data: {"a":""}\n\n') == 0


def test_text_that_stands_elsewhere_too_is_not_taken_for_the_one() -> None:
    # `content` is found as the text of a key that only looks like it; the other reading has the last word.
    event = b'data: {"x":{"content":"same"},"choices":[{"index":0,"delta":{"content":"same"}}]}\n\n'
    reader, _ = read([chunk({"content": "first"}), event], shapes=True)
    assert reader._shape is None
    assert find_shape(event, b"content", "same", lambda *_: True) is not None  # without the proof it would be


def test_it_is_given_up_where_no_chunk_is_like_another() -> None:
    events = [chunk({"content": "some text"}, created=number) for number in range(9)]
    reader, down = read(events, shapes=True)
    assert down == events
    assert reader._shapes_left == 0


def test_what_comes_in_halves_is_put_together_first() -> None:
    events = [chunk({"content": "text"})] * 3
    whole = chunk({"content": "more"})
    reader, _ = read([*events, whole[:30], whole[30:], whole], shapes=True)
    assert (reader.text_bytes, reader.text_events) == (5 * 4, 5)


TEXT = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", "a", "content", '"', "\\", ",", ":", "{", "data: ", "\x7f", " word", "chatcmpl-1", "null"]),
)
DELTA = st.one_of(
    st.builds(lambda text: {"content": text}, TEXT),
    st.builds(lambda text: {"content": None, "reasoning_content": text}, TEXT),
    st.builds(lambda text, more: {"content": text, "refusal": more}, TEXT, st.one_of(st.none(), TEXT)),
    st.just({"role": "assistant", "content": ""}),
    st.just({"content": "x", "audio": {"data": "AA=="}}),
    st.just({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}),
)
EVENT = st.one_of(
    st.builds(lambda delta, padding: chunk(delta, padding=padding), DELTA, st.one_of(st.none(), TEXT)),
    st.builds(lambda delta: chunk(delta, usage=USAGE), DELTA),
    st.builds(lambda delta: chunk(delta).replace(b'"finish_reason":null', b'"finish_reason":"stop"'), DELTA),
    st.builds(lambda delta, n: chunk(delta).replace(b'"index":0', b'"index":%d' % n), DELTA, st.integers(0, 2)),
    st.builds(lambda raw: b"data: " + raw.replace(b"\n", b"") + b"\n\n", st.binary(max_size=20)),
    st.just(b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}\n\n'),
    st.just(b'data: {"error":{"message":"x"}}\n\n'),
    st.just(DONE),
)


@given(st.lists(EVENT, max_size=12), st.lists(st.integers(1, 200), max_size=4))
def test_a_stream_is_the_same_with_and_without_shapes(events: list[bytes], cuts: list[int]) -> None:
    pieces = list(events)
    for cut in cuts:  # some reads hold half an event, or more than one
        data = b"".join(pieces)
        if cut < len(data):
            pieces = [data[:cut], *([data[cut:]] if cut % 2 else [data[cut : cut + 50], data[cut + 50 :]])]
    with_shapes, down = read(pieces, shapes=True)
    without, expected = read(pieces, shapes=False)
    assert down == expected
    assert facts(with_shapes) == facts(without)


@given(
    st.lists(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=8), min_size=4, max_size=20),
    st.booleans(),
)
def test_plain_text_is_counted_as_by_decoding(texts: list[str], padded: bool) -> None:
    events = [
        chunk({"content": text}, padding="p" * (number % 5) if padded else None) for number, text in enumerate(texts)
    ]
    with_shapes, down = read([*events, DONE], shapes=True)
    without, expected = read([*events, DONE], shapes=False)
    assert down == expected
    assert facts(with_shapes) == facts(without)
