"""scripts/: short, runnable from anywhere, sound bash; CI runs the same ones; set-up is quick when nothing changed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("check", "link", "lock", "run", "setup", "test")


@pytest.fixture(params=[*(f"scripts/{name}" for name in NAMES), ".ci/run"])
def script(request: pytest.FixtureRequest, root: Path) -> Path:
    return root / str(request.param)


def test_it_is_executable_sound_and_stops_on_unset_names(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n# ")
    assert re.search(r"^set -e?uo pipefail$", script.read_text(), re.MULTILINE)
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_it_works_from_any_folder_and_stays_short(script: Path) -> None:
    assert 'cd "$(dirname "$0")/.."' in script.read_text()
    assert len(script.read_text().splitlines()) <= 40


def test_ci_runs_check_and_test_and_fails_if_one_does(copy: Path) -> None:
    ran = copy / "ran"
    for name, status in (("check", 1), ("test", 0)):
        stand_in = copy / "scripts" / name
        stand_in.write_text(f"#!/bin/sh\necho {name} >>'{ran}'\nexit {status}\n")
    done = subprocess.run([".ci/run"], cwd=copy, capture_output=True, text=True, check=False)
    assert ran.read_text().split() == ["check", "test"]
    assert done.returncode == 1
    (copy / "scripts" / "check").write_text("#!/bin/sh\n")
    assert subprocess.run([".ci/run"], cwd=copy, capture_output=True, check=False).returncode == 0


def test_link_gives_type_checkers_both_names_and_may_run_twice(copy: Path) -> None:
    for _ in range(2):
        subprocess.run(["scripts/link"], cwd=copy, check=True)
    assert (copy / ".types" / "headgate").resolve() == copy
    assert (copy / ".types" / "tests_support").resolve() == copy / "tests" / "support"
    assert shutil.which("git") is None or "types" in (copy / ".gitignore").read_text()


@pytest.mark.parametrize(
    ("given", "marked", "covered"),
    [
        ([], True, False),
        (["tests/config", "-k", "schema"], True, False),
        (["--slow"], False, True),
        (["--slow", "tests/soak"], False, False),
    ],
)
def test_slow_runs_all_and_only_the_whole_run_has_a_coverage_floor(
    given: list[str], marked: bool, covered: bool, copy: Path
) -> None:
    (copy / "scripts" / "setup").write_text("#!/bin/sh\n")
    pytest_itself = copy / ".venv" / "bin" / "pytest"
    pytest_itself.parent.mkdir(parents=True)
    pytest_itself.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 5\n')
    pytest_itself.chmod(0o755)
    done = subprocess.run(["scripts/test", *given], cwd=copy, capture_output=True, text=True, check=False)
    passed_on = done.stdout.splitlines()[1:]
    assert done.returncode == 5
    assert ("not slow" in passed_on) is marked
    assert ("--cov" in passed_on) is covered
    assert [word for word in given if word != "--slow"] == [word for word in passed_on if word in given]


@pytest.fixture
def stand_in(copy: Path, tmp_path: Path) -> dict[str, str]:
    """An environment whose `python3` notes what it was asked, and whose installs only exit."""
    tools = tmp_path / "bin"
    tools.mkdir()
    fake = tools / "python3"
    fake.write_text(
        f"""#!/bin/sh
echo "$*" >>'{tmp_path}/asked'
case "$*" in
  '-m venv'*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo "command = $PWD/.venv" >.venv/pyvenv.cfg;;
  *install*) exit ${{FAIL:-0}};;
esac
"""
    )
    fake.chmod(0o755)
    return {"PATH": f"{tools}:{os.environ['PATH']}"}


def set_up(copy: Path, environment: dict[str, str], kind: str = "dev") -> tuple[int, list[str]]:
    """Exit code, and the installs that were asked for."""
    asked = copy.parent / "asked"
    asked.write_text("")
    done = subprocess.run(["scripts/setup", kind], cwd=copy, env=environment, capture_output=True, check=False)
    return done.returncode, [line for line in asked.read_text().splitlines() if " install " in line]


def test_set_up_installs_locked_wheels_by_hash_and_then_the_project_without_an_index(
    copy: Path, stand_in: dict[str, str]
) -> None:
    code, (locked, project) = set_up(copy, stand_in)
    assert code == 0
    assert "--require-hashes --only-binary :all: -r requirements/build.txt -r requirements/dev.txt" in locked
    assert "--no-index --editable ." in project


def test_set_up_does_nothing_the_second_time(copy: Path, stand_in: dict[str, str]) -> None:
    assert len(set_up(copy, stand_in)[1]) == 2
    assert set_up(copy, stand_in) == (0, [])
    assert set_up(copy, stand_in, "runtime") == (0, []), "dev holds all of runtime"


def test_set_up_runs_again_when_a_lock_or_the_project_file_changed(copy: Path, stand_in: dict[str, str]) -> None:
    for changed in ("requirements/dev.txt", "pyproject.toml"):
        set_up(copy, stand_in)
        with (copy / changed).open("a") as file:
            file.write("# changed\n")
        assert len(set_up(copy, stand_in)[1]) == 2, changed


def test_set_up_that_failed_is_not_taken_for_done(copy: Path, stand_in: dict[str, str]) -> None:
    code, installs = set_up(copy, stand_in | {"FAIL": "1"})
    assert code != 0
    assert len(installs) == 1
    assert len(set_up(copy, stand_in)[1]) == 2


def test_set_up_starts_over_in_a_checkout_that_was_moved(copy: Path, stand_in: dict[str, str]) -> None:
    set_up(copy, stand_in)
    moved = copy.rename(copy.with_name("elsewhere"))
    assert len(set_up(moved, stand_in)[1]) == 2
    assert "-m venv --without-pip --clear .venv" in (copy.parent / "asked").read_text()
