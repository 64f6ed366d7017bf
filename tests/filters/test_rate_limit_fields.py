"""rate_limit_fields: OpenAI's three fields, and its spelling of durations."""

from __future__ import annotations

import pytest

from headgate.filters.rate_limit_fields import MOST_NAMES, duration, is_kept, limit_fields
from headgate.filters.stores.rules import Report


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        (-1, b"0s"), (0, b"0s"), (1, b"1ms"), (20_000, b"20ms"), (20_001, b"21ms"), (999_000, b"999ms"),
        (999_001, b"1s"), (1_000_000, b"1s"), (1_000_001, b"2s"), (59_999_999, b"1m0s"), (360_000_000, b"6m0s"),
        (3_600_000_000, b"1h0m0s"), (86_399_000_000, b"23h59m59s"),
    ],
)  # fmt: skip
def test_a_duration_is_rounded_up(microseconds: int, text: bytes) -> None:
    assert duration(microseconds) == text


def test_any_number_of_names_is_told_apart() -> None:
    names = [b"x-ratelimit-%d" % n if n % 2 else b"ratelimit-%d" % n for n in range(3 * MOST_NAMES)]
    for _ in range(2):
        assert [name for name in names if is_kept[name]] == names[::2]
    assert len(is_kept) <= MOST_NAMES


def test_the_fields_tell_limit_rest_and_reset() -> None:
    assert limit_fields(b"tokens", Report(100, 7, 61_000_000), 1_000_000) == [
        (b"x-ratelimit-limit-tokens", b"100"),
        (b"x-ratelimit-remaining-tokens", b"7"),
        (b"x-ratelimit-reset-tokens", b"1m0s"),
    ]
