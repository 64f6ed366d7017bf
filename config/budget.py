"""How much money each caller may spend: the settings of the `budget` filter."""

from typing import Annotated, Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, model_validator

from .fields import Count, Filled, Flag, Section
from .rate_limit import Per, Scope

UNITS: Final = ("day", "week", "month")
NANOS: Final = 1_000_000_000

Usd = Annotated[float, Field(strict=True, ge=0.000001, le=9_000_000, allow_inf_nan=False)]
"""US dollars. Up to here whole nano-dollars are exact in a double, too, which is what some stores compare."""


def _ascending(value: tuple[int, ...]) -> tuple[int, ...]:
    if list(value) != sorted(set(value)):
        raise ValueError("must be ascending percents")
    return value


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("must be a time zone this machine knows, such as UTC or Europe/Berlin") from None
    return value


Percent = Annotated[int, Field(strict=True, ge=1, le=100)]


class BudgetLimit(Section):
    """How much one caller, or one combination of caller and model, may spend."""

    per: Per = ("key",)
    """Whose calls are counted together: key, user (the key's owner, else the key; without auth the address), team,
    model, address, or a list, which counts each combination. Default key."""

    usd_per_day: Usd | None = None
    """US dollars a day. Default: any number."""

    usd_per_week: Usd | None = None
    """US dollars a week, from Monday. Default: any number."""

    usd_per_month: Usd | None = None
    """US dollars a calendar month. Default: any number."""

    on_store_failure: Literal["closed", "open"] = "closed"
    """While Redis is away, where that counts. `closed`: 503. `open`: any amount, counted by the ledger alone. Default
    closed."""

    @property
    def amounts(self) -> dict[str, int]:
        """What is written, in nano-dollars, by unit."""
        found = ((unit, getattr(self, f"usd_per_{unit}")) for unit in UNITS)
        return {unit: round(value * NANOS) for unit, value in found if value is not None}


class OneBudget(BudgetLimit):
    """An entry of `limits`."""

    @model_validator(mode="after")
    def _says_something(self) -> "OneBudget":
        if not self.amounts:
            raise ValueError("must have an amount, such as usd_per_month")
        return self


class BudgetConfig(BudgetLimit):
    """How much money each caller may spend; what is more is 402. One limit as it stands here, or several in
    `limits`."""

    kind: Filled[Literal["budget"]] = "budget"

    limits: Annotated[tuple[OneBudget, ...], Field(max_length=32)] = ()
    """Several limits, all of which must have room, instead of the one written beside it. Default: what is written
    beside it."""

    alerts: Annotated[tuple[Percent, ...], Field(max_length=8), AfterValidator(_ascending)] = (50, 80, 100)
    """Percents of a limit at which the log says so, each once for a caller and period; 100 also when a request was
    refused for want of money. Default [50, 80, 100]."""

    unknown_price: Literal["refuse", "allow"] = "refuse"
    """What has no known price: `refuse` it, or `allow` it, uncounted. Default refuse."""

    strict: Flag = False
    """Give a request that sets no limit to its answer one of `output_tokens`, so that it cannot cost more than was set
    aside for it. Default false."""

    output_tokens: Count = 1024
    """Tokens to set aside for the answer to a request that sets no limit. Default 1024."""

    time_zone: Annotated[str, AfterValidator(_zone)] = "UTC"
    """Where days, weeks and months begin. Default UTC."""

    @property
    def written(self) -> tuple[BudgetLimit, ...]:
        """All limits, one way or the other."""
        return self.limits or (self,)

    @model_validator(mode="after")
    def _one_way(self) -> "BudgetConfig":
        beside = sorted(self.model_fields_set & BudgetLimit.model_fields.keys())
        if self.limits and beside:
            raise ValueError(f"either limits, or one limit as it stands: {beside[0]} belongs into an entry of limits")
        if not self.limits and not self.amounts:
            raise ValueError("must have an amount, such as usd_per_month")
        seen: set[tuple[tuple[Scope, ...], str]] = set()
        for limit in self.limits:
            for unit in limit.amounts:
                if (limit.per, unit) in seen:
                    raise ValueError(f"two limits with usd_per_{unit} per {' and '.join(limit.per)}")
                seen.add((limit.per, unit))
        return self
