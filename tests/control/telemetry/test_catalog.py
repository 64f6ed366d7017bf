"""catalog: every counter of the product has a metric, and every metric a line in docs/admin.md."""

from __future__ import annotations

import re
from pathlib import Path

from headgate.control.admin.app import endpoints
from headgate.control.telemetry import catalog
from headgate.control.telemetry.catalog import BY_NAME, CATALOG
from headgate.proxy.edge.context import EdgeStats
from headgate.proxy.observe import CLUSTER_COUNTERS, GAUGES, HOST_GAUGES
from headgate.proxy.upstream.stats import UpstreamStats
from tests_support.admin import running_admin

DOCS = Path(__file__).resolve().parents[3] / "docs" / "admin.md"
BEGIN, END = "<!-- metrics: made from control/telemetry/catalog.py -->", "<!-- end of metrics -->"


def metric_table() -> str:
    """The table of docs/admin.md as it should be."""
    rows = [
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.help} |"
        for metric in CATALOG
    ]
    return "\n".join(["| metric | kind | labels | what |", "|---|---|---|---|", *rows])


def test_names_are_unique_and_well_formed() -> None:
    assert len(BY_NAME) == len(CATALOG)
    for metric in CATALOG:
        assert re.fullmatch(r"(headgate|gen_ai)(_[a-z0-9]+)+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert all(re.fullmatch(r"[a-z_]+", label) for label in metric.labels)
        assert metric.help.endswith(".")


def test_every_counter_of_the_edge_has_a_metric() -> None:
    assert set(catalog.EDGE) == set(EdgeStats.__slots__)


def test_every_counter_of_the_upstream_has_a_metric() -> None:
    assert set(catalog.CLUSTER) == set(CLUSTER_COUNTERS)
    assert set(catalog.GAUGES) == {*GAUGES, *HOST_GAUGES}
    # Requests are counted as attempts, by the cluster.
    assert set(catalog.ENDPOINT) | set(GAUGES) | {"rq_total"} == set(UpstreamStats.__slots__)


async def test_the_docs_show_every_endpoint() -> None:
    text = DOCS.read_text()
    async with running_admin() as admin:
        missing = [row for row in endpoints(admin.view) if f"`{row.method} {row.path}`" not in text]
    assert [row.path for row in missing] == ["/"]  # the page is shown at the top, by its address


def test_the_docs_hold_the_table_of_today() -> None:
    text = DOCS.read_text()
    written = text.split(BEGIN)[1].split(END)[0].strip()
    assert written == metric_table(), f"put this into {DOCS}:\n{metric_table()}"
