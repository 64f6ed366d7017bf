"""The openai SDK before a provider that breaks down and recovers, behind circuit_breaker, with one process and two."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests_support.answers import chat_completion, error_response, json_response
from tests_support.gateway import CLIENT_KEY, config_for
from tests_support.process import gateway_process
from tests_support.upstream import FakeUpstream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests_support.upstream import Request, Step

AT_ONCE = 8
MOST_LET_THROUGH = 20
"""Five failures, and what was under way when the fifth came."""
RECOVERED_WITHIN = 2.0


class Provider:
    """Answers, or fails while it is `down`."""

    down = False

    def __call__(self, request: Request) -> Sequence[Step]:
        return [error_response(500, "down") if self.down else json_response(chat_completion())]


async def statuses(client: openai.AsyncOpenAI, n: int) -> Counter[int]:
    """Of `n` calls, each on a connection of its own."""
    messages: Any = [{"role": "user", "content": "hello"}]

    async def one() -> int:
        try:
            await client.chat.completions.create(
                model="gpt-4o-mini", messages=messages, extra_headers={"connection": "close"}
            )
        except openai.APIStatusError as error:
            return error.status_code
        return 200

    return Counter(await asyncio.gather(*(one() for _ in range(n))))


@pytest.mark.parametrize("workers", [1, 2])
async def test_it_opens_after_five_failures_and_closes_soon_after_recovery(workers: int) -> None:
    provider = Provider()
    async with FakeUpstream(provider) as upstream:
        config = config_for(upstream)
        config["filters"] = [config["filters"][0], {"circuit_breaker": {"open_for": "1s"}}, "retry"]
        async with (
            gateway_process(config, workers=workers) as gateway,
            openai.AsyncOpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY, max_retries=0) as client,
        ):
            assert await statuses(client, AT_ONCE) == {200: AT_ONCE}
            provider.down, before = True, len(upstream.requests)
            while (await statuses(client, AT_ONCE))[503] < AT_ONCE:
                assert len(upstream.requests) - before <= MOST_LET_THROUGH * workers
            assert 5 <= len(upstream.requests) - before <= MOST_LET_THROUGH * workers

            provider.down, recovered = False, time.monotonic()
            while (await statuses(client, AT_ONCE))[200] < AT_ONCE:
                assert time.monotonic() - recovered < RECOVERED_WITHIN
                await asyncio.sleep(0.02)
            stats = (await gateway.admin.send("GET", "/stats?filter=circuit_breaker", key=None)).json()["stats"]
            counted = {one["labels"]["counter"] for one in stats}
    assert counted == {"opened", "closed", "probes", "rejected"}
