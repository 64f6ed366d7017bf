"""redis_limits: what is counted where while Redis is away, whose slots are whose, and nothing stays for ever."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from headgate.filters.stores.redis_lease import RENEW_SECONDS
from headgate.filters.stores.redis_limits import MOST_UNSETTLED, RedisLimits, open_store
from headgate.filters.stores.rules import Granted, Kind, Refused, Rule
from headgate.proxy.clock import LoopClock
from headgate.proxy.errors import OverloadError
from tests_support.clock import FakeClock
from tests_support.redis import RedisProxy, RedisServer, redis_settings, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from headgate.filters.stores.redis_limits import RedisStore
    from headgate.filters.stores.rules import OnStoreFailure

PER_DAY = Kind("requests", ("user",), "day")
TOKENS = Kind("tokens", ("user",), "minute")
AT_ONCE = Kind("concurrent", ("user",), "")
MONEY = Kind("money", ("user",), "month")


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with RedisServer() as made:
        yield made


@asynccontextmanager
async def counting(
    url: str, *, workers: int = 1, place: int = 0, seed: int = 1, clock: Any = None, **more: Any
) -> AsyncIterator[RedisStore]:
    """A worker that counts there."""
    settings = redis_settings(url, **{"timeout": "1s", **more})
    store = open_store(settings, clock or LoopClock(), Random(seed), workers=workers, place=place)
    await store.client.start()
    try:
        yield store
    finally:
        await store.aclose()


async def take(limits: RedisLimits, rules: int = 1, tokens: int = 1, who: str = "ann") -> Granted[Any] | Refused:
    return (await limits.take([who] * rules, tokens))[0]


def granted(result: Granted[Any] | Refused) -> Granted[Any]:
    assert isinstance(result, Granted)
    return result


def held(server: RedisServer) -> list[int]:
    """Slots in Redis of all callers, by worker."""
    keys = [key for key in server.all_keys() if b":concurrent:" in key]
    return [int(count) for key in keys for count in server.ask("HVALS", key)]


# -- while it is there


async def test_workers_count_together_and_exactly(server: RedisServer) -> None:
    async with counting(server.url, seed=1) as one, counting(server.url, seed=2) as two:
        opened = [store.open("it", [Rule(PER_DAY, 100)]) for store in (one, two)]
        results = await asyncio.gather(*(take(opened[n % 2]) for n in range(300)))
    assert sum(isinstance(result, Granted) for result in results) == 100


async def test_every_key_ends_by_itself_and_names_no_caller(server: RedisServer) -> None:
    rules = [
        Rule(PER_DAY, 9),
        Rule(Kind("tokens", ("user",), "hour", continuous=True), 100),
        Rule(AT_ONCE, 3),
        Rule(MONEY, 100),
    ]
    async with counting(server.url, prefix="acme:") as store:
        granted(await take(store.open("it", rules[:3]), 3, who="kann@example.com"))
        granted(await take(store.open("b", rules[3:]), who="kann@example.com"))
        keys = server.all_keys()
        assert len(keys) == 6
        for key in keys:
            assert key.startswith(b"acme:")
            assert b"ann" not in key
            assert server.ask("PTTL", key) > 0


async def test_a_caller_that_leaves_while_it_is_decided_holds_nothing(server: RedisServer) -> None:
    async with RedisProxy(server.port) as proxy, counting(f"redis://127.0.0.1:{proxy.port}") as store:
        limits = store.open("it", [Rule(TOKENS, 100), Rule(AT_ONCE, 2)])
        granted(await take(limits, 2, 10))
        proxy.delay = 0.05
        leaving = [asyncio.create_task(take(limits, 2, 30)) for _ in range(2)]
        await asyncio.sleep(0.01)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        proxy.delay = 0.0
        await until(lambda: held(server) == [1])
        call = granted(await take(limits, 2, 90))
        assert call.tokens is not None
        assert call.tokens.left == 0


# -- slots and leases


async def test_the_slots_of_a_dead_worker_are_free_once_its_lease_ends_and_its_tokens_stay(
    server: RedisServer,
) -> None:
    rules = [Rule(AT_ONCE, 2), Rule(TOKENS, 100)]
    async with counting(server.url, seed=1) as alive:
        dead = open_store(redis_settings(server.url, timeout="1s"), LoopClock(), Random(2))
        await dead.client.start()
        granted(await take(dead.open("it", rules), 2, 60))
        await dead.client.aclose()  # as a kill does: nothing is given back
        limits = alive.open("it", rules)
        granted(await take(limits, 2, 10))
        assert isinstance(await take(limits, 2, 10), Refused)
        [name] = [name for name in server.ask("HKEYS", "headgate:workers") if name != alive.lease.id]
        until_ = int(server.ask("HGET", "headgate:workers", name)) / 1e6
        seconds = until_ - float(server.ask("TIME")[0])
        assert 15 < seconds <= 21
        server.ask("HSET", "headgate:workers", name, "1")  # 20 seconds later
        call = granted(await take(limits, 2, 10))
        assert call.tokens is not None
        assert call.tokens.left == 20
        assert sorted(held(server)) == [2]


async def test_a_worker_that_ends_in_peace_leaves_no_slot_and_no_name(server: RedisServer) -> None:
    async with counting(server.url) as store:
        granted(await take(store.open("it", [Rule(AT_ONCE, 2)])))
        assert server.ask("HLEN", "headgate:workers") == 1
    assert server.ask("HLEN", "headgate:workers") == 0
    async with counting(server.url, seed=2) as store:
        limits = store.open("it", [Rule(AT_ONCE, 2)])
        assert [isinstance(await take(limits), Granted) for _ in range(3)] == [True, True, False]


async def test_on_a_new_connection_what_runs_is_told_anew(server: RedisServer) -> None:
    async with RedisProxy(server.port) as proxy, counting(f"redis://127.0.0.1:{proxy.port}") as store:
        limits = store.open("it", [Rule(AT_ONCE, 3)])
        calls = [granted(await take(limits, who=who)) for who in ("ann", "ann", "bob")]
        name, link = store.lease.id, store.client.link
        proxy.cut()
        await until(lambda: store.client.link > link and store.client.up)
        assert store.lease.id != name
        granted(await take(limits))
        assert isinstance(await take(limits), Refused)
        for call in calls:
            limits.settle(call, 0)
        calls = [granted(await take(limits)) for _ in range(2)]
        assert isinstance(await take(limits), Refused)
        assert server.ask("HLEN", "headgate:workers") == 1


async def test_no_slot_is_lost_or_forgotten_while_connections_break(server: RedisServer) -> None:
    """Calls come, leave and end while the connection is cut again and again; then nobody holds anything."""
    rng = Random(3)
    async with RedisProxy(server.port) as proxy, counting(f"redis://127.0.0.1:{proxy.port}") as store:
        limits = store.open("it", [Rule(AT_ONCE, 4, "open")])
        most = 0

        async def call() -> None:
            nonlocal most
            result = await take(limits)
            if isinstance(result, Granted):
                try:
                    most = max(most, sum(store.lease.held.values()))
                    await asyncio.sleep(rng.random() * 0.01)
                finally:
                    limits.settle(result, 0)

        for wave in range(40):
            calls = [asyncio.create_task(call()) for _ in range(8)]
            await asyncio.sleep(rng.random() * 0.004)
            if wave % 4 == 1:
                proxy.cut()
            for task in rng.sample(calls, 3):
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        await until(lambda: store.client.up)
        assert store.lease.held == {}
        await take(limits, who="bob")
        assert [count for count in held(server) if count] == [1]  # bob's
        assert most >= 4


async def test_a_lease_is_renewed_and_one_that_was_lost_is_taken_anew(server: RedisServer) -> None:
    clock = FakeClock()
    async with counting(server.url, clock=Split(clock)) as store:
        limits = store.open("it", [Rule(AT_ONCE, 2)])
        granted(await take(limits))
        name = store.lease.id
        server.ask("HSET", "headgate:workers", name, "5")
        clock.advance(RENEW_SECONDS)
        await until(lambda: store.lease.id != name)  # it had run out: told anew, under another name
        name = store.lease.id
        await until(lambda: server.ask("HKEYS", "headgate:workers") == [name])
        clock.advance(RENEW_SECONDS)
        granted(await take(limits))
        assert store.lease.id == name
        assert isinstance(await take(limits), Refused)


class Split:
    """Leases by a clock that is told, connections by the real one."""

    def __init__(self, told: FakeClock) -> None:
        self._told = told
        self._real = LoopClock()
        self.sleep = self._real.sleep
        self.wall = self._real.wall
        self.monotonic = self._real.monotonic

    def call_at(self, when: float, fn: Callable[..., object], *args: Any) -> Any:
        if getattr(fn, "__name__", "") == "_renew":
            return self._told.call_at(self._told.monotonic() + RENEW_SECONDS, fn, *args)
        return self._real.call_at(when, fn, *args)


async def test_who_comes_first_does_not_think_it_is_alone(server: RedisServer) -> None:
    """Redis goes before the other worker of the host was there."""
    async with counting(server.url, workers=2, place=0) as store:
        limits = store.open("it", every("local_share", 10))
        await until(lambda: server.ask("HLEN", "headgate:workers") == 1)
        await take(limits)
        server.kill()
        await until(lambda: not store.client.up)
        assert await admitted(limits) == 5


# -- while it is away


def every(on_store_failure: OnStoreFailure, limit: int = 10) -> list[Rule]:
    return [Rule(PER_DAY, limit, on_store_failure)]


async def admitted(limits: RedisLimits, calls: int = 50, rules: int = 1, tokens: int = 1) -> int:
    return sum([isinstance(await take(limits, rules, tokens), Granted) for _ in range(calls)])


async def test_open_admits_uncounted(server: RedisServer) -> None:
    async with counting(server.url) as store:
        limits = store.open("it", every("open"))
        server.kill()
        await until(lambda: not store.client.up)
        result, verdict = await limits.take(["ann"], 1)
        assert (granted(result).requests, verdict) == (None, "uncounted")
        assert await admitted(limits) == 50


async def test_closed_refuses_with_503(server: RedisServer) -> None:
    async with counting(server.url) as store:
        limits = store.open("it", [*every("closed"), Rule(TOKENS, 100, "open")])
        server.kill()
        await until(lambda: not store.client.up)
        with pytest.raises(OverloadError, match="its store is away") as refusal:
            await take(limits, 2)
        assert (refusal.value.status, refusal.value.retry_after) == (503, 1)


@pytest.mark.parametrize(("workers", "limit"), [(1, 10), (3, 10), (4, 3), (7, 100)])
async def test_the_shares_of_all_workers_are_the_limit(workers: int, limit: int) -> None:
    away = RedisServer()
    total = 0
    for place in range(workers):
        store = open_store(redis_settings(away.url), LoopClock(), Random(place), workers=workers, place=place)
        total += await admitted(store.open("it", every("local_share", limit)), 120)
    assert total == limit


async def test_redis_says_how_many_share(server: RedisServer) -> None:
    """Two hosts with two workers each, which know only of their own until they hear of the others."""
    async with (
        counting(server.url, workers=2, place=0, seed=1) as one,
        counting(server.url, workers=2, place=1, seed=2) as two,
        counting(server.url, workers=2, place=0, seed=3) as three,
        counting(server.url, workers=2, place=1, seed=4) as four,
    ):
        stores = (one, two, three, four)
        for store in stores:
            store.lease._renew()
        await until(lambda: all(store.lease.workers == 4 for store in stores))
        assert sorted(store.lease.place for store in stores) == [0, 1, 2, 3]
        opened = [store.open("it", every("local_share", 10)) for store in stores]
        server.kill()
        await until(lambda: not any(store.client.up for store in stores))
        assert sorted([await admitted(limits) for limits in opened]) == [2, 2, 3, 3]


async def test_a_share_says_that_it_is_one(server: RedisServer) -> None:
    async with counting(server.url, workers=4, place=0) as store:
        store.lease.workers, store.lease.place = 4, 3
        limits = store.open("it", every("local_share", 10))
        server.kill()
        await until(lambda: not store.client.up)
        first, verdict = await limits.take(["ann"], 1)
        assert (granted(first).requests, verdict) != (None, "counted")
        assert verdict == "local"
        assert await admitted(limits) == 2
        refusal = await take(limits)
        assert isinstance(refusal, Refused)
        assert str(refusal.rule) == "3 requests per day for each user, which is a share of 10"


async def test_a_call_that_is_larger_than_the_share_is_refused_for_now(server: RedisServer) -> None:
    async with counting(server.url) as store:
        store.lease.workers, store.lease.place = 4, 0
        limits = store.open("it", [Rule(TOKENS, 100)])
        server.kill()
        await until(lambda: not store.client.up)
        refusal = await take(limits, 1, 26)
        assert isinstance(refusal, Refused)
        assert (refusal.wait, refusal.report.limit) == (5_000_000, 25)
        call = granted(await take(limits, 1, 25))
        assert isinstance(await take(limits, 1, 1), Refused)
        limits.settle(call, 5)
        granted(await take(limits, 1, 20))


async def test_what_ran_while_it_was_away_is_told_when_it_is_back(server: RedisServer) -> None:
    async with counting(server.url) as store:
        limits = store.open("it", [Rule(AT_ONCE, 3, "open"), Rule(TOKENS, 100, "local_share")])
        before = granted(await take(limits, 2, 60))
        server.kill()
        await until(lambda: not store.client.up)
        limits.settle(before, 10)
        running = [granted(await take(limits, 2, 10)) for _ in range(2)]
        await server.start()
        await until(lambda: store.client.up)
        await until(lambda: held(server) == [2])
        for call in running:
            limits.settle(call, 10)
        await until(lambda: held(server) == [])


async def test_tokens_that_were_used_meanwhile_are_settled_later(server: RedisServer) -> None:
    async with RedisProxy(server.port) as proxy, counting(f"redis://127.0.0.1:{proxy.port}", timeout="50ms") as store:
        limits = store.open("it", [Rule(TOKENS, 100)])
        call = granted(await take(limits, 1, 60))
        proxy.delay = 0.5
        with suppress(OverloadError):
            await take(limits, 1, 1)
        await until(lambda: not store.client.up)
        limits.settle(call, 10)
        assert len(store._unsettled) == 1
        proxy.delay = 0.0
        await until(lambda: store.client.up)
        left = granted(await take(limits, 1, 1)).tokens
        assert left is not None
        assert left.left in (88, 89)  # the call that was given up may have been counted
        assert store._unsettled.maxlen == MOST_UNSETTLED
        assert not store._unsettled
