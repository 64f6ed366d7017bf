"""stats: a flood of made-up names fills no table; a name is counted by itself once it was answered, or configured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from headgate.proxy import stats as module
from headgate.proxy.accounting.usage import NO_USAGE, Usage
from headgate.proxy.stats import OTHER, Histogram, Stats

if TYPE_CHECKING:
    from headgate.proxy.exchange import Exchange


def exchange(model: str, usage: Usage | None = None, cost: float | None = None, **changes: Any) -> Exchange:
    """What `Stats.count` reads of one."""
    target = SimpleNamespace(cluster=SimpleNamespace(name="up"), model=model)
    values: dict[str, Any] = {
        "face": SimpleNamespace(name="chat"),
        "graph": SimpleNamespace(models=SimpleNamespace(names=lambda: ["configured"])),
        "attempt": SimpleNamespace(target=target),
        "outcome": "ok",
        "status": 200,
        "started": 10.0,
        "first_token_at": None,
        "usage": usage,
        "cost_usd": cost,
        "model": model,
    }
    return cast("Exchange", SimpleNamespace(**values | changes))


def counted(*exchanges: Exchange) -> Stats:
    stats = Stats()
    for ex in exchanges:
        stats.count(ex, 10.5)
    return stats


def test_an_answer_counts_its_tokens_its_cost_and_its_times() -> None:
    stats = counted(exchange("m", Usage(7, 3), 0.25, first_token_at=10.1))
    series = stats.series["chat", "up", "m"]
    assert (series.answers, series.tokens_in, series.tokens_out) == (1, 7, 3)
    assert (series.cost_usd, series.unknown_cost) == (0.25, 0)
    assert series.duration.total == pytest.approx(0.5)
    assert series.ttft.total == pytest.approx(0.1)
    assert stats.exchanges == {("chat", "ok", 200): 1}


def test_an_answer_without_a_price_is_missing_in_the_cost() -> None:
    assert counted(exchange("m", Usage(7, 3))).series["chat", "up", "m"].unknown_cost == 1


def test_an_answer_without_usage_counts_time_alone() -> None:
    series = counted(exchange("configured", NO_USAGE, 0.0)).series["chat", "up", "configured"]
    assert (series.answers, series.unknown_cost, sum(series.duration.buckets)) == (0, 0, 1)


def test_an_exchange_that_reached_no_provider_has_no_series() -> None:
    stats = counted(exchange("m", attempt=None, outcome="refused", status=400))
    assert stats.series == {}
    assert stats.exchanges == {("chat", "refused", 400): 1}


def test_names_that_nobody_answered_to_share_one_series() -> None:
    stats = counted(*(exchange(f"made-up-{number}", status=404) for number in range(50)))
    assert list(stats.series) == [("chat", "up", OTHER)]


def test_a_name_has_its_own_series_from_its_first_answer_on() -> None:
    stats = counted(exchange("m"), exchange("m", Usage(1, 1)), exchange("m"))
    assert sum(stats.series["chat", "up", OTHER].duration.buckets) == 1
    assert sum(stats.series["chat", "up", "m"].duration.buckets) == 2


def test_a_configured_name_has_its_own_series_though_nobody_ever_answered() -> None:
    assert list(counted(exchange("configured")).series) == [("chat", "up", "configured")]


def test_above_the_bound_every_new_name_is_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SERIES", 3)
    stats = counted(*(exchange(f"m{number}", Usage(1, 1)) for number in range(9)))
    assert list(stats.series) == [
        ("chat", "up", "m0"),
        ("chat", "up", "m1"),
        ("chat", "up", "m2"),
        ("chat", "up", OTHER),
    ]
    assert stats.series["chat", "up", OTHER].answers == 6


def test_a_value_on_a_bound_belongs_to_the_bucket_below() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert (histogram.buckets, histogram.total) == ([2, 2, 1], 14.0)


def test_statuses_above_the_bound_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SERIES", 3)
    stats = counted(*(exchange("m", outcome="upstream_error", status=400 + n) for n in range(6)))
    stats.count(exchange("m", outcome="upstream_error", status=401), 10.5)
    assert stats.exchanges == {
        ("chat", "upstream_error", 400): 1,
        ("chat", "upstream_error", 401): 2,
        ("chat", "upstream_error", 402): 1,
        ("chat", "upstream_error", 0): 3,
    }
