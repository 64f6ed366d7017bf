"""json_splice: one member is found and replaced, and no other byte is touched, whatever the spelling."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.json_splice import deeper_than, find_members, is_object, value_end

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def _nesting(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max((_nesting(inner) for inner in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((_nesting(inner) for inner in value), default=0)
    return 0


def _found(text: bytes, name: bytes = b"model") -> list[bytes]:
    return [text[at : value_end(text, at)] for at in find_members(text, name)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"model":"a"}', [b'"a"']),
        (b'{ "model" : "a" }', [b'"a"']),
        (b'{"x":{"model":"inner"},"model":"a"}', [b'"a"']),
        (b'{"model":"a","tools":[{"model":1}]}', [b'"a"']),
        (b'{"model":"a","model":"b"}', [b'"a"', b'"b"']),
        (b'{"model":"a","mod\\u0065l":"b"}', [b'"a"', b'"b"']),
        (b'{"\\u006D\\u006f\\u0064\\u0065\\u006C":"b"}', [b'"b"']),
        (b'{"says":"\\"model\\":","model":"a"}', [b'"a"']),
        (b'{"a":"{","b":"\\"","model":{"deep":["]"]}}', [b'{"deep":["]"]}']),
        (b'{"a":",","model":-1.5e3,"z":0}', [b"-1.5e3"]),
        (b'{"a":"\\u00e9","model":null}', [b"null"]),
        (b'{"a":[1,2,[3]],\n\t"model"\r\n:\ttrue}', [b"true"]),
    ],
)
def test_members_are_found_at_the_top_alone_and_in_every_spelling(text: bytes, expected: list[bytes]) -> None:
    assert _found(text) == expected


@given(before=st.dictionaries(st.text(), values, max_size=4), model=values, after=st.dictionaries(st.text(), values))
def test_a_spliced_object_differs_in_that_member_alone(
    before: dict[str, object], model: object, after: dict[str, object]
) -> None:
    for ascii_only in (True, False):
        whole = {**{k: v for k, v in before.items() if k != "model"}, "model": model}
        whole |= {k: v for k, v in after.items() if k != "model"}
        try:
            text = json.dumps(whole, ensure_ascii=ascii_only).encode()
        except UnicodeEncodeError:
            continue
        places = find_members(text, b"model")
        assert len(places) == 1
        start, end = places[0], value_end(text, places[0])
        assert json.loads(text[start:end]) == model
        spliced = text[:start] + b'"new"' + text[end:]
        assert json.loads(spliced) == {**whole, "model": "new"}


@given(values)
def test_depth_is_exact(value: object) -> None:
    depth = _nesting(value)
    text = json.dumps(value).encode()
    assert not deeper_than(text, depth)
    if depth:
        assert deeper_than(text, depth - 1)


@given(st.integers(min_value=1, max_value=400), st.booleans())
def test_depth_of_long_chains_is_exact(depth: int, objects: bool) -> None:
    text = b'{"a":' * depth + b"1" + b"}" * depth if objects else b"[" * depth + b"]" * depth
    assert deeper_than(text, 64) is (depth > 64)


def test_brackets_inside_strings_are_not_depth() -> None:
    assert not deeper_than(b'{"a":"' + b"[" * 1000 + b'"}', 64)


@pytest.mark.parametrize(("text", "whole"), [(b"{}", True), (b'{"a":1', False), (b"[]", False), (b"{}x", False)])
def test_only_a_whole_object_is_an_object(text: bytes, whole: bool) -> None:
    assert is_object(text) is whole
