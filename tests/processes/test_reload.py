"""SIGHUP under load: nothing is lost, connections to providers outlive the config, and nothing of an old one stays."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from tests_support.answers import chat_completion, json_response
from tests_support.gateway import config_for
from tests_support.load import KEYS, QUICK, Load, providers
from tests_support.process import GatewayProcess, gateway_process
from tests_support.upstream import FakeUpstream, Sleep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WITHIN = 60.0
ROTATE_EVERY = 10
A_DAY = 10_000_000
ONE_MORE = b'{"model":"quick","messages":[{"role":"user","content":"one more"}]}'
MIB = 1 << 20


async def reloaded(gateway: GatewayProcess, config: Mapping[str, Any], times: int) -> None:
    """Write, SIGHUP, and wait for the end of this reload."""
    gateway.rewrite(config)
    gateway.signal(signal.SIGHUP)
    await gateway.until(lambda: gateway.log.count('"event": "reloaded"') >= times, f"reload {times}", WITHIN)


def key(n: int) -> str:
    """Of nobody in particular, while the n-th config holds."""
    return f"hg-turn-{n:06}-8Hn3Vb5Lq2Xw"


def resident(pids: list[int]) -> int:
    """Bytes of all of them."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("workers", "times", "rate", "streams"),
    [
        (1, 10, 60, 10),
        (2, 10, 60, 10),
        pytest.param(1, 200, 300, 100, marks=pytest.mark.slow),
        pytest.param(2, 200, 300, 100, marks=pytest.mark.slow),
    ],
)
async def test_reloads_under_load_lose_nothing(workers: int, times: int, rate: float, streams: int) -> None:
    """Faults D3. Each gives another rate limit and another key, and takes the key before away; one in ten gives a
    provider another key and address, so that its connections are exchanged. What was used of the limit stays used."""
    async with providers(slow_ms=100) as base:

        def config(n: int) -> dict[str, Any]:
            turn = n // ROTATE_EVERY
            quick = {**base["providers"][QUICK], "api_key": f"sk-{turn}"}
            if turn % 2:
                quick["base_url"] = quick["base_url"].replace("127.0.0.1", "localhost")
            keys = [*KEYS, {"name": f"turn-{n}", "key": key(n)}]
            return {
                **base,
                "providers": {**base["providers"], QUICK: quick},
                "filters": [{"auth": {"keys": keys}}, {"rate_limit": {"per": "key", "requests_per_day": A_DAY + n}}],
                "limits": {"json_depth": 20 + n},
            }

        await under_load(config, workers, times, rate, streams)


async def under_load(
    config: Callable[[int], dict[str, Any]], workers: int, times: int, rate: float, streams: int
) -> None:
    """Reload so many times, and hold what must hold."""
    async with gateway_process(config(0), workers=workers) as gateway:
        load = Load(gateway.base_url, rate=rate, streams=streams)
        async with load.running():
            await asyncio.sleep(1)
            pids = gateway.worker_pids() or [gateway.pid]
            for n in range(1, times // 5 + 1):
                await reloaded(gateway, config(n), n)
            early, descriptors = resident(pids), gateway.open_fds()
            for n in range(times // 5 + 1, times + 1):
                await reloaded(gateway, config(n), n)
                await asyncio.sleep(0.05)
            late = resident(pids)
        print(load, f"{len(load.versions)} versions, {early // MIB} -> {late // MIB} MiB")
        load.assert_flawless()
        assert load.told_to_close == 0
        assert len(load.versions) > times // 2
        assert late < early + workers * 8 * MIB
        assert gateway.worker_pids() == ([] if workers == 1 else pids)
        await gateway.until(lambda: gateway.open_fds() <= descriptors + 8, "descriptors to be let go", WITHIN)
        asked = load.answered + load.streamed + 1
        one_more = await gateway.post(ONE_MORE)
        assert one_more.header("x-ratelimit-limit-requests") == str(A_DAY + times)
        assert one_more.header("x-ratelimit-remaining-requests") == str(A_DAY + times - asked)
        assert [(await gateway.post(ONE_MORE, key=key(n))).status for n in (times - 1, times)] == [401, 200]
        assert await gateway.terminate() == 0
        outcomes = [row["outcome"] for row in gateway.ledger()]
        assert "Traceback" not in gateway.log
    assert outcomes == ["ok"] * (asked + 1)


def elsewhere(upstream: FakeUpstream) -> dict[str, Any]:
    """The same server as another provider."""
    return {"base_url": f"{upstream.url}/other/v1", "api_key": "sk-three"}


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_reload_shakes_no_hands_again_unless_the_address_is_another(workers: int, tmp_path: Path) -> None:
    """A TLS handshake is what a storm after a reload is made of: each connection here stands for one."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    async with FakeUpstream([Sleep(0.02), json_response(chat_completion())], tls=tls) as upstream:

        def config(depth: int, key: str = "sk-one", **timeouts: str) -> dict[str, Any]:
            return {**config_for(upstream, provider_key=key, timeouts=timeouts), "limits": {"json_depth": depth}}

        async with gateway_process(
            config(9), workers=workers, env={"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
        ) as gateway:

            async def ask(count: int = 8) -> None:
                answers = await asyncio.gather(*(gateway.post() for _ in range(count)))
                assert {answer.status for answer in answers} == {200}

            for _ in range(6 * workers):  # until every worker has its connections
                await ask()
            before = len(upstream.connections)
            for n in range(1, 6):
                await reloaded(gateway, config(9 + n, idle=f"{10 + n}s"), n)
                await ask(4)
            # With two, one may get more at a time than ever before.
            assert len(upstream.connections) <= before + 2 * (workers - 1)
            await reloaded(gateway, config(20, "sk-two"), 6)
            await ask(4)
            assert len(upstream.connections) <= before + 2 * (workers - 1), "another key is no other provider"
            assert any(b"sk-two" in one.received for one in upstream.connections)
            await reloaded(gateway, {**config(21), "providers": {"up": elsewhere(upstream)}}, 7)
            old = list(upstream.connections)
            await ask()
            assert len(upstream.connections) > len(old)
            await upstream.wait_until(lambda: all(one.closed_at for one in old), "the old connections to close")
