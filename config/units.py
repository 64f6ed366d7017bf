"""Durations and sizes as people write them: `250ms`, `30s`, `5m`, `30d`; `64KiB`, `32MiB`, `1GiB`.

Exact both ways: what is no whole microsecond or byte is refused, never rounded, and
`format_x(parse_x(text))` means the same as `text`. A duration needs its unit, because a bare 30 is
read as seconds by one operator and as milliseconds by the next; a bare size is bytes.
"""

import re
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction
from typing import Final

_NUMBER = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)([A-Za-z]+)")

_MICROSECONDS: Final = {
    "d": 86_400_000_000,
    "h": 3_600_000_000,
    "m": 60_000_000,
    "s": 1_000_000,
    "ms": 1_000,
}
_BYTES: Final = {"TiB": 1 << 40, "GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}
_LONGEST: Final = timedelta(days=36_500)
_LARGEST: Final = 1 << 60


def parse_duration(text: str) -> timedelta:
    """`30s` as a timedelta. Raises ValueError that says what a duration looks like."""
    amount = _amount(text, _MICROSECONDS)
    if amount is None:
        raise ValueError("must be a duration with its unit (ms, s, m, h, d), like 30s")
    if amount.denominator != 1:
        raise ValueError("a duration is a whole number of microseconds")
    if amount > _LONGEST // timedelta(microseconds=1):
        raise ValueError("a duration is at most 36500d")
    return timedelta(microseconds=int(amount))


def parse_moment(text: str) -> datetime:
    """`2026-12-31T18:00:00+01:00` as a datetime; a date alone is the end of that day in UTC. Raises ValueError."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        pass  # perhaps it has a time, too
    else:
        return datetime.combine(day, time.max, UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError("must be a date like 2026-12-31, or with time and zone, like 2026-12-31T18:00:00Z")
    return moment


def parse_size(text: str) -> int:
    """`32MiB` as bytes. Raises ValueError that says what a size looks like."""
    amount = _amount(text, _BYTES)
    if amount is None:
        raise ValueError("must be a size in bytes or with its unit (B, KiB, MiB, GiB, TiB), like 32MiB")
    if amount.denominator != 1:
        raise ValueError("a size is a whole number of bytes")
    return checked_size(int(amount))


def checked_size(size: int) -> int:
    """`size` itself. Raises ValueError where it is negative or beyond 2^60."""
    if not 0 <= size <= _LARGEST:
        raise ValueError("a size is between 0 and 1048576TiB")
    return size


def format_duration(duration: timedelta) -> str:
    """In the largest unit that divides it, as it would be written."""
    left = duration // timedelta(microseconds=1)
    if left == 0:
        return "0s"
    for unit, factor in _MICROSECONDS.items():
        if left % factor == 0:
            return f"{left // factor}{unit}"
    return f"{left // 1000}.{left % 1000:03}ms"


def format_size(size: int) -> str:
    """In the largest unit that divides it, as it would be written."""
    unit, factor = next(item for item in _BYTES.items() if size % item[1] == 0) if size else ("B", 1)
    return f"{size // factor}{unit}"


def _amount(text: str, units: dict[str, int]) -> Fraction | None:
    found = _NUMBER.fullmatch(text)
    if found is None or found[2] not in units:
        return None
    return Fraction(found[1]) * units[found[2]]
