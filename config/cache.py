"""Which answers are given again, and for how long: the settings of the `cache` filter."""

import re
from datetime import timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from .fields import Filled, Flag, Rate, Section, Size, Wait

MOST_ENTRY: Final = 4 * 1024 * 1024
"""Bytes of the largest answer that is kept: what a stream keeps of its beginning for those who come late."""

Operation = Literal["chat", "completions", "responses", "embeddings", "moderations", "rerank", "images", "speech"]

_TOKEN = re.compile(r"[a-z0-9!#$%&'+.^_`|~-]{1,64}")


def _field(value: str) -> str:
    name = value.lower()
    if not _TOKEN.fullmatch(name) or name.startswith("x-headgate-"):
        raise ValueError("must be the name of a request header, and none of the gateway's own")
    return name


def _entry(value: int) -> int:
    if value > MOST_ENTRY:
        raise ValueError("must be at most 4MiB")
    return value


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class CacheConfig(Section):
    """Answers that are given again to whoever of the same tenant asks exactly the same, and calls that are shared by
    all who ask it at the same time."""

    kind: Filled[Literal["cache"]] = "cache"

    ttl: Wait = timedelta(minutes=5)
    """How long an answer is given again. Default 5m."""

    size: Size = 64 * 1024 * 1024
    """Memory for answers, in each worker; as much again for those that are under way. Default 64MiB."""

    max_entry: Annotated[Size, AfterValidator(_entry)] = 1024 * 1024
    """A larger answer is not kept; at most 4MiB. Default 1MiB."""

    operations: Annotated[tuple[Operation, ...], BeforeValidator(_listed), Field(min_length=1)] = (
        "chat",
        "completions",
        "responses",
        "embeddings",
        "moderations",
        "rerank",
    )
    """What is cached, by endpoint. Default [chat, completions, responses, embeddings, moderations, rerank]."""

    max_temperature: Annotated[Rate, Field(le=2)] | None = None
    """Requests with a higher temperature are left alone, and those without one count as 1: so 0 keeps to answers that
    are meant to be the same each time. Default: any."""

    tools: Flag = False
    """Also requests that offer tools or functions: what was decided once is then done again. Default false."""

    ignore_headers: Annotated[tuple[Annotated[str, AfterValidator(_field)], ...], Field(max_length=64)] = ()
    """Request headers that change no answer, beside those that are known: they go to the provider, and make no
    difference here. Default: none."""

    store: Literal["auto", "memory", "redis"] = "auto"
    """Where answers are kept: in the `memory` of each worker, or in `redis`, for all. `auto`: where limits are counted,
    if that is Redis, else memory. Default auto."""

    wait: Wait = timedelta(seconds=10)
    """With Redis: how long a request waits for the answer to the call of another process before it makes its own.
    Default 10s."""

    @model_validator(mode="after")
    def _fits(self) -> "CacheConfig":
        if self.max_entry > self.size:
            raise ValueError("max_entry: must be at most size")
        return self
