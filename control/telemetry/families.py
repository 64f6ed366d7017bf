"""From what workers told to the samples of every metric.

Pure: the same samples become Prometheus' text and the JSON of /stats (exposition.py).
"""

from __future__ import annotations

from platform import python_version
from typing import TYPE_CHECKING, Final, NamedTuple

from ...proxy.snapshot import NOTHING, ModelCounters
from ...proxy.stats import DURATION_BOUNDS, OTHER, STORE_BOUNDS, TTFT_BOUNDS
from . import catalog
from .bounds import Places, clean
from .sheet import Histogram, Sheet, Summary

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ...proxy.snapshot import Snapshot
    from .catalog import Metric
    from .sheet import Family, Labels

# Lines for each place: 39 for both histograms, 6 for tokens and cost, 38 for a provider, 2 for auth, 5 for a worker,
# and 16 for Redis. 16*39 + 48*6 + 60 + 20*38 + 8*2 + 96 + 8 + 16*5 + 16 = 1948, and some 40 more have no labels.
HISTOGRAM_PLACES: Final = 16
MODEL_PLACES: Final = 48
EXCHANGE_PLACES: Final = 60
PROVIDER_PLACES: Final = 20
AUTH_PLACES: Final = 8
FILTER_PLACES: Final = 96
ALERT_PLACES: Final = 8
SHOWN_WORKERS: Final = 16


class Observed(NamedTuple):
    """Everything there is to tell, at one moment."""

    snapshot: Snapshot
    workers: Sequence[Snapshot]
    version: str
    started: float
    ready: bool
    warnings: int
    control: Mapping[str, int]
    """The counters of `ControlStats`."""
    ledger: Mapping[str, int]
    """rows, lost, dead_letters, errors, trimmed, up; empty where no records are kept"""
    auth_filters: frozenset[str]
    """Names of the filters of the kind `auth`."""
    checks: Mapping[tuple[str, str], Mapping[str, int]] = {}
    """What active checks have counted, by provider and address."""
    alerts: Mapping[tuple[str, int], int] = {}
    """Alerts so far, by the place of a budget and percent."""


class Telemetry:
    """Makes samples. It remembers which names have a place; keep one for the life of the process."""

    def __init__(self) -> None:
        self._histograms = Places(HISTOGRAM_PLACES)
        self._models = Places(MODEL_PLACES)
        self._exchanges = Places(EXCHANGE_PLACES)
        self._providers = Places(PROVIDER_PLACES)
        self._auth = Places(AUTH_PLACES)
        self._filters = Places(FILTER_PLACES)
        self._alerts = Places(ALERT_PLACES)

    def families(self, observed: Observed) -> list[Family]:
        """Every metric that has a sample, in the order of the catalog."""
        sheet = Sheet()
        _gateway(sheet, observed)
        _workers(sheet, observed.workers)
        _stores(sheet, observed.snapshot)
        self._count_exchanges(sheet, observed.snapshot)
        self._count_models(sheet, observed.snapshot)
        self._count_upstreams(sheet, observed)
        self._count_filters(sheet, observed)
        return sheet.families()

    def _count_exchanges(self, sheet: Sheet, snapshot: Snapshot) -> None:
        for (endpoint, outcome, status), count in snapshot.counters.exchanges.items():
            labels = self._exchanges.place((clean(endpoint), clean(outcome), str(status) if status else OTHER))
            sheet.add("headgate_exchanges_total", count, *labels)

    def _count_models(self, sheet: Sheet, snapshot: Snapshot) -> None:
        # Where not all find a place at once, the most used come first.
        models = sorted(snapshot.counters.models.items(), key=lambda item: -sum(item[1].duration.counts))
        for labels, model in _grouped(models, self._histograms).items():
            for name, bounds, told in (
                ("gen_ai_server_request_duration_seconds", DURATION_BOUNDS, model.duration),
                ("gen_ai_server_time_to_first_token_seconds", TTFT_BOUNDS, model.ttft),
            ):
                if any(told.counts):
                    sheet.put(name, Histogram(bounds, told.counts, told.total), *labels)
        for labels, model in _grouped(models, self._models).items():
            if model.answers:
                sheet.put("gen_ai_client_token_usage", Summary(model.answers, model.tokens_in), *labels, "input")
                sheet.put("gen_ai_client_token_usage", Summary(model.answers, model.tokens_out), *labels, "output")
                sheet.add("headgate_cost_usd_total", model.cost_usd, *labels)
                sheet.add("headgate_unknown_cost_total", model.unknown_cost, *labels)

    def _count_upstreams(self, sheet: Sheet, observed: Observed) -> None:
        snapshot, counters = observed.snapshot, observed.snapshot.counters
        for provider, counts in counters.clusters.items():
            _add_table(sheet, catalog.CLUSTER, counts, self._providers.place((clean(provider),)))
        for (provider, _), counts in counters.endpoints.items():
            _add_table(sheet, catalog.ENDPOINT, counts, self._providers.place((clean(provider),)))
        for (provider, _), gauges in snapshot.upstreams.items():
            _add_table(sheet, catalog.GAUGES, gauges, self._providers.place((clean(provider),)))
        for (provider, _), checks in observed.checks.items():
            _add_table(sheet, catalog.CHECKS, checks, self._providers.place((clean(provider),)))
        for provider in counters.clusters:
            labels = self._providers.place((clean(provider),))
            resting = sum(rest.workers for (where, _, _), rest in snapshot.keys.items() if where == provider)
            circuits = sum(rest.workers for (_, where, _), rest in snapshot.targets.items() if where == provider)
            sheet.add(catalog.RESTING_KEYS.name, resting, *labels)
            sheet.add(catalog.CIRCUITS.name, circuits, *labels)

    def _count_filters(self, sheet: Sheet, observed: Observed) -> None:
        for name, counts in observed.snapshot.counters.filters.items():
            if name in observed.auth_filters:
                _add_table(sheet, catalog.AUTH, counts, self._auth.place((clean(name),)))
                continue
            for counter, value in counts.items():
                sheet.add("headgate_filter_total", value, *self._filters.place((clean(name), clean(counter))))
        for (name, percent), count in observed.alerts.items():
            sheet.add("headgate_budget_alerts_total", count, *self._alerts.place((clean(name), str(percent))))


def _gateway(sheet: Sheet, observed: Observed) -> None:
    """What has no names from outside."""
    snapshot = observed.snapshot
    counters = snapshot.counters
    sheet.add("headgate_build_info", 1, observed.version, python_version())
    sheet.add("headgate_config_info", 1, snapshot.config)
    sheet.add("headgate_start_time_seconds", observed.started)
    sheet.add("headgate_ready", observed.ready)
    sheet.add("headgate_warnings", observed.warnings)
    sheet.add("headgate_config_reloads_total", observed.control["reloads"], "applied")
    sheet.add("headgate_config_reloads_total", observed.control["reloads_refused"], "refused")
    sheet.add("headgate_worker_restarts_total", observed.control["worker_restarts"])
    sheet.add("headgate_workers_hung_total", observed.control["workers_hung"])
    sheet.add("headgate_worker_replacements_total", observed.control["replacements"], "done")
    sheet.add("headgate_worker_replacements_total", observed.control["replacements_aborted"], "aborted")
    sheet.add("headgate_exchanges_active", snapshot.live)
    sheet.add("headgate_websockets_active", snapshot.websockets)
    sheet.add("headgate_edge_connections", snapshot.connections)
    sheet.add("headgate_spool_full", snapshot.spool_full)
    sheet.add("headgate_workers", len(observed.workers))
    _add_table(sheet, catalog.ENGINE, counters.engine)
    _add_table(sheet, catalog.EDGE, counters.edge)
    _add_table(sheet, catalog.SPOOL, counters.spool)
    if observed.ledger:
        _add_table(sheet, catalog.LEDGER, observed.ledger)
        sheet.add("headgate_ledger_up", observed.ledger["up"])


def _workers(sheet: Sheet, workers: Sequence[Snapshot]) -> None:
    """A gauge of several workers under one name (the old and the new one of a replacement) is their sum."""
    for one in workers[:SHOWN_WORKERS]:
        name = clean(one.worker)
        sheet.add("headgate_worker_ready", one.ready, name)
        sheet.add("headgate_worker_exchanges_active", one.live, name)
        sheet.add("headgate_worker_resident_memory_bytes", one.rss_bytes, name)
        if one.memory_ratio is not None:
            sheet.add("headgate_worker_memory_ratio", round(one.memory_ratio, 4), name)
        if one.loop_lag is not None:
            sheet.add("headgate_worker_loop_lag_seconds", one.loop_lag, name)


def _stores(sheet: Sheet, snapshot: Snapshot) -> None:
    """Their names are ours."""
    for name, counters in snapshot.counters.stores.items():
        sheet.add("headgate_store_up", snapshot.stores.get(name, 0), name)
        for result in catalog.STORE_COMMANDS:
            sheet.add("headgate_store_commands_total", getattr(counters, result), name, result)
        sheet.add("headgate_store_opened_total", counters.opened, name)
        latency = counters.latency
        sheet.put("headgate_store_seconds", Histogram(STORE_BOUNDS, latency.counts, latency.total), name)


def _add_table(sheet: Sheet, table: Mapping[str, Metric], counts: Mapping[str, int], labels: Labels = ()) -> None:
    for attribute, metric in table.items():
        sheet.add(metric.name, counts.get(attribute, 0), *labels)


def _grouped(
    models: Iterable[tuple[tuple[str, str, str], ModelCounters]], places: Places
) -> dict[Labels, ModelCounters]:
    """Models under the labels that they have a place for."""
    grouped: dict[Labels, ModelCounters] = {}
    for (endpoint, provider, model), counters in models:
        labels = places.place((clean(endpoint), clean(provider), clean(model)))
        grouped.setdefault(labels, ModelCounters()).grow(counters, NOTHING)
    return grouped
