"""The filter chain: which filters, in which order, with which settings.

In the file an entry is written `- retry`, `- retry: {attempts: 3}` or `- use: "pkg.mod:Class"`;
written.py turns each into the one form that stands here.
"""

import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    field_serializer,
    field_validator,
    model_validator,
)

from .access_log import AccessLogConfig
from .budget import BudgetConfig
from .cache import CacheConfig
from .fields import Filled, ModelName, Moment, Name, Named, Rate, Section, Text, Wait
from .guard import GuardConfig
from .headers import HeadersConfig
from .listeners import is_loopback
from .rate_limit import RateLimitConfig
from .secret import MASK, ExpandedText, Secret

Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # fmt: skip
"""Of tokens. None with a shared secret: whoever can check those can make them."""

MIN_KEY: Final = 16
"""Characters of the shortest key that is taken."""

_PLACEHOLDER = re.compile(
    r"change[-_ ]?me|change[-_ ]?this|your[-_ ]?(api[-_ ]?)?key|replace[-_ ]?(me|this)|placeholder|"
    r"1234567890123456|0123456789abcdef|abcdefghijklmnop"
)
_TOKEN = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}")
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*|[A-Za-z_][\w-]*", re.ASCII)
_SENSITIVE = re.compile(r"key|token|secret|password|credential|dsn", re.IGNORECASE)


def _key(secret: Secret) -> Secret:
    text = secret.reveal().lower()
    what = secret.origin or "the key"
    if not text:
        return secret
    if len(text) < MIN_KEY:
        raise ValueError(f"{what} has fewer than {MIN_KEY} characters")
    if _PLACEHOLDER.search(text) or len(set(text)) < 5:
        raise ValueError(f"{what} is a placeholder; make one with: openssl rand -hex 24")
    return secret


def _header(value: str) -> str:
    name = value.lower()
    if not _TOKEN.fullmatch(name) or name in {"host", "content-length", "transfer-encoding", "connection", "cookie"}:
        raise ValueError("must be the name of a header that can carry a key")
    return name


def _paths(value: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for path in value or ():
        if not path.startswith("/") or not path.isascii() or not path.isprintable() or " " in path:
            raise ValueError("must be paths that begin with /")
        if "**" in path[:-2] or path.endswith("***"):
            raise ValueError("may hold ** only at the end")
    if value == ():
        raise ValueError("must name a path; leave it out to allow all of them")
    return value


def _models(value: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if value == ():
        raise ValueError("must name a model; leave it out to allow all of them")
    return value


def _jwks_url(value: str) -> str:
    try:
        url = urlsplit(value)
        host = url.hostname or ""
        url.port  # noqa: B018 - it raises where it is none
    except ValueError:
        raise ValueError("must be a URL") from None
    local = url.scheme == "http" and is_loopback(host)
    if not host or url.username or url.fragment or not (url.scheme == "https" or local) or not value.isascii():
        raise ValueError("must be an https URL, or http on this machine, without a user or fragment")
    return value


def shown_url(value: str) -> str:
    """The URL as logs and /config_dump show it: a query may hold a key."""
    url, mark, _ = value.partition("?")
    return f"{url}?{MASK}" if mark else url


def _target(value: str) -> str:
    if not _TARGET.fullmatch(value) or len(value) > 256:
        raise ValueError("must be a class, written 'package.module:Class'")
    return value


class Key(Section):
    """One caller's key."""

    name: Name
    """Shown in usage rows and metrics, never the key itself. Required, unique."""

    key: Annotated[Secret, AfterValidator(_key)]
    """At least 16 characters, from "${NAME}" or "${file:/path}". One that expands to nothing is dropped."""

    roles: tuple[Literal["viewer", "admin"], ...] = ()
    """What it may do on the admin listener. Default: nothing."""

    team: Text | None = None
    """Stands on usage rows. Where there are keys of two teams, what one has made (files, stored responses) does not
    exist for the other; keys without a team are one. Default: none."""

    owner: Text | None = None
    """Stands on usage rows. Default: none."""

    paths: Annotated[tuple[Annotated[str, Field(max_length=256)], ...] | None, AfterValidator(_paths)] = None
    """Request paths it may call: exact, or with `*` within a segment, or with `**` at the end. Where there are keys of
    two teams, it also opens the lists among them, and objects that were not made through this gateway. Default: all,
    and opens nothing."""

    models: Annotated[tuple[ModelName, ...] | None, AfterValidator(_models)] = None
    """Models it may ask for, as clients name them: exact, or a beginning and `*`. Default: all."""

    tags: tuple[Name, ...] = ()
    """For `routes[].match.tags`. Default: none."""

    allow_tags: tuple[Name, ...] = ()
    """Tags that its requests may add in the header x-headgate-tags. Default: none."""

    expires: Moment | None = None
    """From then on it is refused: a date stands for its end in UTC. Default: never."""


class JwtClaims(Section):
    """Where a token says what."""

    user: Text = "sub"
    """Claim with the user. Default sub."""

    team: Text = "team"
    """Claim with the team. Default team."""

    roles: Text = "roles"
    """Claim with the roles, as a list or as words. Default roles."""

    models: Text = "models"
    """Claim with the models that it may ask for, as a list. Default models."""


class JwtConfig(Section):
    """Tokens of an identity provider (JWT), beside keys or instead of them."""

    issuer: Text
    """What their `iss` must be. Required."""

    audience: Text
    """What their `aud` must name. Required."""

    jwks_url: Annotated[
        str, AfterValidator(_jwks_url), Field(max_length=2048), PlainSerializer(shown_url, when_used="json")
    ]
    """Where the issuer publishes its keys: https, or http on this machine. Required."""

    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("RS256", "ES256")
    """Signatures that are taken; of those with a public key. Default [RS256, ES256]."""

    claims: JwtClaims = JwtClaims()
    """Where a token says what. Default user sub, team team, roles roles, models models."""

    roles_allowed: tuple[Literal["viewer", "admin"], ...] = ()
    """Roles that a token may give. Default: none."""


class AuthConfig(Section):
    """Who may call. Without any key everybody on this machine may, and nobody else is let in."""

    kind: Filled[Literal["auth"]] = "auth"

    keys: tuple[Key, ...] = ()
    """The keys that are let in. Default: none."""

    keys_file: Path | None = None
    """File with the keys that `headgate keys create` makes, relative to the working directory. It is watched.
    Default: none."""

    pepper: Annotated[Secret, AfterValidator(_key)] | None = None
    """Secret under which the keys of `keys_file` are digested, such as "${file:./headgate-pepper}". Default: what
    stands in headgate-pepper beside the file."""

    jwt: JwtConfig | None = None
    """Tokens of an identity provider that are let in. Default: none."""

    header: Annotated[str, AfterValidator(_header)] = "authorization"
    """Request header that carries the key, as bearer token where it is authorization. Default authorization."""

    @property
    def is_open(self) -> bool:
        """Nobody can have a key, so whoever reaches a listener is let in."""
        return not self.keys and self.keys_file is None and self.jwt is None

    @property
    def divided(self) -> bool:
        """There are keys of two teams, or there may be."""
        return self.keys_file is not None or self.jwt is not None or len({key.team for key in self.keys}) > 1

    @model_validator(mode="after")
    def _needs_a_file(self) -> "AuthConfig":
        if self.pepper is not None and self.keys_file is None:
            raise ValueError("pepper: is for the keys of a keys_file, and there is none")
        return self

    @field_validator("keys")
    @classmethod
    def _drop_empty(cls, keys: tuple[Key, ...]) -> tuple[Key, ...]:
        return tuple(key for key in keys if key.key)


class RetryBudget(Section):
    """Over 10 s, retries stay below this share of first attempts plus this rate."""

    percent: Annotated[Rate, Field(le=100)] = 20
    """Retries in percent of first attempts. Default 20."""

    min_per_second: Rate = 10
    """Retries a second that are always allowed, over all workers. Default 10."""


class HedgeConfig(Section):
    """A second attempt at a stream whose first token is later than 97.5 % of them were lately; the slower is cancelled.

    It costs its prompt twice, so it is off unless this is written."""

    percent: Annotated[Rate, Field(gt=0, le=100)] = 3
    """Second attempts in percent of calls, at most. Default 3."""

    spend_percent: Annotated[Rate, Field(gt=0, le=100)] = 5
    """What they may cost, in percent of what calls cost. Default 5."""


class RetryConfig(Section):
    """What is tried again, and how often."""

    kind: Filled[Literal["retry"]] = "retry"

    attempts: int = Field(default=3, strict=True, ge=1, le=10)
    """Tries in total, the first and all fallbacks included. Default 3."""

    on: frozenset[Literal["connect-failure", "reset", "5xx", "429", "timeout"]] = frozenset(
        {"connect-failure", "reset", "5xx", "429"}
    )
    """Failures after which the next try is made. Default [connect-failure, reset, "5xx", "429"]."""

    hedge: HedgeConfig | None = None
    """Whether a late stream is asked for twice. Default: never."""

    budget: RetryBudget = RetryBudget()
    """Keeps retries from multiplying an outage. Default percent 20, min_per_second 10."""


class CircuitBreakerConfig(Section):
    """When a target (a provider and a model there) that fails is no longer asked, and for how long."""

    kind: Filled[Literal["circuit_breaker"]] = "circuit_breaker"

    failures: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 5
    """Failures within `window` that open it, in each worker. Default 5."""

    percent: Annotated[int, Field(strict=True, ge=1, le=100)] = 50
    """At least this part of what ended within `window` must have failed. Default 50."""

    window: Wait = timedelta(seconds=60)
    """How far back failures count. Default 60s."""

    open_for: Wait = timedelta(seconds=30)
    """How long the target rests; then one attempt at a time tries whether it has recovered. Default 30s."""

    on_all_open: Literal["reject", "least_bad"] = "reject"
    """When every target of a model rests: what its `on_exhausted` says, or ask the first of them. Default reject."""


class UseConfig(Section):
    """A filter of the operator's own."""

    kind: Filled[Literal["use"]] = "use"

    target: Annotated[str, AfterValidator(_target)]
    """The class, as `package.module:Class`, or the name of an entry point in the group `headgate.filters`."""

    name: Name
    """As the entry's name."""

    config: Named[str, Any] = Field(default_factory=dict, repr=False)
    """Handed to the class as it stands. Default: empty."""

    @field_serializer("config", when_used="json")
    def _mask(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {key: _masked(key, value) for key, value in config.items()}


def _masked(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {inner: _masked(inner, one) for inner, one in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(key, one) for one in value]
    hidden = isinstance(value, ExpandedText) or (isinstance(value, str) and _SENSITIVE.search(key))
    return MASK if hidden and value else value


FilterConfig = (
    AccessLogConfig
    | AuthConfig
    | BudgetConfig
    | CacheConfig
    | CircuitBreakerConfig
    | GuardConfig
    | HeadersConfig
    | RateLimitConfig
    | RetryConfig
    | UseConfig
)


def kind_of(value: object) -> str | None:
    """The `kind` of a filter configuration, built or still a mapping."""
    return value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)


class FilterEntry(Section):
    """One place in the chain."""

    kind: Literal[
        "auth",
        "budget",
        "cache",
        "circuit_breaker",
        "access_log",
        "guard",
        "headers",
        "rate_limit",
        "retry",
        "use",
    ]
    """Which filter."""

    name: Name
    """How routes, metrics and logs call it. Default: its kind, or the class of a `use`."""

    config: Annotated[
        Annotated[AuthConfig, Tag("auth")]
        | Annotated[BudgetConfig, Tag("budget")]
        | Annotated[CacheConfig, Tag("cache")]
        | Annotated[CircuitBreakerConfig, Tag("circuit_breaker")]
        | Annotated[AccessLogConfig, Tag("access_log")]
        | Annotated[GuardConfig, Tag("guard")]
        | Annotated[HeadersConfig, Tag("headers")]
        | Annotated[RateLimitConfig, Tag("rate_limit")]
        | Annotated[RetryConfig, Tag("retry")]
        | Annotated[UseConfig, Tag("use")],
        Discriminator(kind_of),
    ]
    """Its settings."""

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kind = data.get("kind")
        data = {"name": kind, "config": {}, **data}
        if isinstance(data["config"], Mapping):
            data["config"] = {"kind": kind, **data["config"]}
        return data
