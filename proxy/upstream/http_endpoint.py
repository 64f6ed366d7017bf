"""One provider address over HTTP/1.1: `start` a call and hear of it through its receiver.

A request takes the idle connection that was used last, or waits in a bounded queue for one that is opened or given
back. One failure never reaches the receiver: a provider that closed an idle connection in the same moment as we sent
on it. Then nothing of the answer was seen, the provider has not worked, and the request is sent once more on a fresh
connection.

Redirects are not followed and no environment variable is read: a request goes to the address of the config or nowhere.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..clock import NEVER
from ..errors import GatewayError, ProtocolError, ResetError
from .call import Endpoint
from .dial import Dialer
from .h1 import H1Call, H1Connection
from .h1_request import encode_head
from .pool import DEFAULT_LIMITS, IdleQuota, Pool, PoolLimits
from .stats import UpstreamStats
from .tls import client_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from ..clock import Clock, Deadlines
    from .call import Call, CallReceiver, UpstreamRequest

RACE_SECONDS = 1.0
"""A keep-alive race shows within a round trip. A provider that closes later may have worked, and may have charged."""

_PORTS = {"http": 80, "https": 443}


class HttpEndpoint(Endpoint):
    """See the top. `base_url` may have a path, which precedes every target; `credential` goes with every request."""

    __slots__ = ("_base", "_clock", "_fixed", "_pool", "stats")

    def __init__(
        self,
        base_url: str,
        *,
        clock: Clock,
        deadlines: Deadlines,
        credential: Sequence[tuple[bytes, bytes]] = (),
        limits: PoolLimits = DEFAULT_LIMITS,
        tls: ssl.SSLContext | None = None,
        quota: IdleQuota | None = None,
    ) -> None:
        url = urlsplit(base_url)
        if url.scheme not in _PORTS or not url.hostname or url.username or url.query or url.fragment:
            raise ValueError("base_url must be an http or https URL with a host, without user, query and fragment")
        port = url.port or _PORTS[url.scheme]
        tls = (tls or client_context()) if url.scheme == "https" else None
        host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
        self.name = f"{url.scheme}://{host}:{port}"
        self.stats = UpstreamStats()
        self._clock = clock
        self._base = url.path.rstrip("/").encode("ascii")
        authority = host if port == _PORTS[url.scheme] else f"{host}:{port}"
        own = [(b"host", authority.encode("ascii")), *credential]
        self._fixed = b"\r\n".join([b" HTTP/1.1", *map(b": ".join, own)])
        if self._fixed.count(b"\r") != len(own) or self._fixed.count(b"\n") != len(own) or b"\0" in self._fixed:
            raise ValueError("the credential must not hold a line break or NUL")
        self._pool = Pool(
            Dialer(url.hostname, port, tls),
            limits,
            clock=clock,
            deadlines=deadlines,
            stats=self.stats,
            quota=quota or IdleQuota(),
        )

    def __repr__(self) -> str:
        return f"<HttpEndpoint {self.name}>"

    @property
    def limits(self) -> PoolLimits:
        """The bounds in force."""
        return self._pool.limits

    def update(self, limits: PoolLimits) -> None:
        """Apply new bounds; connections and calls stay."""
        self._pool.update(limits)

    def start(self, request: UpstreamRequest, receiver: CallReceiver) -> Call:
        pool = self._pool
        self.stats.rq_total += 1
        call = HttpCall(pool, self._clock, request, receiver)
        try:
            call.head = encode_head(request, self._base, self._fixed)
            connection = pool.take()
            if connection is None:
                pool.wait(call)
            else:
                call.on_connection(connection)
        except GatewayError as error:
            call.refuse_soon(error)
        return call

    async def aclose(self) -> None:
        await self._pool.aclose()


class HttpCall(H1Call):
    """One request, waiting for a connection or on one; `deadline` is that of the wait."""

    __slots__ = ("_clock", "_connection", "_over", "_paused", "_pool", "_resent", "deadline")

    def __init__(self, pool: Pool, clock: Clock, request: UpstreamRequest, receiver: CallReceiver) -> None:
        self.head = b""
        self.body = request.body
        self.source = request.source
        self.receiver = receiver
        self.content_expected = request.method != b"HEAD"
        self.upgrade = request.upgrade
        self.announced = False
        self.deadline = NEVER
        self._pool = pool
        self._clock = clock
        self._connection: H1Connection | None = None
        self._over = False
        self._paused = False
        self._resent = False

    def __repr__(self) -> str:
        state = "over" if self._over else "waiting" if self._connection is None else "sent"
        return f"<HttpCall {state}>"

    # For who started it.

    def pause(self) -> None:
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        self._paused = False
        if self._connection is not None:
            self._connection.resume()

    def cancel(self) -> None:
        if self._over:
            return
        self._over = True
        self._pool.stats.rq_cancelled += 1
        connection = self._connection
        if connection is None:
            self._pool.leave(self)
        else:
            self._part()
            self._pool.stats.cx_destroy_with_active_rq += 1
            connection.close()

    # For the pool.

    def on_connection(self, connection: H1Connection) -> None:
        """Send; the receiver hears of it from the next turn of the loop."""
        self._connection = connection
        self._pool.stats.rq_active += 1
        connection.send(self)
        if self._paused:
            connection.pause()

    def on_deadline(self) -> None:
        """It waited as long as connecting may take."""
        self.on_refused(self._pool.timed_out(self))

    def on_refused(self, error: GatewayError) -> None:
        """There will be no connection."""
        if not self._over:
            self._over = True
            self.receiver.on_error(self, error)

    def refuse_soon(self, error: GatewayError) -> None:
        """As `on_refused`, from the next turn of the loop: `start` must return first."""
        asyncio.get_running_loop().call_soon(self.on_refused, error)

    # For its connection.

    def on_over(self) -> None:
        self._over = True
        self._part()

    def on_failed(self, error: GatewayError, connection: H1Connection) -> None:
        stats = self._pool.stats
        self._part()
        stats.cx_destroy_with_active_rq += 1
        if isinstance(error, ProtocolError):
            stats.cx_protocol_error += 1
        if self._lost_a_race(error, connection):
            self._resent = True
            stats.rq_retry += 1
            self._pool.wait_first(self)
        else:
            self.on_refused(error)

    def _lost_a_race(self, error: GatewayError, connection: H1Connection) -> bool:
        return (
            isinstance(error, ResetError)
            and connection.reused
            and not self._resent
            and (self.source is None or not self.source.begun)
            and self._clock.monotonic() - connection.sent_at < RACE_SECONDS
        )

    def _part(self) -> None:
        self._connection = None
        self._pool.stats.rq_active -= 1
