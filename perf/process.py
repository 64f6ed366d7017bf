"""A gateway under measurement: started on its own core, weighed from outside, always ended.

A gateway is its whole session (`start_new_session`) and what has come of it, so workers and helpers it starts count as
its own, whatever session they are in. CPU time is read from the kernel's per-process clock, which has nanoseconds where
/proc/PID/stat has ticks of 10 ms.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

STOP_GRACE = 3.0


class StartError(Exception):
    """The gateway ended before it could serve; the text is the end of its output."""


class Process:
    """A running gateway: `cpu()`, `pss()`, `end()`."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, core: int, pass_fds: Sequence[int] = ()
    ) -> None:
        self.log = cwd / "output.log"
        rest = os.sched_getaffinity(0)
        os.sched_setaffinity(
            0, {core}
        )  # inherited by the child from its first instruction, unlike taskset -p afterwards
        try:
            with self.log.open("wb") as log:
                self._popen = subprocess.Popen(
                    argv,
                    env=dict(env),
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=pass_fds,
                )
        finally:
            os.sched_setaffinity(0, rest)
        self.pid = self._popen.pid

    def check(self) -> None:
        """Raises StartError once the gateway has ended."""
        if self._popen.poll() is not None:
            raise StartError(f"exit code {self._popen.returncode}: {self.log.read_text(errors='replace')[-1500:]}")

    def pids(self) -> list[int]:
        """Every living process of the gateway's session, and their children that have one of their own."""
        kin = {pid: _kin(pid) for pid in map(int, filter(str.isdigit, os.listdir("/proc")))}
        found: set[int] = set()
        while more := {pid for pid, (parent, session) in kin.items() if session == self.pid or parent in found} - found:
            found |= more
        return sorted(found)

    def cpu(self) -> float:
        """Seconds of user and system time of all living processes."""
        return sum(_cpu(pid) for pid in self.pids())

    def pss(self) -> int:
        """Bytes of memory, shared pages divided among those who share them."""
        return sum(_pss(pid) for pid in self.pids())

    def stop(self, grace: float | None = None) -> None:
        """SIGTERM to the gateway; returns when it has ended, or after the grace."""
        if self._popen.poll() is None:
            self._popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(STOP_GRACE if grace is None else grace)

    def end(self) -> None:
        """`stop`, then SIGKILL to what is left of it."""
        before = {pid: _kin(pid)[1] for pid in self.pids()}  # once it has ended, nobody knows whose children they were
        self.stop()
        for pid in {pid for pid, session in before.items() if session == _kin(pid)[1]} | set(self.pids()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._popen.wait()


@contextlib.contextmanager
def running(
    argv: Sequence[str], env: Mapping[str, str], cwd: Path, core: int, pass_fds: Sequence[int] = ()
) -> Iterator[Process]:
    """A process for the length of a block, however the block ends."""
    process = Process(argv, env, cwd, core, pass_fds)
    try:
        yield process
    finally:
        process.end()


def _kin(pid: int) -> tuple[int, int]:
    """Its parent and its session; zeros for one that has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    state, parent, _pgrp, session = stat[stat.rindex(b")") + 2 :].split()[:4]
    return (0, 0) if state == b"Z" else (int(parent), int(session))


def _cpu(pid: int) -> float:
    try:
        return time.clock_gettime(
            (~pid << 3) | 2
        )  # the kernel's id of that process' CPU clock, see clock_getcpuclockid(3)
    except OSError:
        return 0.0


def _pss(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))


def busy_seconds(core: int) -> float:
    """Seconds that a core has worked since boot, whoever it was for; in ticks of 10 ms."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, ticks)
            return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    raise LookupError(f"no cpu{core} in /proc/stat")
