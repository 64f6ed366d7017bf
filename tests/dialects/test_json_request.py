"""json_request: what must be right about a JSON request is checked, and only the model's name is ever replaced."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.dialects.json_request import (
    MAX_MODEL,
    JsonFacts,
    allowance,
    find_model,
    positive,
    read_object,
    read_stream,
)
from headgate.proxy.errors import (
    DuplicateFieldError,
    InvalidJsonError,
    InvalidRequestError,
    JsonTooDeepError,
    MissingModelError,
)


class Fields(msgspec.Struct):
    model: Any = None


decode = msgspec.json.Decoder(Fields).decode
names = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=40)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def facts(body: bytes) -> JsonFacts:
    model = read_object(body, decode, max_depth=64).model
    return JsonFacts(body, model, find_model(body, model))


def test_a_body_keeps_every_byte_where_the_model_stays() -> None:
    body = b'{ "temperature":1e0,\n"model" : "m", "x": 18446744073709551616 }'
    assert facts(body).encode("m") is body


def test_only_the_models_name_is_replaced() -> None:
    body = b'{ "model" : "m", "n":1.0, "messages": [{"model": "m"}]}'
    assert facts(body).encode('o"n') == b'{ "model" : "o\\"n", "n":1.0, "messages": [{"model": "m"}]}'


def test_splices_are_made_in_order_beside_the_model() -> None:
    body = b'{"a":1,"model":"m","z":2}'
    assert facts(body).encode("long", [(23, 24, b"3"), (5, 6, b"0")]) == b'{"a":0,"model":"long","z":3}'


def test_each_target_gets_its_own_body() -> None:
    asked = facts(b'{"model":"m"}')
    assert [asked.encode(name) for name in ("a", "b", "m", "a")] == [
        b'{"model":"a"}',
        b'{"model":"b"}',
        b'{"model":"m"}',
        b'{"model":"a"}',
    ]


def test_a_body_without_a_model_goes_as_it_is_to_every_target() -> None:
    asked = JsonFacts(b'{"input":"x"}', "", None)
    assert asked.encode("any") == b'{"input":"x"}'


@pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b"{", b'{"model":"m"}x', b'{"model":"\xff"}', b'{"x":"\xff"}'])
def test_what_is_not_one_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidJsonError):
        read_object(body, decode, max_depth=64)


@pytest.mark.parametrize("depth", [4, 100_000])
def test_a_body_that_is_nested_too_deep_is_refused(depth: int) -> None:
    body = b'{"model":"m","x":' + b"[" * depth + b"]" * depth + b"}"
    with pytest.raises(JsonTooDeepError, match="3 levels"):
        read_object(body, decode, max_depth=3)


@pytest.mark.parametrize("model", [None, "", 5, ["m"], "a\nb", "\u202e", "m" * (MAX_MODEL + 1)])
def test_what_is_no_models_name_is_refused_by_the_name_of_its_field(model: object) -> None:
    body = json.dumps({"model": model}).encode()
    with pytest.raises(MissingModelError) as caught:
        find_model(body, model)
    assert caught.value.param == "model"


@pytest.mark.parametrize("second", [b'"model"', b'"mod\\u0065l"'])
def test_two_models_are_refused(second: bytes) -> None:
    body = b'{"model":"a",' + second + b':"b"}'
    with pytest.raises(DuplicateFieldError):
        facts(body)


@pytest.mark.parametrize(("value", "stream"), [(True, True), (False, False), (None, False)])
def test_stream_is_read(value: object, stream: bool) -> None:
    assert read_stream(value) is stream


@pytest.mark.parametrize("value", ["true", 1, {}])
def test_stream_is_true_or_false_and_nothing_else(value: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_stream(value)
    assert caught.value.param == "stream"


@pytest.mark.parametrize(("value", "count"), [(1, 1), (0, None), (-1, None), (True, None), (1.0, None), ("1", None)])
def test_a_count_is_a_positive_integer(value: object, count: int | None) -> None:
    assert positive(value) == allowance(value) == count


def test_nobody_is_allowed_more_than_any_answer_has() -> None:
    assert [allowance(10**power) for power in (11, 12, 13, 400)] == [10**11, 10**12, 10**12, 10**12]


@given(st.dictionaries(st.text(), values, max_size=5), names, names, st.integers(0, 5), st.booleans())
def test_replacing_the_model_changes_the_model_alone(
    fields: dict[str, Any], model: str, other: str, place: int, ascii_only: bool
) -> None:
    items = [(name, value) for name, value in fields.items() if name != "model"]
    items.insert(min(place, len(items)), ("model", model))
    body = json.dumps(dict(items), ensure_ascii=ascii_only, indent=place or None).encode("utf-8", "surrogatepass")
    try:
        asked = facts(body)
    except InvalidJsonError:  # a lone surrogate
        return
    assert asked.model_at is not None
    before, after = body[: asked.model_at[0]], body[asked.model_at[1] :]
    encoded = asked.encode(other)
    assert encoded == (body if other == model else before + msgspec.json.encode(other) + after)
