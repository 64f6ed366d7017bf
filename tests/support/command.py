"""The `headgate` command as a user runs it: to its end, or until it says that it serves.

done = await command("check", str(file))
async with mock_provider("--delay", "50") as base_url:
    ...
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headgate.__main__ import main

from .process import environment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import pytest

WITHIN = 60.0


@dataclass(frozen=True)
class Finished:
    """What a command left: its exit code and what it said."""

    code: int
    out: str
    err: str


class InProcess:
    """Runs `main` with arguments; `capture` is pytest's."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: str) -> Finished:
        try:
            code = main(arguments)
        except SystemExit as end:  # argparse
            code = end.code if isinstance(end.code, int) else 0
        said = self._capture.readouterr()
        return Finished(code, said.out, said.err)


async def command(
    *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, within: float = WITHIN
) -> Finished:
    """Run `headgate` with these arguments to its end; it is killed, and the test fails, after `within` seconds."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "headgate", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(env),
        cwd=cwd,
    )
    try:
        async with asyncio.timeout(within):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Finished(process.returncode, out.decode(), err.decode())


@asynccontextmanager
async def mock_provider(*arguments: str) -> AsyncIterator[str]:
    """`headgate mock` on a port of its own, and its base URL."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "headgate", "mock", "--port", "0", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env=environment(),
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(WITHIN):
            line = (await process.stdout.readline()).decode()
        found = re.search(r"http://\S+/v1", line)
        assert found is not None, line
        yield found[0]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(WITHIN):
            assert await process.wait() == 0


def exists(pid: int) -> bool:
    """Whether there is such a process, a zombie included."""
    return Path(f"/proc/{pid}").exists()
