"""What the engine counts: plain ints, one writer, no locks and no labels until somebody reads.

A Prometheus client's `labels().inc()` costs 1 µs each; an int in a dict costs a tenth, so /metrics is put together when
it is asked for (control/). Every dict whose key holds a name from outside is bounded: what is above the cap counts as
`other`.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .exchange import Exchange

MAX_SERIES = 1000
OTHER = "other"
DURATION_BOUNDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
STORE_BOUNDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)
"""Seconds for one question to a store; a decision has 0.005."""
TTFT_BOUNDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    15.0,
    30.0,
    60.0,
)
"""Seconds; the boundaries of OpenTelemetry's `gen_ai.server.request.duration` and
`gen_ai.server.time_to_first_token`."""


class Histogram:
    """Counts per bucket, the last one unbounded, and the sum."""

    __slots__ = ("bounds", "buckets", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.buckets[bisect_left(self.bounds, value)] += 1
        self.total += value


class Series:
    """What is counted for one (endpoint, provider, model)."""

    __slots__ = ("answers", "cost_usd", "duration", "tokens_in", "tokens_out", "ttft", "unknown_cost")

    def __init__(self) -> None:
        self.answers = 0
        """Those with usage, reported or estimated; the others have no tokens and no cost."""
        self.tokens_in = 0
        self.tokens_out = 0
        self.cost_usd = 0.0
        self.unknown_cost = 0
        self.duration = Histogram(DURATION_BOUNDS)
        self.ttft = Histogram(TTFT_BOUNDS)


class Stats:
    """Counters of one engine since it started."""

    __slots__ = ("exchanges", "internal_errors", "refused_by_auth", "retries", "series", "turned_away")

    def __init__(self) -> None:
        self.exchanges: dict[tuple[str, str, int], int] = {}
        """(endpoint, outcome, status) -> exchanges that are over; above the bound the status is 0, for any other."""
        self.series: dict[tuple[str, str, str], Series] = {}
        """(endpoint, provider, upstream model) -> what their answers used."""
        self.refused_by_auth = 0
        self.turned_away = 0
        self.retries = 0
        self.internal_errors = 0

    def count(self, ex: Exchange, now: float) -> None:
        """An exchange is over."""
        face, attempt = ex.face.name, ex.attempt
        outcome: tuple[str, str, int] = (face, ex.outcome, ex.status)
        try:
            self.exchanges[outcome] += 1
        except KeyError:
            self._count_first(outcome)
        if attempt is None:
            return
        target, started = attempt.target, ex.started
        key = (face, target.cluster.name, target.model)
        series = self.series.get(key)
        if series is None:
            series = self._new_series(key, ex)
        seconds, taken = series.duration, now - started
        seconds.buckets[bisect_left(DURATION_BOUNDS, taken)] += 1
        seconds.total += taken
        if ex.first_token_at is not None:
            series.ttft.observe(ex.first_token_at - started)
        usage = ex.usage
        if usage is not None and usage.source != "none":
            series.answers += 1
            series.tokens_in += usage.prompt_tokens
            series.tokens_out += usage.completion_tokens
            if ex.cost_usd is not None:
                series.cost_usd += ex.cost_usd
            else:
                series.unknown_cost += 1

    def _count_first(self, outcome: tuple[str, str, int]) -> None:
        outcome = bounded(self.exchanges, outcome)
        self.exchanges[outcome] = self.exchanges.get(outcome, 0) + 1

    def _new_series(self, key: tuple[str, str, str], ex: Exchange) -> Series:
        """A name that clients made up gets a series of its own with its first answer: no flood of them fills the
        table."""
        answered = ex.usage is not None and ex.usage.source != "none"
        if len(self.series) >= MAX_SERIES or not (answered or ex.model in ex.graph.models.names()):
            key = (key[0], key[1], OTHER)
        return self.series.setdefault(key, Series())


def bounded(exchanges: Mapping[tuple[str, str, int], int], new: tuple[str, str, int]) -> tuple[str, str, int]:
    """Under which key to count what is not there yet: providers may answer with any status."""
    return new if len(exchanges) < MAX_SERIES else (new[0], new[1], 0)
