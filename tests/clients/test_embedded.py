"""Embedded gateways: several may share one ledger, and each may be started and closed again and again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx2
import pytest
from structlog.testing import capture_logs

from headgate.clients.embedded import Embedded, below_mount
from headgate.config import ConfigError, parse_config
from headgate.control.process.errors import BootError
from tests_support.answers import chat_completion, json_response
from tests_support.asgi import http_scope
from tests_support.caller import eventually
from tests_support.embedded import Way, embedded_config, ledger, sdk
from tests_support.upstream import FakeUpstream

if TYPE_CHECKING:
    from pathlib import Path


WAY = Way(httpx2, sync=False)


@pytest.mark.parametrize("first_to_close", [0, 1])
async def test_two_gateways_may_share_a_ledger(first_to_close: int, tmp_path: Path, no_leaks: None) -> None:
    """One of them tails for both; what the other leaves is taken over, and that is no reason for a warning."""
    async with FakeUpstream(json_response(chat_completion())) as upstream:
        config = embedded_config(tmp_path, upstream)
        with capture_logs() as logs:
            async with sdk(WAY, config) as one, sdk(WAY, config) as other:
                for client in (one, other, one):
                    await client.create()
                closing = (one, other)[first_to_close]
                await closing.transport.aclose()
                remaining = (other, one)[first_to_close]
                await remaining.create()
    assert [row["outcome"] for row in ledger(tmp_path)] == ["ok"] * 4
    assert [line for line in logs if line["log_level"] in ("warning", "error")] == []


async def test_it_may_be_started_and_closed_again_and_again(tmp_path: Path, no_leaks: None) -> None:
    gateway = Embedded(embedded_config(tmp_path))
    await gateway.aclose()
    for _ in range(3):
        servers = {await gateway.start(), await gateway.start()}
        assert len(servers) == 1
        assert gateway.gateway.ready
        await asyncio.gather(gateway.aclose(), gateway.aclose())
        assert not gateway.gateway.ready
        assert gateway.live() == []


async def test_endpoints_are_checked_inside_an_application_too(tmp_path: Path, no_leaks: None) -> None:
    async with FakeUpstream(json_response({}, 500)) as upstream:
        check = {"interval": "10ms", "no_traffic_interval": "10ms"}
        changes = {"providers": {"p": {"base_url": upstream.base_url, "list_models": False, "health_check": check}}}
        gateway = Embedded(embedded_config(tmp_path, changes=changes))
        await gateway.start()
        cluster = gateway.gateway.resources.clusters["p"]
        await eventually(lambda: cluster.health == "unhealthy")
        assert not cluster.hosts[0].available
        await gateway.aclose()


async def test_a_start_that_fails_may_be_tried_again(tmp_path: Path, no_leaks: None) -> None:
    blocked = tmp_path / "spool"
    blocked.write_text("")
    gateway = Embedded(embedded_config(tmp_path))
    with pytest.raises(BootError, match=r"events\.spool\.path"):
        await gateway.start()
    blocked.unlink()
    assert (await gateway.start()).half.ready
    await gateway.aclose()


async def test_a_filter_that_cannot_be_had_is_a_config_error() -> None:
    gateway = Embedded(parse_config('filters: [{use: "nowhere:Nothing"}]', env={}))
    with pytest.raises(ConfigError, match="nowhere"):
        await gateway.start()


@pytest.mark.parametrize(
    ("root", "path", "seen"),
    [
        ("", "/v1/models", "/v1/models"),
        ("/llm", "/llm/v1/models", "/v1/models"),
        ("/llm", "/v1/models", "/v1/models"),  # servers that leave the mount out of the path
        ("/v", "/v1/models", "/v1/models"),
    ],
)
def test_a_mount_is_taken_off_the_path(root: str, path: str, seen: str) -> None:
    scope = {**http_scope("GET", path), "root_path": root}
    before = dict(scope)
    assert below_mount(scope)["path"] == seen
    assert scope == before
