"""references: every object that a body names is found, however its key is written, and nothing else."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.dialects.references import MOST, files_in, references
from headgate.proxy.errors import InvalidRequestError
from headgate.proxy.stateful import Ref


def named(body: object) -> list[tuple[str, str, str]]:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return [(ref.kind, ref.id, ref.param) for ref in references(text)]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"input_file_id": "file-a"}, [("files", "file-a", "input_file_id")]),
        (
            {"training_file": "file-a", "validation_file": "file-b"},
            [("files", "file-a", "training_file"), ("files", "file-b", "validation_file")],
        ),
        ({"file_ids": ["file-a", "file-a"]}, [("files", "file-a", "file_ids")]),
        ({"previous_response_id": "resp_1"}, [("responses", "resp_1", "previous_response_id")]),
        ({"conversation": "conv_1"}, [("conversations", "conv_1", "conversation")]),
        ({"conversation": {"id": "conv_1"}}, [("conversations", "conv_1", "conversation")]),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-a"}]}]},
            [("files", "file-a", "file_id")],
        ),
        (
            {"messages": [{"content": [{"type": "file", "file": {"file_id": "file-a"}}]}]},
            [("files", "file-a", "file_id")],
        ),
        (
            {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]},
            [("vector_stores", "vs_1", "vector_store_ids")],
        ),
        (
            {"tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["file-a"]}}]},
            [("files", "file-a", "file_ids")],
        ),
        ({"tools": [{"type": "code_interpreter", "container": "cntr_1"}]}, [("containers", "cntr_1", "container")]),
        ({"files": [{"file_id": "file-a", "attributes": {"file_id": "x"}}]}, [("files", "file-a", "file_id")]),
    ],
)  # fmt: skip
def test_what_a_body_names_is_found(body: dict[str, Any], expected: list[tuple[str, str, str]]) -> None:
    assert named(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        {"model": "m", "messages": [{"role": "user", "content": 'what is "file_id": "file-a"?'}]},
        {"messages": [{"role": "tool", "tool_call_id": "call_1", "content": "x"}]},
        {"metadata": {"file_id": "mine", "deep": {"conversation": "x"}}},
        {"tools": [{"function": {"parameters": {"properties": {"file_id": {"type": "string"}}, "file_id": "x"}}}]},
        {"text": {"format": {"schema": {"examples": [{"file_id": "x"}]}}}},
        {"file_id": None, "conversation": {"name": "id"}, "file_ids": [1, None, ""], "input_file_id": ""},
        {"file_id": {"file": "x"}, "conversation": {"deep": {"id": "x"}}},
        {"words": ["file_id", "conversation"]},
        {},
    ],
)
def test_what_only_looks_like_it_is_left_alone(body: dict[str, Any]) -> None:
    assert named(body) == []


def test_a_key_that_stands_twice_counts_twice() -> None:
    body = b'{"file_id":"file-a","x":1,"file_id":"file-b","conversation":{"id":"c","id":"d"}}'
    assert [id_ for _, id_, _ in named(body)] == ["file-a", "file-b", "c", "d"]


@pytest.mark.parametrize(
    "key", [r"file\u005fid", r"\u0066ile_id", r"\u0066\u0069\u006c\u0065\u005f\u0069\u0064", r"file\u005Fid"]
)
def test_a_key_in_escapes_is_that_key(key: str) -> None:
    assert named(b'{"a": 1, "%b" : "file-a"}' % key.encode()) == [("files", "file-a", "file_id")]


def test_an_id_in_escapes_is_that_id() -> None:
    assert named(rb'{"conversation":{"\u0069d":"\u0063onv_1"},"file_id":"file\u002da"}') == [
        ("conversations", "conv_1", "conversation"),
        ("files", "file-a", "file_id"),
    ]


def test_umlauts_in_escapes_are_no_keys() -> None:
    assert named({"messages": [{"content": "Übergrößenträger"}], "café": {"ü": "file_id"}}) == []


def test_what_is_no_json_breaks_nothing() -> None:
    broken = (
        b'"file_id":',
        b'{"file_id":"',
        b'"file_id": "file-a',
        b"\xff{_id",
        b'{"\xff\\u0066": 1}',
    )
    for body in (*broken, b""):
        assert all(isinstance(ref, Ref) for ref in references(body))


@pytest.mark.parametrize(
    "body",
    [
        {"file_ids": ["file-a", {"id": "file-b"}, "file-c"]},
        {"vector_store_ids": [["vs_1"]]},
        b'{"file_id":[}',
        {"conversation": {"x": "x" * 5000, "id": "conv_1"}},
        {"conversation": {"id": "conv_1", "x": "x" * 5000}},
    ],
)
def test_what_cannot_be_read_at_once_is_refused_and_not_passed_over(body: object) -> None:
    with pytest.raises(InvalidRequestError, match="must be"):
        named(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"conversation":' * 2_000_000,
        b'{"file_ids":[' * 2_000_000,
        b'"metadata":{' * 2_000_000,
        b'{"metadata":{}, ' * 2_000_000,
        b'{"file_ids":["' + b'a","' * 4_000_000,
        b'{"file_id":"' + b'\\"' * 8_000_000,
    ],
    ids=["conversations", "lists", "descriptions", "many descriptions", "long list", "long string"],
)
def test_no_body_takes_long(body: bytes) -> None:
    """32 MiB of each: twice around would be for ever."""
    began = time.process_time()
    with suppress(InvalidRequestError):
        references(body)
    assert time.process_time() - began < 20


def test_nobody_means_thousands_of_objects() -> None:
    assert len(named({"file_ids": [f"file-{n}" for n in range(MOST)]})) == MOST
    with pytest.raises(InvalidRequestError, match="more than 4096 objects"):
        named({"file_ids": [f"file-{n}" for n in range(MOST + 1)]})


@pytest.mark.parametrize("filling", [rb"\u0061", b'\\"', b" ", b"{", b'":"'])
def test_a_long_body_is_read_in_one_go(filling: bytes) -> None:
    """A reading that went back again and again would take hours for these."""
    body = b'{"a":"' + filling * (600_000 // len(filling)) + b'","file_id":"file-a"}'
    began = time.process_time()
    references(body)
    assert time.process_time() - began < 10


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.text(max_size=5) | st.sampled_from(["file-a", "file_id"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["file_id", "a", "é", "metadata", "conversation", "b\\", '"', "id"]), inner)
    ),
    max_leaves=12,
)


def walk(value: Any) -> set[str]:
    """The same by looking at the parsed value."""
    if isinstance(value, list):
        return set().union(*map(walk, value))
    if not isinstance(value, dict):
        return set()
    found: set[str] = set()
    for key, one in value.items():
        if key == "metadata":
            continue
        if key in ("file_id", "conversation"):
            if isinstance(one, dict):
                one_id = one.get("id") if key == "conversation" else None
                found |= set(ids(one_id))
            else:
                found |= set(ids(one))
        found |= walk(one)
    return found


def ids(value: Any) -> list[str]:
    if isinstance(value, list):
        return [one for one in value if isinstance(one, str) and one]
    return [value] if isinstance(value, str) and value else []


@given(st.dictionaries(st.sampled_from(["file_id", "a", "metadata", "conversation"]), JSON), st.booleans())
def test_the_bytes_name_what_the_value_names(body: dict[str, Any], ascii_only: bool) -> None:
    text = json.dumps(body, ensure_ascii=ascii_only).encode(errors="replace")
    try:
        found = {ref.id for ref in references(text)}
    except InvalidRequestError:
        return  # a list that is not flat
    assert found == walk(json.loads(text))


def test_a_chat_names_files_only() -> None:
    body = json.dumps({"file_id": "file-a", "conversation": "c", "thread_id": "t", "file_ids": ["b"]}).encode()
    assert [ref.id for ref in files_in(body)] == ["file-a", "b"]
    assert [ref.id for ref in files_in(rb'{"\u0066ile_id":"file-a"}')] == ["file-a"]
    assert files_in(b'{"thread_id":"t"}') == []
