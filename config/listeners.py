"""Where Headgate listens, and the bounds on what it takes in."""

import re
from datetime import timedelta
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from .fields import Duration, Section, Size, Wait

DATA_PORT: Final = 8070
ADMIN_PORT: Final = 9901

_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9-]{1,63})*")

_ORIGIN = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach a listener there. A host name but `localhost` may be anything."""
    try:
        ip = ip_address(address)
    except ValueError:
        return address.lower() == "localhost"
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped.is_loopback
    return ip.is_loopback


def is_address(value: str) -> bool:
    """Whether it can be listened on: an IP address or a host name."""
    try:
        ip_address(value)
    except ValueError:
        # 127.1 or 0x7f.1 would be numbers to the resolver, and to nobody who reads the file.
        return _HOST.fullmatch(value) is not None and not value.rpartition(".")[2][0].isdigit()
    return True


def _address(value: str) -> str:
    if not is_address(value):
        raise ValueError("must be an IP address (IPv6 without brackets) or a host name")
    return value


Address = Annotated[str, AfterValidator(_address)]


def _origin(value: str) -> str:
    if not _ORIGIN.fullmatch(value):
        raise ValueError("must be an origin as browsers send it, like https://chat.example, without a path")
    return value.lower()


def _network(value: str) -> str:
    try:
        return str(ip_network(value))
    except ValueError:
        raise ValueError("must be an IP address or a network, like 10.0.0.0/8") from None


class ListenerTls(Section):
    """Certificates, as PEM files. They are watched: a renewed one is used from the next handshake on."""

    cert: Path
    """The certificate and its chain. Required."""

    key: Path
    """Its private key. Required."""

    client_ca: Path | None = None
    """Authority that must have signed a client's certificate. Default: clients show none."""


class Cors(Section):
    """Pages of other origins that may use the listener."""

    origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = ()
    """Like https://chat.example. Default: none."""


class Listener(Section):
    """One address and port."""

    address: Address = "127.0.0.1"
    """IP address or host name. A public one needs a key in `auth`. Default 127.0.0.1."""

    port: int = Field(default=DATA_PORT, strict=True, ge=0, le=65535)
    """TCP port; 0 lets the system choose. Default 8070 for data, 9901 for admin."""

    tls: ListenerTls | None = None
    """Serve HTTPS. Default: plain HTTP."""

    cors: Cors = Cors()
    """Web pages that may call. Default: those of the listener's own origin alone."""

    trusted_proxies: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    """Reverse proxies whose `x-forwarded-for` names the client. Default: none, the connection's address counts."""


def _admin(value: object) -> object:
    return {"port": ADMIN_PORT, **value} if isinstance(value, dict) else value


class Listeners(Section):
    """The two listeners."""

    data: Listener = Listener()
    """Where the applications connect. Default 127.0.0.1:8070."""

    admin: Annotated[Listener, BeforeValidator(_admin)] = Listener(port=ADMIN_PORT)
    """Where operators and Prometheus connect. Default 127.0.0.1:9901."""


class Limits(Section):
    """Bounds on what clients may send and on how long an end may take."""

    body: Size = 32 << 20
    """Bytes of one request body that is collected, as for chat. Default 32MiB."""

    upload: Size = 4 << 30
    """Bytes of one request body that is passed on while it arrives, as for files. Default 4GiB."""

    buffered: Size = 512 << 20
    """Bytes of all collected bodies of a process together. Default 512MiB."""

    headers: Size = 64 << 10
    """Bytes of one request's headers. Default 64KiB."""

    json_depth: int = Field(default=64, strict=True, ge=1, le=512)
    """Levels of nesting in a JSON body. Default 64."""

    drain: Duration = timedelta(seconds=30)
    """How long running exchanges may take to end after SIGTERM. Default 30s."""

    drain_delay: Duration = timedelta(0)
    """How long after SIGTERM new work is still taken while readiness is off, so that a load balancer sees it first.
    It comes before `drain`. Default 0s."""

    memory: Size | None = None
    """Bytes that all processes together may use. From 92 % of them on some new requests are refused, from 95 % on all.
    Default: what the container may use, or the machine has."""

    loop_lag: Duration = timedelta(seconds=1)
    """How late a worker's event loop may be, averaged over about a second, before it refuses all new requests; from a
    quarter of it on it refuses some. 0s switches this off. Default 1s."""

    unresponsive: Wait = timedelta(seconds=10)
    """A worker whose event loop stands still for so long is killed and replaced. Only with `workers` above 1.
    Default 10s."""

    @field_validator("buffered")
    @classmethod
    def _holds_one_body(cls, buffered: int, info: ValidationInfo) -> int:
        if buffered < info.data.get("body", 0):
            raise ValueError("must be at least 'body', or no large body is ever taken")
        return buffered
