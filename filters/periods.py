"""Calendar periods: which day, week or month it is, and until when.

A period is known by its name (`2026-11-20`, `2026-W47`, `2026-11`), so a change of the time zone moves its ends and
keeps what was counted in it. Pure: the time is an argument.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

UNITS: Final = ("day", "week", "month")


class Period(NamedTuple):
    """From `start` to before `until`, in Unix seconds."""

    name: str
    start: int
    until: int


class Calendar:
    """Periods in a time zone. Remembers the current ones: a look costs two comparisons."""

    __slots__ = ("_known", "_zone")

    def __init__(self, zone: str = "UTC") -> None:
        self._zone: tzinfo = UTC if zone == "UTC" else ZoneInfo(zone)
        self._known: dict[str, Period] = {}

    def at(self, unit: str, wall: float) -> Period:
        """The `unit` that holds the Unix time `wall`."""
        known = self._known.get(unit)
        if known is None or not known.start <= wall < known.until:
            known = self._known[unit] = self._find(unit, wall)
        return known

    def _find(self, unit: str, wall: float) -> Period:
        day = datetime.fromtimestamp(wall, self._zone).date()
        if unit == "day":
            first, name, after = day, day.isoformat(), day + timedelta(days=1)
        elif unit == "week":
            first = day - timedelta(days=day.weekday())
            year, week, _ = day.isocalendar()
            name, after = f"{year}-W{week:02d}", first + timedelta(days=7)
        else:
            first = day.replace(day=1)
            name, after = f"{day:%Y-%m}", (first + timedelta(days=31)).replace(day=1)
        return Period(name, self._midnight(first), self._midnight(after))

    def _midnight(self, day: date) -> int:
        """When the day begins; where the clock skips midnight, the moment it does."""
        return int(datetime(day.year, day.month, day.day, tzinfo=self._zone).timestamp())
