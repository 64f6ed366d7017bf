"""The least that the SDK takes for an answer, worked out from the answer's type: for a provider that knows none.

A model has its required fields, a union its first member, a list one item, a literal its first value. Runs in the
foreign environment and imports nothing of ours.
"""

from __future__ import annotations

import base64
import json
from datetime import date, datetime
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel

PLAIN: dict[Any, object] = {
    str: "x",
    int: 1,
    float: 1.5,
    bool: True,
    object: {},
    Any: {},
    None: None,
    type(None): None,
    datetime: "2026-01-02T03:04:05Z",
    date: "2026-01-02",
}
DEEP = 3
STREAM = (
    b'data: {"id":"c","object":"x","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)


def answer(cast_to: Any, *, stream: bool) -> str:
    """Content type and body, for a header."""
    if stream:
        kind, body = "text/event-stream", STREAM
    elif cast_to is str:
        kind, body = "text/plain", b"x"
    elif isinstance(cast_to, type) and not issubclass(cast_to, BaseModel | dict | type(None)) and cast_to not in PLAIN:
        kind, body = "application/octet-stream", bytes(range(256))
    else:
        kind, body = "application/json", json.dumps(example(cast_to)).encode()
    return f"{kind} {base64.b64encode(body).decode()}"


def example(kind: Any, depth: int = 0) -> object:
    """A value of this type, as JSON has it. Types may hold themselves, in lists: deep down these are empty."""
    kind = getattr(kind, "__value__", kind)  # a named alias
    if isinstance(kind, TypeVar):
        return {}
    if kind in PLAIN:
        return PLAIN[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return arguments[0]
    if origin in (Annotated, Union, UnionType):
        return example(arguments[0], depth)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = kind.model_fields.items()
        return {
            field.alias or name: example(field.annotation, depth + 1) for name, field in fields if _wanted(name, field)
        }
    if origin is dict or kind is dict:
        return {}
    return [example(arguments[0], depth + 1)] if arguments and depth < DEEP else []


def _wanted(name: str, field: Any) -> bool:
    """Required, or what tells the members of a union apart."""
    return field.is_required() or name in ("type", "object")
