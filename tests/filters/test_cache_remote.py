"""cache in Redis: one call over all processes, whoever dies; and without Redis as without a cache."""

from __future__ import annotations

from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from headgate.filters.cache_remote import RemoteCache
from headgate.filters.stores.redis_answers import LEASE_SECONDS, RENEW_SECONDS, Lease, RedisAnswers
from headgate.filters.stores.redis_client import RedisClient
from headgate.filters.stores.redis_driver import connect
from headgate.proxy.clock import LoopClock
from headgate.proxy.tape import Recorded
from tests_support.answers import (
    DONE,
    LAST_CHUNK,
    chat_chunk,
    chat_completion,
    chunk,
    event,
    json_response,
    response_head,
)
from tests_support.cached import BODY, STREAM, CachedRelay
from tests_support.clock import FakeClock
from tests_support.gateway import config_for, load, running_gateway, written
from tests_support.redis import RedisServer, redis_settings, until
from tests_support.traffic import without_ours
from tests_support.upstream import FakeUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ANSWER = json_response(chat_completion())
EVENTS = [event(chat_chunk({"content": "x" * 5000})), event(chat_chunk({}, finish_reason="stop")), event(DONE)]
HEAD = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
NAMES = count()


@asynccontextmanager
async def answers_in(server: RedisServer, **settings: Any) -> AsyncIterator[RedisAnswers]:
    clock = LoopClock()
    client = RedisClient(redis_settings(server.url, timeout="1s"), connect, clock)
    bounds = {"max_entry": 1 << 20, "ttl": 60.0, **settings}
    answers = RedisAnswers(client, clock, token=lambda: f"t{next(NAMES)}", **bounds)
    await answers.start()
    try:
        yield answers
    finally:
        await answers.aclose()


@asynccontextmanager
async def workers(server: RedisServer, n: int = 2, **settings: Any) -> AsyncIterator[list[CachedRelay]]:
    """So many processes that share a Redis."""
    async with answers_in(server) as one, answers_in(server) as other, answers_in(server) as third:
        yield [CachedRelay(answers=answers, **settings) for answers in (one, other, third)[:n]]


async def called(*relays: CachedRelay) -> CachedRelay:
    """The one that makes the call."""
    await until(lambda: any(it.calls for it in relays))
    [leads] = [it for it in relays if it.calls]
    return leads


async def test_all_workers_make_one_call_and_all_get_its_answer() -> None:
    async with RedisServer() as server, workers(server, 3) as its:
        clients = [it.ask(BODY) for it in its for _ in range(50)]
        leads = await called(*its)
        leads.feed(ANSWER)
        await until(lambda: all(one.ended for one in clients))
        assert sum(len(it.calls) for it in its) == 1
        assert {one.received for one in clients} == {ANSWER.partition(b"\r\n\r\n")[2]}
        rows = [row for it in its for row in it.rows()]
        assert sorted(row.cache for row in rows) == [*["hit"] * 100, *["joined"] * 49, "miss"]
        assert [row.cost_usd for row in rows if row.cache != "miss"] == [0.0] * 149
        assert all(it.at_rest() for it in its)


async def test_a_stream_is_given_again_by_another_worker_byte_for_byte() -> None:
    async with RedisServer() as server, workers(server) as (one, other):
        first = one.ask(STREAM)
        await called(one)
        one.feed(HEAD, *map(chunk, EVENTS), LAST_CHUNK)
        hit = other.ask(STREAM)
        await until(lambda: hit.ended)
        assert without_ours(hit.received) == without_ours(first.received) == b"".join(EVENTS)
        assert (other.cache.hits, other.calls) == (1, [])
        assert b": headgate " in hit.received


async def test_what_is_too_old_or_unfit_is_asked_again() -> None:
    async with RedisServer() as server, answers_in(server, ttl=0.05, max_entry=600) as answers:
        lease = await answers.claim(b"k")
        assert isinstance(lease, Lease)
        recorded = Recorded("hg_1", 0.0, "p", "m", [], (b"{}",), stream=False)
        assert answers.put(b"k", recorded, lease)
        assert await answers.claim(b"k") == recorded
        assert not answers.put(b"k", Recorded("hg_1", 0.0, "p", "m", [], (b"x" * 600,), stream=False), None)

        found: list[object] = []

        async def gone() -> None:
            found.append(await answers.claim(b"k"))

        while not found or isinstance(found[-1], Recorded):
            await gone()
        assert isinstance(found[-1], Lease)


async def test_one_lease_at_a_time_and_given_back_it_is_anybody_s() -> None:
    async with RedisServer() as server, answers_in(server) as one, answers_in(server) as other:
        lease = await one.claim(b"k")
        assert isinstance(lease, Lease)
        assert await other.claim(b"k") is None
        other.release(Lease(other, b"k", b"not mine"))
        assert await other.claim(b"k") is None
        one.renew(lease)
        one.release(lease)
        await one.claim(b"another")  # what was told before has been done
        assert isinstance(await other.claim(b"k"), Lease)


async def test_what_is_no_answer_in_redis_is_not_given_to_anybody() -> None:
    async with RedisServer() as server, answers_in(server) as answers:
        client = answers._client
        assert client._link is not None
        await client._link.ask((b"SET", client.key("cache", b"k".hex()), b"rubbish"), 1.0)
        assert isinstance(await answers.claim(b"k"), Lease)


async def test_a_failed_call_gives_the_lease_back_and_the_next_worker_calls() -> None:
    async with RedisServer() as server, workers(server, retry=None) as (one, other):
        client = one.ask(BODY)
        await called(one)
        waiting = other.ask(BODY)
        one.call.rst()
        assert client.status == 502
        await called(other)
        other.feed(ANSWER)
        assert waiting.status == 200
        assert one.cache.unfit == 1


async def test_a_client_that_leaves_while_redis_is_asked_leaves_no_lease() -> None:
    async with RedisServer() as server, workers(server) as (one, other):
        one.ask(BODY).leave()
        other_client = other.ask(BODY)
        await called(other)
        other.feed(ANSWER)
        assert other_client.ended
        assert one.calls == []
        assert one.at_rest()


async def test_a_lease_whose_owner_is_dead_runs_out() -> None:
    async with RedisServer() as server, answers_in(server) as answers:
        lease = await answers.claim(b"k")
        assert isinstance(lease, Lease)
        client = answers._client
        assert client._link is not None
        left = await client._link.ask((b"PTTL", lease.name), 1.0)
        assert 0 < left <= LEASE_SECONDS * 1000


async def test_a_lease_is_renewed_while_the_call_goes_on() -> None:
    async with RedisServer() as server, answers_in(server) as answers:
        clock = answers._clock = FakeClock()
        it = CachedRelay(answers=answers)
        client = it.ask(BODY)
        await called(it)
        link, name = answers._client._link, answers.lease_name(next(iter(it.cache._flights)))
        assert link is not None
        await link.ask((b"PEXPIRE", name, b"1000"), 1.0)
        clock.advance(RENEW_SECONDS)
        assert await link.ask((b"PTTL", name), 1.0) > 2000
        it.feed(ANSWER)
        assert client.ended
        assert await link.ask((b"EXISTS", name), 1.0) == 0
        clock.advance(60)
        assert clock.pending == []


async def test_who_has_waited_long_enough_makes_a_call_of_its_own() -> None:
    async with RedisServer() as server, workers(server, wait="50ms") as (one, other):
        one.ask(BODY)
        await called(one)
        impatient = other.ask(BODY)
        await called(other)
        other.feed(ANSWER)
        assert impatient.ended
        one.feed(ANSWER)


async def test_a_gateway_connects_when_it_starts_and_after_a_reload_and_lets_go(tmp_path: Path) -> None:
    async with RedisServer() as server, FakeUpstream(ANSWER) as upstream:
        plain = {**config_for(upstream, auth=False), "stores": {"default": "memory", "redis": {"url": server.url}}}
        cached = {**plain, "filters": [{"cache": {"store": "redis"}}, "retry"]}
        async with running_gateway(written(plain, tmp_path)) as gateway:
            assert (await gateway.post(key=None)).header("x-headgate-cache") is None
            await gateway.half.reload(load(written(cached, tmp_path)))
            first = [(await gateway.post(key=None)).header("x-headgate-cache") for _ in range(2)]
        async with running_gateway(written(cached, tmp_path)) as gateway:
            again = (await gateway.post(key=None)).header("x-headgate-cache")
    assert [*first, again] == ["miss", "hit", "hit"]
    assert len(upstream.requests) == 2


async def test_without_redis_each_worker_makes_one_call_and_nobody_waits() -> None:
    async with RedisServer() as server, workers(server) as its:
        server.kill()
        clients = [it.ask(BODY) for it in its for _ in range(20)]
        for it in its:
            await called(it)
            it.feed(ANSWER)
        assert all(one.ended for one in clients)
        assert [len(it.calls) for it in its] == [1, 1]
        for it in its:
            assert isinstance(it.cache, RemoteCache)
            assert it.cache.away == 1
        assert all(it.at_rest() for it in its)


async def test_a_redis_that_does_not_answer_holds_nobody_up_for_long() -> None:
    async with RedisServer() as server:
        clock = LoopClock()
        client = RedisClient(redis_settings(server.url), connect, clock)
        answers = RedisAnswers(client, clock, max_entry=1 << 20, ttl=60.0, token=lambda: f"t{next(NAMES)}")
        await answers.start()
        it = CachedRelay(answers=answers)
        server.freeze()
        for n in range(8):
            it.ask(BODY.replace(b"hi", b"hi %d" % n))
        await until(lambda: len(it.calls) == 8)
        assert isinstance(it.cache, RemoteCache)
        assert it.cache.away == 8
        assert not client.up
        server.thaw()
        await until(lambda: client.up)
        await answers.aclose()
        for call in it.calls:
            call.feed(ANSWER)


async def test_a_redis_that_dies_while_an_answer_is_waited_for_holds_up_nobody() -> None:
    async with RedisServer() as server, workers(server) as (one, other):
        first = one.ask(BODY)
        await called(one)
        second = other.ask(BODY)
        await until(lambda: other.cache._flights)
        server.kill()
        await called(other)
        for it in (one, other):
            it.feed(ANSWER)
        assert first.ended
        assert second.ended
