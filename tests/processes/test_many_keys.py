"""A hundred thousand keys: every worker knows of a change within seconds, and what it costs each of them."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from anyio import to_thread

from headgate.control.keys import KeyRing
from headgate.filters.keys_file import PEPPER_FILE, KeyRecord, digest
from tests_support.gateway import CHAT_BODY, CLIENT_KEY, bearer
from tests_support.process import gateway_process
from tests_support.raw import CHAT, RawClient, request

if TYPE_CHECKING:
    from pathlib import Path

KEYS = 100_000
PEPPER = b"0123456789abcdef0123456789abcdef"
WORKERS = 4
CONNECTIONS = 40
"""So many that each worker has some."""
WITHIN = 5.0
CHANGES = 5
MOST_MB = 64
"""More in each worker than without these keys."""


def config(**auth: Any) -> dict[str, Any]:
    keys = [{"name": "app", "key": CLIENT_KEY}]
    return {"providers": {"mock": {"base_url": "mock:"}}, "filters": [{"auth": {"keys": keys, **auth}}]}


def line(n: int) -> bytes:
    made = digest(PEPPER, b"hg-key-%d" % n).hex()
    record = KeyRecord(f"service-{n}", made, 1.7e9, owner=f"user-{n % 5000}", team=f"team-{n % 200}", models=("*",))
    return msgspec.json.encode(record) + b"\n"


def pss(pid: int) -> float:
    """Megabytes."""
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) / 1024


async def until(connections: list[RawClient], key: str, status: int) -> float:
    """Seconds until this is what the key gets on each of them."""
    begun = time.perf_counter()
    asking = request("POST", CHAT, CHAT_BODY, bearer(key))

    async def ask(client: RawClient) -> None:
        while True:
            await client.send(asking)
            if (await client.answer()).status == status:
                return
            await asyncio.sleep(0.02)

    async with asyncio.timeout(60):
        await asyncio.gather(*map(ask, connections))
    return time.perf_counter() - begun


@pytest.mark.slow
async def test_keys_come_and_go_among_a_hundred_thousand(tmp_path: Path) -> None:
    async with gateway_process(config(), workers=WORKERS) as gateway:
        alone = [pss(pid) for pid in await gateway.ready_workers(WORKERS)]

    file = tmp_path / "keys.db"
    (tmp_path / PEPPER_FILE).write_bytes(PEPPER)
    file.write_bytes(b"".join(map(line, range(KEYS))))
    ring = KeyRing(file, None, time.time)
    took: dict[str, list[float]] = {"made": [], "revoked": []}
    async with (
        gateway_process(config(keys_file=str(file)), workers=WORKERS) as gateway,
        AsyncExitStack() as stack,
    ):
        pids = await gateway.ready_workers(WORKERS)
        before = [pss(pid) for pid in pids]
        connections = [await stack.enter_async_context(RawClient(gateway.port)) for _ in range(CONNECTIONS)]
        assert await until(connections, "hg-key-77", 200) < WITHIN
        for n in range(CHANGES):
            key = await to_thread.run_sync(ring.create, KeyRecord(f"new-{n}", "", 0.0))
            took["made"].append(await until(connections, key, 200))
            await to_thread.run_sync(ring.revoke, f"new-{n}")
            took["revoked"].append(await until(connections, key, 401))
            victim = n * (KEYS // CHANGES)
            await to_thread.run_sync(ring.revoke, f"service-{victim}")
            took["revoked"].append(await until(connections, f"hg-key-{victim}", 401))
        after = [pss(pid) for pid in pids]
    shown = {what: ", ".join(f"{seconds:.2f}" for seconds in all_) for what, all_ in took.items()}
    print(
        f"on all workers, seconds after: {shown}; MB (PSS) of a worker: alone {max(alone):.0f}, with the keys ", end=""
    )
    print(f"{max(before):.0f}, after {3 * CHANGES} changes {max(after):.0f}")
    assert max(took["made"] + took["revoked"]) < WITHIN
    assert max(after) - max(alone) < MOST_MB
