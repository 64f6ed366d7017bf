"""One copy of the package per process, whatever the checkout is called, and nothing imported that was not asked for."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import sysconfig
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

import headgate

if TYPE_CHECKING:
    from pathlib import Path

BUILD_EDITABLE = "import sys; from setuptools import build_meta; print(build_meta.build_editable(sys.argv[1]))"
# Everything that a test could pull in, then: which names does each file of the checkout go by?
PROBE = '''
"""A probe."""
import json, pkgutil, sys
from importlib import import_module
from pathlib import Path
import headgate

def test_probe():
    for package in {packages!r}:
        import_module(package)
    root = Path(__file__).resolve().parents[1]
    names = {{}}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and Path(file).resolve().is_relative_to(root):
            names.setdefault(str(Path(file).resolve().relative_to(root)), []).append(name)
    Path({out!r}).write_text(json.dumps(names))
'''


@pytest.fixture
def python(copy: Path, tmp_path: Path) -> Path:
    """An interpreter in which `headgate` is an editable install of the copy, and the rest is what this one has."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    build = [sys.executable, "-W", "ignore", "-c", BUILD_EDITABLE, str(tmp_path)]
    subprocess.run(build, cwd=copy, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = next((tmp_path / "venv" / "lib").glob("python3.*")) / "site-packages"
    zipfile.ZipFile(wheel).extractall(site)
    (site / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return tmp_path / "venv" / "bin" / "python"


@pytest.mark.parametrize("folder", ["probes", "tests"])
def test_pytest_loads_each_file_once_in_a_checkout_of_any_name(
    folder: str, copy: Path, python: Path, project: dict[str, Any]
) -> None:
    out = copy.parent / "names.json"
    packages = project["tool"]["setuptools"]["packages"]
    (copy / folder).mkdir(exist_ok=True)
    (copy / folder / "test_probe.py").write_text(PROBE.format(packages=packages, out=str(out)))
    command = [
        str(python),
        "-c",
        "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))",
        f"{folder}/test_probe.py",
        "-q",
    ]
    ran = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    names = json.loads(out.read_text())
    ours = {file: sorted(found) for file, found in names.items() if not file.startswith(folder)}
    assert set(ours) >= {"__init__.py", "config/__init__.py", "proxy/__init__.py"}
    twice = {file: found for file, found in ours.items() if len(found) > 1 and file != "__init__.py"}
    assert twice == {}
    assert all(found[0].startswith("headgate") for file, found in ours.items() if file != "__init__.py")


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter loads for one statement."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_root_imports_nothing_else() -> None:
    assert loaded_by("import headgate") == {"headgate"}


@pytest.mark.parametrize("name", [name for name in headgate.__all__ if name != "__version__"])
def test_public_name_is_the_one_of_its_module(name: str) -> None:
    found = getattr(headgate, name)
    assert found.__name__ == name
    assert found.__module__.startswith("headgate.")


def test_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Gatewya'"):
        headgate.Gatewya  # noqa: B018 - the look-up is the test


def test_dir_lists_the_public_names_before_they_are_used() -> None:
    assert set(headgate.__all__) <= set(dir(headgate))


def test_inside_the_package_our_imports_are_relative(tracked: list[str], root: Path) -> None:
    absolute = []
    for name in tracked:
        if not name.endswith(".py") or name.split("/")[0] in {"tests", "perf", "docs", "deploy"}:
            continue
        for node in ast.walk(ast.parse((root / name).read_text())):
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                named = [node.module or ""]
            else:
                continue
            absolute += [f"{name}:{node.lineno}" for module in named if module.split(".")[0] == "headgate"]
    assert absolute == []
