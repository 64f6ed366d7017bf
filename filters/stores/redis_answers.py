"""Whole answers in Redis, for all workers of all hosts, and who of them makes a call.

An answer has a lease: whoever finds neither takes the lease and makes the call, the others wait for the answer, or for
the lease to be given back. It is renewed while the call goes on; a process that dies keeps it for `LEASE_SECONDS`. Look
and take are one script, so two cannot find nothing at the same time. The commands of one process run in the order they
were given, so it finds what it has just kept.

Redis never decides alone: whoever cannot ask it makes the call. What comes from it is taken for an answer only where it
can be read as one.

Not here: waiting (cache_remote.py), connections (redis_client.py).
"""

from __future__ import annotations

from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, Final

import msgspec

from ...proxy.tape import Recorded
from .redis_client import RedisClient
from .redis_link import Script

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...config import Redis
    from ...proxy.clock import Clock

LEASE_SECONDS: Final = 5.0
RENEW_SECONDS: Final = 1.5
MIN_TIMEOUT: Final = 0.05
"""Seconds for a question: an answer is larger than a decision, and who waits for one would wait for a provider."""

_CLAIM: Final = Script(
    "cache_claim",
    """
    local answer = redis.call('GET', KEYS[1])
    if answer then return answer end
    if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
    return 0
    """,
)
_RENEW: Final = Script(
    "cache_renew",
    """
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    return redis.call('PEXPIRE', KEYS[1], ARGV[2])
    """,
)
_RELEASE: Final = Script(
    "cache_release",
    """
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    return redis.call('DEL', KEYS[1])
    """,
)
_KEEP: Final = Script(
    "cache_keep",
    """
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
    if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
    return 1
    """,
)
_LEASE_MS: Final = b"%d" % (LEASE_SECONDS * 1000)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Recorded).decode


class RedisAnswers:
    """`client` is of its own: nobody's decision waits behind an answer. `max_entry` in bytes, `ttl` in seconds; `token`
    makes a name that nobody else has."""

    def __init__(
        self, client: RedisClient, clock: Clock, *, max_entry: int, ttl: float, token: Callable[[], str]
    ) -> None:
        self._client = client
        self._clock = clock
        self._started = False
        self._max_entry = max_entry
        self._ttl_ms = b"%d" % max(1, int(ttl * 1000))
        self._timeout = max(MIN_TIMEOUT, client.settings.timeout.total_seconds())
        self._token = token

    @property
    def clock(self) -> Clock:
        """By which it waits."""
        return self._clock

    async def start(self) -> None:
        """Connect, or begin to try. Harmless when that was done."""
        if not self._started:
            self._started = True
            await self._client.start()

    async def aclose(self) -> None:
        """Ask nothing more."""
        await self._client.aclose()

    async def claim(self, key: bytes) -> Recorded | Lease | None:
        """The answer; a lease, for who is to make the call; or None while another one makes it. Raises
        StoreAwayError."""
        lease = Lease(self, key, self._token().encode())
        said = await self._client.run(
            _CLAIM, [self._answer(key), lease.name], [lease.token, _LEASE_MS], timeout=self._timeout
        )
        if isinstance(said, bytes):
            try:
                return _decode(said)
            except msgspec.MsgspecError:  # of another version, or not ours: it will be written over
                return lease
        return lease if said == 1 else None

    def put(self, key: bytes, answer: Recorded, lease: Lease | None) -> bool:
        """Keep it, and give the lease back; False where it is too large, or Redis is away."""
        if answer.size > self._max_entry:
            return False
        names = [self._answer(key), lease.name if lease is not None else self._lease(key)]
        token = lease.token if lease is not None else b""
        return self._client.tell(_KEEP, names, [token, _encode(answer), self._ttl_ms])

    def renew(self, lease: Lease) -> None:
        """The call goes on."""
        self._client.tell(_RENEW, [lease.name], [lease.token, _LEASE_MS])

    def release(self, lease: Lease) -> None:
        """There will be no answer: somebody else may call."""
        self._client.tell(_RELEASE, [lease.name], [lease.token])

    def lease_name(self, key: bytes) -> bytes:
        """Under which name the lease of an answer lies."""
        return self._lease(key)

    def _answer(self, key: bytes) -> bytes:
        return self._client.key("cache", key.hex())

    def _lease(self, key: bytes) -> bytes:
        return self._client.key("cache-lease", key.hex())


def open_answers(settings: Redis, clock: Clock, *, max_entry: int, ttl: float, name: str) -> RedisAnswers:
    """Answers in the Redis of the config; `name` is the worker's, for its log. To be started."""
    from .redis_driver import connect  # loaded only where the config names it

    client = RedisClient(settings, connect, clock, name=name, use="cache")
    return RedisAnswers(client, clock, max_entry=max_entry, ttl=ttl, token=partial(token_hex, 8))


class Lease:
    """The right to make a call that others wait for."""

    __slots__ = ("name", "token")

    def __init__(self, answers: RedisAnswers, key: bytes, token: bytes) -> None:
        self.name = answers.lease_name(key)
        self.token = token
