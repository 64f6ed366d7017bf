"""redis_client: nobody waits for a Redis that is away, and nobody is given the reply of somebody else."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from random import Random
from time import sleep as stand_still
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from structlog.testing import capture_logs

from headgate.config import Redis, Secret
from headgate.filters.stores import redis_link
from headgate.filters.stores.redis_client import RedisClient
from headgate.filters.stores.redis_driver import build, connect
from headgate.filters.stores.redis_link import Script, StoreAwayError
from headgate.proxy.clock import LoopClock
from tests_support.redis import PASSWORD, RedisProxy, RedisServer, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ECHO = Script("echo", "return ARGV[1]")
COUNT = Script("count", "return redis.call('INCRBY', KEYS[1], ARGV[1])")
BROKEN = Script("broken", "return redis.call('INCR', KEYS[1])")
PATIENT = "1s"


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with RedisServer() as made:
        yield made


def settings(url: str, **more: Any) -> Redis:
    return Redis.model_validate({"url": Secret(url), "timeout": PATIENT, **more})


@asynccontextmanager
async def running(url: str, **more: Any) -> AsyncIterator[RedisClient]:
    client = RedisClient(settings(url, **more), connect, LoopClock())
    await client.start()
    try:
        yield client
    finally:
        await client.aclose()


async def test_a_script_runs_with_its_keys_and_arguments(server: RedisServer) -> None:
    async with running(server.url, prefix="mine:") as client:
        assert client.state == "up"
        key = client.key("a", "b")
        assert key == b"mine:a:b"
        assert await client.run(COUNT, [key], [b"2"]) == 2
        assert await client.run(COUNT, [key], [b"3"]) == 5
        assert await client.run(ECHO, [], [b"x\0\r\n\xff"]) == b"x\0\r\n\xff"
        assert client.tally.answered >= 3
        assert sum(client.tally.buckets) == client.tally.answered
    assert client.state == "connecting"
    with pytest.raises(StoreAwayError):
        client.run(ECHO, [], [b"x"])


async def test_what_is_asked_in_one_turn_of_the_loop_leaves_together(server: RedisServer) -> None:
    async with RedisProxy(server.port) as proxy, running(f"redis://127.0.0.1:{proxy.port}") as client:
        sent: list[int] = []
        link = client._link
        assert link is not None
        send = link._wire.send

        async def counted(commands: Any) -> None:
            sent.append(len(commands))
            await send(commands)

        link._wire.send = counted  # type: ignore[method-assign]
        await client.run(ECHO, [], [b"0"])
        sent.clear()
        replies = await asyncio.gather(*(client.run(ECHO, [], [b"%d" % n]) for n in range(200)))
        assert replies == [b"%d" % n for n in range(200)]
        assert sent == [200]
        assert proxy.accepted == 1


async def test_no_caller_is_given_the_reply_of_another_however_many_are_cancelled(server: RedisServer) -> None:
    """Every caller has a canary of its own; some leave at any moment, and connections are cut under them."""
    rng = Random(7)
    foreign, answered = 0, 0

    async def ask(client: RedisClient, n: int) -> None:
        nonlocal foreign, answered
        try:
            reply = await client.run(ECHO, [], [b"canary-%d" % n])
        except StoreAwayError:
            return
        answered += 1
        foreign += reply != b"canary-%d" % n

    async with RedisProxy(server.port) as proxy, running(f"redis://127.0.0.1:{proxy.port}") as client:
        for wave in range(60):
            if not client.up:
                await until(lambda: client.up)
            asked = [asyncio.create_task(ask(client, wave * 100 + n)) for n in range(100)]
            await asyncio.sleep(rng.choice([0.0, 0.0005, 0.002]))
            for task in rng.sample(asked, 40):
                task.cancel()
            if wave % 20 == 10:
                proxy.cut()
            await asyncio.gather(*asked, return_exceptions=True)
        await until(lambda: client.up)
        assert await client.run(ECHO, [], [b"last"]) == b"last"
    assert foreign == 0
    assert answered > 2000


async def test_a_late_reply_is_nobodys_because_its_connection_is_gone(server: RedisServer) -> None:
    async with RedisProxy(server.port) as proxy:
        async with running(f"redis://127.0.0.1:{proxy.port}", timeout="50ms") as client:
            assert await client.run(ECHO, [], [b"first"]) == b"first"
            proxy.delay = 0.2
            late = client.run(ECHO, [], [b"late"])
            with pytest.raises(StoreAwayError, match=r"no answer within \d+ ms, see stores\.redis\.timeout"):
                await late
            with pytest.raises(StoreAwayError):
                client.run(ECHO, [], [b"next"])
            proxy.delay = 0.0
            await until(lambda: client.up)
            assert await client.run(ECHO, [], [b"next"]) == b"next"
        assert proxy.accepted >= 2


async def test_a_caller_that_leaves_costs_the_others_nothing(server: RedisServer) -> None:
    async with running(server.url) as client:
        link = client.link
        leaving = client.run(ECHO, [], [b"gone"])
        staying = client.run(ECHO, [], [b"here"])
        leaving.cancel()
        assert await staying == b"here"
        assert client.link == link


async def test_a_loop_that_stood_still_does_not_blame_redis(server: RedisServer) -> None:
    async with running(server.url, timeout="5ms") as client:
        await client.run(ECHO, [], [b"warm"], timeout=1.0)
        link = client.link
        for _ in range(20):
            reply = client.run(ECHO, [], [b"x"], timeout=0.02)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            stand_still(0.05)  # noqa: ASYNC251 - the whole loop shall
            assert await reply == b"x"
        assert client.link == link


async def test_it_gives_up_a_dead_server_and_finds_it_again(server: RedisServer) -> None:
    with capture_logs() as logs:
        async with running(server.url) as client:
            taken: list[int] = []
            client.on_up(lambda: taken.append(client.link))
            await client.run(ECHO, [], [b"x"])
            server.kill()
            await until(lambda: client.state == "away")
            with pytest.raises(StoreAwayError):
                client.run(ECHO, [], [b"x"])
            assert not client.tell(ECHO, [], [b"x"])
            await server.start()
            await until(lambda: client.up)
            assert await client.run(ECHO, [], [b"x"]) == b"x"
            assert taken == [1, 2]
            assert client.tally.opened == 1
    assert [line["event"] for line in logs] == ["redis_away", "redis_back"]


async def test_it_gives_up_a_frozen_server_after_few_failures(server: RedisServer) -> None:
    async with running(server.url, timeout="5ms") as client:
        server.freeze()
        waited = 0
        while client.state != "away":
            try:
                await client.run(ECHO, [], [b"x"])
            except StoreAwayError:
                waited += 1
            await asyncio.sleep(0.003)
            assert waited < 2000
        assert client.tally.failed <= 6
        server.thaw()
        await until(lambda: client.up)


async def test_a_start_without_a_server_goes_on_and_says_so() -> None:
    server = RedisServer()
    with capture_logs() as logs:
        async with running(server.url) as client:
            assert client.state == "away"
            async with server:
                await until(lambda: client.up)
    assert [line["event"] for line in logs] == ["redis_away", "redis_back"]
    assert logs[0]["address"] == f"127.0.0.1:{server.port}/0"
    assert [line["use"] for line in logs] == ["limits", "limits"]


async def test_a_command_that_is_refused_fails_alone(server: RedisServer) -> None:
    server.ask("LPUSH", "list", "x")
    with capture_logs() as logs:
        async with running(server.url) as client:
            link = client.link
            for _ in range(3):
                with pytest.raises(StoreAwayError, match="refused"):
                    await client.run(BROKEN, [b"list"], [])
                assert await client.run(ECHO, [], [b"x"]) == b"x"
            assert client.link == link
            assert client.tally.failed == 3
    assert [line["event"] for line in logs] == ["redis_refused"]


async def test_a_server_that_refuses_everything_is_given_up(server: RedisServer) -> None:
    server.ask("LPUSH", "list", "x")
    async with running(server.url) as client:
        for _ in range(5):
            with pytest.raises(StoreAwayError):
                await client.run(BROKEN, [b"list"], [])
        assert client.state == "away"
        await until(lambda: client.up)


async def test_a_server_that_takes_no_writes_is_away(server: RedisServer) -> None:
    server.ask("REPLICAOF", "127.0.0.1", "1")
    async with running(server.url) as client:
        assert client.state == "away"
        server.ask("REPLICAOF", "NO", "ONE")
        await until(lambda: client.up)


async def test_scripts_that_the_server_has_forgotten_are_told_again(server: RedisServer) -> None:
    async with running(server.url) as client:
        await client.run(ECHO, [], [b"x"])
        server.ask("SCRIPT", "FLUSH")
        with pytest.raises(StoreAwayError):
            await client.run(ECHO, [], [b"x"])
        await until(lambda: client.up)
        assert await client.run(ECHO, [], [b"x"]) == b"x"


async def test_no_more_is_under_way_than_there_is_room_for(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(server.url) as client:
        await client.run(ECHO, [], [b"x"])
        monkeypatch.setattr(redis_link, "MOST_WAITING", 3)
        asked = [client.run(ECHO, [], [b"x"]) for _ in range(3)]
        with pytest.raises(StoreAwayError, match="too many"):
            client.run(ECHO, [], [b"x"])
        assert await asyncio.gather(*asked) == [b"x"] * 3
        monkeypatch.setattr(redis_link, "MOST_BYTES", 100)
        large = client.run(ECHO, [], [b"x" * 1000])
        with pytest.raises(StoreAwayError, match="too many"):
            client.run(ECHO, [], [b"x"])
        assert len(await large) == 1000
        assert client.tally.refused == 2
        assert client.state == "up"


async def test_it_logs_in_with_a_password_and_never_shows_it() -> None:
    async with RedisServer(PASSWORD) as server:
        async with running(server.url) as client:
            assert await client.run(ECHO, [], [b"x"]) == b"x"
        with capture_logs() as logs:
            async with running(server.url.replace(PASSWORD, f"{PASSWORD}-wrong")) as client:
                assert client.state == "away"
                with pytest.raises(StoreAwayError) as failure:
                    client.run(ECHO, [], [b"x"])
    assert PASSWORD not in f"{logs} {failure.value} {client.settings!r} {client.settings.address!r} {server.port}"


async def test_it_speaks_tls_and_trusts_only_its_authority(server: RedisServer, tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    for name, one in (("ca.pem", authority), ("other.pem", stranger)):
        one.cert_pem.write_to_path(tmp_path / name)
    async with RedisProxy(server.port, context) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}"
        async with running(url, ca=tmp_path / "ca.pem") as client:
            assert await client.run(ECHO, [], [b"x"]) == b"x"
        with capture_logs() as logs:
            async with running(url, ca=tmp_path / "other.pem") as client:
                assert client.state == "away"
        assert "certificate verify failed" in logs[0]["reason"].lower()


def test_every_bound_of_the_driver_is_written_out() -> None:
    made = build(settings("redis://user:p%40ss@cache.example:6380/3"))
    assert (made.host, made.port, made.db, made.username, made.password) == (
        "cache.example", 6380, 3, "user", "p@ss",
    )  # fmt: skip
    assert (made.socket_timeout, made.socket_connect_timeout, made.protocol) == (1.0, 1.0, 2)
    assert made.retry.get_retries() == 0
    assert made.health_check_interval == 0
