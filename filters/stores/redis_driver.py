"""One connection to Redis: the one module that imports a driver, and only where the config names it.

The driver opens, encrypts, logs in, packs and parses. Whose reply is whose and how long anybody waits is decided by
whoever uses it (redis_client.py). Its exceptions are mapped here: ConnectionLostError for what ends the connection, a
`Refusal` for a command that the server did not carry out.
"""

from __future__ import annotations

from asyncio import timeout
from math import inf
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio.connection import Connection as PlainConnection
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from ...config.secret import MASK
from .redis_link import ConnectionLostError, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ...config import Redis

CONNECT_SECONDS: Final = 1.0
"""From the first packet to the end of the login."""
WRITE_SECONDS: Final = 1.0
"""For the server to read what was sent; a decision waits much less."""
_FATAL: Final = (ReadOnlyError, NoScriptError)
"""Another server has taken over, or this one has forgotten the scripts: a new connection starts afresh."""


class Connection:
    """An open connection; used by one writer and one reader."""

    def __init__(self, connection: PlainConnection) -> None:
        self._connection = connection

    async def send(self, commands: Iterable[Sequence[bytes]]) -> None:
        """All of them, in order. Raises ConnectionLostError."""
        try:
            packed = self._connection.pack_commands(commands)
            await self._connection.send_packed_command(packed, check_health=False)
        except (RedisError, OSError) as error:
            raise ConnectionLostError(said(error)) from error

    async def receive(self) -> Any:
        """The next reply, in the order of the commands: bytes, int, list, None or a Refusal. It is waited for as long
        as it takes. Raises ConnectionLostError."""
        try:
            return await self._connection.read_response(timeout=inf, disconnect_on_error=False)
        except _FATAL as error:
            raise ConnectionLostError(said(error)) from error
        except ResponseError as error:
            return Refusal(said(error))
        except (RedisError, OSError) as error:
            raise ConnectionLostError(said(error)) from error

    async def aclose(self) -> None:
        """Close it at once; what was not sent is lost."""
        try:
            await self._connection.disconnect(nowait=True)
        except (RedisError, OSError):  # it was broken, and is gone all the same
            return


async def connect(settings: Redis) -> Connection:
    """Open one and log in. Raises ConnectionLostError."""
    connection = build(settings)
    try:
        async with timeout(CONNECT_SECONDS):
            await connection.connect()  # type: ignore[no-untyped-call]
    except BaseException as error:
        await Connection(connection).aclose()
        if isinstance(error, (RedisError, OSError)):  # TimeoutError is one
            raise ConnectionLostError(said(error, settings.address.password)) from error
        raise
    return Connection(connection)


def build(settings: Redis) -> PlainConnection:
    """The driver's connection, not open yet: every bound is explicit, and nothing is tried twice."""
    address = settings.address
    options: dict[str, Any] = {
        "host": address.host,
        "port": address.port,
        "db": address.database,
        "username": address.username,
        "password": address.password,
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": WRITE_SECONDS,
        "socket_keepalive": True,
        "health_check_interval": 0,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # its login is one command, and no message comes that nobody asked for
        "driver_info": None,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    if not address.tls:
        return PlainConnection(**options)
    return SSLConnection(
        ssl_cert_reqs="required",
        ssl_check_hostname=True,
        ssl_ca_certs=_text(settings.ca),
        ssl_certfile=_text(settings.cert),
        ssl_keyfile=_text(settings.key),
        **options,
    )


def said(error: BaseException, password: str | None = None) -> str:
    """What the driver, the system or the server says, short. A server that does not know a command repeats what came
    with it, and whatever stands there instead of Redis may repeat the `password`."""
    text, _, _ = " ".join(str(error).split()).partition(", with args")
    if password:
        text = text.replace(password, MASK)
    return text[:200] or type(error).__name__


def _text(path: object) -> str | None:
    return str(path) if path is not None else None
