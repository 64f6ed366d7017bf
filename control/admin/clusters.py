"""/clusters: every upstream address with its counters, in the lines that Envoy's operators know, or as JSON.

openai::https://api.openai.com:443::cx_active::3
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...config import GatewayConfig
    from ...proxy.snapshot import Snapshot


def clusters_json(config: GatewayConfig, snapshot: Snapshot) -> dict[str, Any]:
    """All providers of the config, those that were never asked included, and those whose calls are running out."""
    counters = snapshot.counters
    statuses = []
    for name in dict.fromkeys((*config.providers, *counters.clusters)):
        provider = config.providers.get(name)
        addresses = sorted(
            {address for cluster, address in (*snapshot.upstreams, *counters.endpoints) if cluster == name}
        )
        statuses.append(
            {
                "name": name,
                "removed": provider is None,
                "unconfigured": provider is not None and provider.unconfigured,
                "stats": counters.clusters.get(name, {}),
                "hosts": [
                    {
                        "address": address,
                        "stats": counters.endpoints.get((name, address), {})
                        | snapshot.upstreams.get((name, address), {}),
                    }
                    for address in addresses
                ],
            }
        )
    return {"cluster_statuses": statuses}


def clusters_text(config: GatewayConfig, snapshot: Snapshot) -> str:
    """One line a value."""
    lines = []
    for cluster in clusters_json(config, snapshot)["cluster_statuses"]:
        name = cluster["name"]
        lines += [f"{name}::{flag}::{str(cluster[flag]).lower()}" for flag in ("unconfigured", "removed")]
        lines += [f"{name}::{key}::{value}" for key, value in sorted(cluster["stats"].items())]
        for host in cluster["hosts"]:
            lines += [f"{name}::{host['address']}::{key}::{value}" for key, value in sorted(host["stats"].items())]
    return "".join(f"{line}\n" for line in lines)
