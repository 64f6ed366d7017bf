"""process: a gateway is all that it started, is weighed from outside, and is always ended."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import pytest

from perf.process import StartError, busy_seconds, running

if TYPE_CHECKING:
    from pathlib import Path

CORE = min(os.sched_getaffinity(0))
BURN = "while True: pass"
CHILD = "import time; print(1, flush=True); time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition: object, seconds: float = 10.0) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_cpu_time_is_read_while_it_runs(tmp_path: Path) -> None:
    with running([sys.executable, "-c", BURN], os.environ, tmp_path, CORE) as process:
        wait_for(lambda: process.cpu() > 0.05)
        assert process.pss() > 1 << 20
        assert os.sched_getaffinity(process.pid) == {CORE}


def test_children_count_and_are_ended_too(tmp_path: Path) -> None:
    with running([sys.executable, "-c", PARENT], os.environ, tmp_path, CORE) as process:
        wait_for(lambda: len(process.pids()) == 2 and (tmp_path / "output.log").read_text() == "1\n")
        pids = process.pids()
    wait_for(lambda: not any(map(alive, pids)))


def test_a_child_with_a_session_of_its_own_counts_too(tmp_path: Path) -> None:
    parent = PARENT.replace("subprocess.run(", "subprocess.run(start_new_session=True, args=")
    with running([sys.executable, "-c", parent], os.environ, tmp_path, CORE) as process:
        wait_for(lambda: len(process.pids()) == 2 and (tmp_path / "output.log").read_text() == "1\n")
        pids = process.pids()
    wait_for(lambda: not any(map(alive, pids)))


def test_what_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perf.process.STOP_GRACE", 0.1)
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    with running([sys.executable, "-c", stubborn], os.environ, tmp_path, CORE) as process:
        wait_for(lambda: (tmp_path / "output.log").read_text() == "1\n")
    assert not alive(process.pid)


def test_an_error_in_the_block_ends_the_process(tmp_path: Path) -> None:
    pids = []

    def interrupted() -> None:
        with running([sys.executable, "-c", BURN], os.environ, tmp_path, CORE) as process:
            pids.append(process.pid)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not alive(pids[0])


def test_a_gateway_that_ended_says_why(tmp_path: Path) -> None:
    with running([sys.executable, "-c", "raise SystemExit('no such file')"], os.environ, tmp_path, CORE) as process:
        process._popen.wait()
        with pytest.raises(StartError, match="exit code 1: no such file"):
            process.check()


def test_a_core_has_been_busy_since_boot() -> None:
    assert busy_seconds(CORE) > 0
    with pytest.raises(LookupError):
        busy_seconds(10**6)
