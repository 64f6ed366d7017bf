"""listed_models: what servers tell of their models is read in every spelling; what they do not tell stays unknown."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.dialects.listed_models import read_models
from headgate.proxy.catalog import MOST_MODELS, ListedModel


def listed(*entries: object) -> list[ListedModel]:
    return read_models(json.dumps({"object": "list", "data": entries}).encode())


def test_an_id_is_enough() -> None:
    assert listed(
        {"id": "gpt-4o", "object": "model", "created": 1715367049, "owned_by": "system"}, {"id": "b/c:d"}
    ) == [
        ListedModel("gpt-4o", 1715367049),
        ListedModel("b/c:d"),
    ]


def test_a_bare_list_is_one_too() -> None:
    assert read_models(b' [{"id": "a", "created": 0, "type": "chat", "context_length": 4096}]') == [
        ListedModel("a", None, 4096)
    ]


@pytest.mark.parametrize(
    ("told", "window"),
    [
        ({"context_window": 131072}, 131072),  # Groq
        ({"context_length": 65536, "top_provider": {"context_length": 1}}, 65536),  # OpenRouter
        ({"max_context_length": 32768}, 32768),  # Mistral
        ({"max_model_len": 8192, "max_tokens": 5}, 8192),  # vLLM
        ({"metadata": {"context_length": 163840}}, 163840),  # DeepInfra
        ({"context_window": None, "max_model_len": 1}, 1),
        ({"context_window": "128k"}, None),
        ({"context_window": -1}, None),
        ({"context_window": True}, None),
        ({"metadata": []}, None),
        ({}, None),
    ],
)
def test_the_context_window_is_read_where_it_stands(told: dict[str, Any], window: int | None) -> None:
    assert listed({"id": "m", **told}) == [ListedModel("m", None, window)]


@pytest.mark.parametrize(
    ("told", "capabilities"),
    [
        (
            {"capabilities": {"completion_chat": True, "function_calling": True, "vision": False, "fine_tuning": True}},
            {"chat": True, "tools": True, "vision": False},
        ),
        ({"supports_chat": True, "supports_image_input": False, "supports_tools": True},
         {"chat": True, "vision": False, "tools": True}),
        (
            {
                "architecture": {"input_modalities": ["text", "image"], "output_modalities": ["text"]},
                "supported_parameters": ["tools", "max_tokens"],
            },
            {
                "vision": True, "audio_input": False, "image_output": False, "audio_output": False, "embeddings": False,
                "tools": True, "reasoning": False, "structured_outputs": False,
            },
        ),
        ({"capabilities": ["vision"], "architecture": "moe", "supported_parameters": "tools"}, {}),
        ({"capabilities": {"vision": "yes"}, "input_modalities": None}, {}),
        ({}, {}),
    ],
)  # fmt: skip
def test_a_capability_is_there_only_where_the_provider_says_yes_or_no(
    told: dict[str, Any], capabilities: dict[str, bool]
) -> None:
    [model] = listed({"id": "m", **told})
    assert model.capabilities == capabilities


def test_entries_without_a_usable_id_are_passed_over_and_none_stands_twice() -> None:
    entries = [
        {"id": ""},
        {"id": 5},
        {},
        "a",
        None,
        {"id": "a\nb"},
        {"id": "x" * 257},
        {"id": "m"},
        {"id": "m", "created": 5},
    ]
    assert listed(*entries) == [ListedModel("m")]


def test_no_more_are_taken_than_a_list_may_have() -> None:
    assert len(listed(*({"id": f"m{number}"} for number in range(MOST_MODELS + 5)))) == MOST_MODELS


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"null", b'{"data": {}}', b"<html>", b"[", b"\xff", b'{"data": [{"id": "a"}]', b"[" * 100_000]
)
def test_what_is_no_list_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="not a list of models"):
        read_models(body)


KEYS = [
    "id", "created", "context_window", "metadata", "capabilities", "vision", "architecture", "input_modalities",
    "supported_parameters", "x",
]  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(-9, 9) | st.text(max_size=5)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
)


@given(st.lists(JSON, max_size=4))
def test_no_entry_breaks_the_list(entries: list[Any]) -> None:
    assert len(listed(*entries, {"id": "the last"})) >= 1
