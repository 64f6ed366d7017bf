"""health_check: an endpoint that fails takes no calls in any worker, old, new or reloaded, until it is well again."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from openai import AsyncOpenAI

from tests_support.answers import chat_completion, json_response
from tests_support.gateway import CLIENT_KEY, config_for
from tests_support.process import GatewayProcess, gateway_process
from tests_support.upstream import FIN, FakeUpstream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests_support.upstream import Request, Step

WITHIN = 30.0
WHOLE = json_response(chat_completion())
LEAVE_ME = json_response(chat_completion(), headers=[("X-Envoy-Immediate-Health-Check-Fail", "true")])
CHECK = {"path": "/health?deep=1", "interval": "50ms", "timeout": "5s", "no_traffic_interval": "50ms"}


class Server:
    """Answers checks with its `status`, and everything else well; None: a check is cut off."""

    def __init__(self) -> None:
        self.status: int | None = 200
        self.leaves = False
        """Its next answers ask that it be left alone."""

    def __call__(self, request: Request) -> Sequence[Step] | bytes:
        if request.target != "/health?deep=1":
            return LEAVE_ME if self.leaves else WHOLE
        return json_response({}, self.status) if self.status is not None else [FIN]


def config(*upstreams: FakeUpstream, check: dict[str, Any] | None = CHECK, **options: Any) -> dict[str, Any]:
    """One provider with these endpoints, and one that is not checked."""
    made = config_for(**options)
    provider = {
        "endpoints": [{"url": upstream.base_url} for upstream in upstreams],
        "load_balancing": "round_robin",
        "list_models": False,
        **({"health_check": check} if check is not None else {}),
    }
    return {**made, "providers": {"p": provider}, "models": {"m": {"targets": [{"provider": "p"}]}}}


async def clusters(gateway: GatewayProcess, upstream: FakeUpstream) -> str:
    """What /clusters says of it."""
    text = (await gateway.admin.send("GET", "/clusters", key=None)).body.decode()
    return "\n".join(line for line in text.splitlines() if f":{upstream.port}::" in line)


async def unhealthy(gateway: GatewayProcess, count: int) -> None:
    """Wait until so many endpoints are, added up over all workers."""
    found = None
    async with asyncio.timeout(WITHIN):
        while found != count:
            text = (await gateway.admin.send("GET", "/metrics", key=None)).body.decode()
            lines = [line for line in text.splitlines() if line.startswith('headgate_upstream_unhealthy{provider="p"}')]
            found = sum(float(line.rpartition(" ")[2]) for line in lines)


def was_checked(upstream: FakeUpstream) -> bool:
    return any(request.method == "GET" for request in upstream.requests)


def calls(upstream: FakeUpstream) -> int:
    """Requests that were no checks."""
    return sum(request.method == "POST" for request in upstream.requests)


async def served_by(gateway: GatewayProcess, upstreams: Sequence[FakeUpstream], n: int = 12) -> list[int]:
    """How many of `n` calls each upstream gets; every one is well."""
    before = [calls(upstream) for upstream in upstreams]
    for answer in await asyncio.gather(*(gateway.post(b'{"model":"m","messages":[]}') for _ in range(n))):
        assert answer.status == 200
    return [calls(upstream) - was for upstream, was in zip(upstreams, before, strict=True)]


async def reloaded(gateway: GatewayProcess, new: dict[str, Any], times: int) -> None:
    gateway.rewrite(new)
    gateway.signal(signal.SIGHUP)
    await gateway.until(lambda: gateway.log.count('"event": "reloaded"') >= times, f"reload {times}", WITHIN)


async def health(gateway: GatewayProcess) -> str:
    """What the openai SDK sees of the model."""
    async with AsyncOpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY) as client:
        return str((await client.models.retrieve("m")).model_dump()["health"])


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_endpoint_that_fails_its_checks_takes_no_calls_until_it_is_well(workers: int) -> None:
    one, other = Server(), Server()
    async with FakeUpstream(one) as up, FakeUpstream(other) as up2:
        both = [up, up2]
        async with gateway_process(config(up, up2), workers=workers) as gateway:
            assert all(await served_by(gateway, both)), "just started, both serve"
            check = await up.wait_until(
                lambda: next((one for one in up.requests if one.method == "GET"), None), "a check"
            )
            assert check.header("authorization") is None
            assert check.header("host") == f"127.0.0.1:{up.port}"

            other.status = 503
            await unhealthy(gateway, workers)
            assert "::health::/failed_active_hc" in await clusters(gateway, up2)
            assert "::health_check.attempt::" in await clusters(gateway, up2)
            assert "::health::healthy" in await clusters(gateway, up)
            assert (await served_by(gateway, both))[1] == 0
            assert await health(gateway) == "configured"
            assert gateway.log.count('"event": "endpoint_unhealthy"') == 1

            one.status = None
            await unhealthy(gateway, 2 * workers)
            assert all(await served_by(gateway, both)), "nobody is well: all are used"
            assert await health(gateway) == "unhealthy"

            one.status = other.status = 200
            await unhealthy(gateway, 0)
            assert all(await served_by(gateway, both))
            assert gateway.log.count('"event": "endpoint_healthy"') == 2


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_endpoint_that_asks_to_be_left_alone_is_by_every_worker(workers: int) -> None:
    one, other = Server(), Server()
    async with FakeUpstream(one) as up, FakeUpstream(other) as up2:
        rarely = {**CHECK, "interval": "20s", "no_traffic_interval": "20s"}  # the first within 2
        async with gateway_process(config(up, up2, check=rarely), workers=workers) as gateway:
            assert all(await served_by(gateway, [up, up2]))
            for upstream in (up, up2):
                await upstream.wait_until(partial(was_checked, upstream), "a check")
            other.leaves = True
            for _ in range(4 * workers):
                answer = await gateway.post(b'{"model":"m","messages":[]}')
                assert (answer.status, answer.header("x-envoy-immediate-health-check-fail")) == (200, None)
            await unhealthy(gateway, workers)
            other.leaves = False
            assert (await served_by(gateway, [up, up2]))[1] == 0
            assert gateway.log.count("it asked to be left alone") == 1


async def test_where_nobody_asks_it_the_word_of_an_endpoint_means_nothing() -> None:
    one, other = Server(), Server()
    one.leaves = other.leaves = True
    async with (
        FakeUpstream(one) as up,
        FakeUpstream(other) as up2,
        gateway_process(config(up, up2, check=None)) as gateway,
    ):
        assert all(await served_by(gateway, [up, up2]))
        assert all(await served_by(gateway, [up, up2]))
        answer = await gateway.post(b'{"model":"m","messages":[]}')
        assert answer.header("x-envoy-immediate-health-check-fail") is None


@pytest.mark.slow
async def test_a_new_worker_knows_and_a_reload_forgets_what_nobody_asks_any_more() -> None:
    one, other = Server(), Server()
    other.status = 500
    async with FakeUpstream(one) as up, FakeUpstream(other) as up2:
        both = [up, up2]
        async with gateway_process(config(up, up2), workers=2) as gateway:
            await unhealthy(gateway, 2)
            old = await gateway.ready_workers(2)
            os.kill(old[0], signal.SIGKILL)
            after = await gateway.ready_workers(2, without=old[:1])
            await unhealthy(gateway, 2)
            assert (await served_by(gateway, both))[1] == 0

            gateway.signal(signal.SIGUSR2)
            await gateway.ready_workers(2, without=after)
            await unhealthy(gateway, 2)
            assert (await served_by(gateway, both))[1] == 0

            await reloaded(gateway, config(up, up2, check=None), 1)
            assert all(await served_by(gateway, both))
            seen = len(up2.requests)
            await reloaded(gateway, {**config(up, up2), "limits": {"json_depth": 20}}, 2)
            await up2.wait_request(seen + 1)
            await unhealthy(gateway, 2)
            assert (await served_by(gateway, both))[1] == 0


async def test_an_endpoint_that_joins_waits_for_its_first_check() -> None:
    one, other = Server(), Server()
    other.status = 500
    async with FakeUpstream(one) as up, FakeUpstream(other) as up2:
        slow = {**CHECK, "interval": "1h", "no_traffic_interval": "1h"}
        async with gateway_process(config(up, check=slow), workers=1) as gateway:
            await reloaded(gateway, config(up, up2, check=slow), 1)
            assert (await served_by(gateway, [up, up2]))[1] == 0
