"""`headgate serve` from end to end: an SDK's request is served and recorded, a drain and a reload cut nobody off."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from tests_support.answers import DONE, chat_chunks, chat_completion, chunk, event, json_response, response_head
from tests_support.gateway import CLIENT_KEY, bearer, config_for
from tests_support.process import GatewayProcess, gateway_process
from tests_support.raw import CHAT, RawClient, request
from tests_support.traffic import has_done
from tests_support.upstream import STALL, FakeUpstream, Pause, Step
from tests_support.websocket import MASK, RawSocket, response_done, session, text

EVENTS = [event(one) for one in chat_chunks(done=False)]
SSE = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
STREAM = request("POST", CHAT, b'{"model":"m","stream":true}', bearer(CLIENT_KEY))
WHOLE = json_response(chat_completion())
WORKERS = [1, 2]


def streaming(*after: Step) -> list[Step]:
    return [SSE, *map(chunk, EVENTS[:3]), *after]


async def begin(client: RawClient) -> None:
    """A stream, up to its first content."""
    await client.send(STREAM)
    await client.head()
    await client.piece()


@pytest.mark.parametrize("workers", WORKERS)
async def test_serves_and_records_and_ends_with_zero(workers: int) -> None:
    async with FakeUpstream(WHOLE) as upstream, gateway_process(config_for(upstream), workers=workers) as gateway:
        answer = await gateway.post(headers=[("x-request-id", "r-1")])
        [row] = await gateway.rows(1)
        assert await gateway.terminate() == 0
        assert "Traceback" not in gateway.log
    assert answer.json() == chat_completion()
    assert (row["client_request_id"], row["outcome"], row["id"]) == (
        "r-1",
        "ok",
        answer.header("x-headgate-request-id"),
    )


@pytest.mark.parametrize("workers", WORKERS)
async def test_sigterm_lets_a_stream_end_and_takes_no_new_work(workers: int) -> None:
    """Faults D1."""
    pause = Pause()
    rest: list[Step] = [pause, *map(chunk, EVENTS[3:]), chunk(DONE), b"0\r\n\r\n"]
    async with (
        FakeUpstream(streaming(*rest)) as upstream,
        gateway_process(config_for(upstream), workers=workers) as gateway,
    ):
        async with RawClient(gateway.port) as client:
            await begin(client)
            gateway.signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            with pytest.raises(ConnectionRefusedError):
                await gateway.post()
            pause.go()
            answer = await client.rest()
            assert has_done(answer.body) == 1
            assert answer.whole
        assert await gateway.ended() == 0
        assert [row["outcome"] for row in gateway.ledger()] == ["ok"]


async def version(gateway: GatewayProcess) -> str | None:
    return (await gateway.post()).header("x-headgate-config")


@pytest.mark.parametrize("workers", WORKERS)
async def test_sighup_takes_a_new_file_while_a_stream_goes_on(workers: int) -> None:
    """Faults D3, G20."""
    pause = Pause()
    rest: list[Step] = [pause, *map(chunk, EVENTS[3:]), chunk(DONE), b"0\r\n\r\n"]
    slow = streaming(*rest)
    async with (
        FakeUpstream(lambda r: slow if r.json().get("stream") else [WHOLE]) as old,
        FakeUpstream(WHOLE) as new,
        gateway_process(config_for(old), workers=workers) as gateway,
        RawClient(gateway.port) as client,
    ):
        before = await version(gateway)
        await begin(client)
        gateway.rewrite(config_for(new))
        gateway.signal(signal.SIGHUP)
        await gateway.until(lambda: "reloaded" in gateway.log, "the reload")
        assert await version(gateway) != before
        assert len(new.requests) == 1
        pause.go()
        assert has_done((await client.rest()).body) == 1


async def test_a_killed_worker_is_replaced_and_its_exchange_is_lost_not_missing() -> None:
    """Faults R7."""
    async with (
        FakeUpstream(lambda r: streaming(STALL) if r.json().get("stream") else [WHOLE]) as upstream,
        gateway_process(config_for(upstream), workers=2) as gateway,
        RawClient(gateway.port) as client,
    ):
        await client.send(STREAM.replace(b"\r\n\r\n", b"\r\nx-request-id: doomed\r\n\r\n", 1))
        await client.head()
        killed = set(gateway.worker_pids())
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        await gateway.ready_workers(2, killed)
        await upstream.wait_closed()
        assert (await gateway.post(headers=[("x-request-id", "after")])).status == 200
        rows = {row["client_request_id"]: row["outcome"] for row in await gateway.rows(2)}
    assert rows == {"doomed": "lost", "after": "ok"}


@pytest.mark.parametrize("workers", WORKERS)
async def test_sigterm_ends_a_realtime_session_with_1001_and_its_row(workers: int) -> None:
    """Faults D2."""
    async with FakeUpstream(session(text(response_done()), STALL)) as upstream:
        config = {**config_for(upstream), "limits": {"drain": "500ms"}}
        async with gateway_process(config, workers=workers) as gateway:
            async with RawSocket(gateway.port) as client:
                await client.frames(1)
                await client.send(text("up", MASK))
                metrics = await gateway.admin.send("GET", "/metrics", key=None)
                stopped = asyncio.create_task(gateway.terminate())
                frames, _ = await client.heard_all()
            assert await stopped == 0
            [row] = gateway.ledger()
            assert "Traceback" not in gateway.log
            assert CLIENT_KEY not in gateway.log
    assert b"headgate_websockets_active" in metrics.body
    assert frames[-1].code == 1001
    assert (row["endpoint"], row["outcome"], row["completion_tokens"]) == ("realtime", "truncated", 121)
