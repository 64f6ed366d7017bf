"""One provider address over HTTP/1.1 or HTTP/2: `start` a call and hear of it through its receiver.

A request takes a connection that has room, or waits in a bounded queue for one that is opened or given back. Two
failures never reach the receiver. A provider that closed an idle connection in the same moment as we sent on it:
nothing of the answer was seen, the provider has not worked, and the request is sent once more on a fresh connection.
And one that says, as HTTP/2 lets it, that it has not looked at the request.

A call that asks for an upgrade goes over HTTP/1.1, the only version that has one: where HTTP/2 may be spoken, over
connections of its own, which the same bounds hold once more.

Redirects are not followed and no environment variable is read: a request goes to the address of the config or nowhere.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..errors import GatewayError, ProtocolError, ResetError
from .call import Endpoint
from .dial import Dialer
from .h1 import H1Call, H1Connection
from .h1_request import HeadEncoder, ready_lines
from .names import Name
from .negotiate import Connector, Destination
from .pool import DEFAULT_LIMITS, IdleQuota, Pool, PoolLimits
from .resolver import SYSTEM, literal
from .stats import UpstreamStats
from .tls import client_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from ..clock import Clock, Deadlines
    from .call import Call, CallReceiver, UpstreamRequest
    from .h1 import Carrier
    from .names import LooksUp
    from .negotiate import Connection
    from .tls import Http2

RACE_SECONDS = 1.0
"""A keep-alive race shows within a round trip. A provider that closes later may have worked, and may have charged."""

MAX_REFUSALS = 3
"""How often a request is sent again that its provider has refused unread."""

DEFAULT_PORTS = {"http": 80, "https": 443}


class HttpEndpoint(Endpoint):
    """See the top. `base_url` may have a path, which precedes every target; `credential` goes with every request."""

    __slots__ = ("_clock", "_encoder", "_make_upgrades", "_pool", "_upgrades", "stats")

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
        http2: Http2 = False,
        resolver: LooksUp = SYSTEM,
    ) -> None:
        """`http2` "auto" is False without TLS. A `tls` of one's own says itself what it offers by ALPN."""
        url = urlsplit(base_url)
        if url.scheme not in DEFAULT_PORTS or not url.hostname or url.username or url.query or url.fragment:
            raise ValueError("base_url must be an http or https URL with a host, without user, query and fragment")
        port = url.port or DEFAULT_PORTS[url.scheme]
        own_tls = tls
        tls = (own_tls or client_context(http2=http2)) if url.scheme == "https" else None
        if http2 == "auto" and tls is None:
            http2 = False
        host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
        self.name = f"{url.scheme}://{host}:{port}"
        self.stats = UpstreamStats()
        self._clock = clock
        base = url.path.rstrip("/").encode("ascii")
        authority = host if port == DEFAULT_PORTS[url.scheme] else f"{host}:{port}"
        own = [(b"host", authority.encode("ascii")), *credential]
        fixed = b" HTTP/1.1" + ready_lines(own)
        if b"\r" not in fixed:
            raise ValueError("the credential must not hold a line break or NUL")
        self._encoder = HeadEncoder(base, fixed)
        pool = partial(
            Pool,
            clock=clock,
            deadlines=deadlines,
            stats=self.stats,
            quota=quota or IdleQuota(),
        )
        to = Destination(url.scheme.encode(), authority.encode(), base, tuple(credential))
        name = url.hostname
        where = literal(name, port) or Name(name, port, resolver, clock, deadlines)
        self._pool = pool(Connector(Dialer(name, port, tls, where), clock, to, http2), limits)

        def make_upgrades() -> Pool:
            plain = tls and (own_tls or client_context())
            return pool(Connector(Dialer(name, port, plain, where), clock, to), self.limits)

        self._make_upgrades = make_upgrades
        self._upgrades: Pool | None = self._pool if http2 is False else None
        """The connections that may be upgraded, where they are others: made for the first who asks."""

    def __repr__(self) -> str:
        return f"<HttpEndpoint {self.name}>"

    @property
    def limits(self) -> PoolLimits:
        """The bounds in force."""
        return self._pool.limits

    def update(self, limits: PoolLimits) -> None:
        """Apply new bounds; connections and calls stay."""
        self._pool.update(limits)
        if self._upgrades is not None:
            self._upgrades.update(limits)

    def start(self, request: UpstreamRequest, receiver: CallReceiver) -> Call:
        pool = self._pool
        if request.upgrade:
            if self._upgrades is None:
                self._upgrades = self._make_upgrades()
            pool = self._upgrades
        self.stats.rq_total += 1
        call = HttpCall(self, pool, request, receiver)
        try:
            if pool.speaks_h1:
                call.head = self._encoder.encode(request)
            connection = pool.take()
            if connection is None:
                pool.wait(call)
            else:
                call.on_connection(connection)
        except GatewayError as error:
            call.refuse_soon(error)
        return call

    def encode_h1(self, request: UpstreamRequest) -> bytes:
        """The head of `request` in HTTP/1.1. Raises GatewayError."""
        return self._encoder.encode(request)

    def now(self) -> float:
        """Monotonic seconds."""
        return self._clock.monotonic()

    async def aclose(self) -> None:
        await self._pool.aclose()
        if self._upgrades is not None:
            await self._upgrades.aclose()


class HttpCall(H1Call):
    """One request, waiting for a connection or on one."""

    __slots__ = ("_endpoint", "_over", "_paused", "_pool", "_refusals", "_resent", "deadline")

    deadline: float
    """That of the wait, set with it."""

    def __init__(self, endpoint: HttpEndpoint, pool: Pool, request: UpstreamRequest, receiver: CallReceiver) -> None:
        self.head = b""
        self.body = request.body
        self.request = request
        self.source = request.source
        self.receiver = receiver
        self.content_expected = request.method != b"HEAD"
        self.upgrade = request.upgrade
        self.announced = False
        self._endpoint = endpoint
        self._pool = pool
        self.carrier: Carrier | None = None
        self._over = False
        self._paused = False
        self._resent = False
        self._refusals = 0

    def __repr__(self) -> str:
        state = "over" if self._over else "waiting" if self.carrier is None else "sent"
        return f"<HttpCall {state}>"

    # For who started it.

    def pause(self) -> None:
        self._paused = True
        if self.carrier is not None:
            self.carrier.pause()

    def resume(self) -> None:
        self._paused = False
        if self.carrier is not None:
            self.carrier.resume()

    def cancel(self) -> None:
        if self._over:
            return
        self._over = True
        self._pool.stats.rq_cancelled += 1
        carrier = self.carrier
        if carrier is None:
            self._pool.leave(self)
        else:
            self._part()
            if isinstance(carrier, H1Connection):
                self._pool.stats.cx_destroy_with_active_rq += 1
            carrier.close()

    # For the pool.

    def on_connection(self, connection: Connection) -> None:
        """Send, and read no more than was asked for."""
        stats = self._pool.stats
        stats.rq_active += 1
        try:
            if not self.head and not connection.multiplexed:
                assert self.request is not None  # noqa: S101 - narrows for the type checker: it has not been sent
                self.head = self._endpoint.encode_h1(self.request)
            connection.send(self)
        except GatewayError as error:
            stats.rq_active -= 1
            self._pool.put_back(connection)
            self.refuse_soon(error)
            return
        if self._paused and self.carrier is not None:
            self.carrier.pause()

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

    # For what carries it.

    def on_over(self) -> None:
        self._over = True
        self.carrier = None
        self._pool.stats.rq_active -= 1

    def on_failed(self, error: GatewayError, carrier: Carrier) -> None:
        self._part()
        pool = self._pool
        if isinstance(carrier, H1Connection):
            pool.stats.cx_destroy_with_active_rq += 1
            if isinstance(error, ProtocolError):
                pool.stats.cx_protocol_error += 1
        again = isinstance(error, ResetError) and (self.source is None or not self.source.begun)
        if again and carrier.refused and self._refusals < MAX_REFUSALS:
            self._refusals += 1
            pool.stats.rq_retry += 1
            connection = pool.take()
            if connection is None:
                pool.wait_first(self)
            else:
                self.on_connection(connection)
        elif again and not carrier.refused and self._lost_a_race(carrier):
            self._resent = True
            pool.stats.rq_retry += 1
            pool.wait_first(self)
        else:
            self.on_refused(error)

    def _lost_a_race(self, carrier: Carrier) -> bool:
        return carrier.reused and not self._resent and self._endpoint.now() - carrier.sent_at < RACE_SECONDS

    def _part(self) -> None:
        self.carrier = None
        self._pool.stats.rq_active -= 1
