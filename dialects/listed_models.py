"""Reads `GET /models` as servers of OpenAI's shape answer it.

`id` is all they agree on. What else some tell is read where it stands, in the spellings of OpenRouter, Mistral, Groq,
vLLM, Together, Fireworks and DeepInfra; a value that is not what it should be is passed over, and costs its entry
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ..proxy.catalog import MOST_MODELS, ListedModel
from .json_request import MAX_MODEL, positive

if TYPE_CHECKING:
    from collections.abc import Iterator

_WINDOWS = ("context_window", "context_length", "max_context_length", "max_model_len", "max_input_tokens")
_FLAGS = {
    "chat": "chat",
    "completion_chat": "chat",
    "supports_chat": "chat",
    "tools": "tools",
    "function_calling": "tools",
    "supports_tools": "tools",
    "vision": "vision",
    "supports_image_input": "vision",
    "audio": "audio_input",
    "reasoning": "reasoning",
    "structured_outputs": "structured_outputs",
}
"""A provider's own word for true or false -> ours."""
_PARAMETERS = ("tools", "reasoning", "structured_outputs")
_INPUTS = {"image": "vision", "audio": "audio_input"}
_OUTPUTS = {"image": "image_output", "audio": "audio_output", "embeddings": "embeddings"}


class _Wire(msgspec.Struct):
    data: list[Any]


_decode_object = msgspec.json.Decoder(_Wire).decode
_decode_list = msgspec.json.Decoder(list[Any]).decode


def read_models(body: bytes) -> list[ListedModel]:
    """The models of an answer, each once, `MOST_MODELS` at the most. Raises ValueError for what is no list."""
    try:
        entries = _decode_list(body) if body.lstrip()[:1] == b"[" else _decode_object(body).data
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a list of models: {error}") from None
    found: dict[str, ListedModel] = {}
    for entry in entries:
        name = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not 0 < len(name) <= MAX_MODEL or not name.isprintable() or name in found:
            continue
        found[name] = ListedModel(
            name, positive(entry.get("created")), _window(entry), dict(sorted(_capabilities(entry)))
        )
        if len(found) == MOST_MODELS:
            break
    return list(found.values())


def _window(entry: dict[str, Any]) -> int | None:
    for place in (entry, entry.get("metadata")):
        if isinstance(place, dict):
            for name in _WINDOWS:
                if (window := positive(place.get(name))) is not None:
                    return window
    return None


def _capabilities(entry: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    for place in (entry, entry.get("capabilities")):
        if isinstance(place, dict):
            for name, ours in _FLAGS.items():
                if isinstance(value := place.get(name), bool):
                    yield ours, value
    parameters = entry.get("supported_parameters")
    if isinstance(parameters, list):
        for name in _PARAMETERS:
            yield name, name in parameters
    kinds = entry.get("architecture")
    for place in (entry, kinds) if isinstance(kinds, dict) else (entry,):
        for field, names in (("input_modalities", _INPUTS), ("output_modalities", _OUTPUTS)):
            if isinstance(told := place.get(field), list):
                for kind, ours in names.items():
                    yield ours, kind in told
