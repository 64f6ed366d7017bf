"""units: durations and sizes mean exactly what is written, and are written back the same."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.config.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("30s", 30), ("1.5s", 1.5), ("5m", 300), ("2h", 7200), ("30d", 2_592_000), ("0s", 0)],
)
def test_a_duration_is_a_number_and_its_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", None), ("512B", 512), ("64KiB", 65_536), ("1.5MiB", 1_572_864), ("1GiB", 1 << 30), ("2TiB", 2 << 40)],
)
def test_a_size_is_a_number_and_a_binary_unit(text: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(ValueError, match="like 32MiB"):
            parse_size(text)
    else:
        assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "s", "30", "30 s", " 30s", "30S", "-1s", "+1s", "1e3s", ".5s", "5.s", "1m30s", "٣s"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="like 30s"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "32M", "32MB", "32mib", "32 MiB", "-1B", "1e3B", "0x10B", "MiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="like 32MiB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0.0001ms", "0.0000001s"])
def test_a_duration_is_never_rounded(text: str) -> None:
    with pytest.raises(ValueError, match="whole number of microseconds"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["0.3B", "0.3KiB"])
def test_a_size_is_never_rounded(text: str) -> None:
    with pytest.raises(ValueError, match="whole number of bytes"):
        parse_size(text)


def test_what_no_machine_has_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 36500d"):
        parse_duration("36501d")
    with pytest.raises(ValueError, match="between 0 and"):
        parse_size("1048577TiB")


@given(st.timedeltas(min_value=timedelta(), max_value=timedelta(days=36_500)))
def test_a_duration_is_read_back_as_it_was_written(duration: timedelta) -> None:
    assert parse_duration(format_duration(duration)) == duration


@given(st.integers(min_value=0, max_value=1 << 60))
def test_a_size_is_read_back_as_it_was_written(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(0, 10_000), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_writing_chooses_the_largest_unit_that_divides(number: int, unit: str) -> None:
    written = format_duration(parse_duration(f"{number}{unit}"))
    assert len(written) <= len(f"{number}{unit}") + 1
    assert parse_duration(written) == parse_duration(f"{number}{unit}")


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_duration, parse_size):
        with suppress(ValueError):
            assert parse(text) is not None
