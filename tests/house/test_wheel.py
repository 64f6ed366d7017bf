"""The wheel holds the package as it is tracked: nothing forgotten, nothing of the checkout beside it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE_FOLDERS = {"config", "proxy", "dialects", "filters", "plano", "control", "clients"}
ROOT_FILES = {"__init__.py", "__main__.py", "gateway.py", "py.typed"}
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def belongs(name: str) -> bool:
    return name in ROOT_FILES or PurePosixPath(name).parts[0] in PACKAGE_FOLDERS


@pytest.fixture
def wheel(copy: Path, tmp_path: Path) -> zipfile.ZipFile:
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD, str(tmp_path)], cwd=copy, capture_output=True, check=True
    )
    (path,) = tmp_path.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_listed_packages_are_the_folders_that_hold_python_files(
    tracked: list[str], project: dict[str, Any]
) -> None:
    folders = {PurePosixPath(name).parent for name in tracked if name.endswith(".py") and belongs(name)}
    expected = {".".join(("headgate", *folder.parts)) for folder in folders}
    listed = project["tool"]["setuptools"]["packages"]
    assert sorted(listed) == listed
    assert set(listed) == expected


def test_every_package_folder_has_an_init_file(tracked: list[str]) -> None:
    folders = {PurePosixPath(name).parent for name in tracked if name.endswith(".py") and belongs(name)}
    assert [str(folder) for folder in folders if str(folder / "__init__.py") not in tracked] == []


def test_only_the_three_named_python_files_lie_at_the_root(tracked: list[str]) -> None:
    at_root = {name for name in tracked if "/" not in name and name.endswith(".py")}
    assert at_root <= ROOT_FILES


def test_wheel_holds_every_tracked_file_of_the_package_and_nothing_else(
    wheel: zipfile.ZipFile, tracked: list[str]
) -> None:
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == {f"headgate/{name}" for name in tracked if belongs(name)}


def test_wheel_says_it_is_typed_and_brings_the_license_and_the_command(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert "headgate/py.typed" in names
    (license_file,) = [name for name in names if name.endswith("LICENSE")]
    assert b"Apache License" in wheel.read(license_file)
    (scripts,) = [name for name in names if name.endswith("entry_points.txt")]
    assert wheel.read(scripts).decode().split() == ["[console_scripts]", "headgate", "=", "headgate.__main__:main"]
