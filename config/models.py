"""The models that clients may name, and the targets that answer for them."""

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from .fields import ModelName, Name, Rate, Section, Wait


class Price(Section):
    """What a target costs, in USD per million tokens. Wins over every price list."""

    input: Rate
    """Prompt tokens. Required."""

    output: Rate
    """Completion tokens. Required."""

    cached_input: Rate | None = None
    """Prompt tokens that the provider read from its cache. Default: as input."""

    cache_write: Rate | None = None
    """Prompt tokens that the provider wrote to its cache. Default: as input."""


class Target(Section):
    """One provider and one model of it."""

    provider: Name
    """A name in `providers`. Required."""

    model: ModelName | None = None
    """The model's name at the provider, without wildcard. Default: the name the client asked for."""

    priority: int = Field(default=0, strict=True, ge=0, le=128)
    """Strict tiers, lowest first; a higher one is used when the lower has nobody left. Default 0."""

    price: Price | None = None
    """What it costs. Default: looked up in the price lists."""


def _some(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    # Not min_length: that counts a mistyped target as none, and would complain a second time.
    if not targets:
        raise ValueError("must have at least 1 item")
    return targets


class Model(Section):
    """One name, or a wildcard such as `gpt-*`. Exact beats the longest prefix."""

    targets: Annotated[tuple[Target, ...], AfterValidator(_some), Field(json_schema_extra={"minItems": 1})]
    """Who answers, in the order in which they are tried. Required, at least one."""

    on_exhausted: Literal["reject", "queue", "least_bad"] = "reject"
    """When all targets rest or are overloaded: refuse, wait for one, or ask the best of those that
    rest all the same. Default reject."""

    queue_timeout: Wait = timedelta(seconds=5)
    """How long `on_exhausted: queue` waits. Default 5s."""
