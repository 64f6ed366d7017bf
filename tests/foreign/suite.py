"""A foreign pytest run: started in a session of its own, bounded in time, and read from its JUnit report."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PLUGINS = Path(__file__).parent / "plugins"
PATIENCE = 1500.0
"""Seconds for one run."""


async def finished(command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> str:
    """Run it to its end, whatever it makes of itself, and return what it printed. Its session ends with it.

    Of this environment it gets all but what would change what its tests do.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTEST_", "COV"))}
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env={**kept, **env, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            said, _ = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return said.decode(errors="replace")


def outcomes(report: Path) -> dict[str, str]:
    """Test -> passed, failed, error or skipped, from a JUnit report."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - written by pytest a moment ago
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        outcome = {"failure": "failed"}.get(kinds[0], kinds[0]) if kinds else "passed"
        found[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return found
