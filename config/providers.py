"""Where requests go: the upstreams, their credentials, their time limits."""

from datetime import timedelta
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, model_validator

from .endpoints import MOCK_URL, BaseUrl, EndpointConfig, Weight, distinct
from .fields import Filled, Flag, Name, Section, Text, Wait
from .resilience import HealthCheck, OutlierDetection, Percent, ProviderLimits
from .secret import Secret


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


class ApiKey(Section):
    """One of several keys of a provider."""

    name: Name
    """How logs and /clusters call it. Required."""

    key: Secret
    """Sent as the provider wants it, usually "${NAME:-}". Required."""

    weight: Weight = 1
    """Its share of the calls. Default 1."""


class Credential(NamedTuple):
    """A key that can be sent, whichever way it was written."""

    name: str
    key: Secret
    weight: int


def _distinct_keys(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
    if not keys:
        raise ValueError("must have at least 1 item")
    if len({key.name for key in keys}) < len(keys):
        raise ValueError("two keys have the same name")
    return keys


class Provider(Section):
    """One upstream."""

    dialect: Literal["openai"] = "openai"
    """The API it speaks. Default openai."""

    base_url: BaseUrl | None = None
    """https or http URL up to and with `/v1`, or `mock:` for the in-process mock. Default: that of `endpoints`."""

    endpoints: Annotated[tuple[EndpointConfig, ...], AfterValidator(distinct)] | None = None
    """Several places that answer alike, instead of `base_url`. Default: the one of `base_url`."""

    api_key: Secret | None = None
    """Sent as bearer token, usually "${NAME:-}". Default: nothing is sent, which local servers like."""

    api_keys: Annotated[tuple[ApiKey, ...], AfterValidator(_distinct_keys)] | None = None
    """Several keys, instead of `api_key`: one that is refused or rate limited rests. Default: the one of `api_key`."""

    load_balancing: Literal["round_robin", "least_request", "random", "ring_hash", "weighted"] = "least_request"
    """How calls are shared out over `endpoints`; ring_hash keeps a session at one of them. Default least_request."""

    slow_start: Wait | None = None
    """A new endpoint gets its full share only after this time. Default: at once."""

    panic_threshold: Percent = 50
    """Below this share of healthy endpoints all of a priority are used, well or not; 0: never. Default 50."""

    health_check: HealthCheck | None = None
    """Ask each endpoint now and then whether it is well; one that is not takes no calls. Default: nobody asks."""

    outlier_detection: OutlierDetection = OutlierDetection()
    """Eject endpoints that fail. Default: 5 failures in a row, for 30s, at most half of them."""

    direct: Flag = False
    """Whether `provider/model` may be asked for although `models` is written. Default false."""

    list_models: Flag = True
    """Whether it is asked which models it has, where a wildcard of `models` or a direct address leads to it: at the
    start, then every ten minutes. Default true."""

    timeouts: Timeouts = Timeouts()
    """How long it may take. Default connect 5s, first_token 300s, idle 120s, total 600s."""

    limits: ProviderLimits = ProviderLimits()
    """How much may be under way. Default connections, pending and requests 1024."""

    http2: Flag | Literal["auto"] = "auto"
    """auto: HTTP/2 where the provider's TLS chooses it; true: always, also without TLS; false: never. Default auto."""

    http2_keepalive: Http2Keepalive = Http2Keepalive()
    """When a connection of HTTP/2 is asked whether it lives. Default interval 30s, timeout 15s."""

    price_as: Text | None = None
    """Vendor whose price list is meant, where the host does not tell. Default: by the host."""

    implicit: Filled[bool] = False
    """It comes from the environment and not from the file."""

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if (self.base_url is None) == (self.endpoints is None):
            both = self.base_url is not None
            raise ValueError("has 'base_url' and 'endpoints'; keep one" if both else "needs 'base_url' or 'endpoints'")
        if self.api_key is not None and self.api_keys is not None:
            raise ValueError("has 'api_key' and 'api_keys'; keep one")
        return self

    @property
    def places(self) -> tuple[EndpointConfig, ...]:
        """Its endpoints, whichever way they were written; none for the mock."""
        if self.endpoints is not None:
            return self.endpoints
        return () if self.base_url is None or self.is_mock else (EndpointConfig(url=self.base_url),)

    @property
    def address(self) -> str:
        """Its first URL: where it is asked about itself."""
        return self.base_url if self.base_url is not None else self.places[0].url

    @property
    def credentials(self) -> tuple[Credential, ...]:
        """The keys that can be sent."""
        if self.api_keys is not None:
            return tuple(Credential(one.name, one.key, one.weight) for one in self.api_keys if one.key)
        return (Credential("api_key", self.api_key, 1),) if self.api_key else ()

    @property
    def unconfigured(self) -> bool:
        """A key was written but expanded to nothing: nothing may be sent there."""
        return self._keys_written and not self.credentials

    @property
    def credential_origin(self) -> str | None:
        """Where the first key comes from, as far as that has a name."""
        key = self.api_keys[0].key if self.api_keys is not None else self.api_key
        return key.origin if key is not None else None

    @property
    def is_mock(self) -> bool:
        return self.base_url == MOCK_URL

    @property
    def _keys_written(self) -> bool:
        return self.api_key is not None or self.api_keys is not None
