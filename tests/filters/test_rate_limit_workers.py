"""rate_limit over several workers: what is counted stays when one is killed, replaced, or told of another config.

That all together admit exactly the limit: tests/processes/test_exact_limits.py.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from tests_support.answers import chat_chunks, chat_completion, json_response, sse
from tests_support.gateway import CHAT_BODY, CLIENT_KEY, bearer, config_for
from tests_support.process import gateway_process
from tests_support.raw import CHAT, RawClient, request
from tests_support.upstream import FakeUpstream, Pause, Request, Step

MOCK: dict[str, Any] = {"providers": {"mock": {"base_url": "mock:"}}}
STREAM = CHAT_BODY.replace(b"{", b'{"stream":true,', 1)


def limited(**numbers: int) -> dict[str, Any]:
    return {"filters": [{"auth": {"keys": [{"name": "app", "key": CLIENT_KEY}]}}, {"rate_limit": numbers}]}


async def test_what_is_counted_outlives_killed_workers_and_their_slots_are_given_back() -> None:
    begun: list[Step] = [*sse(chat_chunks("Hello there."))[:3], Pause()]

    def script(asked: Request) -> list[Step] | bytes:
        return begun if b'"stream":true' in asked.body else json_response(chat_completion())

    async with FakeUpstream(script) as upstream:
        config = {**config_for(upstream), **limited(concurrent=1, requests_per_day=3)}
        async with gateway_process(config, workers=2) as gateway, RawClient(gateway.port) as client:
            await client.send(request("POST", CHAT, STREAM, bearer(CLIENT_KEY)))
            await client.head()
            refused = await gateway.post()
            pids = await gateway.ready_workers(2)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            await gateway.ready_workers(2, without=pids)
            answers = [await gateway.post() for _ in range(3)]
    assert (refused.status, "1 requests at once" in refused.error["message"]) == (429, True)
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert "3 requests per day" in answers[2].error["message"]


async def test_a_reload_and_a_replacement_keep_what_was_counted() -> None:
    config = {**MOCK, **limited(requests_per_day=3)}
    async with gateway_process(config, workers=2) as gateway:
        first = await gateway.post()
        pids = await gateway.ready_workers(2)
        gateway.signal(signal.SIGUSR2)
        await gateway.ready_workers(2, without=pids)
        second = await gateway.post()
        gateway.rewrite({**MOCK, **limited(requests_per_day=4), "workers": 2})
        gateway.signal(signal.SIGHUP)
        await gateway.until(lambda: '"reloaded"' in gateway.log or "reload_refused" in gateway.log, "the reload")
        rest = [await gateway.post() for _ in range(3)]
    left = [answer.header("x-ratelimit-remaining-requests") for answer in (first, second, *rest)]
    assert left == ["2", "1", "1", "0", "0"]
    assert rest[-1].status == 429


async def test_one_process_with_nobody_to_share_with_counts_all_the_same() -> None:
    config = {**MOCK, **limited(requests_per_day=1), "stores": {"default": "shared"}}
    async with gateway_process(config) as gateway:
        assert [(await gateway.post()).status for _ in range(2)] == [200, 429]


def give_another_format(supervisor: int) -> None:
    """To the memory in which its workers count."""
    files = Path(f"/proc/{supervisor}/fd").iterdir()
    memory = next(file for file in files if "headgate-limits" in str(file.readlink()))
    with memory.open("r+b") as words:
        words.write((99).to_bytes(8, "little"))


async def test_a_worker_of_another_version_does_not_count_with_those_of_this_one() -> None:
    """As when the package is replaced under a gateway that runs: what it makes of the memory would be anything."""
    config = {**MOCK, **limited(requests_per_day=3)}
    async with gateway_process(config, workers=2) as gateway:
        first = await gateway.post()
        pids = await gateway.ready_workers(2)
        give_another_format(gateway.pid)
        gateway.signal(signal.SIGUSR2)
        await gateway.until(lambda: "replacement_aborted" in gateway.log, "the end of the replacement")
        answers = [await gateway.post() for _ in range(3)]
        assert await gateway.ready_workers(2) == pids
        log = gateway.log
    assert [answer.status for answer in (first, *answers)] == [200, 200, 200, 429]
    assert "the shared memory was made by another version: restart the gateway" in log
    assert "Traceback" not in log
