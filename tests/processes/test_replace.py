"""SIGUSR2: new workers take over one by one, and no client notices: no pool that keeps its connections, no stream."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests_support.answers import LAST_CHUNK, chat_chunks, chat_completion, chunk, event, json_response, response_head
from tests_support.gateway import CHAT_BODY, CLIENT_KEY, bearer, config_for
from tests_support.load import Load, providers
from tests_support.process import GatewayProcess, gateway_process
from tests_support.raw import CHAT, RawClient, request
from tests_support.traffic import has_done
from tests_support.upstream import FakeUpstream, Pause

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from tests_support.upstream import Step

WITHIN = 120.0
OTHER_KEY = "hg-other-7Lm3Xc9Vb2Nn5Qw8"
SSE = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
WHOLE = json_response(chat_completion())
MOCK = {"mock": {"base_url": "mock:"}}


def events(gateway: GatewayProcess, name: str) -> list[dict[str, Any]]:
    """What was logged under a name."""
    lines = [line for line in gateway.log.splitlines() if line.startswith("{")]
    return [event for event in map(json.loads, lines) if event["event"] == name]


async def replaced(gateway: GatewayProcess, times: int) -> None:
    """Ask for a replacement, and wait for its end."""
    gateway.signal(signal.SIGUSR2)
    await gateway.until(lambda: len(events(gateway, "replaced")) >= times, f"replacement {times}", WITHIN)


async def alone(gateway: GatewayProcess, workers: int, without: Collection[int]) -> list[int]:
    """Wait until only so many processes are left, all of them new."""
    await gateway.until(lambda: len(gateway.worker_pids()) == workers, "the old workers to end", WITHIN)
    pids = gateway.worker_pids()
    assert not set(pids) & set(without)
    return pids


@pytest.mark.parametrize(
    ("times", "rate", "streams"),
    [(1, 60, 10), pytest.param(20, 300, 100, marks=pytest.mark.slow)],
)
async def test_replaced_under_load_workers_fail_no_request_and_cut_no_stream(
    times: int, rate: float, streams: int
) -> None:
    """Faults D5."""
    async with providers(slow_ms=100) as config, gateway_process(config, workers=2) as gateway:
        first = gateway.worker_pids()
        load = Load(gateway.base_url, rate=rate, streams=streams)
        async with load.running():
            for time in range(1, times + 1):
                await replaced(gateway, time)
            # The last ones to be replaced tell so with their next answer, which the load need not have asked for yet.
            await gateway.until(lambda: load.told_to_close > 0, "somebody to be told to close", WITHIN)
        print(load, len(events(gateway, "worker_replaced")), "workers replaced")
        load.assert_flawless()
        assert load.told_to_close > 0
        await alone(gateway, 2, first)
        assert len(events(gateway, "worker_replaced")) == 2 * times
        # A process is gone a moment before its parent has written so.
        await gateway.until(lambda: len(events(gateway, "worker_retired")) >= 2 * times, "the last to be retired")
        assert len(events(gateway, "worker_retired")) == 2 * times
        assert await gateway.terminate() == 0
        outcomes = [row["outcome"] for row in gateway.ledger()]
        for bad in ("worker_died", "worker_killed", "replacement_aborted", "Traceback"):
            assert bad not in gateway.log
    assert outcomes == ["ok"] * (load.answered + load.streamed)


PICKY = """
import os
from pathlib import Path
from headgate import Filter

class Picky(Filter):
    '''Once there is a file, no worker starts any more.'''
    def __init__(self, file):
        if Path(file).exists():
            os._exit(9)
"""


async def test_a_new_worker_that_dies_ends_the_replacement_and_the_old_ones_stay(tmp_path: Path) -> None:
    (tmp_path / "picky.py").write_text(PICKY)
    trap = tmp_path / "trap"
    config = {"providers": MOCK, "filters": [{"use": "picky:Picky", "config": {"file": str(trap)}}]}
    async with gateway_process(config, workers=2, env={"PYTHONPATH": str(tmp_path)}) as gateway:
        pids = gateway.worker_pids()
        trap.touch()
        gateway.signal(signal.SIGUSR2)
        await gateway.until(lambda: bool(events(gateway, "replacement_aborted")), "the end of it", WITHIN)
        [aborted] = events(gateway, "replacement_aborted")
        assert aborted["reason"] == "the new worker ended before it was ready"
        assert gateway.worker_pids() == pids
        assert (await gateway.post()).status == 200
        trap.unlink()
        await replaced(gateway, 1)
        await alone(gateway, 2, pids)
        answer = await gateway.admin.send("GET", "/stats?filter=headgate_worker_re", key=None)
        found = {(one["name"], one.get("labels", {}).get("result")): one["value"] for one in answer.json()["stats"]}
        assert found["headgate_worker_replacements_total", "done"] == 1
        assert found["headgate_worker_replacements_total", "aborted"] == 1
        assert found["headgate_worker_restarts_total", None] == 0


async def test_one_process_says_that_it_replaces_nothing_and_serves_on() -> None:
    async with gateway_process({"providers": MOCK}) as gateway:
        gateway.signal(signal.SIGUSR2)
        await gateway.until(lambda: bool(events(gateway, "replacement_refused")), "the warning", WITHIN)
        [refused] = events(gateway, "replacement_refused")
        assert "nothing was done" in refused["reason"]
        assert (await gateway.post()).status == 200


async def test_a_stream_outlives_its_worker_s_place_and_what_it_may_is_the_newest_config_s() -> None:
    """The old worker reads no key that a reload took away, though it serves a stream for its old config's client."""
    pause = Pause()
    chunks = [chunk(event(one)) for one in chat_chunks()]
    streamed: list[Step] = [SSE, *chunks[:2], pause, *chunks[2:], LAST_CHUNK]
    async with (
        FakeUpstream(lambda asked: streamed if asked.json().get("stream") else WHOLE) as upstream,
        gateway_process(config_for(upstream), workers=2) as gateway,
        RawClient(gateway.port, within=30) as client,
    ):
        old = gateway.worker_pids()
        await client.send(request("POST", CHAT, b'{"model":"m","stream":true}', bearer(CLIENT_KEY)))
        assert (await client.head()).header("connection") is None
        await client.piece()
        await replaced(gateway, 1)
        await gateway.until(lambda: len(gateway.worker_pids()) == 3, "the idle one to end", WITHIN)
        new = await gateway.ready_workers(2)  # which the old one is not, once it has told so
        assert not set(new) & set(old)
        other = [{"auth": {"keys": [{"name": "app", "key": OTHER_KEY}]}}]
        gateway.rewrite({**config_for(upstream), "filters": other})
        gateway.signal(signal.SIGHUP)
        await gateway.until(lambda: bool(events(gateway, "reloaded")), "the reload", WITHIN)
        pause.go()
        assert has_done((await client.rest()).body) == 1
        await client.send(request("POST", CHAT, CHAT_BODY, bearer(CLIENT_KEY)))
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (401, "close")
        await alone(gateway, 2, old)
        assert (await gateway.post(key=OTHER_KEY)).status == 200


async def test_a_sigterm_in_the_middle_of_a_replacement_is_the_end_of_all() -> None:
    async with gateway_process({"providers": MOCK}, workers=2) as gateway:
        gateway.signal(signal.SIGUSR2)
        await gateway.until(lambda: len(gateway.worker_pids()) == 3, "the first new one")
        assert await gateway.terminate() == 0
        assert "worker_killed" not in gateway.log
        assert "Traceback" not in gateway.log
