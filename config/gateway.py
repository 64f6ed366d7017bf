"""The whole file as one frozen value."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field

from .chain import AuthConfig, FilterEntry
from .effective import digest, fingerprint
from .events import Events
from .fields import Filled, ModelName, Name, Named, Section
from .listeners import Limits, Listeners
from .models import Model
from .providers import Provider
from .routes import Route
from .stores import Stores

_ADMITS_ONLY: Final = frozenset({"access_log", "auth", "cache", "circuit_breaker", "rate_limit", "retry"})
"""Filters that change no answer."""


def _version(value: object) -> object:
    if value is True:  # which is equal to 1
        raise ValueError("must be 1")
    return value


class Prices(Section):
    """Where prices come from, besides the built-in list."""

    file: Path | None = None
    """YAML file with prices of your own, relative to the working directory. Default: none."""


class Routing(Section):
    """How a request finds its provider."""

    mode: Literal["direct"] = "direct"
    """`direct`: straight to the provider. Default direct."""


class GatewayConfig(Section):
    """gateway.yaml. All keys are optional."""

    version: Annotated[Literal[1], BeforeValidator(_version)] = 1
    """Version of this format. Default 1."""

    listeners: Listeners = Listeners()
    """Addresses and ports. Default data 127.0.0.1:8070, admin 127.0.0.1:9901."""

    workers: int = Field(default=1, strict=True, ge=1, le=256)
    """Processes that serve traffic. Default 1."""

    limits: Limits = Limits()
    """Bounds on what clients may send. Default body 32MiB, buffered 512MiB, headers 64KiB, json_depth 64, drain 30s,
    drain_delay 0s, loop_lag 1s, unresponsive 10s."""

    providers: Named[Name, Provider] = Field(default_factory=dict)
    """Upstreams by name. Default: those whose key is in the environment, else the mock."""

    models: Named[ModelName, Model] = Field(default_factory=dict)
    """Model names clients may use. Default: any model of the first provider, `provider/model` for the others."""

    routes: tuple[Route, ...] = ()
    """Exceptions, the first match wins. Default: none."""

    filters: tuple[FilterEntry, ...] = ()
    """The chain, in order. Default: none."""

    stores: Stores = Stores()
    """Where limits are counted. Default auto."""

    events: Events = Events()
    """Where records go. Default sqlite at ./headgate-events.db, 30d, 1GiB."""

    prices: Prices = Prices()
    """Prices of your own. Default: only the built-in list."""

    routing: Routing = Routing()
    """How a request finds its provider. Default direct."""

    warnings: Filled[tuple[str, ...]] = ()
    """What an operator should read at boot; none of it is an error."""

    files: Filled[tuple[Path, ...]] = ()
    """The files this value came from; a change to one of them is a reason to reload."""

    @property
    def auth(self) -> AuthConfig | None:
        """The settings of the `auth` filter, if the chain has one."""
        return next((entry.config for entry in self.filters if isinstance(entry.config, AuthConfig)), None)

    @property
    def auth_is_open(self) -> bool:
        """No key is left, so whoever reaches a listener is let in."""
        return self.auth is None or self.auth.is_open

    @cached_property
    def digest(self) -> str:
        """12 hex digits over all that has an effect; the version of this configuration."""
        return digest(self)

    @cached_property
    def policy(self) -> str:
        """64 hex digits over all that may change an answer: what was answered under another policy is not given
        again."""
        filters = [(entry.name, entry.kind, entry.config) for entry in self.filters if entry.kind not in _ADMITS_ONLY]
        return fingerprint(self.providers, self.models, self.routes, self.routing, filters)
