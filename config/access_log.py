"""The `access_log` filter: one line for each exchange, for log shippers."""

from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from pydantic import AfterValidator, Field

from .fields import Count, Filled, Rate, Section

LogField = Literal[
    "start_time", "headgate.request_id", "headgate.client_request_id", "headgate.upstream_request_id",
    "http.request.method", "url.path", "http.response.status_code", "http.request.body.size",
    "http.response.body.size", "client.address", "user_agent.original", "error.type", "headgate.outcome",
    "headgate.key", "headgate.team", "headgate.owner", "headgate.route", "headgate.stream", "headgate.attempts",
    "headgate.duration_ms", "headgate.upstream_ms", "headgate.overhead_ms", "headgate.first_token_ms",
    "gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "gen_ai.response.model",
    "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_creation.input_tokens", "gen_ai.usage.reasoning.output_tokens", "headgate.usage_source",
    "headgate.service_tier", "headgate.cost_usd", "headgate.cost_source", "headgate.cache", "headgate.config",
    "process.pid",
]  # fmt: skip
EVERY_FIELD: Final[tuple[LogField, ...]] = get_args(LogField)
_NOT_BY_DEFAULT: Final = frozenset(("client.address", "user_agent.original", "process.pid"))
DEFAULT_FIELDS: Final[tuple[LogField, ...]] = tuple(name for name in EVERY_FIELD if name not in _NOT_BY_DEFAULT)


def _once(fields: tuple[LogField, ...]) -> tuple[LogField, ...]:
    if not fields or len(set(fields)) != len(fields):
        raise ValueError("must name fields, each once")
    return fields


class AccessLogConfig(Section):
    """One line of JSON for each exchange."""

    kind: Filled[Literal["access_log"]] = "access_log"

    path: Path | None = None
    """File that lines are appended to, relative to the working directory. Default: standard output."""

    fields: Annotated[tuple[LogField, ...], AfterValidator(_once)] = DEFAULT_FIELDS
    """What stands in a line. Default: all but client.address, user_agent.original and process.pid."""

    min_status: Annotated[int, Field(strict=True, ge=0, le=599)] = 0
    """Only exchanges with this status or a higher one. Default 0."""

    sample_percent: Annotated[Rate, Field(le=100)] = 100
    """Of those, how many, chosen at random. Default 100."""

    queue: Count = 8192
    """Lines that may wait for a slow file; more are dropped and counted. Default 8192."""
