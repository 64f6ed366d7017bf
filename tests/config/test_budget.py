"""budget in the file: one limit or several, amounts that are exact, and every mistake by its name."""

from __future__ import annotations

import pytest

from headgate.config import BudgetConfig, ConfigError, parse_config


def settings(text: str) -> BudgetConfig:
    config = parse_config(f"filters: [{{budget: {{{text}}}}}]", env={}).filters[0].config
    assert isinstance(config, BudgetConfig)
    return config


def amounts(text: str) -> list[tuple[tuple[str, ...], dict[str, int]]]:
    return [(limit.per, limit.amounts) for limit in settings(text).written]


def test_one_limit_or_several_may_be_written() -> None:
    assert amounts("usd_per_month: 100") == [(("key",), {"month": 100 * 10**9})]
    assert amounts("limits: [{per: [model, team], usd_per_day: 0.1, usd_per_week: 1}, {usd_per_month: 2.5}]") == [
        (("team", "model"), {"day": 10**8, "week": 10**9}),
        (("key",), {"month": 2_500_000_000}),
    ]


def test_an_amount_is_whole_nano_dollars() -> None:
    for usd, nano in (("0.000001", 1000), ("9000000", 9 * 10**15), ("0.1", 10**8), ("1.23", 1_230_000_000)):
        assert amounts(f"usd_per_day: {usd}") == [(("key",), {"day": nano})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have an amount, such as usd_per_month"),
        ("per: team", "must have an amount, such as usd_per_month"),
        ("limits: [{per: team}]", "must have an amount, such as usd_per_month"),
        (
            "per: team, limits: [{usd_per_day: 1}]",
            "either limits, or one limit as it stands: per belongs",
        ),
        ("limits: [{usd_per_day: 1}, {per: key, usd_per_day: 2}]", "two limits with usd_per_day per key"),
        ("usd_per_day: 0", "must be at least"),
        ("usd_per_day: 10000000", "must be at most"),
        ("usd_per_day: 1, alerts: [80, 50]", "must be ascending percents"),
        ("usd_per_day: 1, alerts: [101]", "must be at most"),
        ("usd_per_day: 1, time_zone: Mars/Base", "must be a time zone this machine knows"),
        ("usd_per_day: 1, time_zone: ../etc/passwd", "must be a time zone this machine knows"),
        ("usd_per_day: 1, per: nobody", "must be"),
        ("usd_per_hour: 1", "unknown key"),
    ],
)
def test_a_mistake_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(text)
    assert message in str(caught.value)
