"""How much each caller may: the settings of the `rate_limit` filter."""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from .fields import Filled, Section

Scope = Literal["key", "user", "team", "model", "address"]
SCOPES: Final[tuple[Scope, ...]] = ("key", "user", "team", "model", "address")
UNITS: Final = ("second", "minute", "hour", "day")


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _ordered(value: tuple[Scope, ...]) -> tuple[Scope, ...]:
    if not value:
        raise ValueError(f"must name one of {', '.join(SCOPES)}")
    if len(set(value)) < len(value):
        raise ValueError("names one of them twice")
    return tuple(scope for scope in SCOPES if scope in value)


Number = Annotated[int, Field(strict=True, ge=1, le=10**12)]
Per = Annotated[
    tuple[Scope, ...],
    BeforeValidator(_listed),
    AfterValidator(_ordered),
    WithJsonSchema(
        {"anyOf": [{"enum": list(SCOPES)}, {"type": "array", "items": {"enum": list(SCOPES)}, "minItems": 1}]}
    ),
]


class Limit(Section):
    """How much one caller, or one combination of caller and model, may."""

    per: Per = ("user",)
    """Whose calls are counted together: key, user (the key's owner, else the key; without auth the address), team,
    model, address, or a list, which counts each combination. Default user."""

    requests_per_second: Number | None = None
    """Calls a second. Default: any number."""

    requests_per_minute: Number | None = None
    """Calls a minute. Default: any number."""

    requests_per_hour: Number | None = None
    """Calls an hour. Default: any number."""

    requests_per_day: Number | None = None
    """Calls a day. Default: any number."""

    tokens_per_second: Number | None = None
    """Tokens of prompts and answers a second. Default: any number."""

    tokens_per_minute: Number | None = None
    """Tokens of prompts and answers a minute. Default: any number."""

    tokens_per_hour: Number | None = None
    """Tokens of prompts and answers an hour. Default: any number."""

    tokens_per_day: Number | None = None
    """Tokens of prompts and answers a day. Default: any number."""

    concurrent: Number | None = None
    """Calls at once. Default: any number."""

    refill: Literal["window", "continuous"] = "window"
    """`window`: each limit is new once the window that its first call opened is over. `continuous`: what was used comes
    back evenly, up to the limit. Default window."""

    on_store_failure: Literal["open", "closed", "local_share"] = "local_share"
    """While Redis is away, where that counts. `local_share`: each worker counts by itself, under its part of the limit.
    `closed`: 503. `open`: any number. Default local_share."""

    @property
    def numbers(self) -> dict[str, int]:
        """What is written, by name of the field."""
        names = [f"{what}_per_{unit}" for what in ("requests", "tokens") for unit in UNITS]
        return {name: value for name in (*names, "concurrent") if (value := getattr(self, name)) is not None}


class OneLimit(Limit):
    """An entry of `limits`."""

    @model_validator(mode="after")
    def _says_something(self) -> "OneLimit":
        if not self.numbers:
            raise ValueError("must have a number, such as requests_per_minute")
        return self


BUILT_IN: Final = (
    OneLimit(per=("user",), requests_per_minute=100),
    OneLimit(per=("address",), requests_per_minute=1000),
)


class RateLimitConfig(Limit):
    """How much each caller may; what is more is 429. One limit as it stands here, or several in `limits`."""

    kind: Filled[Literal["rate_limit"]] = "rate_limit"

    limits: Annotated[tuple[OneLimit, ...], Field(max_length=32)] = ()
    """Several limits, all of which must have room, instead of the one written beside it. Default: what is written
    beside it; where nothing is, 100 requests a minute per user and 1000 per address."""

    @property
    def written(self) -> tuple[Limit, ...]:
        """All limits, one way or the other."""
        return self.limits or ((self,) if self.numbers else BUILT_IN)

    @model_validator(mode="after")
    def _one_way(self) -> "RateLimitConfig":
        beside = sorted(self.model_fields_set - {"kind", "limits"})
        if self.limits and beside:
            raise ValueError(f"either limits, or one limit as it stands: {beside[0]} belongs into an entry of limits")
        if beside and not self.numbers:
            raise ValueError("must have a number, such as requests_per_minute")
        seen: set[tuple[tuple[Scope, ...], str]] = set()
        for limit in self.limits:
            for name in limit.numbers:
                if (limit.per, name) in seen:
                    raise ValueError(f"two limits with {name} per {' and '.join(limit.per)}")
                seen.add((limit.per, name))
        return self
