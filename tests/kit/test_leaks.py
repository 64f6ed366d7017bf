"""leak_check notices what is left open, or it would prove nothing."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests_support.leaks import leak_check


async def test_a_descriptor_left_open_is_noticed() -> None:
    check = leak_check(within=0.05)
    await check.__aenter__()
    with socket.socket(), pytest.raises(AssertionError, match="socket:"):
        await check.__aexit__(None, None, None)


async def test_a_task_left_running_is_noticed() -> None:
    check = leak_check(within=0.05)
    await check.__aenter__()
    task = asyncio.get_running_loop().create_task(asyncio.Event().wait())
    with pytest.raises(AssertionError, match=r"Event\.wait"):
        await check.__aexit__(None, None, None)
    task.cancel()


async def test_what_ends_soon_is_no_leak() -> None:
    async with leak_check():
        task = asyncio.get_running_loop().create_task(asyncio.sleep(0.02))
    assert task.done()
