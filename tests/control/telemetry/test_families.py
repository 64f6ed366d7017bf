"""families: each metric shows what was told, under labels that are bounded, and its samples never go back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.control.telemetry.families import MODEL_PLACES, SHOWN_WORKERS, Observed, Telemetry
from headgate.control.telemetry.sheet import Histogram, Sheet, Summary
from headgate.proxy.snapshot import Counters, ModelCounters, Snapshot
from headgate.proxy.stats import OTHER

CONTROL = {
    "reloads": 4,
    "reloads_refused": 1,
    "worker_restarts": 2,
    "workers_hung": 1,
    "replacements": 3,
    "replacements_aborted": 5,
}
LEDGER = {"rows": 9, "lost": 1, "dead_letters": 2, "errors": 3, "trimmed": 4, "up": 0}


def observed(counters: Counters | None = None, **changes: Any) -> Observed:
    snapshot = Snapshot("*", 1, 10.0, "abc", ready=True, counters=counters or Counters())
    values: dict[str, Any] = {
        "snapshot": snapshot,
        "workers": [snapshot],
        "version": "1.2.3",
        "started": 10.0,
        "ready": True,
        "warnings": 3,
        "control": CONTROL,
        "ledger": LEDGER,
        "auth_filters": frozenset(("auth",)),
    }
    return Observed(**values | changes)


def samples(told: Observed, telemetry: Telemetry | None = None) -> dict[str, dict[tuple[str, ...], Any]]:
    families = (telemetry or Telemetry()).families(told)
    return {metric.name: found for metric, found in families}


def used(answers: int, *, seconds: int = 3) -> ModelCounters:
    model = ModelCounters(answers=answers, tokens_in=2 * answers, tokens_out=answers, cost_usd=answers / 4)
    model.duration.counts[seconds] = answers
    return model


def test_the_gateway_as_a_whole() -> None:
    found = samples(observed())
    assert found["headgate_build_info"].popitem()[0][0] == "1.2.3"
    assert found["headgate_config_info"] == {("abc",): 1}
    assert found["headgate_ready"] == {(): 1}
    assert found["headgate_warnings"] == {(): 3}
    assert found["headgate_config_reloads_total"] == {("applied",): 4, ("refused",): 1}
    assert found["headgate_worker_restarts_total"] == {(): 2}
    assert found["headgate_workers_hung_total"] == {(): 1}
    assert found["headgate_worker_replacements_total"] == {("done",): 3, ("aborted",): 5}
    assert found["headgate_ledger_rows_total"] == {(): 9}
    assert found["headgate_ledger_up"] == {(): 0}


def test_without_a_ledger_nothing_is_said_of_it() -> None:
    assert not [name for name in samples(observed(ledger={})) if name.startswith("headgate_ledger")]


def test_exchanges_by_endpoint_outcome_and_status() -> None:
    found = samples(observed(Counters(exchanges={("chat", "ok", 200): 3, ("chat", "failed", 502): 1})))
    assert found["headgate_exchanges_total"] == {("chat", "ok", "200"): 3, ("chat", "failed", "502"): 1}


def test_tokens_cost_and_times_of_a_model() -> None:
    found = samples(observed(Counters(models={("chat", "up", "m"): used(4)})))
    labels = ("chat", "up", "m")
    assert found["gen_ai_client_token_usage"] == {(*labels, "input"): Summary(4, 8), (*labels, "output"): Summary(4, 4)}
    assert found["headgate_cost_usd_total"] == {labels: 1.0}
    assert found["headgate_unknown_cost_total"] == {labels: 0}
    duration = found["gen_ai_server_request_duration_seconds"][labels]
    assert isinstance(duration, Histogram)
    assert sum(duration.counts) == 4
    assert "gen_ai_server_time_to_first_token_seconds" not in found


def test_a_model_without_usage_has_times_and_no_tokens() -> None:
    model = ModelCounters()
    model.ttft.counts[0] = 1
    found = samples(observed(Counters(models={("chat", "up", "m"): model})))
    assert "gen_ai_client_token_usage" not in found
    assert "headgate_cost_usd_total" not in found
    assert ("chat", "up", "m") in found["gen_ai_server_time_to_first_token_seconds"]


def test_health_checks_of_a_provider_are_added_up() -> None:
    checks = {
        ("p", "http://a:1"): {"health_check.attempt": 5, "health_check.failure": 2, "health_check.passive_failure": 1},
        ("p", "http://b:1"): {"health_check.attempt": 4, "health_check.success": 4},
    }
    found = samples(observed(checks=checks))
    assert found["headgate_upstream_health_check_attempt_total"] == {("p",): 9}
    assert found["headgate_upstream_health_check_success_total"] == {("p",): 4}
    assert found["headgate_upstream_health_check_failure_total"] == {("p",): 2}
    assert found["headgate_upstream_health_check_passive_failure_total"] == {("p",): 1}


def test_names_that_look_the_same_when_cleaned_are_one_series() -> None:
    found = samples(observed(Counters(models={("chat", "up", "a\n"): used(1), ("chat", "up", "a\t"): used(2)})))
    assert found["headgate_cost_usd_total"] == {("chat", "up", "a�"): 0.75}


def test_where_not_all_fit_the_most_used_models_are_shown() -> None:
    models = {("chat", "up", f"m{number}"): used(number) for number in range(1, 3 * MODEL_PLACES)}
    found = samples(observed(Counters(models=models)))["headgate_cost_usd_total"]
    assert len(found) == MODEL_PLACES
    assert ("chat", "up", f"m{3 * MODEL_PLACES - 1}") in found
    assert ("chat", "up", "m1") not in found
    assert sum(found.values()) == sum(model.cost_usd for model in models.values())
    assert found[OTHER, OTHER, OTHER] > 0


def test_upstreams_are_summed_over_their_addresses() -> None:
    told = observed(
        Counters(
            clusters={"up": {"rq_total": 5, "rq_success": 4, "rq_error": 1, "rq_retry": 1}},
            endpoints={("up", "http://a:1"): {"cx_total": 1, "rq_retry": 2}, ("up", "http://b:1"): {"cx_total": 2}},
        )
    )
    told.snapshot.upstreams = {("up", "http://a:1"): {"cx_active": 1}, ("up", "http://b:1"): {"cx_active": 4}}
    found = samples(told)
    assert found["headgate_upstream_rq_total"] == {("up",): 5}
    assert found["headgate_upstream_rq_success_total"] == {("up",): 4}
    assert found["headgate_upstream_rq_retry_total"] == {("up",): 1}
    assert found["headgate_upstream_rq_resent_total"] == {("up",): 2}
    assert found["headgate_upstream_cx_total"] == {("up",): 3}
    assert found["headgate_upstream_cx_active"] == {("up",): 5}


def test_filters_by_kind() -> None:
    filters = {"auth": {"admitted": 3, "refused": 1}, "mine": {"seen": 2}}
    found = samples(observed(Counters(filters=filters)))
    assert found["headgate_auth_admitted_total"] == {("auth",): 3}
    assert found["headgate_auth_refused_total"] == {("auth",): 1}
    assert found["headgate_filter_total"] == {("mine", "seen"): 2}


def test_workers_one_by_one_up_to_a_bound() -> None:
    workers = [Snapshot(f"{n:03}", n, 0.0, "v", live=n, rss_bytes=7, loop_lag=0.5) for n in range(SHOWN_WORKERS + 9)]
    workers[0].loop_lag = None
    found = samples(observed(workers=workers))
    assert found["headgate_workers"] == {(): SHOWN_WORKERS + 9}
    assert len(found["headgate_worker_ready"]) == SHOWN_WORKERS
    assert found["headgate_worker_exchanges_active"][("003",)] == 3
    assert ("000",) not in found["headgate_worker_loop_lag_seconds"]


def test_a_sample_with_the_wrong_labels_is_a_bug() -> None:
    with pytest.raises(ValueError, match="takes the labels"):
        Sheet().add("headgate_ready", 1, "too many")
    with pytest.raises(ValueError, match="takes the labels"):
        Sheet().put("gen_ai_client_token_usage", Summary(1, 1), "too few")


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 400), max_size=30), max_size=6))
def test_no_series_goes_back_from_page_to_page_whoever_comes_new(pages: list[list[int]]) -> None:
    telemetry, counters = Telemetry(), Counters()
    before: dict[tuple[str, tuple[str, ...]], float] = {}
    for names in pages:
        for name in names:
            key = ("chat", "up", str(name))
            counters.models.setdefault(key, ModelCounters()).grow(used(1), ModelCounters())
            counters.exchanges["chat", "ok", name] = counters.exchanges.get(("chat", "ok", name), 0) + 1
        found = samples(observed(counters), telemetry)
        told = {
            (metric, labels): value
            for metric in ("headgate_cost_usd_total", "headgate_exchanges_total")  # each has an `other` of its own
            for labels, value in found.get(metric, {}).items()
        }
        assert all(told[series] >= value for series, value in before.items())
        before = told
