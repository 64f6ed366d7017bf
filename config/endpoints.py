"""The addresses of a provider: what a URL may say, and what is known of each place that answers."""

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from .fields import Name, Named, Section, Text

MOCK_URL = "mock:"
"""The base_url of the in-process mock."""

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,252})|[0-9A-Fa-f:.]{2,45}")
_OPERATIONS = ("/chat/completions", "/completions", "/embeddings", "/responses", "/models")
_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*/?")


def _base_url(value: str) -> str:
    if value == MOCK_URL:
        return value
    if not value.isascii() or not value.isprintable() or " " in value or "\\" in value:
        raise ValueError("must be ASCII without spaces; write an international host name in its xn-- form")
    try:
        url = urlsplit(value)
        port = url.port
    except ValueError:
        raise ValueError("must be a URL like https://api.openai.com/v1") from None
    if url.scheme not in {"http", "https"}:
        raise ValueError("must begin with https:// or http://, or be 'mock:'")
    if "@" in url.netloc:
        raise ValueError("must hold no user name or password; the key belongs in 'api_key'")
    if "?" in value or "#" in value:
        raise ValueError("must hold no query and no fragment")
    segments = url.path.split("/")
    if not url.hostname or not _HOST.fullmatch(url.hostname) or port == 0 or url.netloc.endswith(":"):
        raise ValueError("must name a host, like https://api.openai.com/v1")
    if not _PATH.fullmatch(url.path) or "." in segments or ".." in segments:
        raise ValueError("must have a plain path, like /v1")
    for operation in _OPERATIONS:
        if url.path.rstrip("/").endswith(operation):
            raise ValueError(f"must end before '{operation}', which is added for each request")
    return value.rstrip("/")


def _not_the_mock(value: str) -> str:
    if value == MOCK_URL:
        raise ValueError("the mock is no endpoint among others: give it a provider of its own, with base_url: 'mock:'")
    return value


BaseUrl = Annotated[str, AfterValidator(_base_url)]
Weight = Annotated[int, Field(strict=True, ge=1, le=1000)]


class EndpointConfig(Section):
    """One place that answers for a provider."""

    url: Annotated[BaseUrl, AfterValidator(_not_the_mock)]
    """https or http URL up to and with `/v1`. Required."""

    weight: Weight = 1
    """Its share of the load, relative to the others of its priority. Default 1."""

    priority: int = Field(default=0, strict=True, ge=0, le=128)
    """0 is used first; the next takes what the healthy part of it cannot bear. Default 0."""

    region: Text | None = None
    """Where it stands: calls with `x-headgate-region` prefer it. Default: nowhere in particular."""

    metadata: Named[Name, Text] = Field(default_factory=dict)
    """Words of your own, shown in /clusters. Default: none."""


def distinct(endpoints: tuple[EndpointConfig, ...]) -> tuple[EndpointConfig, ...]:
    """Raises ValueError when there is none, or when two have one address."""
    if not endpoints:
        raise ValueError("must have at least 1 item")
    if len({endpoint.url for endpoint in endpoints}) < len(endpoints):
        raise ValueError("two endpoints have the same url; give one of them the sum of the weights")
    return endpoints
