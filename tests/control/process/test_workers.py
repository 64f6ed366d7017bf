"""Workers: replaced when they die, gone when their supervisor is, and no business of a terminal's."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headgate.proxy.accounting.record import Done, Opened
from tests_support.answers import chat_chunks, chat_completion, chunk, event, json_response, response_head
from tests_support.command import exists
from tests_support.gateway import CLIENT_KEY, bearer, config_for, running_gateway, spooled
from tests_support.process import gateway_process
from tests_support.raw import CHAT, RawClient, request
from tests_support.traffic import error_events, has_done
from tests_support.upstream import FakeUpstream, Sleep

if TYPE_CHECKING:
    from tests_support.upstream import Request, Step

BUSY = 6.0
"""Seconds that a machine shared with other tests may add to a bound of the contract."""
MOCK = {"mock": {"base_url": "mock:"}}
EVENTS = [chunk(event(one)) for one in chat_chunks(done=False)]
SSE = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
STREAM = request("POST", CHAT, b'{"model":"m","stream":true,"messages":[]}', bearer(CLIENT_KEY))


def provider(asked: Request) -> list[Step]:
    """A plain answer takes 20 ms; a stream never ends."""
    if asked.json().get("stream"):
        return [SSE, *EVENTS[:3], Sleep(30)]
    return [Sleep(0.02), json_response(chat_completion())]


async def test_killed_under_load_a_worker_is_replaced_and_every_exchange_has_one_row() -> None:
    """Faults R7."""
    answered: list[str] = []
    broken = 0
    stop = asyncio.Event()
    async with FakeUpstream(provider) as upstream, gateway_process(config_for(upstream), workers=2) as gateway:

        async def client(number: int) -> None:
            nonlocal broken
            for n in range(10_000):
                if stop.is_set():
                    return
                name = f"c{number}-{n}"
                try:
                    answer = await gateway.post(headers=[("x-request-id", name)])
                except (ConnectionError, AssertionError, TimeoutError):
                    broken += 1
                else:
                    assert answer.status == 200
                    answered.append(name)

        async with asyncio.TaskGroup() as clients:
            for number in range(8):
                clients.create_task(client(number))
            for _ in range(3):
                await asyncio.sleep(0.3)
                victim = gateway.worker_pids()[0]
                os.kill(victim, signal.SIGKILL)
                killed = time.monotonic()
                await gateway.ready_workers(2, without=[victim])
                assert time.monotonic() - killed < 2 + BUSY
            stop.set()
        assert await gateway.terminate() == 0
        rows = [row["client_request_id"] for row in gateway.ledger()]
        outcomes = {row["client_request_id"]: row["outcome"] for row in gateway.ledger()}
        seen = [asked.request_id for asked in upstream.requests]
    assert len(rows) == len(set(rows))
    assert set(answered) | set(seen) <= set(rows)
    assert {outcomes[name] for name in answered} == {"ok"}
    assert len(answered) > 20
    assert broken < 30


async def test_a_worker_that_ends_on_its_own_is_counted_and_logged() -> None:
    async with gateway_process({"providers": MOCK}, workers=2) as gateway:
        [first, second] = gateway.worker_pids()
        os.kill(first, signal.SIGTERM)
        assert second in await gateway.ready_workers(2, without=[first])
        [death] = [json.loads(line) for line in gateway.log.splitlines() if '"worker_died"' in line]
        assert death.items() >= {"pid": first, "code": 0, "was_ready": True}.items()
        answer = await gateway.admin.send("GET", "/stats?filter=headgate_worker_restarts_total", key=None)
        assert answer.json()["stats"][0]["value"] == 1


async def test_without_their_supervisor_workers_tell_their_streams_and_are_gone_in_three_seconds() -> None:
    async with (
        FakeUpstream(provider) as upstream,
        gateway_process(config_for(upstream), workers=2) as gateway,
        RawClient(gateway.port, within=20) as client,
    ):
        workers = gateway.worker_pids()
        await client.send(STREAM)
        await client.head()
        await client.piece()
        gateway.signal(signal.SIGKILL)
        killed = time.monotonic()
        answer = await client.rest()
        assert [error["code"] for error in error_events(answer.body)] == ["shutting_down"]
        assert not has_done(answer.body)
        await gateway.until(lambda: not any(map(exists, workers)), "the workers to end", 3 + BUSY)
        assert time.monotonic() - killed < 3 + BUSY
        [opened, done] = spooled(gateway.folder)
    assert isinstance(opened, Opened)
    assert isinstance(done, Done)
    assert (done.outcome, done.error_code) == ("truncated", "shutting_down")


async def test_the_port_is_free_for_the_next_supervisor_while_orphans_still_end() -> None:
    async with (
        FakeUpstream(provider) as upstream,
        gateway_process(config_for(upstream), workers=2) as first,
        RawClient(first.port, within=20) as client,
    ):
        await client.send(STREAM)
        await client.head()
        first.signal(signal.SIGKILL)
        await first.ended()
        await first.until(lambda: refuses_connections(first.port), "the workers to let go of the port", 3 + BUSY)
        again = {"listeners": {"data": {"port": first.port}, "admin": {"port": 0}}}
        async with gateway_process({**config_for(upstream), **again}, workers=2) as second:
            assert (await second.post()).status == 200


def refuses_connections(port: int) -> bool:
    """Whether nobody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


async def test_signals_of_a_terminal_are_the_supervisors_alone() -> None:
    async with gateway_process({"providers": MOCK}, workers=2) as gateway:
        workers = gateway.worker_pids()
        assert all(os.getsid(pid) == pid for pid in workers)
        for pid in workers:
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGHUP)
        await asyncio.sleep(0.2)
        assert gateway.worker_pids() == workers
        assert (await gateway.post()).status == 200


async def test_workers_log_at_the_level_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(
        "import structlog\nfrom headgate import Filter\n"
        "class Loud(Filter):\n    def on_request(self, ex):\n        structlog.get_logger().debug('loud')\n"
    )
    env = {"PYTHONPATH": str(tmp_path), "HEADGATE_LOG": "debug"}
    async with gateway_process({"providers": MOCK, "filters": [{"use": "loud:Loud"}]}, workers=2, env=env) as gateway:
        await gateway.post()
        await gateway.until(lambda: '"loud"' in gateway.log, "the debug line")


NOT_IN_A_WORKER = {
    *("genai_prices", "h2", "httpx", "httpx2", "openai", "prometheus_client", "redis", "sqlite3"),
    *("headgate.control.admin.app", "headgate.control.events", "headgate.control.telemetry"),
}
SPY = """
import json, sys
from headgate import Filter
class Spy(Filter):
    def on_request(self, ex):
        json.dump(sorted(sys.modules), open("modules.json", "w"))
"""


async def test_a_worker_loads_what_it_serves_with_and_stays_small(tmp_path: Path) -> None:
    (tmp_path / "spy.py").write_text(SPY)
    env = {"PYTHONPATH": str(tmp_path)}
    async with gateway_process({"providers": MOCK, "filters": [{"use": "spy:Spy"}]}, workers=2, env=env) as gateway:
        await gateway.post()
        loaded = set(json.loads((gateway.folder / "modules.json").read_text()))
        loaded -= {"sqlite3"} if "coverage" in loaded else set()
        costs = [cost_of(pid) for pid in gateway.worker_pids()]
    assert NOT_IN_A_WORKER & loaded == set()
    assert max(seconds for seconds, _ in costs) <= 1.0
    assert max(megabytes for _, megabytes in costs) <= 60


def cost_of(pid: int) -> tuple[float, float]:
    """CPU seconds so far, and proportional memory in MB."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    [pss] = re.findall(r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(pss) / 1024


async def test_a_disk_that_is_full_fails_no_request_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults R8."""

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    async with running_gateway({"providers": MOCK}) as gateway:
        assert gateway.half.spool is not None
        assert (await gateway.post()).status == 200
        await gateway.rows(1)
        with monkeypatch.context() as patch:
            patch.setattr(gateway.half.spool, "_write", full)
            assert [(await gateway.post()).status for _ in range(5)] == [200] * 5
        assert (await gateway.post()).status == 200
        assert gateway.server.snapshot().counters.spool["errors"] == 10
        assert gateway.server.snapshot().counters.engine["internal_errors"] == 0
        await gateway.rows(2)


STUCK = """
import time
from headgate import Filter

class Stuck(Filter):
    def on_request(self, ex):
        if ex.head.header(b"x-stick"):
            time.sleep(3600)
"""


async def test_a_worker_whose_loop_stands_still_is_replaced_and_its_exchanges_are_lost(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(STUCK)
    config = {"providers": MOCK, "filters": [{"use": "stuck:Stuck"}], "limits": {"unresponsive": "3s"}}
    async with gateway_process(config, workers=2, env={"PYTHONPATH": str(tmp_path)}) as gateway:
        pids = gateway.worker_pids()
        doomed = [("x-stick", "1"), ("x-request-id", "doomed")]
        with pytest.raises((AssertionError, ConnectionError)):
            await gateway.post(headers=doomed)
        await gateway.until(lambda: '"worker_hung"' in gateway.log, "the watchdog", 3 + BUSY)
        [hung] = [json.loads(line) for line in gateway.log.splitlines() if '"worker_hung"' in line]
        assert hung["pid"] in pids
        new = await gateway.ready_workers(2, without=[hung["pid"]])
        assert len(set(new) & set(pids)) == 1
        assert (await gateway.post(headers=[("x-request-id", "after")])).status == 200
        rows = {row["client_request_id"]: row["outcome"] for row in await gateway.rows(2)}
        answer = await gateway.admin.send("GET", "/stats?filter=headgate_workers_hung_total", key=None)
        assert answer.json()["stats"][0]["value"] == 1
    assert rows == {"doomed": "lost", "after": "ok"}


async def test_a_supervisor_that_was_stopped_does_not_take_its_workers_for_dead() -> None:
    config = {"providers": MOCK, "limits": {"unresponsive": "2s"}}
    async with gateway_process(config, workers=2) as gateway:
        pids = await gateway.ready_workers(2)
        gateway.signal(signal.SIGSTOP)
        await asyncio.sleep(4)
        gateway.signal(signal.SIGCONT)
        await asyncio.sleep(1)
        assert gateway.worker_pids() == pids
        assert "worker_hung" not in gateway.log
