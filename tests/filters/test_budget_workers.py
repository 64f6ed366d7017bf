"""budget over processes: one sum for all workers, which outlives them, the gateway, and the rows of the ledger."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests_support.answers import chat_chunks, chat_completion, json_response, sse
from tests_support.gateway import CLIENT_KEY, bearer, config_for
from tests_support.process import GatewayProcess, gateway_process
from tests_support.raw import CHAT, RawClient, request
from tests_support.upstream import FakeUpstream, Pause, Request, Step

if TYPE_CHECKING:
    from pathlib import Path

PRICED = {"models": {"*": {"targets": [{"provider": "up", "price": {"input": 0, "output": 1_000_000}}]}}}
BODY = b'{"model":"m","max_tokens":1,"messages":[]}'
STREAM = b'{"model":"m","max_tokens":4,"stream":true,"messages":[]}'
WHOLE = json_response(chat_completion(usage={"prompt_tokens": 0, "completion_tokens": 1, "total_tokens": 1}))


def budgeted(upstream: FakeUpstream, folder: Path | None = None, **budget: Any) -> dict[str, Any]:
    """A dollar a token. With a `folder` the ledger is there, for the next process to find."""
    keys = [{"name": "app", "key": CLIENT_KEY, "team": "web"}]
    config = {**config_for(upstream), **PRICED, "filters": [{"auth": {"keys": keys}}, {"budget": budget}, "retry"]}
    if folder is not None:
        config["events"] = {"path": str(folder / "events.db"), "spool": {"path": str(folder / "spool")}}
    return config


async def asked(gateway: GatewayProcess, requests: int, at_once: int) -> Counter[int]:
    """So many requests over so many connections; how many answers of each status."""
    statuses: Counter[int] = Counter()

    async def client(n: int) -> None:
        async with RawClient(gateway.port, within=120) as raw:
            for _ in range(n):
                await raw.send(request("POST", CHAT, BODY, bearer(CLIENT_KEY)))
                statuses[(await raw.answer()).status] += 1

    await asyncio.gather(*[client(requests // at_once) for _ in range(at_once)])
    return statuses


def begins(asked: Request) -> list[Step] | bytes:
    """Streams that go on for ever, and answers that are whole."""
    return [*sse(chat_chunks("Hello"))[:2], Pause()] if b'"stream":true' in asked.body else WHOLE


def stored(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder / "events.db")) as db:
        return db.execute(sql).fetchall()


async def test_all_workers_together_spend_the_budget_and_no_more() -> None:
    async with FakeUpstream(lambda _: WHOLE) as upstream:
        config = budgeted(upstream, per="team", usd_per_day=40)
        async with gateway_process(config, workers=2) as gateway:
            statuses = await asked(gateway, 200, 20)
            rows = await gateway.rows(200)
    assert statuses == {200: 40, 402: 160}
    assert sum(row["cost_usd"] or 0 for row in rows) == 40


async def test_a_restart_knows_what_was_spent_and_what_the_dead_had_set_aside(tmp_path: Path) -> None:
    async with FakeUpstream(begins) as upstream:
        config = budgeted(upstream, tmp_path, per="team", usd_per_month=7, alerts=[50, 100])
        async with gateway_process(config) as gateway, RawClient(gateway.port) as client:
            assert (await gateway.post(BODY)).status == 200
            await client.send(request("POST", CHAT, STREAM, bearer(CLIENT_KEY)))
            await client.head()
            os.kill(gateway.pid, signal.SIGKILL)  # in mid-stream: its four dollars are charged
            await gateway.ended()
        async with gateway_process(config, workers=2) as gateway:
            answers = [await gateway.post(BODY) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 402]
    assert "7 USD per month for each team 0 USD is left" in answers[2].error["message"]


async def test_a_killed_worker_is_charged_what_it_had_set_aside() -> None:
    async with FakeUpstream(begins) as upstream:
        config = budgeted(upstream, per="team", usd_per_month=6)
        async with gateway_process(config, workers=2) as gateway, RawClient(gateway.port) as client:
            await client.send(request("POST", CHAT, STREAM, bearer(CLIENT_KEY)))
            await client.head()
            pids = await gateway.ready_workers(2)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            await gateway.ready_workers(2, without=pids)
            answers = [await gateway.post(BODY) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 402]


async def test_an_alert_is_told_once_by_log_and_metric_whoever_spends_and_restarts(tmp_path: Path) -> None:
    async with FakeUpstream(lambda _: WHOLE) as upstream:
        config = budgeted(upstream, tmp_path, per="team", usd_per_day=4)
        async with gateway_process(config, workers=2) as gateway:
            for _ in range(6):
                await gateway.post(BODY)
            await gateway.until(lambda: gateway.log.count("budget_alert") >= 3, "three alerts")
            stats = (await gateway.admin.send("GET", "/stats?filter=budget_alerts", key=None)).json()["stats"]
            log = gateway.log
        async with gateway_process(config, workers=1) as gateway:
            assert (await gateway.post(BODY)).status == 402
            await gateway.until(lambda: len(stored(tmp_path, "SELECT id FROM usage")) == 7, "seven rows")
            again = gateway.log
    lines = [json.loads(line) for line in log.splitlines() if "budget_alert" in line]
    assert sorted((line["percent"], line["caller"], line["limit_usd"]) for line in lines) == [
        (50, "team web", "4"),
        (80, "team web", "4"),
        (100, "team web", "4"),
    ]
    assert {one["labels"]["percent"]: one["value"] for one in stats} == {"50": 1, "80": 1, "100": 1}
    assert "budget_alert" not in again


async def test_a_budget_that_comes_back_with_a_reload_knows_what_was_spent(tmp_path: Path) -> None:
    async with FakeUpstream(lambda _: WHOLE) as upstream:
        config = budgeted(upstream, per="team", usd_per_month=2)
        without = {**config, "filters": [config["filters"][0], "retry"]}
        async with gateway_process(config) as gateway:
            statuses = [(await gateway.post(BODY)).status]
            for number, served in enumerate((without, config), 1):
                gateway.rewrite(served)
                gateway.signal(signal.SIGHUP)
                await gateway.until(lambda n=number: gateway.log.count('"reloaded"') == n, "the reload")  # type: ignore[misc]
                statuses += [(await gateway.post(BODY)).status for _ in range(2)]
    assert statuses == [200, 200, 200, 200, 402]


async def test_a_gateway_whose_ledger_cannot_say_what_was_spent_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "events.db").write_bytes(b"this is no database, and long enough to be looked at" * 100)
    async with FakeUpstream(lambda _: WHOLE) as upstream:
        config = budgeted(upstream, tmp_path, per="team", usd_per_month=2)
        with pytest.raises(AssertionError, match="what was spent of the budgets cannot be read"):
            async with gateway_process(config):
                pass


async def test_what_is_charged_is_what_the_rows_cost() -> None:
    async with FakeUpstream(lambda _: WHOLE) as upstream:
        config = budgeted(upstream, limits=[{"per": ["team", "key"], "usd_per_week": 9}])
        async with gateway_process(config) as gateway:
            for _ in range(3):
                await gateway.post(BODY)
            rows = await gateway.rows(3)
            charged = stored(gateway.folder, "SELECT budget, per, unit, caller, nanos FROM spending")
    assert sum(row["cost_usd"] for row in rows) == 3
    assert charged == [("budget", "key+team", "week", "kapp & tweb", 3 * 10**9)]
