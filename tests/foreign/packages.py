"""Other projects' packages, in a cache outside the checkout: `$XDG_CACHE_HOME/headgate/foreign`.

Each suite has an environment of its own, named after all that is in it, so a changed list is a new one, and a half made
one (no stamp) is made again. Taken by name through pip and npm as the machine has them configured; what cannot be had
raises `UnavailableError` with the reason, which skips the suite.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PATIENCE = 600.0
"""Seconds for one command of pip or npm."""
_STAMP = ".complete"


class UnavailableError(Exception):
    """A package or a tool that cannot be had here; the text says which, and why."""


def cache() -> Path:
    """Where everything taken lies."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "headgate" / "foreign"


def sdist(name: str, version: str) -> Path:
    """The unpacked source distribution of exactly this version."""

    def make(folder: Path) -> None:
        _pip("download", "--no-binary", ":all:", "--no-deps", "--dest", ".", f"{name}=={version}", cwd=folder)
        [archive] = folder.glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        archive.unlink()

    folder = _made(f"sdist-{name}", [version], make)
    [unpacked] = [one for one in folder.iterdir() if one.is_dir()]
    return unpacked


def python_env(name: str, requirements: Sequence[str], *, above_floors: Sequence[str] = ()) -> Path:
    """The interpreter of an environment with these requirements.

    `above_floors` are installed without their dependencies, which are then installed by name: for a family of packages
    that asks for a newer version of something than the index has.
    """

    def make(folder: Path) -> None:
        _ran([sys.executable, "-m", "venv", "--without-pip", str(folder)], cwd=folder)
        into = ("--python", str(folder / "bin" / "python"), "install", "--quiet", "--only-binary", ":all:")
        wanted = list(requirements)
        if above_floors:
            _pip(*into, "--no-deps", *above_floors, cwd=folder)
            wanted += _names_needed(folder)
        _pip(*into, *wanted, cwd=folder)

    return _made(name, [*requirements, *above_floors, sys.version], make) / "bin" / "python"


def node_env(name: str, requirements: Sequence[str]) -> Path:
    """A folder whose `node_modules` holds these packages."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise UnavailableError("node and npm are not installed")

    def make(folder: Path) -> None:
        (folder / "package.json").write_text(json.dumps({"name": name, "private": True}))
        _ran(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *requirements], cwd=folder)

    return _made(name, requirements, make)


def versions(python: Path, *names: str) -> str:
    """What of these is installed there, for a heading."""
    code = (
        "import sys; from importlib.metadata import version as v; print(', '.join(f'{n} {v(n)}' for n in sys.argv[1:]))"
    )
    return subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True).stdout.strip()


def _made(name: str, contents: Sequence[str], make: Callable[[Path], None]) -> Path:
    digest = hashlib.sha256("\n".join(contents).encode()).hexdigest()[:12]
    folder = cache() / f"{name}-{digest}"
    cache().mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another checkout may be making it: wait for that one
        if not (folder / _STAMP).exists():
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir()
            print(f"  making {folder}", flush=True)
            make(folder)
            (folder / _STAMP).touch()
    return folder


def _names_needed(folder: Path) -> list[str]:
    """What the packages installed there need, by name alone, but for each other."""
    found = list((folder / "lib").glob("python*/site-packages/*.dist-info/METADATA"))
    have = {_normal(one.parent.name.split("-")[0]) for one in found}
    lines = [line for one in found for line in one.read_text(encoding="utf-8").split("\n\n")[0].splitlines()]
    needed = {
        match[1]: re.sub(r">=?[^,]*,?", "", match[2]).strip("(), ")
        for line in lines
        if (match := re.match(r"Requires-Dist: ([A-Za-z0-9._-]+)([^;]*)", line)) and "extra ==" not in line
    }
    return sorted(f"{package}{bound}" for package, bound in needed.items() if _normal(package) not in have)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pip(*arguments: str, cwd: Path) -> None:
    _ran([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], cwd=cwd)


def _ran(command: Sequence[str], cwd: Path) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{command[0]} failed: {error}") from error
    if done.returncode:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        why = [line for line in said if line.lower().startswith(("error", "npm error"))] or said[-2:]
        raise UnavailableError(f"{' '.join(command[:5])} … failed: {' | '.join(why[:2])}")
