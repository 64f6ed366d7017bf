"""Samples of metrics, before anybody has decided on a format."""

from __future__ import annotations

from typing import NamedTuple

from .catalog import BY_NAME, CATALOG, Metric

Labels = tuple[str, ...]


class Histogram(NamedTuple):
    """`bounds` are upper bounds; `counts` has one bucket more, which has none."""

    bounds: tuple[float, ...]
    counts: list[int]
    total: float


class Summary(NamedTuple):
    """How many were observed, and their sum."""

    number: int
    total: float


Value = float | Histogram | Summary
Family = tuple[Metric, dict[Labels, Value]]


class Sheet:
    """Takes samples of the catalog's metrics in any order."""

    __slots__ = ("_numbers", "_shapes")

    def __init__(self) -> None:
        self._numbers: dict[str, dict[Labels, float]] = {}
        self._shapes: dict[str, dict[Labels, Histogram | Summary]] = {}

    def add(self, name: str, value: float, *labels: str) -> None:
        """Add to a counter or gauge."""
        if len(labels) != len(BY_NAME[name].labels):
            raise ValueError(f"{name} takes the labels {BY_NAME[name].labels}")
        numbers = self._numbers.setdefault(name, {})
        numbers[labels] = numbers.get(labels, 0.0) + value

    def put(self, name: str, value: Histogram | Summary, *labels: str) -> None:
        """Set a histogram or summary."""
        if len(labels) != len(BY_NAME[name].labels):
            raise ValueError(f"{name} takes the labels {BY_NAME[name].labels}")
        self._shapes.setdefault(name, {})[labels] = value

    def families(self) -> list[Family]:
        """Every metric that has a sample, in the order of the catalog."""
        return [
            (metric, {**self._numbers.get(metric.name, {}), **self._shapes.get(metric.name, {})})
            for metric in CATALOG
            if metric.name in self._numbers or metric.name in self._shapes
        ]
