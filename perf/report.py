"""From rounds to a table: medians with their spread, and ratios taken within each round."""

import dataclasses
import datetime
import math
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

README = Path(__file__).parent / "README.md"
MEASURE = "envoy"


class Described(Protocol):
    @property
    def version(self) -> str: ...


@dataclass(frozen=True)
class Round:
    """What one gateway showed in one round. Times are CPU times but for latencies (s) and `ready_ms`.

    `busy` is the share of its core that the gateway used; below 0.9 it was not pressed hard. `foreign` is the share
    that others used of that core meanwhile. `rig_busy` is the share of the other core that the two ends used.
    """

    request_us: float
    requests_per_s: float
    event_us: float
    lone_event_us: float
    stream_us: float
    events_per_s: float
    latencies: list[float]
    pss_mb: float
    ready_ms: float
    busy: float
    busy_streams: float
    rig_busy: float
    foreign: float
    failed: int
    stalls: int

    def line(self) -> str:
        return (
            f"{self.request_us:9.1f} µs/request {self.event_us:7.1f} µs/event (lone {self.lone_event_us:6.1f}) "
            f"{self.stream_us:8.1f} µs/stream "
            f"{self.requests_per_s:6.0f}/s busy {self.busy:4.0%} {self.busy_streams:4.0%} rig {self.rig_busy:4.0%} "
            f"foreign {self.foreign:4.0%} {self.pss_mb:6.1f} MB ready {self.ready_ms:6.0f} ms"
            + (f" FAILED {self.failed}" if self.failed else "")
            + (f" stalls {self.stalls}" if self.stalls else "")
        )


def endpoints(rounds: Mapping[str, Sequence[float]]) -> str:
    """Microseconds of CPU per request, and the ratio to the first one, taken within each round."""
    first = next(iter(rounds.values()))
    lines = ["| endpoint | µs/request | ratio |", "|---|---|---|"]
    for path, figures in rounds.items():
        ratios = [own / measure for own, measure in zip(figures, first, strict=True)]
        lines.append(
            f"| `{path}` | {statistics.median(figures):.1f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    return "\n".join(lines)


def filters(rounds: Mapping[str, Sequence[float]]) -> str:
    """Microseconds of CPU per request of each chain, what that is more than the first chain of ours, and the ratio to
    Envoy, both taken within each round."""
    envoy = rounds.get(MEASURE)
    base = next(figures for name, figures in rounds.items() if name != MEASURE)
    lines = [f"| chain | µs/request | more than the first | x {MEASURE} |", "|---|---|---|---|"]
    for name, figures in rounds.items():
        more = [own - less for own, less in zip(figures, base, strict=True)]
        times = [own / measure for own, measure in zip(figures, envoy or (), strict=False)]
        more_text = "" if name == MEASURE else f"{statistics.median(more):+.1f}"
        lines.append(f"| {name} | {_spread(figures, 1)} | {more_text} | {_spread(times, 2)} |")
    return "\n".join(lines)


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least q of all do not exceed; nan of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)] if ordered else math.nan


def ratios(mine: Sequence[Round], theirs: Sequence[Round], value: Callable[[Round], float]) -> list[float]:
    """Round by round, mine over theirs; rounds that one of them lacks, or could not be measured in, do not count."""
    return [value(a) / value(b) for a, b in zip(mine, theirs, strict=False) if value(b) > 0]


def _spread(values: Sequence[float], digits: int) -> str:
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return "-"
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def table(rounds: Mapping[str, Sequence[Round]], described: Mapping[str, Described], rate: float) -> str:
    """Markdown: one line per gateway, median (minimum-maximum) over the rounds."""
    heads = [
        "gateway",
        "µs/request",
        f"x {MEASURE}",
        "µs/event",
        f"x {MEASURE}",
        "µs/lone event",
        f"x {MEASURE}",
        "µs/stream",
        "p50 ms",
        "p99 ms",
        "PSS MB",
        "ready ms",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    base = rounds.get(MEASURE, [])
    for name, mine in rounds.items():
        if name == "direct":
            continue
        latencies = [latency * 1e3 for r in mine for latency in r.latencies]
        cells = [
            f"{name} {described[name].version}",
            _spread([r.request_us for r in mine], 1),
            _spread(ratios(mine, base, lambda r: r.request_us), 2),
            _spread([r.event_us for r in mine], 1),
            _spread(ratios(mine, base, lambda r: r.event_us), 2),
            _spread([r.lone_event_us for r in mine], 1),
            _spread(ratios(mine, base, lambda r: r.lone_event_us), 2),
            f"{statistics.median(r.stream_us for r in mine):,.0f}",
            f"{quantile(latencies, 0.5):.2f}",
            f"{quantile(latencies, 0.99):.2f}",
            f"{statistics.median(r.pss_mb for r in mine):.0f}",
            f"{statistics.median(r.ready_ms for r in mine):,.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + _remarks(rounds, rate)


def _remarks(rounds: Mapping[str, Sequence[Round]], rate: float) -> str:
    count = max((len(mine) for mine in rounds.values()), default=0)
    lines = [f"Median (minimum-maximum) of {count} rounds; latency at {rate:g} requests/s."]
    lines += [
        f"The rig alone: {direct.requests_per_s:,.0f} requests/s, {direct.events_per_s:,.0f} events/s, latency p50 "
        f"{quantile(direct.latencies, 0.5) * 1e3:.2f} ms, p99 {quantile(direct.latencies, 0.99) * 1e3:.2f} ms."
        for direct in rounds.get("direct", [])
    ]
    for name, mine in rounds.items():
        if name == "direct":
            continue
        busy = statistics.median(r.busy + r.foreign for r in mine)
        if busy < 0.85:
            lines.append(
                f"{name}: its core was only {busy:.0%} busy, so it was not pressed hard and batches less than it could."
            )
        if failed := sum(r.failed for r in mine):
            lines.append(f"{name}: {failed} exchanges failed.")
        if stalls := sum(r.stalls for r in mine):
            lines.append(f"{name}: held an event back {stalls} times.")
    foreign = (
        statistics.median(r.foreign for name, mine in rounds.items() if name != "direct" for r in mine)
        if len(rounds) > 1
        else 0.0
    )
    lines.append(f"Others used {max(0.0, foreign):.0%} of the gateway's core meanwhile.")
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Processor, kernel and interpreter of this machine, and the day."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "?",
    )
    return (
        f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, CPython {platform.python_version()}, "
        f"{datetime.datetime.now(tz=datetime.UTC).date()}"
    )


def as_json(rounds: Mapping[str, Sequence[Round]]) -> dict[str, object]:
    return {
        "machine": machine(),
        "rounds": {name: [dataclasses.asdict(r) for r in mine] for name, mine in rounds.items()},
    }


def save(block: str, text: str, path: Path = README) -> None:
    """Replaces what stands between `<!-- block -->` and `<!-- /block -->` of the page."""
    page = path.read_text()
    start, end = f"<!-- {block} -->\n", f"<!-- /{block} -->"
    if start not in page or end not in page:
        raise ValueError(f"{path} has no block {block!r}")
    before, _, rest = page.partition(start)
    path.write_text(before + start + text.rstrip() + "\n" + rest[rest.index(end) :])
