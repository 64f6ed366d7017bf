"""The lock of shared memory: one holder at a time, none that is dead, and no long wait for one that stands still."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from headgate.filters.stores import shared_lock
from headgate.filters.stores.shared_lock import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterator

HOLDER = """
import os, sys, time
from headgate.filters.stores.shared_lock import FileLock
own = os.open("/proc/self/fd/" + sys.argv[1], os.O_RDWR | os.O_CLOEXEC)
assert FileLock(own).take()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def files() -> Iterator[tuple[int, int]]:
    """Two openings of one file."""
    one = os.memfd_create("lock", os.MFD_CLOEXEC)
    two = os.open(f"/proc/self/fd/{one}", os.O_RDWR | os.O_CLOEXEC)
    yield one, two
    os.close(two)
    os.close(one)


def test_one_holds_it_at_a_time(files: tuple[int, int]) -> None:
    one, two = map(FileLock, files)
    assert one.take()
    assert not two.take()
    one.release()
    assert two.take()


def test_who_was_refused_tries_once_until_it_has_been_had(
    files: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []
    monkeypatch.setattr(shared_lock, "sleep", naps.append)
    one, two = map(FileLock, files)
    assert one.take()
    assert not two.take()
    assert naps == [shared_lock.NAP_SECONDS] * shared_lock.NAPS
    assert not two.take()
    assert len(naps) == shared_lock.NAPS
    one.release()
    assert two.take()
    two.release()
    assert one.take()
    assert not two.take()
    assert len(naps) == 2 * shared_lock.NAPS


def test_who_waits_gets_it_when_it_is_released(files: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = map(FileLock, files)
    assert one.take()
    monkeypatch.setattr(shared_lock, "sleep", lambda _: one.release())
    assert two.take()


def test_a_killed_process_holds_nothing(files: tuple[int, int]) -> None:
    lock = FileLock(files[0])
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(files[0])], pass_fds=[files[0]], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert not lock.take()
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(10)
        assert lock.take()
