"""Meters in Redis: exact over all workers of all hosts, while it answers.

A decision is one script (redis_scripts.py), which counts a call under all its rules or under none. When a call is over
its tokens are corrected, and its slots given back, by a command that nobody waits for.

While Redis is away each limit says what then (`on_store_failure`): `open` admits uncounted; `closed` refuses with 503;
`local_share` counts in the memory of this process, under this worker's share of the limit, so that all workers together
admit no more than the limit in its time. That count begins anew when Redis goes and is not added to that of Redis when
it comes back. What Redis has counted stays counted there, and a call whose answer did not come in time may be among it.

Not here: connections and giving up (redis_client.py), whose slots are whose (redis_lease.py), the arithmetic of a
share (memory.py).
"""

from __future__ import annotations

from asyncio import CancelledError, shield
from collections import deque
from functools import partial
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ...proxy.errors import OverloadError
from .memory import Hold as LocalHold
from .memory import MemoryStore
from .redis_client import RedisClient
from .redis_lease import Lease
from .redis_link import StoreAwayError
from .redis_scripts import SETTLE, TAKE
from .rules import AMOUNTS, PERIODS, SECONDS, Granted, Refused, Report, Rule, tightest

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator, Mapping, Sequence
    from random import Random

    from ...config import Redis
    from ...proxy.clock import Clock
    from .memory import MemoryLimits
    from .rules import Kind, Verdict

MOST_UNSETTLED: Final = 10_000
"""Calls that ended while Redis was away, for their tokens to be corrected later. Of what is more the estimate stays."""
AWAY_WAIT: Final = 5_000_000
"""A call that is larger than the share may be sent again after this: Redis is found again within it."""
_CHUNK: Final = 64


class Hold(NamedTuple):
    """What a call has taken in Redis and must give back or settle."""

    key: bytes
    rule: Rule
    stamp: int
    taken: int


class Place(NamedTuple):
    """A rule, and what stands before and in the arguments of its meters."""

    rule: Rule
    prefix: str
    kind: bytes
    length: bytes


class RedisLimits:
    """The rules of one filter."""

    def __init__(self, store: RedisStore, name: str, rules: Sequence[Rule]) -> None:
        self._store = store
        self._client = store.client
        self._lease = store.lease
        self._clock = store.clock
        self._places = [_place(store.client, name, rule) for rule in rules]
        self._is_closed = any(rule.on_store_failure == "closed" for rule in rules)
        self._shared = [n for n, rule in enumerate(rules) if rule.on_store_failure == "local_share"]
        self._slots = [n for n, rule in enumerate(rules) if rule.kind.what == "concurrent"]
        self._name = name
        self._local: MemoryLimits | None = None
        self._local_rules: list[Rule] = []
        self._share: tuple[int, int] | None = None

    async def take(self, keys: Sequence[str], tokens: int) -> tuple[Granted[Any] | Refused, Verdict]:
        """See `RemoteLimits`."""
        client = self._client
        names = [self._lease.key]
        arguments = [self._lease.id]
        for place, key in zip(self._places, keys, strict=True):
            names.append(_key(place, key))
            amount = tokens if place.rule.kind.what in AMOUNTS else 1
            arguments += (place.kind, b"%d" % place.rule.limit, place.length, b"%d" % amount)
        link = client.link
        try:
            asked = client.run(TAKE, names, arguments)
        except StoreAwayError as error:
            return self._without(keys, names, tokens, error)
        try:
            reply = await shield(asked)
        except StoreAwayError as error:
            return self._without(keys, names, tokens, error)
        except CancelledError:
            asked.add_done_callback(partial(self._undo, names, tokens, link))
            raise
        return self._read(reply, names, tokens, link), "counted"

    def _read(self, reply: bytes, names: Sequence[bytes], tokens: int, link: int) -> Granted[Hold] | Refused:
        now = int(self._clock.monotonic() * 1e6)
        numbers = [int(word) for word in reply.split()]
        if not numbers[0]:
            _, at, wait, left, resets = numbers
            rule = self._places[at].rule
            return Refused(rule, wait, Report(rule.limit, left, now + resets))
        granted: Granted[Hold] = Granted()
        at = 1
        for place, key in zip(self._places, names[1:], strict=True):
            rule, what = place.rule, place.rule.kind.what
            left, resets, stamp = numbers[at : at + 3]
            at += 3
            if what in AMOUNTS:
                granted.holds.append(Hold(key, rule, stamp, tokens))
            if what == "requests":
                granted.requests = tightest(granted.requests, Report(rule.limit, left, now + resets))
            elif what == "tokens":
                granted.tokens = tightest(granted.tokens, Report(rule.limit, left, now + resets))
            elif what == "concurrent":
                granted.holds.append(Hold(key, rule, stamp, 1))
                # After a new connection its count is under a name that has been struck.
                self._lease.hold(key, counted=link == self._client.link)
        return granted

    def _undo(self, names: Sequence[bytes], tokens: int, link: int, asked: asyncio.Future[Any]) -> None:
        """The caller has left; what was granted meanwhile is nobody's."""
        if asked.cancelled() or asked.exception() is not None:
            return
        granted = self._read(asked.result(), names, tokens, link)
        if isinstance(granted, Granted):
            self.settle(granted, 0)

    def settle(self, granted: Granted[Any], tokens: int) -> None:
        """See `RemoteLimits`."""
        told: list[Hold] = []
        local: Granted[LocalHold] = Granted()
        for hold in granted.holds:
            if isinstance(hold, LocalHold):
                local.holds.append(hold)
            elif hold.rule.kind.what == "concurrent":
                self._lease.give_back(hold.key)
                told.append(hold)
            elif tokens != hold.taken:
                told.append(hold)
        if local.holds and self._local is not None:
            self._local.settle(local, tokens, int(self._clock.monotonic() * 1e6))
        if told:
            self._store.settle([(hold, tokens) for hold in told])

    # -- while Redis is away

    def _without(
        self, keys: Sequence[str], names: Sequence[bytes], tokens: int, error: StoreAwayError
    ) -> tuple[Granted[Any] | Refused, Verdict]:
        if self._is_closed:
            raise OverloadError(
                "The gateway could not count this request: its store is away. Try again.", retry_after=1
            ) from error
        result: Granted[Any] | Refused = Granted()
        if self._shared:
            result = self._take_locally([keys[n] for n in self._shared], tokens)
        if isinstance(result, Granted):
            for n in self._slots:
                key = names[n + 1]
                result.holds.append(Hold(key, self._places[n].rule, 0, 1))
                self._lease.hold(key, counted=False)
        return result, "local" if self._shared else "uncounted"

    def _take_locally(self, keys: Sequence[str], tokens: int) -> Granted[LocalHold] | Refused:
        now = int(self._clock.monotonic() * 1e6)
        lease = self._lease
        if self._local is None or self._share != (lease.place, lease.workers):
            self._share = lease.place, lease.workers
            rules = [self._places[n].rule for n in self._shared]
            self._local_rules = [rule._replace(limit=lease.share(rule.limit), part_of=rule.limit) for rule in rules]
            self._local = self._store.local.open(self._name, self._local_rules)
        for rule in self._local_rules:
            if rule.limit < (tokens if rule.kind.what in AMOUNTS else 1):
                return Refused(rule, AWAY_WAIT, Report(rule.limit, rule.limit, now))
        return self._local.take(keys, tokens, now)


class RedisStore:
    """Opens limits that are counted in one Redis. `workers` and `place`: how many processes this host has, and which
    one this is; Redis corrects both when it is first heard."""

    def __init__(self, client: RedisClient, clock: Clock, rng: Random, *, workers: int = 1, place: int = 0) -> None:
        self.client = client
        self.clock = clock
        self.lease = Lease(client, clock, rng, workers=workers, place=place)
        self.local = MemoryStore()
        self._unsettled: deque[tuple[Hold, int]] = deque(maxlen=MOST_UNSETTLED)
        client.on_up(self._settle_rest)

    def open(self, name: str, rules: Sequence[Rule]) -> RedisLimits:
        """The limits of the filter `name`, with what is already counted under that name."""
        return RedisLimits(self, name, rules)

    def settle(self, told: list[tuple[Hold, int]]) -> None:
        """Tell Redis, or keep the tokens for when it is back. Slots need not be told again: see Lease."""
        keys = [hold.key for hold, _ in told]
        arguments = [self.lease.id]
        for hold, used in told:
            rule = hold.rule
            kind, length = _kind(rule)
            arguments += (kind, b"%d" % rule.limit, length, b"%d" % hold.stamp, b"%d" % hold.taken, b"%d" % used)
        if not self.client.tell(SETTLE, keys, arguments):
            self._unsettled += [(hold, used) for hold, used in told if hold.rule.kind.what in AMOUNTS]

    def _settle_rest(self) -> None:
        rest, self._unsettled = iter(self._unsettled), deque(maxlen=MOST_UNSETTLED)
        for some in iter(lambda: list(islice(rest, _CHUNK)), []):
            self.settle(some)

    async def aclose(self) -> None:
        """This process counts no more: its slots are free at once, where Redis can still be told."""
        self.client.forget(self._settle_rest)
        try:
            await self.lease.leave()
        except StoreAwayError:  # then they are free when the lease ends
            return
        finally:
            await self.client.aclose()


def open_store(
    settings: Redis, clock: Clock, rng: Random, *, workers: int = 1, place: int = 0, name: str = "0"
) -> RedisStore:
    """A store in the Redis of the config; `name` is the worker's, for its log. Start its client."""
    from .redis_driver import connect  # the one place where the driver is loaded

    client = RedisClient(settings, connect, clock, name=name)
    return RedisStore(client, clock, rng, workers=workers, place=place)


def restoring(
    client: RedisClient, name: str, kind: Kind, spent: Mapping[str, int], teller: bytes
) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Keys and arguments of RESTORE, for so many callers at a time. `teller` is new each time it is told."""
    place = _place(client, name, Rule(kind, 0))
    callers = list(spent.items())
    for at in range(0, len(callers) or 1, _CHUNK):
        some = callers[at : at + _CHUNK]
        keys = [(place.prefix + "mark").encode(), *(_key(place, key) for key, _ in some)]
        yield keys, [teller, place.length, *(b"%d" % amount for _, amount in some)]


def _place(client: RedisClient, name: str, rule: Rule) -> Place:
    kind, length = _kind(rule)
    what, per, unit, continuous = rule.kind
    prefix = client.key("limit", name, what, "+".join(per), unit + ("~" if continuous else ""), "").decode()
    return Place(rule, prefix, kind, length)


def _kind(rule: Rule) -> tuple[bytes, bytes]:
    kind = rule.kind
    if kind.what == "concurrent":
        return b"s", b"0"
    seconds = PERIODS[kind.unit] if kind.what == "money" else SECONDS[kind.unit]
    return b"d" if kind.continuous else b"w", b"%d" % (seconds * 1_000_000)


def _key(place: Place, caller: str) -> bytes:
    """Callers by digest: of one length, and no names in Redis."""
    return (place.prefix + blake2b(caller.encode(), digest_size=12).hexdigest()).encode()
