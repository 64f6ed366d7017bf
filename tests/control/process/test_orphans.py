"""orphans: a process is asked to end when its parent does, and ends at once where that has already happened."""

from __future__ import annotations

import asyncio
import signal
import sys

ASKS = """
import os, sys, time
from headgate.control.process.orphans import die_with
die_with(int(sys.argv[1]) if len(sys.argv) > 1 else os.getppid())
print("lives", os.getpid(), flush=True)
time.sleep(60)
"""
PARENT = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-P", "-c", {ASKS!r}])
time.sleep(60)
"""
WITHIN = 30.0


async def started(code: str, *arguments: str) -> asyncio.subprocess.Process:
    """Python running a text."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", code, *arguments), stdout=asyncio.subprocess.PIPE
    )


async def test_it_ends_at_once_where_the_parent_is_already_gone() -> None:
    process = await started(ASKS, "1")
    async with asyncio.timeout(WITHIN):
        out, _ = await process.communicate()
    assert (process.returncode, out) == (1, b"")


async def test_it_is_ended_when_its_parent_is_killed() -> None:
    parent = await started(PARENT)
    assert parent.stdout is not None
    async with asyncio.timeout(WITHIN):
        line = await parent.stdout.readline()
        assert line.startswith(b"lives")
        parent.send_signal(signal.SIGKILL)
        assert await parent.stdout.read() == b""  # the child held it, too
        await parent.wait()
