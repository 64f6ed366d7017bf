"""Reload: whole or not at all, on every worker, and never half a file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests_support.answers import (
    LAST_CHUNK,
    chat_chunks,
    chat_completion,
    chunk,
    event,
    json_response,
    response_head,
)
from tests_support.gateway import CLIENT_KEY, bearer, config_for, written
from tests_support.process import GatewayProcess, gateway_process
from tests_support.raw import CHAT, RawClient, request
from tests_support.traffic import has_done
from tests_support.upstream import FakeUpstream, Pause

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests_support.raw import Answer
    from tests_support.upstream import Request, Step

WITHIN = 20.0
PRICES = "'*': {input: %d, output: 1}"
PICKY = """
import os, sys
from headgate import Filter

class Picky(Filter):
    '''Worker 1 does not take `mode: refuse`, and dies of `mode: die`.'''
    def __init__(self, mode):
        if "--name 1 " in " ".join(sys.argv):
            if mode == "refuse":
                raise ValueError("not by me")
            if mode == "die":
                os._exit(9)
"""
MOCK = {"mock": {"base_url": "mock:"}}
STREAM = request("POST", CHAT, b'{"model":"m","stream":true}', bearer(CLIENT_KEY))


async def reloads(gateway: GatewayProcess) -> dict[str, int]:
    """How many, by result, as /stats counts them."""
    answer = await gateway.admin.send("GET", "/stats?filter=headgate_config_reloads_total", key=None)
    return {one["labels"]["result"]: one["value"] for one in answer.json()["stats"]}


async def reloaded(gateway: GatewayProcess, config: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """SIGHUP, after writing `config` if there is one, and what the log says about it."""
    before = len(gateway.log)
    if config is not None:
        gateway.rewrite(config)
    gateway.signal(signal.SIGHUP)
    await gateway.until(lambda: '"event": "reload' in gateway.log[before:], "the end of the reload", WITHIN)
    await asyncio.sleep(0.05)  # all problems are logged in one turn
    return [json.loads(line) for line in gateway.log[before:].splitlines() if '"event": "reload' in line]


async def versions(gateway: GatewayProcess, asks: int = 12) -> set[str | None]:
    """Which versions answer; every worker is asked, as good as surely."""
    return {(await gateway.post()).header("x-headgate-config") for _ in range(asks)}


@pytest.mark.parametrize("workers", [1, 2])
async def test_bad_files_change_nothing_and_are_told_with_their_places_and_counted(workers: int) -> None:
    """Faults D4."""
    async with FakeUpstream(json_response(chat_completion())) as upstream:
        good = config_for(upstream)
        async with gateway_process(good, workers=workers) as gateway:
            [before] = await versions(gateway)
            half = written(good, gateway.folder)
            bad = [
                ("filtres: []\nproviders: {up: {base_url: 7}}\n", ["gateway.yaml:1:1: filtres", "gateway.yaml:2:"]),
                (half[: len(half) // 2], ["gateway.yaml:"]),
                ("", []),
                (None, ["no such file"]),
            ]
            for text, wanted in bad:
                if text is None:
                    gateway.config_file.unlink()
                else:
                    gateway.config_file.write_text(text)
                lines = await reloaded(gateway)
                assert all(line["event"] == "reload_refused" for line in lines), lines
                told = "\n".join(line["problem"] for line in lines)
                assert all(one in told for one in wanted), told
                assert await versions(gateway) == {before}
            assert await reloads(gateway) == {"applied": 0, "refused": len(bad)}
            assert [line["event"] for line in await reloaded(gateway, {**good, "limits": {"json_depth": 9}})] == [
                "reloaded"
            ]
            assert before not in await versions(gateway)
            assert await gateway.terminate() == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_what_only_a_restart_can_change_is_refused_by_name(workers: int) -> None:
    async with gateway_process({"providers": MOCK}, workers=workers) as gateway:
        moved = {"listeners": {"data": {"port": 0, "address": "127.0.0.2"}, "admin": {"port": 0}}}
        kept = {"path": str(gateway.folder / "events.db"), "spool": {"path": str(gateway.folder / "spool")}}
        [line] = await reloaded(gateway, {"providers": MOCK, **moved, "events": {**kept, "retention": "1d"}})
        assert line["event"] == "reload_refused"
        assert line["problem"] == f"{gateway.config_file}: listeners, events: a change needs a restart"


async def test_changing_workers_is_refused_where_the_command_line_does_not_say() -> None:
    async with gateway_process({"providers": MOCK, "workers": 2}) as gateway:
        [line] = await reloaded(gateway, {"providers": MOCK, "workers": 3})
        assert line["problem"].endswith("workers: a change needs a restart")
        assert len(gateway.worker_pids()) == 2


async def told_versions(gateway: GatewayProcess) -> set[str]:
    workers = (await gateway.admin.send("GET", "/server_info", key=None)).json()["workers"]
    return {worker["config_version"] for worker in workers}


@pytest.mark.parametrize("mode", ["refuse", "die"])
async def test_one_worker_that_does_not_take_it_over_leaves_all_on_the_old_version(mode: str, tmp_path: Path) -> None:
    (tmp_path / "picky.py").write_text(PICKY)

    def config(mode: str) -> dict[str, Any]:
        return {"providers": MOCK, "filters": [{"use": "picky:Picky", "config": {"mode": mode}}]}

    async with gateway_process(config("good"), workers=2, env={"PYTHONPATH": str(tmp_path)}) as gateway:
        [before] = await versions(gateway)
        pids = gateway.worker_pids()
        [line] = await reloaded(gateway, config(mode))
        assert line["event"] == "reload_refused"
        if mode == "refuse":
            assert "its config was refused: ValueError: not by me" in line["problem"]
            assert gateway.worker_pids() == pids
        else:
            assert "worker 1: died while it took the config over" in line["problem"]
            assert len(set(await gateway.ready_workers(2)) & set(pids)) == 1
        assert await versions(gateway, 30) == {before}
        async with asyncio.timeout(10):  # what a worker says of itself is a second old at the most
            while await told_versions(gateway) != {before}:  # noqa: ASYNC110 - nobody tells when
                await asyncio.sleep(0.05)
        [line] = await reloaded(gateway, config("better"))
        assert line["event"] == "reloaded"
        assert before not in await versions(gateway, 30)


async def test_a_worker_that_follows_a_reload_starts_under_the_last_good_text() -> None:
    async with gateway_process({"providers": MOCK}, workers=2) as gateway:
        [line] = await reloaded(gateway, {"providers": MOCK, "limits": {"json_depth": 9}})
        [version] = await versions(gateway)
        gateway.config_file.write_text("filtres: []")
        pids = gateway.worker_pids()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await gateway.ready_workers(2, without=pids)
        assert line["config"] == version
        assert await versions(gateway) == {version}


async def test_a_key_that_is_added_closes_the_gateway_and_both_listeners_take_it() -> None:
    async with gateway_process({"providers": MOCK}) as gateway:
        assert (await gateway.post(key=None)).status == 200
        assert (await gateway.admin.send("GET", "/config_dump", key=None)).status == 200
        keys = [{"name": "app", "key": CLIENT_KEY, "roles": ["viewer"]}]
        await reloaded(gateway, {"providers": MOCK, "filters": [{"auth": {"keys": keys}}]})
        assert (await gateway.post(key=None)).status == 401
        assert (await gateway.admin.send("GET", "/config_dump", key=None)).status == 401
        assert (await gateway.admin.send("GET", "/config_dump", key=CLIENT_KEY)).status == 200


async def test_edge_limits_change_with_the_file() -> None:
    async with gateway_process({"providers": MOCK}) as gateway:
        large = [("x-large", "x" * 5000)]
        assert (await gateway.post(headers=large)).status == 200
        await reloaded(gateway, {"providers": MOCK, "limits": {"headers": "4KiB"}})
        assert (await gateway.post(headers=large)).status == 431


async def test_twenty_hangups_at_once_are_reloads_one_after_the_other() -> None:
    async with gateway_process({"providers": MOCK}, workers=2) as gateway:
        for depth in range(20):
            gateway.rewrite({"providers": MOCK, "limits": {"json_depth": 10 + depth}})
            gateway.signal(signal.SIGHUP)
        last = {"providers": MOCK, "limits": {"json_depth": 29}}
        await asyncio.sleep(0.2)
        [line] = (await reloaded(gateway, last))[-1:]
        assert line["event"] == "reloaded"
        assert await versions(gateway) == {line["config"]}


SLOW = [pytest.param(workers, 100, marks=pytest.mark.slow) for workers in (1, 2)]


@pytest.mark.parametrize(("workers", "rounds"), [(1, 8), (2, 8), *SLOW])
async def test_reloads_good_and_bad_under_load_fail_no_request_and_cut_no_stream(workers: int, rounds: int) -> None:
    """Faults D3, D4, G20: each good one rotates the provider's key, so that connections change under the requests."""
    go = Pause()
    async with FakeUpstream(plain_or_streamed(go)) as upstream:

        def config(n: int) -> dict[str, Any]:
            return {**config_for(upstream, provider_key=f"sk-{n}"), "limits": {"json_depth": 20 + n}}

        async with gateway_process(config(0), workers=workers) as gateway, AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(RawClient(gateway.port, within=60)) for _ in range(5)]
            for stream in streams:
                await stream.send(STREAM)
                await stream.head()
            stop = asyncio.Event()
            load = [asyncio.ensure_future(ask_until(gateway, stop)) for _ in range(6)]
            known = set()
            for n in range(1, rounds + 1):
                [line] = await reloaded(gateway, config(n))
                known.add(line["config"])
                gateway.config_file.write_text("filtres: []")
                [line] = await reloaded(gateway)
                assert line["event"] == "reload_refused"
            latest = line_version(gateway)
            stop.set()
            answers = [answer for asked in load for answer in await asked]
            assert {answer.status for answer in answers} == {200}
            assert {answer.header("x-headgate-config") for answer in answers} >= {latest}
            assert len(known) == rounds
            assert await reloads(gateway) == {"applied": rounds, "refused": rounds}
            go.go()
            assert [has_done((await stream.rest()).body) for stream in streams] == [1] * 5
            assert await gateway.terminate() == 0
            outcomes = [row["outcome"] for row in gateway.ledger()]
    assert outcomes == ["ok"] * (len(answers) + 5)


def plain_or_streamed(pause: Pause) -> Callable[[Request], list[Step]]:
    """A provider whose streams stop in the middle until the test says go."""
    events = [chunk(event(one)) for one in chat_chunks()]
    head = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])

    def script(asked: Request) -> list[Step]:
        if asked.json().get("stream"):
            return [head, *events[:2], pause, *events[2:], LAST_CHUNK]
        return [json_response(chat_completion())]

    return script


async def ask_until(gateway: GatewayProcess, stop: asyncio.Event) -> list[Answer]:
    """One request after the other."""
    answers = []
    while not stop.is_set():
        answers.append(await gateway.post())
    return answers


def line_version(gateway: GatewayProcess) -> str:
    """Of the last config that was taken over."""
    taken = [json.loads(line) for line in gateway.log.splitlines() if '"event": "reloaded"' in line]
    return str(taken[-1]["config"])


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_secret_s_file_is_watched_and_an_edit_of_the_config_is_not(workers: int, tmp_path: Path) -> None:
    """Faults D6."""
    secret = tmp_path / "key"
    secret.write_text("sk-before\n")
    async with FakeUpstream(json_response(chat_completion())) as upstream:
        config = config_for(upstream, provider_key=f"${{file:{secret}}}")
        async with gateway_process(config, workers=workers) as gateway:
            stop = asyncio.Event()
            load = asyncio.ensure_future(ask_until(gateway, stop))

            async def used(key: str) -> None:
                def last() -> str | None:
                    return upstream.requests[-1].header("authorization") if upstream.requests else None

                await gateway.until(lambda: last() == f"Bearer {key}", f"{key} to be used", 5 + 6)

            await used("sk-before")
            gateway.config_file.write_text("filtres: []")
            new = tmp_path / "new"
            new.write_text("sk-after\n")
            new.rename(secret)
            await used("sk-after")
            assert f'"files": "{secret}"' in gateway.log
            secret.unlink()
            await gateway.until(lambda: '"reload_refused"' in gateway.log, "the refusal", 5 + 6)
            await asyncio.sleep(2.5)
            assert gateway.log.count('"reload_refused"') == 1
            assert "filtres" not in gateway.log
            await used("sk-after")
            secret.write_text("sk-again\n")
            await used("sk-again")
            stop.set()
            assert {answer.status for answer in await load} == {200}
            async with asyncio.timeout(5):  # it counts once all workers have taken it over
                while await reloads(gateway) != {"applied": 2, "refused": 1}:  # noqa: ASYNC110 - it is another process that counts
                    await asyncio.sleep(0.05)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_bad_price_file_is_refused_and_a_good_one_taken_over(workers: int, tmp_path: Path) -> None:
    """Its text is no part of the version, so a worker cannot tell by that whether it has taken it over."""
    prices = tmp_path / "prices.yaml"
    prices.write_text(PRICES % 1)
    async with FakeUpstream(json_response(chat_completion())) as upstream:
        config = {**config_for(upstream), "prices": {"file": str(prices)}}
        async with gateway_process(config, workers=workers) as gateway:
            cost = (await gateway.post()).header("x-headgate-cost-usd")
            prices.write_text("gpt: 7")
            await gateway.until(lambda: '"reload_refused"' in gateway.log, "the refusal", 5 + 6)
            assert (await gateway.post()).header("x-headgate-cost-usd") == cost
            prices.write_text(PRICES % 2)
            await gateway.until(lambda: '"reloaded"' in gateway.log, "the reload", 5 + 6)
            assert (await gateway.post()).header("x-headgate-cost-usd") != cost
