"""/clusters: every upstream address with its state and counters, in the lines that Envoy's operators know, or as JSON.

openai::https://api.openai.com:443::cx_active::3
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..clusters import host_name
from ..telemetry.bounds import clean

if TYPE_CHECKING:
    from ...config import EndpointConfig, GatewayConfig, Provider
    from ...proxy.snapshot import Resting, Snapshot

Checks = Mapping[tuple[str, str], Mapping[str, int]]
"""What active checks have counted, by provider and address."""
NO_CHECKS: Checks = MappingProxyType({})
FLAGS = (("failed_active_hc", "/failed_active_hc"), ("failed_outlier_check", "/failed_outlier_check"))
"""Gauge of a worker, and Envoy's word for it."""


def clusters_json(config: GatewayConfig, snapshot: Snapshot, checks: Checks = NO_CHECKS) -> dict[str, Any]:
    """All providers of the config, those that were never asked included, and those whose calls are running out."""
    counters = snapshot.counters
    statuses = []
    for name in dict.fromkeys((*config.providers, *counters.clusters)):
        provider = config.providers.get(name)
        written = {host_name(provider, place): place for place in provider.places} if provider is not None else {}
        seen = {address for cluster, address in (*snapshot.upstreams, *counters.endpoints) if cluster == name}
        statuses.append(
            {
                "name": name,
                "removed": provider is None,
                "unconfigured": provider is not None and provider.unconfigured,
                "limits": _limits(provider) if provider is not None else {},
                "stats": counters.clusters.get(name, {}),
                "resting_keys": [
                    {"key": key, "model": clean(model), **_rest(rest)}
                    for (cluster, key, model), rest in snapshot.keys.items()
                    if cluster == name
                ],
                "circuits": [
                    {"filter": link, "model": clean(model), **_rest(rest)}
                    for (link, cluster, model), rest in snapshot.targets.items()
                    if cluster == name
                ],
                "hosts": [
                    _host(
                        address,
                        written.get(address),
                        {**counters.endpoints.get((name, address), {}), **checks.get((name, address), {})},
                        snapshot.upstreams.get((name, address), {}),
                    )
                    for address in sorted(written.keys() | seen)
                ],
            }
        )
    return {"cluster_statuses": statuses}


def clusters_text(config: GatewayConfig, snapshot: Snapshot, checks: Checks = NO_CHECKS) -> str:
    """One line a value."""
    lines = []
    for cluster in clusters_json(config, snapshot, checks)["cluster_statuses"]:
        name = cluster["name"]
        lines += [f"{name}::{flag}::{str(cluster[flag]).lower()}" for flag in ("unconfigured", "removed")]
        lines += [f"{name}::default_priority::{key}::{value}" for key, value in cluster["limits"].items()]
        lines += [f"{name}::{key}::{value}" for key, value in sorted(cluster["stats"].items())]
        for rest in cluster["resting_keys"]:
            lines.append(f"{name}::resting_key::{rest['key']}::{rest['model'] or '*'}::{_left(rest)}")
        for rest in cluster["circuits"]:
            lines.append(f"{name}::circuit::{rest['filter']}::{rest['model']}::{_left(rest)}")
        for host in cluster["hosts"]:
            said = {key: value for key, value in host.items() if key not in ("address", "stats", "metadata")}
            said |= host["stats"] | {f"metadata::{key}": value for key, value in host["metadata"].items()}
            lines += [f"{name}::{host['address']}::{key}::{_shown(value)}" for key, value in sorted(said.items())]
    return "".join(f"{line}\n" for line in lines)


def _rest(rest: Resting) -> dict[str, Any]:
    return {"state": rest.why, "seconds": rest.seconds, "workers": rest.workers}


def _left(rest: Mapping[str, Any]) -> str:
    return f"{rest['state']}::{rest['seconds']:g}"


def _limits(provider: Provider) -> dict[str, int]:
    """Over all workers."""
    limits = provider.limits
    told = {
        "max_connections": limits.connections,
        "max_pending_requests": limits.pending,
        "max_requests": limits.requests,
    }
    return told if limits.tokens is None else told | {"max_tokens": limits.tokens}


def _host(address: str, place: EndpointConfig | None, counts: dict[str, int], gauges: dict[str, int]) -> dict[str, Any]:
    """`health`: `healthy`, or why it is not used, by any worker's word."""
    stats = counts | {name: value for name, value in gauges.items() if name not in dict(FLAGS)}
    return {
        "address": address,
        "removed": place is None,
        "health": "".join(word for gauge, word in FLAGS if gauges.get(gauge)) or "healthy",
        "weight": place.weight if place is not None else 0,
        "priority": place.priority if place is not None else 0,
        "region": (place.region or "") if place is not None else "",
        "metadata": dict(place.metadata) if place is not None else {},
        "stats": stats,
    }


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
