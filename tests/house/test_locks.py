"""The locks: every package pinned and hashed, the same in all of them, and nothing of the machine that wrote them."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires
from typing import TYPE_CHECKING, Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if TYPE_CHECKING:
    from pathlib import Path

LOCKS = ("build", "runtime", "dev")
OLDEST = {"python_full_version": "3.11.0", "python_version": "3.11", "extra": ""}
"""Debian 12 has 3.11.2, and locks are made elsewhere."""
FLOORS = {"starlette": "1.3.1", "uvicorn": "0.51", "h11": "0.16.0", "httpx2": "2.16.2"}


def pins(root: Path, lock: str) -> dict[str, tuple[Version, list[str]]]:
    """Name -> (version, hashes)."""
    text = (root / "requirements" / f"{lock}.txt").read_text().replace("\\\n", " ")
    found: dict[str, tuple[Version, list[str]]] = {}
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            name, version, rest = re.fullmatch(
                r"([\w.\[\]-]+)==(\S+)((?: +--hash=sha256:[0-9a-f]{64})+) *", line
            ).groups()  # type: ignore[union-attr]
            found[canonicalize_name(name)] = (Version(version), rest.split())
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_each_line_is_one_version_with_its_hashes(lock: str, root: Path) -> None:
    found = pins(root, lock)
    assert found
    assert all(hashes for _, hashes in found.values())


@pytest.mark.parametrize("lock", LOCKS)
def test_no_address_and_no_path_of_a_machine_is_in_it(lock: str, root: Path) -> None:
    text = (root / "requirements" / f"{lock}.txt").read_text()
    assert re.findall(r"://|--(?:index-url|extra-index-url|find-links|trusted-host)|\s/\w+|@ ", text) == []


def test_every_direct_dependency_is_locked_within_its_bounds(root: Path, project: dict[str, Any]) -> None:
    locked = pins(root, "runtime")
    for line in project["project"]["dependencies"]:
        wanted = Requirement(line)
        assert locked[canonicalize_name(wanted.name)][0] in wanted.specifier, line


def test_what_builds_the_project_is_locked(root: Path, project: dict[str, Any]) -> None:
    locked = pins(root, "build")
    for line in project["build-system"]["requires"]:
        wanted = Requirement(line)
        assert locked[canonicalize_name(wanted.name)][0] in wanted.specifier, line


def test_dev_holds_all_of_runtime_and_build_at_the_same_versions_and_hashes(root: Path) -> None:
    dev = pins(root, "dev")
    for lock in ("runtime", "build"):
        assert {name: dev[name] for name in pins(root, lock)} == pins(root, lock)


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_what_each_of_its_packages_asks_for_on_the_oldest_python(lock: str, root: Path) -> None:
    have = pins(root, lock)
    missing = []
    for package in have:
        try:
            wanted = [Requirement(line) for line in requires(package) or ()]
        except PackageNotFoundError:
            continue  # of another platform or Python
        missing += [
            f"{package} needs {one}"
            for one in wanted
            if (one.marker is None or one.marker.evaluate(OLDEST)) and canonicalize_name(one.name) not in have
        ]
    assert missing == []


def test_no_locked_version_is_below_its_security_floor(root: Path) -> None:
    dev = pins(root, "dev")
    assert {name: dev[name][0] for name, floor in FLOORS.items() if dev[name][0] < Version(floor)} == {}


def test_direct_runtime_dependencies_stay_within_the_budget(project: dict[str, Any]) -> None:
    assert len(project["project"]["dependencies"]) <= 21
