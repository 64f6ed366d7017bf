"""Keys that are made, replaced and revoked while workers serve: every one of them knows within five seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from anyio import sleep, to_thread

from tests_support.answers import chat_completion, json_response
from tests_support.asking import statuses, until_status
from tests_support.gateway import config_for
from tests_support.process import gateway_process
from tests_support.upstream import FakeUpstream

if TYPE_CHECKING:
    from pathlib import Path

    from tests_support.process import GatewayProcess

WITHIN = 5.0
ROUNDS = 6


async def command(gateway: GatewayProcess, *arguments: str) -> str:
    line = [sys.executable, "-m", "headgate", "keys", *arguments, "--config", str(gateway.config_file)]
    done = await to_thread.run_sync(
        lambda: subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
    )
    return done.stdout.strip()


async def made_over_http(gateway: GatewayProcess, ops: str, name: str) -> str:
    """The key that the admin listener has made."""
    answer = await gateway.admin.send("POST", "/admin/keys", json.dumps({"name": name}).encode(), key=ops)
    assert answer.status == 201
    return str(answer.json()["key"])


async def answers(gateway: GatewayProcess, key: str) -> set[int]:
    return await statuses(gateway, key, ROUNDS)


async def within(gateway: GatewayProcess, key: str, status: int) -> None:
    await until_status(gateway, key, status, rounds=ROUNDS, within=WITHIN, pause=0.1)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
async def test_a_key_comes_and_goes_while_workers_serve(workers: int, tmp_path: Path) -> None:
    async with FakeUpstream(json_response(chat_completion())) as up:
        config = config_for(up)
        config["filters"][0]["auth"]["keys_file"] = str(tmp_path / "keys.db")
        async with gateway_process(config, workers=workers) as gateway:
            ops = await command(gateway, "create", "--name", "ops", "--roles", "admin")
            key = await command(gateway, "create", "--name", "made", "--roles", "viewer")
            await within(gateway, key, 200)
            assert (await gateway.admin.send("GET", "/config_dump", key=key)).status == 200
            new = await command(gateway, "rotate", "made", "--overlap", "1h")
            await within(gateway, new, 200)
            assert await answers(gateway, key) == {200}
            await command(gateway, "revoke", "made")
            await within(gateway, new, 401)
            assert await answers(gateway, key) == {401}
            assert (await gateway.admin.send("GET", "/config_dump", key=key)).status == 401
            assert await answers(gateway, config["filters"][0]["auth"]["keys"][0]["key"]) == {200}
            own = await made_over_http(gateway, ops, "over-http")
            await within(gateway, own, 200)
            assert (await gateway.admin.send("DELETE", "/admin/keys/over-http", b"", key=ops)).status == 200
            await within(gateway, own, 401)
            (tmp_path / "keys.db").write_text("nonsense")
            await sleep(2.5)
            assert "keys_refused" in gateway.log
            for secret in (key, new, own, ops, (tmp_path / "headgate-pepper").read_text().strip()):
                assert secret not in gateway.log
