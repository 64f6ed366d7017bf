"""The end of a gateway: streams come to their end, or are told; each leaves its row; and the end is never late.

Streams come from `headgate mock --delay`, a provider in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests_support.command import exists, mock_provider
from tests_support.gateway import CHAT_BODY, CLIENT_KEY, bearer, spooled
from tests_support.process import GatewayProcess, gateway_process
from tests_support.raw import CHAT, RawClient, request
from tests_support.traffic import error_events, has_done

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests_support.raw import Answer

ADMIN_KEY = "hg-root-9vKq2LxTzR4mWc7P"
KEYS = [{"name": "app", "key": CLIENT_KEY}, {"name": "root", "key": ADMIN_KEY, "roles": ["admin"]}]
AUTH = {"auth": {"keys": KEYS}}
BUSY = 6.0
"""Seconds that a machine shared with other tests may add to a bound of the contract."""


def stream(words: int) -> bytes:
    """A request for a stream of about so many events."""
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "word " * words}]}
    return request("POST", CHAT, json.dumps(body).encode(), bearer(CLIENT_KEY))


def config(base_url: str, **changes: Any) -> dict[str, Any]:
    """Over one provider."""
    return {"providers": {"up": {"base_url": base_url, "api_key": "sk-x"}}, "filters": [AUTH], **changes}


@asynccontextmanager
async def streaming(gateway: GatewayProcess, count: int, words: int) -> AsyncIterator[list[RawClient]]:
    """So many clients in the middle of a stream each."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(RawClient(gateway.port, within=30)) for _ in range(count)]
        await asyncio.gather(*(begin(client, words) for client in clients))
        yield clients


async def begin(client: RawClient, words: int) -> None:
    """Ask, and take the first of it."""
    await client.send(stream(words))
    assert (await client.head()).status == 200
    await client.piece()


async def refuses(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """The first answer that is 503; the bar is a second."""
    async with asyncio.timeout(1 + BUSY):
        while True:
            answer = await ask()
            if answer.status == 503:
                return answer
            await asyncio.sleep(0.01)


def codes(answer: Answer) -> list[str]:
    """Of the error events."""
    return [str(error["code"]) for error in error_events(answer.body)]


@pytest.mark.parametrize(("workers", "streams"), [(1, 10), (2, 10), pytest.param(2, 100, marks=pytest.mark.slow)])
async def test_streams_that_fit_the_grace_end_in_done_and_it_exits_with_zero(workers: int, streams: int) -> None:
    """Faults D1."""
    async with (
        mock_provider("--delay", "40") as base_url,
        gateway_process(config(base_url), workers=workers) as gateway,
        streaming(gateway, streams, words=25) as clients,
    ):
        gateway.signal(signal.SIGTERM)
        await refuses(lambda: gateway.admin.send("GET", "/ready", key=None))
        answers = await asyncio.gather(*(client.rest() for client in clients))
        assert [has_done(answer.body) for answer in answers] == [1] * streams
        assert all(answer.whole for answer in answers)
        assert await gateway.ended() == 0
        assert [row["outcome"] for row in gateway.ledger()] == ["ok"] * streams
        assert "Traceback" not in gateway.log


@pytest.mark.parametrize("workers", [1, 2])
async def test_streams_past_the_grace_are_told_and_recorded_and_it_still_exits_with_zero(workers: int) -> None:
    """Faults D2."""
    async with (
        mock_provider("--delay", "100") as base_url,
        gateway_process(config(base_url, limits={"drain": "1s"}), workers=workers) as gateway,
        streaming(gateway, 10, words=600) as clients,
    ):
        gateway.signal(signal.SIGTERM)
        signalled = time.monotonic()
        answers = await asyncio.gather(*(client.rest() for client in clients))
        assert await gateway.ended() == 0
        assert time.monotonic() - signalled < 1 + 2 + BUSY
        assert [codes(answer) for answer in answers] == [["shutting_down"]] * 10
        assert [has_done(answer.body) for answer in answers] == [0] * 10
        rows = gateway.ledger()
    assert [(row["outcome"], row["error_code"]) for row in rows] == [("truncated", "shutting_down")] * 10
    assert all(row["completion_tokens"] > 0 for row in rows)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_second_interrupt_ends_it_at_once(workers: int) -> None:
    async with (
        mock_provider("--delay", "100") as base_url,
        gateway_process(config(base_url), workers=workers) as gateway,
        streaming(gateway, 3, words=600) as clients,
    ):
        pids = [gateway.pid, *gateway.worker_pids()]
        gateway.signal(signal.SIGINT)
        await gateway.until(lambda: '"draining"' in gateway.log, "the drain")
        await asyncio.gather(*(client.piece() for client in clients))
        gateway.signal(signal.SIGINT)
        interrupted = time.monotonic()
        answers = await asyncio.gather(*(client.rest() for client in clients))
        assert await gateway.ended() == 130
        assert time.monotonic() - interrupted < 1 + BUSY
        assert [codes(answer) for answer in answers] == [["shutting_down"]] * 3
        assert [row["outcome"] for row in gateway.ledger()] == ["truncated"] * 3
        assert not any(map(exists, pids))


async def test_a_second_sigterm_means_nothing_new() -> None:
    async with (
        mock_provider("--delay", "40") as base_url,
        gateway_process(config(base_url)) as gateway,
        streaming(gateway, 1, words=25) as [client],
    ):
        gateway.signal(signal.SIGTERM)
        await gateway.until(lambda: '"draining"' in gateway.log, "the drain")
        gateway.signal(signal.SIGTERM)
        assert has_done((await client.rest()).body) == 1
        assert await gateway.ended() == 0


STUCK = """
import time
from headgate import Filter

class Stuck(Filter):
    def on_request(self, ex):
        time.sleep(3600)
"""


async def test_a_worker_that_is_stuck_is_killed_past_the_grace(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(STUCK)
    settings: dict[str, Any] = {"filters": [AUTH, {"use": "stuck:Stuck"}], "limits": {"drain": "500ms"}}
    env = {"PYTHONPATH": str(tmp_path)}
    async with (
        gateway_process({"providers": {"mock": {"base_url": "mock:"}}, **settings}, workers=2, env=env) as gateway,
        RawClient(gateway.port) as client,
    ):
        await client.send(stream(1))
        await gateway.until(lambda: len(spooled(gateway.folder)) == 1, "the request to be admitted")
        gateway.signal(signal.SIGTERM)
        signalled = time.monotonic()
        assert await gateway.ended() == 0
        assert time.monotonic() - signalled < 0.5 + 3 + BUSY
        assert '"worker_killed"' in gateway.log
        [row] = gateway.ledger()
    assert row["outcome"] == "lost"


@pytest.mark.parametrize("workers", [1, 2])
async def test_post_drain_refuses_new_work_and_the_process_stays(workers: int) -> None:
    async with (
        mock_provider("--delay", "40") as base_url,
        gateway_process(config(base_url), workers=workers) as gateway,
        streaming(gateway, 1, words=25) as [client],
    ):
        refused = await gateway.admin.send("POST", "/drain", b"", key=CLIENT_KEY)
        drained = await gateway.admin.send("POST", "/drain", b"", key=ADMIN_KEY)
        assert (refused.status, drained.status, drained.json()["state"]) == (403, 200, "DRAINING")
        answer = await refuses(gateway.post)
        assert (answer.status, answer.error["code"]) == (503, "shutting_down")
        assert answer.header("retry-after") is not None
        assert (await gateway.send("GET", "/readyz", key=None)).status == 503
        assert (await gateway.send("GET", "/healthz", key=None)).status == 200
        assert has_done((await client.rest()).body) == 1
        assert gateway.process.returncode is None
        if workers == 2:  # one that follows a dead one refuses, too
            for pid in gateway.worker_pids():
                os.kill(pid, signal.SIGKILL)
            await gateway.until(lambda: gateway.log.count('"worker_died"') == 2, "their end")
            assert (await gateway.post()).status == 503
        assert await gateway.terminate() == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_whoever_had_connected_before_the_signal_is_answered_and_not_reset(workers: int) -> None:
    """The processes are stopped meanwhile, so that the connections wait in the kernel."""
    async with (
        mock_provider() as base_url,
        gateway_process(config(base_url), workers=workers) as gateway,
        AsyncExitStack() as stack,
    ):
        serving = gateway.worker_pids() or [gateway.pid]
        stopped = {gateway.pid, *serving}
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        clients = [await stack.enter_async_context(RawClient(gateway.port)) for _ in range(20)]
        for client in clients:
            await client.send(stream(1))
        gateway.signal(signal.SIGTERM)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        answers = await asyncio.gather(*(client.answer() for client in clients))
        assert {answer.status for answer in answers} <= {200, 503}
        assert {answer.header("connection") for answer in answers} <= {None, "close"}
        assert all(answer.whole for answer in answers)
        assert await gateway.ended() == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_for_the_delay_it_is_not_ready_and_serves_on_and_then_it_refuses(workers: int) -> None:
    """Faults D1."""
    limits = {"drain_delay": "1.5s", "drain": "5s"}
    async with (
        mock_provider() as base_url,
        gateway_process(config(base_url, limits=limits), workers=workers) as gateway,
        RawClient(gateway.port) as kept,
    ):
        await kept.send(ask())
        assert (await kept.answer()).header("connection") is None
        gateway.signal(signal.SIGTERM)
        signalled = time.monotonic()
        await refuses(lambda: gateway.send("GET", "/readyz", key=None))
        served = await asyncio.gather(*(gateway.raw(ask()) for _ in range(4)))
        await kept.send(ask())
        served.append(await kept.answer())
        assert {(answer.status, answer.header("connection")) for answer in served} == {(200, "close")}
        await gateway.until(lambda: refuses_connections(gateway.port), "the end of the delay", 1.5 + BUSY)
        assert time.monotonic() - signalled >= 1.5
        assert await gateway.ended() == 0


def refuses_connections(port: int) -> bool:
    """Whether nobody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def ask() -> bytes:
    """A plain request."""
    return request("POST", CHAT, CHAT_BODY, bearer(CLIENT_KEY))


async def test_an_interrupt_cuts_the_delay_short() -> None:
    async with mock_provider() as base_url, gateway_process(config(base_url, limits={"drain_delay": "1h"})) as gateway:
        gateway.signal(signal.SIGTERM)
        await gateway.until(lambda: '"draining"' in gateway.log, "the drain")
        gateway.signal(signal.SIGINT)
        assert await gateway.ended() == 130


async def test_post_drain_ends_connections_that_are_kept() -> None:
    async with (
        mock_provider() as base_url,
        gateway_process(config(base_url)) as gateway,
        RawClient(gateway.port) as active,
        RawClient(gateway.port) as idle,
    ):
        for client in (active, idle):
            await client.send(ask())
            assert (await client.answer()).header("connection") is None
        assert (await gateway.admin.send("POST", "/drain", b"", key=ADMIN_KEY)).status == 200
        await active.send(ask())
        answer = await active.answer()
        assert (answer.status, answer.header("connection")) == (503, "close")
        assert await idle.closed()
