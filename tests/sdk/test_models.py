"""The `openai` SDK lists and retrieves models, whichever way the gateway runs: what the config names, and what its
providers say they have."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import openai
import pytest
from anyio import to_thread
from openai import AsyncOpenAI, OpenAI

from headgate import GatewayMiddleware
from tests_support.answers import json_response
from tests_support.asgi import served
from tests_support.embedded import WAYS, Way, embedded_config, sdk
from tests_support.gateway import CLIENT_KEY, PROVIDER_KEY, config_for
from tests_support.process import gateway_process
from tests_support.upstream import FakeUpstream

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from headgate.config import GatewayConfig
    from tests_support.process import GatewayProcess
    from tests_support.upstream import Request, Step

WITHIN = 15.0
FIRST = json_response(
    {
        "object": "list",
        "data": [
            {"id": "gpt-4o", "object": "model", "created": 1715367049, "owned_by": "system"},
            {"id": "both", "object": "model", "created": 7, "owned_by": "system"},
        ],
    }
)
SECOND = json_response({"data": [{"id": "both"}, {"id": "org/own:free", "context_length": 4096}]})
IDS = ["fast", "gpt-4o", "both", "up2/both", "up2/org/own:free"]


def config(up: FakeUpstream, up2: FakeUpstream) -> dict[str, Any]:
    """A wildcard for the first, an address for the second, and one exact name."""
    made = config_for(up, up2, list_models=True)
    made["providers"]["up"]["price_as"] = "openai"
    made["providers"]["up2"]["direct"] = True
    made["models"] = {"fast": {"targets": [{"provider": "up2"}]}, "gpt-*": {"targets": [{"provider": "up"}]}}
    made["models"]["b*"] = {"targets": [{"provider": "up"}, {"provider": "up2"}]}
    return made


async def until(ids: list[str], list_: Callable[[], Any]) -> Any:
    """The list, once it has these ids; the providers are asked in the background."""
    deadline = time.monotonic() + WITHIN
    while True:
        page = await list_()
        found = [model.id for model in page.data]
        if found == ids:
            return page
        assert time.monotonic() < deadline, f"{found} instead of {ids}"
        await asyncio.sleep(0.01)


def check(page: Any, one: Any) -> None:
    models = {model.id: model for model in page.data}
    assert [model.owned_by for model in page.data] == ["up2", "up", "up", "up2", "up2"]
    gpt = models["gpt-4o"]
    assert (gpt.object, gpt.created, gpt.health, gpt.context_window) == ("model", 1715367049, "configured", 128_000)
    assert gpt.price["source"] == "price_as"
    assert (gpt.price["input"], gpt.price["output"]) == (2.5, 10)
    assert not hasattr(gpt, "capabilities")
    assert one == models["up2/org/own:free"]
    assert one.context_window == 4096
    assert not hasattr(one, "price")


def lists(answer: bytes, asked: list[Request]) -> Callable[[Request], bytes]:
    def provider(request: Request) -> bytes:
        asked.append(request)
        return answer

    return provider


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_sidecar_lists_what_its_providers_have(workers: int) -> None:
    asked: list[Request] = []
    async with (
        FakeUpstream(lists(FIRST, asked)) as up,
        FakeUpstream(SECOND) as up2,
        gateway_process(config(up, up2), workers=workers) as gateway,
        AsyncOpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY, max_retries=0) as client,
    ):
        page = await until(IDS, client.models.list)
        for _ in range(8):  # every worker has it
            await until(IDS, client.models.list)
        check(page, await client.models.retrieve("up2/org/own:free"))
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("nothing-of-ours")
        assert await to_thread.run_sync(_synchronously, gateway) == IDS
        if workers == 1:
            assert (await gateway.rows(0)) == []
    [request] = asked
    assert (request.method, request.target) == ("GET", "/v1/models")
    assert request.header("authorization") == f"Bearer {PROVIDER_KEY}"


def _synchronously(gateway: GatewayProcess) -> list[str]:
    with OpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY, max_retries=0) as client:
        assert client.models.retrieve("gpt-4o").owned_by == "up"
        return [model.id for model in client.models.list()]


async def test_a_worker_that_follows_a_dead_one_knows_them_too() -> None:

    async with (
        FakeUpstream(FIRST) as up,
        FakeUpstream(SECOND) as up2,
        gateway_process(config(up, up2), workers=2) as gateway,
        AsyncOpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY, max_retries=2) as client,
    ):
        await until(IDS, client.models.list)
        old = await gateway.ready_workers(2)
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        await gateway.ready_workers(2, without=old)
        for _ in range(8):
            await until(IDS, client.models.list)
        assert len(up.requests) == 1


async def test_a_reload_keeps_what_is_known_and_asks_whoever_is_new() -> None:

    async with FakeUpstream(FIRST) as up, FakeUpstream(SECOND) as up2:
        before = config(up, up2)
        async with (
            gateway_process(before, workers=2) as gateway,
            AsyncOpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY, max_retries=0) as client,
        ):
            await until(IDS, client.models.list)
            after = config(up, up2)
            after["models"]["both"] = {"targets": [{"provider": "up2"}]}
            after["providers"]["up2"]["api_key"] = "another"
            after["providers"]["up"]["http2"] = False  # another cluster, with the same models
            gateway.rewrite(after)
            gateway.signal(signal.SIGHUP)
            ids = ["fast", "both", "gpt-4o", "up2/both", "up2/org/own:free"]
            await until(ids, client.models.list)
            for _ in range(8):
                await until(ids, client.models.list)
            assert (len(up.requests), len(up2.requests)) == (1, 2)


async def test_a_provider_that_does_not_list_costs_nothing_but_its_names() -> None:
    broken: list[Step] = [json_response({"error": {"message": "no"}}, 500)]
    async with (
        FakeUpstream(broken) as up,
        FakeUpstream(SECOND) as up2,
        gateway_process(config(up, up2)) as gateway,
        AsyncOpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY, max_retries=0) as client,
    ):
        await until(["fast", "up2/both", "up2/org/own:free"], client.models.list)
        assert (await client.models.retrieve("gpt-4o")).owned_by == "up"
        ready = await gateway.admin.send("GET", "/ready", key=None)
        assert (ready.status, ready.json()["state"]) == (200, "LIVE")


def embedded(folder: Path, up: FakeUpstream, up2: FakeUpstream) -> GatewayConfig:
    made = config(up, up2)
    changes = {"providers": made["providers"], "models": made["models"]}
    return embedded_config(folder, up, up2, changes=changes)


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_the_transport_lists_them(way: Way, tmp_path: Path) -> None:
    async with (
        FakeUpstream(FIRST) as up,
        FakeUpstream(SECOND) as up2,
        sdk(way, embedded(tmp_path, up, up2)) as client,
    ):
        page = await until(IDS, lambda: client.use(lambda one: one.models.list()))
        check(page, await client.use(lambda one: one.models.retrieve("up2/org/own:free")))


async def test_the_middleware_lists_them(tmp_path: Path) -> None:
    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError(scope["type"])

    async with FakeUpstream(FIRST) as up, FakeUpstream(SECOND) as up2:
        app = GatewayMiddleware(nothing, embedded(tmp_path, up, up2))
        async with (
            served(app) as url,
            AsyncOpenAI(base_url=f"{url}/v1", api_key=CLIENT_KEY, max_retries=0) as client,
        ):
            check(await until(IDS, client.models.list), await client.models.retrieve("up2/org/own:free"))
