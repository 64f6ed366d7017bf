"""Where filters count what outlives an exchange."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field, model_validator

from .fields import Section, Wait
from .secret import Secret

REDIS_PORT: Final = 6379
_SCHEMES: Final = frozenset({"redis", "rediss"})
_LONGEST: Final = timedelta(seconds=1)


class RedisAddress(NamedTuple):
    """What a URL of Redis says. The password is plain here: never shown, never logged."""

    host: str
    port: int
    database: int
    username: str | None
    password: str | None
    tls: bool

    def __str__(self) -> str:
        return f"{self.host}:{self.port}/{self.database}"

    def __repr__(self) -> str:
        return f"RedisAddress({self})"


def parse_redis_url(url: str) -> RedisAddress:
    """`redis://[user:password@]host[:port][/database]`, `rediss://` for TLS. Raises ValueError, without the URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("is no URL: a password with special characters must be percent-encoded") from None
    database = parts.path.removeprefix("/") or "0"
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise ValueError("must be redis://[user:password@]host[:port][/database], or rediss://… for TLS")
    if parts.query or parts.fragment:
        raise ValueError("must end with the database: what stands after ? or # has keys of its own here")
    if not (database.isascii() and database.isdecimal() and len(database) < 6):
        raise ValueError("the database is a number")
    return RedisAddress(
        parts.hostname,
        REDIS_PORT if port is None else port,
        int(database),
        unquote(parts.username) if parts.username else None,
        unquote(parts.password) if parts.password else None,
        parts.scheme == "rediss",
    )


def _url(value: Secret) -> Secret:
    if not value:
        raise ValueError("is empty")
    parse_redis_url(value.reveal())
    return value


def _budget(value: timedelta) -> timedelta:
    if value > _LONGEST:
        raise ValueError("must be at most 1s: a request waits for it")
    return value


class Redis(Section):
    """A Redis or Valkey server, 6.2 or newer, that several hosts count in. No cluster: one server, or one address that
    always leads to the first of several."""

    url: Annotated[Secret, AfterValidator(_url)]
    """`redis://[user:password@]host[:port][/database]`; `rediss://` for TLS. Required."""

    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:{}-]{1,64}$")] = "headgate:"
    """Begins every key: gateways with the same prefix count together. Default headgate:."""

    timeout: Annotated[Wait, AfterValidator(_budget)] = timedelta(milliseconds=5)
    """How long a request waits for a decision; then `on_store_failure` decides. Default 5ms, at most 1s."""

    ca: Path | None = None
    """Authorities of the server's certificate, as a PEM file. Default: those of the system."""

    cert: Path | None = None
    """The certificate to show, with its chain, as a PEM file. Default: none."""

    key: Path | None = None
    """Its private key. Default: none."""

    @property
    def address(self) -> RedisAddress:
        """What the URL says."""
        return parse_redis_url(self.url.reveal())

    @model_validator(mode="after")
    def _belong_together(self) -> "Redis":
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key belong together")
        if (self.ca or self.cert) and not self.address.tls:
            raise ValueError("ca, cert and key need a URL that begins with rediss://")
        return self


class Stores(Section):
    """Where filters count what must outlive an exchange."""

    default: Literal["auto", "memory", "shared", "redis"] = "auto"
    """`memory`: in the process, which must be the only one. `shared`: in memory that all workers of the host share;
    one worker shares with nobody, and counts in its own. `redis`: in Redis, over all hosts. `auto`: Redis where it is
    written here, else memory for one worker and shared for more. Default auto."""

    redis: Redis | None = None
    """The server that counts. Default: none."""

    @property
    def in_redis(self) -> bool:
        """Limits are counted there."""
        return self.default == "redis" or (self.default == "auto" and self.redis is not None)

    @model_validator(mode="after")
    def _is_there(self) -> "Stores":
        if self.default == "redis" and self.redis is None:
            raise ValueError("default: redis needs redis: {url: …}")
        return self
