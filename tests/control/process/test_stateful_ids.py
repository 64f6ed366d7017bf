"""Who made an object is known to every worker, after a restart, after kill -9, inside an application, and to other
gateways on the same ledger."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import httpx2
from openai import AsyncOpenAI

from headgate.clients.transport import GatewayTransport
from tests_support.gateway import CLIENT_KEY, load, written
from tests_support.keeper import BLUE_KEY, RED_KEY, TEAMS, Keeper, keepers_config
from tests_support.process import GatewayProcess, gateway_process
from tests_support.raw import RawClient, request
from tests_support.upstream import FakeUpstream, Pause

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests_support.raw import Answer
    from tests_support.upstream import Request, Step

AT_UP2 = [("x-headgate-provider", "up2"), ("content-type", "application/octet-stream")]
FILES = "/v1/files"


def issuers(folder: Path) -> set[tuple[str, str, str]]:
    """Id, provider and team of every row."""
    with closing(sqlite3.connect(folder / "events.db")) as db:
        return set(db.execute("SELECT id, provider, team FROM issuers"))


async def make_file(gateway: GatewayProcess, key: str = CLIENT_KEY) -> str:
    answer = await gateway.send("POST", FILES, b"x", AT_UP2, key=key)
    assert answer.status == 200
    return str(answer.json()["id"])


async def from_every_worker(gateway: GatewayProcess, target: str, key: str = CLIENT_KEY) -> list[Answer]:
    """Many connections at once, which all workers take from."""
    return await asyncio.gather(*(gateway.send("GET", target, key=key) for _ in range(12)))


async def test_every_worker_knows_what_another_made() -> None:
    async with (
        FakeUpstream(Keeper("a")) as up,
        FakeUpstream(Keeper("b")) as up2,
        gateway_process(keepers_config(up, up2, keys=TEAMS), workers=2) as gateway,
    ):
        await gateway.ready_workers(2)
        for _ in range(5):
            made = await make_file(gateway, RED_KEY)
            assert {answer.status for answer in await from_every_worker(gateway, f"{FILES}/{made}", RED_KEY)} == {200}
            assert {answer.status for answer in await from_every_worker(gateway, f"{FILES}/{made}", BLUE_KEY)} == {404}
        answers = await from_every_worker(gateway, f"{FILES}/file-x", RED_KEY)
        assert {answer.error["code"] for answer in answers} == {"not_issued"}
        workers = {row["worker"] for row in await gateway.rows(5 + 5 * 24 + 12)}
    assert workers == {"0", "1"}
    assert not up.requests


async def test_kill_9_takes_nothing_that_a_client_has_seen() -> None:
    """Every worker that made something dies before anybody else has heard of it."""
    async with (
        FakeUpstream(Keeper("a")) as up,
        FakeUpstream(Keeper("b")) as up2,
        gateway_process(keepers_config(up, up2), workers=2) as gateway,
    ):
        victims = await gateway.ready_workers(2)
        made = [await make_file(gateway) for _ in range(6)]
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        await gateway.ready_workers(2, without=victims)
        for id_ in made:
            answer = await gateway.send("GET", f"{FILES}/{id_}")
            assert (answer.status, answer.json()["id"]) == (200, id_)
        await gateway.send("DELETE", f"{FILES}/{made[0]}")
        assert await gateway.terminate() == 0
        assert issuers(gateway.folder) == {(id_, "up2", "") for id_ in made[1:]}


async def test_a_gateway_that_was_killed_knows_it_after_its_restart() -> None:
    """`workers: 1`, and kill -9 of the whole gateway between the answer and anything else."""
    async with FakeUpstream(Keeper("a")) as up, FakeUpstream(Keeper("b")) as up2:
        config = keepers_config(up, up2)
        async with gateway_process(config) as first:
            made = await make_file(first)
            first.signal(signal.SIGKILL)
            await first.ended()
            async with gateway_process(on_the_ledger_of(first, config)) as second:
                answer = await second.send("GET", f"{FILES}/{made}")
                assert (answer.status, answer.json()["id"]) == (200, made)
                unknown = await second.send("GET", f"{FILES}/file-x")
                assert (unknown.status, unknown.error["code"]) == (409, "unknown_issuer")


async def test_several_gateways_on_one_ledger_know_what_each_other_made() -> None:
    async with FakeUpstream(Keeper("a")) as up, FakeUpstream(Keeper("b")) as up2:
        config = keepers_config(up, up2)
        async with gateway_process(config) as first, gateway_process(on_the_ledger_of(first, config)) as second:
            for one, other in ((first, second), (second, first)):
                made = await make_file(one)
                answer = await other.send("GET", f"{FILES}/{made}")
                assert (answer.status, answer.json()["id"]) == (200, made)
            for one in (first, second):
                assert (await one.send("GET", f"{FILES}/file-x")).status == 409


def on_the_ledger_of(other: GatewayProcess, config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "events": json.loads(written({}, other.folder))["events"]}


async def test_an_application_knows_what_its_gateway_made_before(tmp_path: Path) -> None:
    async with FakeUpstream(Keeper("a")) as up, FakeUpstream(Keeper("b")) as up2:
        settings = json.loads(written(keepers_config(up, up2), tmp_path))
        del settings["listeners"]

        async def with_sdk(headers: dict[str, str], previous: str | None) -> Any:
            transport = GatewayTransport(load(json.dumps(settings)))
            async with AsyncOpenAI(
                api_key=CLIENT_KEY, max_retries=0, http_client=httpx2.AsyncClient(transport=transport)
            ) as client:
                return await client.responses.create(
                    model="m", input="hi", extra_headers=headers, previous_response_id=previous
                )

        first = await with_sdk({"x-headgate-provider": "up2"}, None)
        second = await with_sdk({}, first.id)
        assert (first.output_text, second.output_text) == ("from b", "from b")
    assert not up.requests


async def test_an_id_is_on_disk_before_a_byte_of_its_answer_is_out() -> None:
    """The provider stands still in the middle of a stream; the worker dies there; what was seen of it is known."""
    pause = Pause()
    keeper = Keeper("b")

    def halting(asked: Request) -> Sequence[Step]:
        answer = keeper(asked)
        return [answer] if isinstance(answer, bytes) else [*answer[:6], pause, *answer[6:]]

    async with (
        FakeUpstream(Keeper("a")) as up,
        FakeUpstream(halting) as up2,
        gateway_process(keepers_config(up, up2), workers=2) as gateway,
        RawClient(gateway.port) as client,
    ):
        victims = await gateway.ready_workers(2)
        body = b'{"model":"m","input":"hi","stream":true}'
        sent = [("authorization", f"Bearer {CLIENT_KEY}"), ("x-headgate-provider", "up2")]
        await client.send(request("POST", "/v1/responses", body, sent))
        await client.head()
        assert b"resp_b1" in await client.piece()
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        await gateway.ready_workers(2, without=victims)
        answer = await gateway.send("GET", "/v1/responses/resp_b1")
        assert (answer.status, answer.json()["id"]) == (200, "resp_b1")
        pause.go()


async def test_when_the_store_is_away_the_answer_says_so_and_may_be_asked_again() -> None:
    async with (
        FakeUpstream(Keeper("a")) as up,
        FakeUpstream(Keeper("b")) as up2,
        gateway_process(keepers_config(up, up2), workers=2) as gateway,
    ):
        await gateway.ready_workers(2)
        made = await make_file(gateway)
        await gateway.rows(1)
        store = gateway.folder / "events.db"
        store.rename(gateway.folder / "away.db")
        store.mkdir()
        answers = await from_every_worker(gateway, f"{FILES}/{made}")
        # The worker that made it knows it by itself.
        assert {answer.status for answer in answers} <= {200, 503}
        unknown = await gateway.send("GET", f"{FILES}/file-x")
        assert (unknown.status, unknown.error["code"]) == (503, "issuers_away")
        assert unknown.header("retry-after") == "1"
        store.rmdir()
        (gateway.folder / "away.db").rename(store)
        answers = await from_every_worker(gateway, f"{FILES}/{made}")
        assert {answer.status for answer in answers} == {200}
