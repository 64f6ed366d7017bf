"""Requests that are treated differently: which ones, and how."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from .access_log import AccessLogConfig
from .budget import BudgetConfig
from .cache import CacheConfig
from .chain import AuthConfig, CircuitBreakerConfig, RetryConfig, UseConfig, kind_of
from .fields import ModelName, Name, Named, Section
from .guard import GuardConfig
from .headers import HeadersConfig
from .rate_limit import RateLimitConfig

OFF = "off"


def _path(value: str) -> str:
    if not value.startswith("/") or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("must be a path that begins with /")
    if value.rstrip("*").count("*") or value.endswith("***"):
        raise ValueError("may hold * or ** only at the end")
    return value


def _switch(value: object) -> str | None:
    return OFF if isinstance(value, str) else kind_of(value)


Override = Annotated[
    Annotated[Literal["off"], Tag("off")]
    | Annotated[AuthConfig, Tag("auth")]
    | Annotated[BudgetConfig, Tag("budget")]
    | Annotated[CacheConfig, Tag("cache")]
    | Annotated[CircuitBreakerConfig, Tag("circuit_breaker")]
    | Annotated[RetryConfig, Tag("retry")]
    | Annotated[AccessLogConfig, Tag("access_log")]
    | Annotated[GuardConfig, Tag("guard")]
    | Annotated[HeadersConfig, Tag("headers")]
    | Annotated[RateLimitConfig, Tag("rate_limit")]
    | Annotated[UseConfig, Tag("use")],
    Discriminator(_switch),
]
"""`off`, or the filter's whole configuration on this route: what the route wrote over what the chain has."""


class Match(Section):
    """All that is written must hold."""

    path: Annotated[str, AfterValidator(_path), Field(max_length=256)] | None = None
    """Request path, exact, or a beginning and `*` or `**`. Default: any."""

    model: ModelName | None = None
    """Model the client asked for, exact, or a beginning and `*`. Default: any."""

    key: Name | None = None
    """Name of the key that `auth` found. Default: any."""

    tags: tuple[Name, ...] = ()
    """Tags that the request must all have, from its key or from x-headgate-tags. Default: any."""


class Route(Section):
    """One exception to the common way. The first route that matches wins."""

    name: Name
    """Shown in x-headgate-route and in usage rows. Required, unique."""

    match: Match = Match()
    """Which requests. Default: all."""

    provider: Name | None = None
    """Sends whatever matches to this provider as it stands. With a wildcard path and no model: whatever names no model,
    such as files, and every path under /v1/ that has no endpoint of its own. Default: by `models`."""

    filters: Named[str, Override] = Field(default_factory=dict)
    """By filter name: `off`, or settings that replace those of the chain. Not for auth. Default: none."""

    @property
    def catches(self) -> bool:
        """A wildcard path with a provider and without a model: it takes what names no model, and opens the paths that
        the endpoint table does not name."""
        path = self.match.path
        return path is not None and path.endswith("*") and self.match.model is None and self.provider is not None
