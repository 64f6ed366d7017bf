"""observe: a worker's snapshot says what its objects counted, and a reload takes nothing of it back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from headgate.proxy import observe
from headgate.proxy.filter import Filter
from tests_support.answers import chat_completion, json_response
from tests_support.gateway import CHAT_BODY, CLIENT_KEY, config_for, gateway_over, load, running_gateway, written
from tests_support.raw import CHAT, RawClient, request
from tests_support.upstream import FakeUpstream, Pause

if TYPE_CHECKING:
    from pathlib import Path

    from tests_support.gateway import RunningGateway

GOOD = json_response(chat_completion())
USERS_FILTER = """
from headgate.proxy.filter import Filter

class Counting(Filter):
    def __init__(self, **_):
        self.seen = 0
        self.ratio = 0.5
        self.on = True
        self._hidden = 3

    def on_request(self, ex):
        self.seen += 1
"""


async def reload(gateway: RunningGateway, config: dict[str, Any]) -> None:
    await gateway.server.reload(load(written(config, gateway.folder)))


async def test_a_worker_tells_what_its_parts_counted() -> None:
    async with gateway_over([GOOD]) as (gateway, upstream):
        assert (await gateway.post()).status == 200
        assert (await gateway.post(key="nobody's key, and long enough")).status == 401
        await gateway.rows(1)
        told = gateway.server.snapshot()
        assert (told.worker, told.pid, told.config) == ("0", os.getpid(), gateway.half.config.digest)
        assert (told.ready, told.draining, told.live, told.spool_full) == (True, False, 0, False)
        assert told.rss_bytes > 10_000_000
        counters = told.counters
        assert counters.exchanges == {("chat", "ok", 200): 1}
        assert counters.engine == {
            "refused_by_auth": 1,
            "turned_away": 0,
            "retries": 0,
            "internal_errors": 0,
            "rows": 1,
            "issuer_lookups": 0,
            "issuer_lookups_failed": 0,
        }
        assert counters.filters["auth"] == {"admitted": 1, "refused": 1}
        assert {name: value for name, value in counters.clusters["up"].items() if value} == {
            "rq_total": 1,
            "rq_success": 1,
        }
        assert counters.spool == {"dropped": 0, "errors": 0}
        assert counters.edge["requests"] == 2
        [((endpoint, provider, model), usage)] = counters.models.items()
        assert (endpoint, provider, model) == ("chat", "up", "gpt-4o-mini")
        assert (usage.answers, usage.tokens_in, usage.tokens_out) == (1, 9, 12)
        assert sum(usage.duration.counts) == 1
        [(key, address)] = counters.endpoints.items()
        assert key == ("up", upstream.base_url.removesuffix("/v1"))
        assert (address["cx_total"], address["rq_total"]) == (1, 1)
        assert {name: value for name, value in told.upstreams[key].items() if value} == {"cx_active": 1}


async def test_gauges_show_what_is_under_way() -> None:
    pause = Pause()
    async with gateway_over([pause, GOOD]) as (gateway, _), RawClient(gateway.port) as client:
        await client.send(request("POST", CHAT, CHAT_BODY, [("authorization", f"Bearer {CLIENT_KEY}")]))
        await pause.reached()
        told = gateway.server.snapshot()
        assert (told.live, told.connections) == (1, 1)
        [gauges] = told.upstreams.values()
        assert gauges["rq_active"] == 1
        pause.go()
        assert (await client.answer()).status == 200


async def test_a_draining_worker_is_not_ready() -> None:
    async with gateway_over([GOOD]) as (gateway, _):
        gateway.server.refuse_new_work()
        told = gateway.server.snapshot()
        assert (told.ready, told.draining) == (False, True)


async def test_replaced_clusters_and_filters_leave_their_counters() -> None:
    async with FakeUpstream([GOOD]) as upstream, running_gateway(config_for(upstream)) as gateway:
        for provider_key in ("sk-first-canary-3Wn8cB6yHg1JfXeU", "sk-second-canary-9Lk2mN4pQr7StUvW"):
            await gateway.post()
            await gateway.post(key=None)
            before = gateway.server.snapshot().counters
            config = config_for(upstream, provider_key=provider_key)
            config["filters"][0]["auth"]["keys"].append({"name": provider_key[:9], "key": "k-" + provider_key})
            await reload(gateway, config)
            after = gateway.server.snapshot().counters
            assert after.clusters == before.clusters
            assert after.filters["auth"] == before.filters["auth"]
            assert after.endpoints.items() >= before.endpoints.items()
        await gateway.post()
        counters = gateway.server.snapshot().counters
        assert counters.clusters["up"]["rq_total"] == 3
        assert counters.filters["auth"] == {"admitted": 3, "refused": 2}
        assert sum(address["rq_total"] for address in counters.endpoints.values()) == 3
        assert sum(address["cx_total"] for address in counters.endpoints.values()) == 1, "a new key needs no connection"


async def test_an_exchange_under_an_old_graph_is_still_counted() -> None:
    pause = Pause()
    async with FakeUpstream([pause, GOOD]) as upstream, running_gateway(config_for(upstream)) as gateway:
        async with RawClient(gateway.port) as client:
            await client.send(request("POST", CHAT, CHAT_BODY, [("authorization", f"Bearer {CLIENT_KEY}")]))
            await pause.reached()
            gateway.server.snapshot()
            await reload(gateway, config_for(upstream, provider_key="sk-second-canary-9Lk2mN4pQr7StUvW"))
            during = gateway.server.snapshot()
            assert during.counters.clusters["up"]["rq_success"] == 0
            assert sum(gauges["rq_active"] for gauges in during.upstreams.values()) == 1
            pause.go()
            assert (await client.answer()).status == 200
        counters = gateway.server.snapshot().counters.clusters["up"]
        assert {name: value for name, value in counters.items() if value} == {"rq_total": 1, "rq_success": 1}


async def test_a_filter_of_the_users_own_shows_its_public_integers(tmp_path: Path) -> None:
    (tmp_path / "observed_filter.py").write_text(USERS_FILTER)
    config = {
        "providers": {"mock": {"base_url": "mock:"}},
        "filters": [{"use": "observed_filter:Counting", "name": "mine"}],
        "routes": [
            {"name": "odd", "match": {"model": "odd"}, "filters": {"mine": {"config": {"any": 1}}}},
            {"name": "none", "match": {"model": "none"}, "filters": {"mine": "off"}},
        ],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        async with running_gateway(config) as gateway:
            for model in (b"m", b"odd", b"none"):
                assert (await gateway.post(CHAT_BODY.replace(b"gpt-4o-mini", model), key=None)).status == 200
            assert gateway.server.snapshot().counters.filters == {"mine": {"seen": 2}}


def test_integers_in_slots_count_too() -> None:
    class Slotted(Filter):
        __slots__ = ("_inner", "kept", "unset")

        def __init__(self) -> None:
            self.kept = 4
            self._inner = 5

    assert observe.filter_counters(Slotted()) == {"kept": 4}


def test_memory_is_0_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(observe, "_STATM", tmp_path / "statm")
    assert observe.rss_bytes() == 0
