"""The import contracts of pyproject.toml cover what they promise; scripts/check runs them."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

# Decisions, which property tests own: they see no loop, no socket and no clock. Those that exist stand in the contract.
PURE = {
    "proxy/accounting/estimate.py",
    "proxy/accounting/prices.py",
    "proxy/accounting/record.py",
    "proxy/accounting/usage.py",
    "proxy/plan.py",
    "proxy/upstream/balance.py",
    "proxy/upstream/health.py",
    "proxy/upstream/outlier.py",
    "dialects/sse.py",
    "filters/retry.py",
}


def contract(project: dict[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any]
    (found,) = [entry for entry in project["tool"]["importlinter"]["contracts"] if entry["type"] == kind]
    return found


def test_every_pure_module_that_exists_is_under_the_purity_contract(
    tracked: list[str], project: dict[str, Any]
) -> None:
    listed = contract(project, "forbidden")["source_modules"]
    exist = {"headgate." + ".".join(PurePosixPath(name).with_suffix("").parts) for name in PURE.intersection(tracked)}
    assert exist <= set(listed)
    assert sorted(listed) == listed


def test_the_layers_leave_no_folder_out(project: dict[str, Any]) -> None:
    layers = contract(project, "layers")
    assert layers["exhaustive"] is True
    assert layers["exhaustive_ignores"] == ["perf"]


def test_nothing_is_excused_from_a_contract(project: dict[str, Any]) -> None:
    excused = [entry["name"] for entry in project["tool"]["importlinter"]["contracts"] if entry.get("ignore_imports")]
    assert excused == []
