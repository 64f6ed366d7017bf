"""periods: every moment lies in exactly one day, week and month, which follow each other without a gap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.filters.periods import UNITS, Calendar
from headgate.filters.stores.rules import PERIODS

ZONES = ("UTC", "Europe/Berlin", "America/Sao_Paulo", "Pacific/Apia")
NOVEMBER_20 = 1_795_192_200.0
"""2026-11-20 16:30 UTC, a Friday."""


@pytest.mark.parametrize(
    ("unit", "name", "start", "until"),
    [
        ("day", "2026-11-20", 1_795_132_800, 1_795_219_200),
        ("week", "2026-W47", 1_794_787_200, 1_795_392_000),
        ("month", "2026-11", 1_793_491_200, 1_796_083_200),
    ],
)
def test_a_period_has_the_name_of_the_calendar_and_its_ends(unit: str, name: str, start: int, until: int) -> None:
    assert Calendar().at(unit, NOVEMBER_20) == (name, start, until)


def test_a_zone_moves_the_ends_and_keeps_the_name() -> None:
    berlin, utc = Calendar("Europe/Berlin").at("month", NOVEMBER_20), Calendar().at("month", NOVEMBER_20)
    assert (berlin.name, berlin.until) == (utc.name, utc.until - 3600)


def test_a_week_belongs_to_the_year_that_has_most_of_it() -> None:
    assert Calendar().at("week", 1_798_761_600.0).name == "2026-W53"


def test_a_clock_that_goes_back_finds_the_period_before() -> None:
    calendar = Calendar()
    after = calendar.at("day", NOVEMBER_20 + 86_400)
    before = calendar.at("day", NOVEMBER_20)
    assert (before.name, after.name, before.until) == ("2026-11-20", "2026-11-21", after.start)


@given(st.sampled_from(ZONES), st.sampled_from(UNITS), st.floats(0, 4e9))
def test_periods_follow_each_other_and_none_outlasts_its_meter(zone: str, unit: str, wall: float) -> None:
    calendar = Calendar(zone)
    period = calendar.at(unit, wall)
    assert period.start <= wall < period.until
    assert period.until - period.start < PERIODS[unit]
    after = calendar.at(unit, float(period.until))
    assert after.start == period.until
    assert after.name != period.name
