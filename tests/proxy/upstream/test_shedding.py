"""shedding: the fuller the gateway, the more new requests are turned away, those of low priority first, none for a
hiccup."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.upstream.shedding import Shedding, SheddingSettings, Trigger


def shedding() -> Shedding:
    return Shedding(SheddingSettings(), Random(1))


def admitted(gate: Shedding, *, low_priority: bool | None = False) -> float:
    return sum(gate.admits(low_priority=low_priority) for _ in range(4000)) / 4000


def test_all_is_well_below_the_thresholds() -> None:
    gate = shedding()
    assert gate.observe(0.05, 0.91) == "accept"
    assert admitted(gate) == admitted(gate, low_priority=True) == 1
    assert gate.turned_away == 0


def test_at_92_percent_memory_low_priority_is_shed_first() -> None:
    gate = shedding()
    assert gate.observe(0.0, 0.92) == "shed"
    assert admitted(gate) == 1
    assert admitted(gate, low_priority=True) == pytest.approx(0.5, abs=0.03)
    gate.observe(0.0, 0.94)
    assert admitted(gate) == pytest.approx(0.5, abs=0.03)
    assert admitted(gate, low_priority=True) == 0
    assert gate.turned_away > 4000


def test_where_nobody_tells_priorities_apart_all_share_alike() -> None:
    gate = shedding()
    gate.observe(0.0, 0.94)
    assert admitted(gate, low_priority=None) == pytest.approx(1 - gate.probability, abs=0.03)
    gate.observe(0.0, 0.95)
    assert admitted(gate, low_priority=None) == 0


def test_at_95_percent_memory_all_are_refused() -> None:
    gate = shedding()
    assert gate.observe(0.0, 0.95) == "refuse"
    assert admitted(gate) == admitted(gate, low_priority=True) == 0


def test_a_value_that_hovers_at_a_threshold_does_not_flap() -> None:
    gate = shedding()
    around_shed = [gate.observe(0.0, memory) for memory in (0.919, 0.921, 0.919, 0.921, 0.911, 0.909, 0.919)]
    assert around_shed == ["accept", *["shed"] * 4, "accept", "accept"]
    around_refuse = [gate.observe(0.0, memory) for memory in (0.951, 0.949, 0.941, 0.939, 0.949)]
    assert around_refuse == ["refuse", "refuse", "refuse", "shed", "shed"]


def test_a_loop_that_stays_late_sheds_and_then_refuses() -> None:
    gate = shedding()
    assert [gate.observe(1.5, 0.0) for _ in range(5)] == ["shed", "shed", "shed", "refuse", "refuse"]
    calming = [gate.observe(0.0, 0.0) for _ in range(10)]
    assert calming[0] == "shed"
    assert calming[-1] == "accept"


def test_one_hiccup_refuses_nobody_however_long_it_was() -> None:
    gate = shedding()
    levels = [gate.observe(3600.0, 0.0), *(gate.observe(0.0, 0.0) for _ in range(20))]
    assert "refuse" not in levels
    assert levels[-1] == "accept"


def test_the_worse_resource_decides() -> None:
    gate = shedding()
    for _ in range(50):
        gate.observe(2.0, 0.5)
    assert gate.level == "refuse"
    gate.observe(2.0, 0.93)
    assert gate.level == "refuse"


def test_those_turned_away_are_told_to_come_back_at_different_times() -> None:
    gate = shedding()
    gate.observe(0.0, 1.0)
    waits = {gate.retry_after() for _ in range(100)}
    assert len(waits) == 100
    assert all(1 <= wait <= 5 for wait in waits)


@given(values=st.lists(st.floats(0, 1.5), max_size=50))
def test_a_fuller_resource_never_sheds_less(values: list[float]) -> None:
    trigger, before = Trigger(0.92, 0.95), 0.0
    for value in values:
        found = trigger.probability(value, before)
        assert 0 <= found <= 1
        assert found <= trigger.probability(value + 0.001, before)
        assert (found == 1) >= (value >= 0.95)
        assert (found == 0) >= (value < 0.91)
        before = found
