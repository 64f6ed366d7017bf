"""What callers of a gateway process get with a key, as the `openai` SDK sees it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import openai
from anyio import sleep
from openai import AsyncOpenAI

if TYPE_CHECKING:
    from .process import GatewayProcess

MESSAGES: Any = [{"role": "user", "content": "hello"}]


async def statuses(gateway: GatewayProcess, key: str, rounds: int) -> set[int]:
    """On connections of their own, so that every worker is likely to be asked."""
    seen = set()
    for _ in range(rounds):
        async with AsyncOpenAI(base_url=gateway.base_url, api_key=key, max_retries=0) as sdk:
            try:
                await sdk.chat.completions.create(model="m", messages=MESSAGES)
            except openai.APIStatusError as error:
                seen.add(error.status_code)
            else:
                seen.add(200)
    return seen


async def until_status(
    gateway: GatewayProcess, key: str, status: int, *, rounds: int, within: float, pause: float
) -> None:
    """Ask every `pause` seconds until all get this, for `within` seconds at most."""
    deadline = time.monotonic() + within
    while await statuses(gateway, key, rounds) != {status}:
        assert time.monotonic() < deadline, gateway.log
        await sleep(pause)
