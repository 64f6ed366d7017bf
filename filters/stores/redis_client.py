"""Redis for those that decide with it: one connection for all, and nobody waits for a server that is away.

    client = RedisClient(settings, connect, clock)       # settings: `stores.redis`
    client.on_up(again)                                  # called, sync, whenever a new connection stands
    await client.start()
    reply = await client.run(SCRIPT, keys, args)         # or StoreAwayError, at the latest after `settings.timeout`
    client.tell(SCRIPT, keys, args)                      # the same, and nobody waits
    await client.aclose()

While there is no connection every question fails at once: nothing is queued for later, because whoever decided without
Redis must not be counted by it afterwards. What must not be lost is told again by whoever has `on_up` called.

A task of its own opens connections, tries each with a write, and rests when the breaker says so. One who needs large
values beside small ones has a client of its own, so that nobody's decision waits behind a body.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import structlog

from .redis_breaker import REST_SECONDS, StoreBreaker
from .redis_link import ConnectionLostError, Link, Script, StoreAwayError, Tally, again

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ...config import Redis
    from ...proxy.clock import Clock
    from .redis_link import Wire

START_SECONDS: Final = 1.5
"""How long a start waits for the first connection; then the gateway serves without."""
AGAIN_SECONDS: Final = 0.1
"""Between two tries for a connection while the breaker is closed."""
LOG_SECONDS: Final = 10.0
"""Between two lines about commands that the server refused."""
PROBE_TTL: Final = 60_000

log = structlog.get_logger("headgate.redis")


class RedisClient:
    """One server as one process sees it. `connect` opens a connection or raises ConnectionLostError.

    `link` is counted up with each connection: what was told under another number may not have arrived.
    """

    def __init__(
        self,
        settings: Redis,
        connect: Callable[[Redis], Awaitable[Wire]],
        clock: Clock,
        *,
        name: str = "0",
        use: str = "limits",
    ) -> None:
        self.settings = settings
        self.name = name
        self.use = use
        self.tally = Tally()
        self.link = 0
        self._connect = connect
        self._clock = clock
        self._timeout = settings.timeout.total_seconds()
        self._breaker = StoreBreaker()
        self._link: Link | None = None
        self._why = StoreAwayError("Redis was not asked yet")
        self._callbacks: list[Callable[[], None]] = []
        self._keeper: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._logged = -LOG_SECONDS

    @property
    def up(self) -> bool:
        """There is a connection."""
        return self._link is not None and not self._link.over

    @property
    def state(self) -> str:
        """`up`, `connecting` (after a connection was lost), or `away` while it is given up."""
        return "up" if self.up else "away" if self._breaker.open else "connecting"

    def key(self, *parts: str) -> bytes:
        """A key under the prefix of the config."""
        return (self.settings.prefix + ":".join(parts)).encode()

    # -- for those who ask

    def run(
        self, script: Script, keys: Sequence[bytes], args: Sequence[bytes], *, timeout: float | None = None
    ) -> asyncio.Future[Any]:
        """What the script returns: bytes, int, None or a list of these. It runs once, at most.

        `timeout` in seconds, by default that of the config. Raises StoreAwayError, at once or when it is waited for.
        Cancelling the future takes nothing back: `shield` it to learn what came of it.
        """
        link = self._link
        if link is None:
            self.tally.refused += 1
            raise again(self._why)
        future = link.run(script, keys, args, timeout or self._timeout)
        future.add_done_callback(self._judge)
        return future

    def tell(self, script: Script, keys: Sequence[bytes], args: Sequence[bytes]) -> bool:
        """Run it, and let nobody wait. False where it was not even sent."""
        try:
            self.run(script, keys, args)
        except StoreAwayError:
            return False
        return True

    def on_up(self, callback: Callable[[], None]) -> None:
        """Have `callback` called for each new connection, before anybody else can use it; at once if there is one."""
        self._callbacks.append(callback)
        if self.up:
            callback()

    def forget(self, callback: Callable[[], None]) -> None:
        """Do not call it any more; harmless when nobody does."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    # -- life

    async def start(self) -> None:
        """Try for a connection, for at most START_SECONDS. A server that is away is no error: the log says so."""
        self._keeper = asyncio.create_task(self._keep())
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._settled.wait()
        except TimeoutError:
            self._note_failure(ConnectionLostError(f"no connection within {START_SECONDS:g} s"))

    async def aclose(self) -> None:
        """Close the connection; everything under way fails. Idempotent."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            try:
                self._note_failure(await self._serve())
            except ConnectionLostError as error:
                self._note_failure(error)
                await self._clock.sleep(REST_SECONDS if self._breaker.open else AGAIN_SECONDS)
            except Exception as error:
                log.exception("redis_client_failed", worker=self.name)
                self._note_failure(ConnectionLostError(repr(error)))
                await self._clock.sleep(REST_SECONDS)
            else:
                if self._breaker.open:
                    await self._clock.sleep(REST_SECONDS)

    async def _serve(self) -> StoreAwayError:
        """Open a connection, try it, and have it used until it ends; returns why it did."""
        link = Link(await self._connect(self.settings), self._clock, self.tally)
        serving = asyncio.create_task(link.serve())
        try:
            await self._probe(link)
            self._take(link)
            return await asyncio.shield(serving)
        finally:
            if self._link is link:
                self._link = None
            link.end(ConnectionLostError("the gateway closes its connection"))
            await asyncio.gather(serving, return_exceptions=True)

    async def _probe(self, link: Link) -> None:
        """A write, as decisions are: a server that only reads, or is full, is no use."""
        command = (b"SET", self.key("probe"), self.name.encode(), b"PX", b"%d" % PROBE_TTL)
        try:
            await link.ask(command, self._timeout)
        except ConnectionLostError:
            raise
        except StoreAwayError as error:
            raise ConnectionLostError(str(error)) from error

    def _take(self, link: Link) -> None:
        self._link = link
        self.link += 1
        self._settled.set()
        if self._breaker.close():
            log.info("redis_back", worker=self.name, use=self.use, address=str(self.settings.address))
        for callback in self._callbacks:
            callback()

    def _judge(self, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._breaker.succeed()
        elif not isinstance(error, ConnectionLostError) and isinstance(error, StoreAwayError):
            self._refused(error)  # a lost connection is counted once, by whoever keeps it

    def _refused(self, error: StoreAwayError) -> None:
        now = self._clock.monotonic()
        if now - self._logged >= LOG_SECONDS and not self._breaker.open:
            self._logged = now
            log.warning(
                "redis_refused", worker=self.name, use=self.use, address=str(self.settings.address), reason=str(error)
            )
        self._note_failure(error)
        if self._breaker.open and self._link is not None:
            self._link.end(ConnectionLostError(str(error)))

    def _note_failure(self, error: StoreAwayError) -> None:
        self._why = error
        if self._breaker.fail(self._clock.monotonic()):
            self.tally.opened += 1
            self._settled.set()
            log.warning(
                "redis_away", worker=self.name, use=self.use, address=str(self.settings.address), reason=str(error)
            )
