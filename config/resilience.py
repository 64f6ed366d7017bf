"""What keeps a provider's endpoints usable: checks, ejection, and bounds on what is under way."""

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from .fields import Count, Flag, Section, Wait

Percent = Annotated[int, Field(strict=True, ge=0, le=100)]
Often = Annotated[int, Field(strict=True, ge=1, le=1000)]
Status = Annotated[int, Field(strict=True, ge=200, le=599)]


def _path(value: str) -> str:
    if not value.startswith("/") or not value.isascii() or not value.isprintable() or " " in value or "#" in value:
        raise ValueError("must be a path from the root of the server, like /health")
    return value


class HealthCheck(Section):
    """Asks each endpoint by itself whether it is well; Envoy's terms, and its defaults where it has any."""

    path: Annotated[str, Field(max_length=1024), AfterValidator(_path)] = "/health"
    """Asked with GET at the root of the endpoint's server, without a key. Default /health."""

    interval: Wait = timedelta(seconds=5)
    """Between two checks of an endpoint; up to a tenth is added by chance. Default 5s."""

    timeout: Wait = timedelta(seconds=1)
    """How long a check may take, from connecting to the end of the answer. Default 1s."""

    unhealthy_threshold: Often = 3
    """Checks in a row without an answer, or with one of `retriable_statuses`, that take it out. Default 3."""

    healthy_threshold: Often = 1
    """Good answers in a row that bring it back. The first check ever decides alone. Default 1."""

    expected_statuses: Annotated[tuple[Status, ...], Field(min_length=1, max_length=64)] = (200,)
    """It is well. Any other status takes it out at once, but for `retriable_statuses`. Default [200]."""

    retriable_statuses: Annotated[tuple[Status, ...], Field(max_length=64)] = ()
    """Counted as no answer is. Default none."""

    no_traffic_interval: Wait = timedelta(seconds=60)
    """Between two checks of an endpoint that is well, while nothing is sent to the provider. Default 60s."""


class OutlierDetection(Section):
    """Ejects an endpoint that fails those who use it; Envoy's terms and defaults where nothing else is said."""

    consecutive_5xx: int = Field(default=5, strict=True, ge=0, le=1000)
    """Failures in a row (5xx, no connection, cut off, too late); 0: never. Default 5."""

    consecutive_gateway_failure: int = Field(default=0, strict=True, ge=0, le=1000)
    """Failures in a row, only 502, 503, 504 and what has no status; 0: never. Default 0."""

    interval: Wait = timedelta(seconds=10)
    """Between two looks at rates, and at who may come back. Default 10s."""

    base_ejection_time: Wait = timedelta(seconds=30)
    """The first ejection; the n-th in a row is n times as long. Default 30s."""

    max_ejection_time: Wait = timedelta(seconds=300)
    """The longest ejection. Default 300s."""

    max_ejection_percent: Percent = 50
    """At most this share of the endpoints is ejected, and never the last one. Default 50."""

    success_rate_stdev_factor: int = Field(default=1900, strict=True, ge=0, le=100_000)
    """Ejects whoever is this many thousandths of a standard deviation below the mean; 0: never. Default 1900."""

    success_rate_minimum_hosts: Count = 5
    """Endpoints with enough volume that it takes to compare them. Default 5."""

    success_rate_request_volume: Count = 100
    """Calls within `interval` that are enough. Default 100."""

    failure_percentage_threshold: Percent = 0
    """Ejects whoever fails this share of its calls within `interval`; 0: never. Default 0."""

    failure_percentage_minimum_hosts: Count = 5
    """Endpoints with enough volume that it takes. Default 5."""

    failure_percentage_request_volume: Count = 50
    """Calls within `interval` that are enough. Default 50."""


class ProviderLimits(Section):
    """What protects the gateway from one provider. All numbers are shared out over the workers."""

    connections: Count = 1024
    """Open connections to each endpoint. Default 1024."""

    pending: Count = 1024
    """Requests that wait: for a connection, or in the queue of `on_overflow: queue`. Default 1024."""

    requests: Count = 1024
    """Requests under way. Default 1024."""

    tokens: Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)] | None = None
    """Tokens under way, prompts and answers as estimated. Default: unbounded."""

    on_overflow: Literal["reject", "queue"] = "reject"
    """Above `requests` or `tokens`: 503 `overloaded` at once, or wait for a place. Default reject."""

    queue_timeout: Wait = timedelta(seconds=5)
    """How long a request may wait for a place. Default 5s."""

    adaptive: Flag = False
    """Lowers `requests` while the first tokens of streams come late for their prompts, and raises it again. Default
    false."""
