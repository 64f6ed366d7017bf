"""redis_totals: what was spent before is told to a Redis that does not know it, once, and never to one that does."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from headgate.filters.stores.redis_limits import RedisStore, open_store
from headgate.filters.stores.redis_totals import RedisTotals
from headgate.filters.stores.rules import Granted, Kind, Rule
from headgate.proxy.clock import LoopClock
from tests_support.redis import RedisServer, redis_settings, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

MONEY = Kind("money", ("user",), "month")


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with RedisServer() as made:
        yield made


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[RedisStore]:
    made = open_store(redis_settings(server.url, timeout="1s"), LoopClock(), Random(1))
    await made.client.start()
    yield made
    await made.aclose()


async def tell(server: RedisServer, spent: Mapping[str, int]) -> None:
    """As a gateway does at its start."""
    await RedisTotals(redis_settings(server.url, timeout="1s"), LoopClock()).restore("b", MONEY, spent, 0)


async def left(store: RedisStore, caller: str) -> int:
    """Of 1000, found by halving; nothing is kept."""
    limits = store.open("b", [Rule(MONEY, 1000)])
    low, high = 0, 1000
    while low < high:
        middle = (low + high + 1) // 2
        result, _ = await limits.take([caller], middle)
        if isinstance(result, Granted):
            limits.settle(result, 0)
            low = middle
        else:
            high = middle - 1
    return low


async def spend(store: RedisStore, caller: str, amount: int) -> None:
    limits = store.open("b", [Rule(MONEY, 1000)])
    result, _ = await limits.take([caller], amount)
    assert isinstance(result, Granted)
    limits.settle(result, amount)


async def test_a_redis_that_is_new_is_told(server: RedisServer, store: RedisStore) -> None:
    await tell(server, {f"caller-{n}": n for n in range(200)})
    assert [await left(store, f"caller-{n}") for n in (0, 1, 199)] == [1000, 999, 801]
    assert await left(store, "nobody") == 1000
    for key in server.all_keys():
        assert server.ask("PTTL", key) > 0 or key.endswith(b":mark")


async def test_a_redis_that_knows_is_believed_and_completed(server: RedisServer, store: RedisStore) -> None:
    await tell(server, {})
    await spend(store, "ann", 600)
    await tell(server, {"ann": 500, "bob": 100})
    assert [await left(store, name) for name in ("ann", "bob")] == [400, 900]


async def test_it_is_told_once_however_often_it_is_found(server: RedisServer, store: RedisStore) -> None:
    for _ in range(3):
        await tell(server, {"ann": 100})
    assert await left(store, "ann") == 900


async def test_a_redis_that_has_lost_all_is_told_also_after_a_worker_was_quicker(
    server: RedisServer, store: RedisStore
) -> None:
    await tell(server, {"ann": 100, "bob": 100})
    server.kill()
    await until(lambda: not store.client.up)
    await server.start()
    await until(lambda: store.client.up)
    await spend(store, "ann", 50)
    await tell(server, {"ann": 100, "bob": 100})
    assert [await left(store, name) for name in ("ann", "bob")] == [850, 900]


async def test_a_redis_that_is_away_is_told_nothing() -> None:
    server = RedisServer()
    await tell(server, {"ann": 100})
    async with server:
        assert server.all_keys() == []
