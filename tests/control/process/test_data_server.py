"""data_server: in the delay before a drain it is not ready and serves on; embedded there is nobody to wait for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from headgate.control.process.data_server import DataServer
from headgate.gateway import Gateway
from tests_support.caller import eventually
from tests_support.gateway import load, running_gateway, written
from tests_support.raw import CHAT, RawClient, request

if TYPE_CHECKING:
    from pathlib import Path

MOCK = {"providers": {"mock": {"base_url": "mock:"}}}
ASK = request("POST", CHAT, b'{"model":"m","messages":[{"role":"user","content":"hello"}]}')


async def test_in_the_delay_new_work_is_taken_and_each_answer_ends_its_connection() -> None:
    async with running_gateway({**MOCK, "limits": {"drain_delay": "1h"}}) as gateway, RawClient(gateway.port) as kept:
        await kept.send(ASK)
        assert (await kept.answer()).header("connection") is None
        assert gateway.server.not_ready() == []
        hurry = asyncio.Event()
        draining = asyncio.ensure_future(gateway.server.drain(hurry))
        await eventually(lambda: gateway.server.not_ready() == ["draining"])
        assert (gateway.server.snapshot().ready, gateway.server.snapshot().draining) == (False, True)
        assert (await gateway.send("GET", "/readyz", key=None)).status == 503
        await kept.send(ASK)
        answers = [await kept.answer(), await gateway.raw(ASK)]
        assert [(answer.status, answer.header("connection")) for answer in answers] == [(200, "close")] * 2
        assert not draining.done()
        hurry.set()
        await draining


async def test_after_a_refusal_of_new_work_there_is_no_further_delay() -> None:
    async with running_gateway({**MOCK, "limits": {"drain_delay": "1h"}}) as gateway:
        gateway.server.refuse_new_work()
        async with asyncio.timeout(10):
            await gateway.server.drain()


async def test_without_listeners_there_is_no_delay(tmp_path: Path) -> None:
    half = Gateway(load(written({**MOCK, "limits": {"drain_delay": "1h"}}, tmp_path)))
    await half.start()
    server = DataServer(half, "test")
    assert server.snapshot().memory_ratio is None
    async with asyncio.timeout(10):
        await server.drain()
