"""The import contracts of pyproject.toml cover what they promise; scripts/check runs them."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

# Decisions, which property tests own. Those that exist stand in a contract.
DECIDING = {
    "dialects/sse.py",
    "filters/retry.py",
    "proxy/accounting/estimate.py",
    "proxy/accounting/prices.py",
    "proxy/accounting/record.py",
    "proxy/accounting/usage.py",
    "proxy/plan.py",
    "proxy/upstream/balance.py",
    "proxy/upstream/credentials.py",
    "proxy/upstream/gradient.py",
    "proxy/upstream/h2_fields.py",
    "proxy/upstream/h2_frames.py",
    "proxy/upstream/health.py",
    "proxy/upstream/hedge.py",
    "proxy/upstream/limits.py",
    "proxy/upstream/outlier.py",
    "proxy/upstream/policies.py",
    "proxy/upstream/priorities.py",
    "proxy/upstream/quantile.py",
    "proxy/upstream/ring_hash.py",
    "proxy/upstream/shedding.py",
    "proxy/upstream/usual.py",
}


def contracts(project: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [entry for entry in project["tool"]["importlinter"]["contracts"] if entry["type"] == kind]


def test_every_deciding_module_that_exists_is_kept_from_loop_socket_and_clock(
    tracked: list[str], project: dict[str, Any]
) -> None:
    pure, deciding = contracts(project, "forbidden")
    exist = {
        "headgate." + ".".join(PurePosixPath(name).with_suffix("").parts) for name in DECIDING.intersection(tracked)
    }
    assert exist <= {*pure["source_modules"], *deciding["source_modules"]}


def test_both_contracts_forbid_the_same_and_are_in_order(project: dict[str, Any]) -> None:
    pure, deciding = contracts(project, "forbidden")
    assert pure["forbidden_modules"] == deciding["forbidden_modules"]
    assert {"asyncio", "anyio", "socket", "time"} <= set(pure["forbidden_modules"])
    for contract in (pure, deciding):
        assert sorted(set(contract["source_modules"])) == contract["source_modules"]


def test_the_layers_leave_no_folder_out(project: dict[str, Any]) -> None:
    (layers,) = contracts(project, "layers")
    assert layers["exhaustive"] is True
    assert layers["exhaustive_ignores"] == ["perf"]


def test_nothing_is_excused_from_a_contract(project: dict[str, Any]) -> None:
    excused = [entry["name"] for entry in project["tool"]["importlinter"]["contracts"] if entry.get("ignore_imports")]
    assert excused == []
