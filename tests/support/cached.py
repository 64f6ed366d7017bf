"""A relay with a cache in its chain, and clients that ask the same at the same time.

it = CachedRelay()
one, other = it.ask(), it.ask()
it.feed(HEAD, *events)          # of the one call
one.downstream.received, it.row(one)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headgate.config import CacheConfig
from headgate.filters.cache import Cache
from headgate.filters.cache_remote import RemoteCache
from headgate.proxy.accounting.prices import own_price
from headgate.proxy.accounting.record import Done, Opened, decode

from .downstream import CHAT, FakeDownstream
from .relay import EVERY_FAILURE, Relay

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headgate.config import RetryConfig
    from headgate.filters.stores.redis_answers import RedisAnswers
    from headgate.proxy.filter import Filter

    from .calls import FakeCall

BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
STREAM = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}'
HOST = (b"host", b"localhost")
PRICE = own_price({"input": 1.0, "output": 2.0})


class CachedRelay:
    """`above` and `below` stand around the cache. `answers`: they are kept there, which takes a loop."""

    def __init__(
        self,
        *,
        above: Sequence[Filter] = (),
        below: Sequence[Filter] = (),
        providers: int = 1,
        retry: RetryConfig | None = EVERY_FAILURE,
        answers: RedisAnswers | None = None,
        **settings: Any,
    ) -> None:
        config = CacheConfig(**settings)
        self.cache = (
            Cache(config, monotonic=self._monotonic, wall=self._wall)
            if answers is None
            else RemoteCache(config, monotonic=self._monotonic, wall=self._wall, answers=answers)
        )
        self.relay = Relay(before=[*above, self.cache, *below], providers=providers, retry=retry, price=PRICE)

    def ask(
        self,
        body: bytes = STREAM,
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        room: int | None = None,
        path: str = CHAT,
        query: bytes = b"",
    ) -> FakeDownstream:
        """One more client, whose request has arrived."""
        downstream = FakeDownstream(body, path=path, query=query, headers=[HOST, *headers], room=room)
        self.relay.accept(downstream)
        downstream.deliver()
        return downstream

    def _monotonic(self) -> float:
        return self.relay.clock.monotonic()

    def _wall(self) -> float:
        return self.relay.clock.wall()

    @property
    def calls(self) -> list[FakeCall]:
        """Every attempt so far."""
        return self.relay.calls

    @property
    def call(self) -> FakeCall:
        """The only one."""
        [call] = self.relay.calls
        return call

    def feed(self, *pieces: bytes) -> None:
        """More of the latest call's answer."""
        call = self.relay.providers[0].last
        for piece in pieces:
            call.feed(piece)

    def rows(self) -> list[Done]:
        """The rows so far, in the order in which their exchanges ended."""
        return [line for line in map(decode, self.relay.lines.written) if isinstance(line, Done)]

    def row(self, downstream: FakeDownstream) -> Done:
        """The one row of a client."""
        id_ = (downstream.header(b"x-headgate-request-id") or b"").decode()
        [row] = [row for row in self.rows() if row.id == id_]
        return row

    def opened(self) -> int:
        """How many exchanges were admitted."""
        return sum(isinstance(line, Opened) for line in map(decode, self.relay.lines.written))

    def at_rest(self) -> bool:
        """Nothing is under way, every exchange has its row, and no memory is held for flights."""
        self.relay.clock.advance(0.1)
        cache = self.cache
        rest = self.relay.at_rest() and not cache._flights and cache.room.used == 0
        return rest and len(self.rows()) == self.opened()
