"""exposition: Prometheus reads the page as it was meant, whatever names it holds, and a flood of names stays small."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from headgate.control.admin.view import ControlStats
from headgate.control.telemetry.bounds import MAX_BYTES, MAX_SERIES
from headgate.control.telemetry.catalog import BY_NAME, ENGINE
from headgate.control.telemetry.exposition import CONTENT_TYPE, prometheus_text, stats_json
from headgate.control.telemetry.families import Observed, Telemetry
from headgate.proxy.edge.context import EdgeStats
from headgate.proxy.snapshot import Counters, ModelCounters, Snapshot, StoreCounters
from headgate.proxy.stats import DURATION_BOUNDS
from headgate.proxy.stats import MAX_SERIES as MODELS_OF_A_WORKER
from headgate.proxy.upstream.stats import UpstreamStats
from tests_support.admin import config_with, running_admin
from tests_support.gateway import CHAT_BODY
from tests_support.raw import CHAT, RawClient, request

HOSTILE = ['"} 1\nheadgate_forged 1\n', "\\", '\\"', "a\nb", "\u2028", "\x00", "é" * 300, "{}", "x" * 5000, "", "💥"]


def observed(counters: Counters, workers: int = 1) -> Observed:
    snapshot = Snapshot("*", 1, 10.0, "abc", ready=True, counters=counters)
    return Observed(
        snapshot,
        [Snapshot(f"{number:03}", number, 0.0, "abc", loop_lag=0.0) for number in range(workers)],
        "1.2.3",
        10.0,
        True,
        0,
        dict.fromkeys(ControlStats.__slots__, 0),
        {"rows": 0, "lost": 0, "dead_letters": 0, "errors": 0, "trimmed": 0, "up": 1},
        frozenset(("auth",)),
    )


def used(answers: int = 1) -> ModelCounters:
    model = ModelCounters(answers=answers, tokens_in=2 * answers, tokens_out=answers, cost_usd=0.25 * answers)
    model.duration.counts[3], model.duration.total = answers, answers / 20
    model.ttft.counts[0], model.ttft.total = answers, answers / 2000
    return model


def parsed(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every series of a page; fails where one stands twice."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, key
            found[key] = sample.value
    return found


def test_a_page_reads_back_as_it_was_meant() -> None:
    counters = Counters(exchanges={("chat", "ok", 200): 3}, models={("chat", "up", "m"): used(4)})
    text = prometheus_text(Telemetry().families(observed(counters)))
    labels = (("gen_ai_operation_name", "chat"), ("gen_ai_provider_name", "up"), ("gen_ai_request_model", "m"))
    found = parsed(text)
    assert found["headgate_exchanges_total", (("endpoint", "chat"), ("outcome", "ok"), ("status", "200"))] == 3
    assert found["headgate_cost_usd_total", labels] == 1.0
    assert found["gen_ai_client_token_usage_sum", (*labels, ("gen_ai_token_type", "input"))] == 8
    assert found["gen_ai_client_token_usage_count", (*labels, ("gen_ai_token_type", "input"))] == 4
    duration = "gen_ai_server_request_duration_seconds"
    edges = [*map(repr, DURATION_BOUNDS), "+Inf"]
    assert [found[f"{duration}_bucket", (*labels, ("le", edge))] for edge in edges] == [0, 0, 0, *[4] * 12]
    assert (found[f"{duration}_count", labels], found[f"{duration}_sum", labels]) == (4, 0.2)
    assert found["process_resident_memory_bytes", ()] > 0


def test_help_and_type_stand_before_every_family() -> None:
    counters = Counters(models={("chat", "up", "m"): used()}, filters={"auth": {"admitted": 1}, "mine": {"n": 1}})
    text = prometheus_text(Telemetry().families(observed(counters))).decode()
    types = dict(line.split(" ")[2:4] for line in text.splitlines() if line.startswith("# TYPE "))
    helps = {line.split(" ")[2] for line in text.splitlines() if line.startswith("# HELP ")}
    assert set(types) == helps
    ours = {name for name in types if not name.startswith("process_")}
    assert {name: BY_NAME[name].kind for name in ours} == {name: types[name] for name in ours}


def test_hostile_names_stay_inside_their_label() -> None:
    models = {("chat", "up", name): used() for name in HOSTILE}
    filters = {name: {name: 1} for name in HOSTILE}
    text = prometheus_text(Telemetry().families(observed(Counters(models=models, filters=filters))))
    found = parsed(text)
    assert not [name for name, _ in found if "forged" in name]
    costs = {dict(labels)["gen_ai_request_model"]: value for (name, labels), value in found.items()
             if name == "headgate_cost_usd_total"}  # fmt: skip
    assert sum(costs.values()) == 0.25 * len(HOSTILE)
    assert {"\\", '\\"', "{}", "", "💥"} <= set(costs)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=40), st.integers(1, 9), max_size=8))
def test_any_names_parse_and_no_count_is_lost(names: dict[str, int]) -> None:
    counters = Counters(
        models={("chat", name, name): used(count) for name, count in names.items()},
        clusters={name: {"rq_total": count} for name, count in names.items()},
    )
    found = parsed(prometheus_text(Telemetry().families(observed(counters))))
    attempts = [value for (name, _), value in found.items() if name == "headgate_upstream_rq_total"]
    assert sum(attempts) == sum(names.values())
    costs = [value for (name, _), value in found.items() if name == "headgate_cost_usd_total"]
    assert math.isclose(sum(costs), sum(names.values()) / 4)


def flood() -> Counters:
    """Everything at its worst: every table full, every name as long as it may be."""
    names = [f"{number:05}" + "\\" * 300 for number in range(MODELS_OF_A_WORKER)]
    endpoint = dict.fromkeys(UpstreamStats.__slots__, 1)
    return Counters(
        exchanges={(f"endpoint-{n % 7}", "failed", 100 + n): 1 for n in range(900)},
        models={("chat", name, name): used() for name in names},
        clusters={name: {"rq_total": 1} for name in names},
        endpoints={(name, "http://" + name): endpoint for name in names},
        filters={"auth": {"admitted": 1}, **{name: {name: 1, "b": 2} for name in names}},
        edge=dict.fromkeys(EdgeStats.__slots__, 1),
        engine=dict.fromkeys(ENGINE, 1),
        spool={"dropped": 1, "errors": 1},
        stores={"redis": StoreCounters(1, 2, 3, 4)},
    )


def flooded() -> Observed:
    told = observed(flood(), workers=256)
    told.snapshot.upstreams = {key: {"cx_active": 1} for key in told.snapshot.counters.endpoints}
    return told


def test_a_flood_of_names_is_2000_series_and_1_mb_at_most() -> None:
    text = prometheus_text(Telemetry().families(flooded()))
    found = parsed(text)
    assert len(found) <= MAX_SERIES
    assert len(found) > MAX_SERIES * 0.9  # the places are there to be used
    assert len(text) <= MAX_BYTES


@pytest.mark.skipif(sys.gettrace() is not None, reason="coverage makes it several times slower")
def test_a_flood_of_names_costs_200_ms_at_most() -> None:
    telemetry, told = Telemetry(), flooded()
    times = []
    for _ in range(3):
        started = time.process_time()
        prometheus_text(telemetry.families(told))
        times.append(time.process_time() - started)
    assert min(times) <= 0.2


@pytest.mark.parametrize("number", [300, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_made_up_models_users_and_paths_stay_small_end_to_end(number: int) -> None:
    async with running_admin(config_with()) as admin, RawClient(admin.gateway.port) as client:
        for n in range(number):
            body = CHAT_BODY.replace(b"gpt-4o-mini", b"made-up-%d" % n).replace(b"{", b'{"user":"user-%d",' % n, 1)
            await client.send(request("POST", CHAT, body, [("x-request-id", f"mine-{n}")]))
            assert (await client.answer()).status == 200
            await client.send(request("GET", f"/made/up/{n}"))
            assert (await client.answer()).status == 404
        answer = await admin.get("/metrics")
    assert answer.header("content-type") == CONTENT_TYPE
    assert len(parsed(answer.body)) <= MAX_SERIES
    assert len(answer.body) <= MAX_BYTES


def test_the_global_registry_is_left_alone() -> None:
    before = set(REGISTRY._names_to_collectors)
    prometheus_text(Telemetry().families(observed(Counters())))
    assert set(REGISTRY._names_to_collectors) == before


def test_stats_have_the_same_samples_as_metrics() -> None:
    families = Telemetry().families(observed(Counters(models={("chat", "up", "m"): used()})))
    told: list[dict[str, Any]] = stats_json(families)
    assert {one["name"] for one in told} == {metric.name for metric, _ in families}
    assert [one["name"] for one in stats_json(families, "cost_usd")] == ["headgate_cost_usd_total"]
    assert len(stats_json(families, '"m"')) == 0
