"""Where requests go: the upstreams, their credentials, their time limits."""

import re
from datetime import timedelta
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator

from .fields import Count, Filled, Flag, Section, Text, Wait
from .secret import Secret

MOCK_URL = "mock:"
"""The base_url of the in-process mock."""

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,252})|[0-9A-Fa-f:.]{2,45}")
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
    return value.rstrip("/")


class Timeouts(Section):
    """How long a provider may take. A plain answer has `connect` and `total`, a WebSocket `connect` and `idle`."""

    connect: Wait = timedelta(seconds=5)
    """TCP and TLS; once more for the answer to a WebSocket's handshake. Default 5s."""

    first_token: Wait = timedelta(seconds=300)
    """From the request to the first event of a stream. Default 300s."""

    idle: Wait = timedelta(seconds=120)
    """Between two events of a stream; how long both sides of a WebSocket may be silent. Default 120s."""

    total: Wait = timedelta(seconds=600)
    """From the moment the request body has been sent to the end of the answer. Default 600s."""


class Http2Keepalive(Section):
    """When a HTTP/2 connection is asked whether it lives: one that died in silence would keep all its calls waiting."""

    interval: Wait = timedelta(seconds=30)
    """Calls are under way and nothing was heard for so long: a PING goes out. Default 30s."""

    timeout: Wait = timedelta(seconds=15)
    """It must be answered in this time, or the connection is given up. Default 15s."""


class ProviderLimits(Section):
    """What protects the gateway from one provider. Overflow is 503 at once."""

    connections: Count = 1024
    """Open connections to this provider, shared out over the workers. Default 1024."""

    pending: Count = 1024
    """Requests that wait for a connection, shared out over the workers. Default 1024."""


class Provider(Section):
    """One upstream."""

    dialect: Literal["openai"] = "openai"
    """The API it speaks. Default openai."""

    base_url: Annotated[str, AfterValidator(_base_url)]
    """https or http URL up to and with `/v1`, or `mock:` for the in-process mock. Required."""

    api_key: Secret | None = None
    """Sent as bearer token, usually "${NAME:-}". Default: nothing is sent, which local servers like."""

    direct: Flag = False
    """Whether `provider/model` may be asked for although `models` is written. Default false."""

    list_models: Flag = True
    """Whether it is asked which models it has, where a wildcard of `models` or a direct address leads to it: at the
    start, then every ten minutes. Default true."""

    timeouts: Timeouts = Timeouts()
    """How long it may take. Default connect 5s, first_token 300s, idle 120s, total 600s."""

    limits: ProviderLimits = ProviderLimits()
    """How much may be under way. Default connections 1024, pending 1024."""

    http2: Flag | Literal["auto"] = "auto"
    """auto: HTTP/2 where the provider's TLS chooses it; true: always, also without TLS; false: never. Default auto."""

    http2_keepalive: Http2Keepalive = Http2Keepalive()
    """When a connection of HTTP/2 is asked whether it lives. Default interval 30s, timeout 15s."""

    price_as: Text | None = None
    """Vendor whose price list is meant, where the host does not tell. Default: by the host."""

    implicit: Filled[bool] = False
    """It comes from the environment and not from the file."""

    @property
    def unconfigured(self) -> bool:
        """A key was written but expanded to nothing: nothing may be sent there."""
        return self.api_key is not None and not self.api_key

    @property
    def is_mock(self) -> bool:
        return self.base_url == MOCK_URL
