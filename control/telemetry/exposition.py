"""The two formats of one sheet: Prometheus' text (version 0.0.4) and the JSON of /stats.

The text is written by prometheus_client, from a registry of our own: the global one belongs to whoever embeds us.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from .sheet import Histogram, Summary

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prometheus_client.core import Metric as PrometheusFamily

    from .sheet import Family

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def prometheus_text(families: Sequence[Family]) -> bytes:
    """The body of /metrics, with the standard metrics of this process at its end."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def stats_json(families: Iterable[Family], wanted: str = "") -> list[dict[str, Any]]:
    """One object a series. `wanted` keeps those that hold this text in their name or in a label."""
    found: list[dict[str, Any]] = []
    for metric, samples in families:
        for values, value in samples.items():
            if wanted and not any(wanted in text for text in (metric.name, *values)):
                continue
            one: dict[str, Any] = {"name": metric.name, "type": metric.kind}
            if values:
                one["labels"] = dict(zip(metric.labels, values, strict=True))
            if isinstance(value, Histogram):
                one |= {
                    "bounds": value.bounds,
                    "counts": value.counts,
                    "count": sum(value.counts),
                    "sum": value.total,
                }
            elif isinstance(value, Summary):
                one |= {"count": value.number, "sum": value.total}
            else:
                one["value"] = value
            found.append(one)
    return found


class _Families(Collector):
    """Families as prometheus_client wants them."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[PrometheusFamily]:
        return [_family(family) for family in self._families]


def _family(family: Family) -> PrometheusFamily:
    metric, samples = family
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, value in samples.items():
            if isinstance(value, Histogram):
                edges = [*map(repr, value.bounds), "+Inf"]
                histogram.add_metric(labels, list(zip(edges, accumulate(value.counts), strict=True)), value.total)
        return histogram
    if metric.kind == "summary":
        summary = SummaryMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, value in samples.items():
            if isinstance(value, Summary):
                summary.add_metric(labels, value.number, value.total)
        return summary
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    plain = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in samples.items():
        if not isinstance(value, Histogram | Summary):
            plain.add_metric(labels, value)
    return plain
