"""Other projects' suites pass with Headgate between as they do without; what cannot be had here is skipped, and why."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run")
SKIPPED = 75

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("suite", ["openai-python", "langchain-openai", "sse-matrix"])
def test_a_foreign_suite_sees_no_difference(suite: str) -> None:
    done = subprocess.run([RUN, suite], capture_output=True, text=True, check=False)
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
