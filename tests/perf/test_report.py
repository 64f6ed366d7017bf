"""report: medians with their spread, ratios round by round, and the block of the page that a run replaces."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from perf import report
from perf.bench import _event_cost
from perf.contestants import ALL
from perf.load import Sample
from perf.report import Round

if TYPE_CHECKING:
    from pathlib import Path

ROUND = Round(
    request_us=30.0, requests_per_s=30e3, event_us=8.0, lone_event_us=25.0, stream_us=40.0, events_per_s=1e5,
    latencies=[0.001, 0.002], pss_mb=60.0, ready_ms=50.0, busy=1.0, busy_streams=1.0, rig_busy=0.5, foreign=0.0,
    failed=0, stalls=0,
)  # fmt: skip


def test_ratios_are_taken_within_a_round() -> None:
    base = [replace(ROUND, request_us=10.0), replace(ROUND, request_us=20.0)]
    mine = [replace(ROUND, request_us=30.0), replace(ROUND, request_us=60.0)]
    assert report.ratios(mine, base, lambda r: r.request_us) == [3.0, 3.0]


def test_a_round_the_other_lacks_does_not_count() -> None:
    assert report.ratios([ROUND, ROUND], [ROUND], lambda r: r.request_us) == [1.0]


def test_the_table_says_who_was_not_pressed_hard_and_who_failed() -> None:
    rounds = {"envoy": [replace(ROUND, busy=0.5)], "httpx2": [replace(ROUND, failed=3, stalls=2, request_us=60.0)]}
    text = report.table(rounds, {c.name: c for c in ALL}, 50.0)
    assert "| httpx2 2.16.2 | 60.0 (60.0-60.0) | 2.00 (2.00-2.00) |" in text
    assert "envoy: its core was only 50% busy" in text
    assert "httpx2: 3 exchanges failed." in text
    assert "httpx2: held an event back 2 times." in text


@pytest.mark.parametrize(("q", "value"), [(0.0, 1), (0.5, 5), (0.99, 10), (1.0, 10)])
def test_a_quantile_is_a_measured_value(q: float, value: float) -> None:
    assert report.quantile(range(1, 11), q) == value


def test_the_quantile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(report.quantile([], 0.5))


def test_saving_replaces_the_block_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- a -->\nold\n<!-- /a -->\nbelow\n")
    report.save("a", "new\n", page)
    report.save("a", "newer", page)
    assert page.read_text() == "above\n<!-- a -->\nnewer\n<!-- /a -->\nbelow\n"


def test_a_page_without_the_block_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing here\n")
    with pytest.raises(ValueError, match="has no block 'a'"):
        report.save("a", "new", page)


def test_event_and_stream_cost_are_told_apart() -> None:
    short = Sample(cpu=100 * 40e-6 + 800 * 8e-6, streams=100, events=800)
    long = Sample(cpu=10 * 40e-6 + 2000 * 8e-6, streams=10, events=2000)
    assert _event_cost(short, long) == pytest.approx((8e-6, 40e-6))


def test_windows_without_streams_have_no_cost() -> None:
    assert all(math.isnan(cost) for cost in _event_cost(Sample(), Sample()))


def test_endpoints_are_told_by_their_ratio_within_each_round() -> None:
    text = report.endpoints({"/a": [100.0, 200.0, 100.0], "/b": [110.0, 190.0, 100.0]})
    assert text.splitlines()[2:] == ["| `/a` | 100.0 | 1.00 (1.00 to 1.00) |", "| `/b` | 110.0 | 1.00 (0.95 to 1.10) |"]
