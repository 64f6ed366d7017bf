"""What all sections of the configuration share: the base model and the field types."""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Annotated, Any, Final, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    WrapSerializer,
)

from .units import checked_size, format_duration, format_size, parse_duration, parse_moment, parse_size

DURATION_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$|\$\{"
SIZE_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(B|KiB|MiB|GiB|TiB)$|\$\{"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_MODEL = re.compile(r"[!-)+-~]{1,256}|[!-)+-~]{0,255}\*")


class Section(BaseModel):
    """A part of the file: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)


class Internal:
    """Marks a field that code fills in and no file may write."""


def _duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    return parse_duration(value if isinstance(value, str) else "")


def _wait(value: timedelta) -> timedelta:
    if not timedelta() < value <= timedelta(days=1):
        raise ValueError("must be more than 0s and at most 1d")
    return value


def _moment(value: object) -> datetime:
    return value if isinstance(value, datetime) else parse_moment(value if isinstance(value, str) else "")


def _size(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return checked_size(value)
    return parse_size(value if isinstance(value, str) else "")


def _positive_size(value: int) -> int:
    if value < 1024:
        raise ValueError("must be at least 1KiB")
    return value


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("must be 1 to 64 of letters, digits and . _ @ -, beginning with a letter or digit")
    return value


def _model_name(value: str) -> str:
    if not _MODEL.fullmatch(value):
        raise ValueError("must be 1 to 256 visible ASCII characters, with * only at the end")
    return value


K = TypeVar("K")
V = TypeVar("V")

Named = Annotated[
    Mapping[K, V],
    AfterValidator(MappingProxyType),
    WrapSerializer(lambda value, handler: handler(dict(value))),
]
"""A mapping that cannot be changed."""

Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN}),
]
Wait = Annotated[Duration, AfterValidator(_wait)]
"""A duration that something waits for: more than nothing, at most a day."""

Moment = Annotated[
    datetime,
    BeforeValidator(_moment),
    PlainSerializer(datetime.isoformat, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string"}),
]
"""A date, which means its end in UTC, or a date with time and zone."""

Size = Annotated[
    int,
    BeforeValidator(_size),
    AfterValidator(_positive_size),
    PlainSerializer(format_size, return_type=str, when_used="json"),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1024}, {"type": "string", "pattern": SIZE_PATTERN}]}),
]

Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Rate = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Name = Annotated[str, AfterValidator(_name)]
"""Goes into metrics, headers and rows, so: short and plain."""
ModelName = Annotated[str, AfterValidator(_model_name)]
"""A model as clients name it, or a beginning of such names and `*`."""
Text = Annotated[str, Field(min_length=1, max_length=256)]

Filled = Annotated[V, Field(exclude=True), Internal()]
"""What code fills in; it is neither written in a file nor shown."""


def internal(info: Any) -> bool:
    """Whether a pydantic FieldInfo carries the `Internal` mark."""
    return any(isinstance(mark, Internal) for mark in info.metadata)
