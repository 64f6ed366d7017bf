"""line_writer: lines reach the file whole and in order; a file that cannot take them costs lines, and nobody waits."""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from headgate.filters.line_writer import BATCH, LineWriter

if TYPE_CHECKING:
    from pathlib import Path

LINES = [b'{"n":%d}\n' % n for n in range(1000)]


def test_lines_are_appended_in_order(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"before\n")
    writer = LineWriter(file, 10_000)
    assert all(writer.put(line) for line in LINES)
    writer.close()
    assert file.read_bytes() == b"before\n" + b"".join(LINES)
    assert writer.lost == 0


def test_a_new_file_is_the_owners_alone(tmp_path: Path) -> None:
    writer = LineWriter(tmp_path / "log", 10)
    writer.put(b"a\n")
    writer.close()
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    file, old = tmp_path / "log", tmp_path / "log.1"
    writer = LineWriter(file, 10)
    written = _written(writer)
    writer.put(b"a\n")
    written()
    file.rename(old)
    writer.put(b"b\n")
    writer.close()
    assert (old.read_bytes(), file.read_bytes()) == (b"a\n", b"b\n")


def test_a_full_queue_drops_at_once_and_closing_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headgate.filters.line_writer.CLOSE_SECONDS", 0.01)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = LineWriter(pipe, 3)
    taken = [writer.put(b"x\n") for _ in range(400)]  # the thread waits for a reader, with up to a batch in its hands
    assert not taken[-1]
    writer.close()
    thread = writer._thread
    assert thread is not None
    fd = os.open(pipe, os.O_RDONLY)
    thread.join(15)
    read = os.read(fd, 65536)
    os.close(fd)
    assert not thread.is_alive()
    assert read == b"x\n" * taken.count(True)


@pytest.mark.parametrize(("capacity", "enough"), [(10_000, BATCH), (21, 10), (1, 1)])
def test_lines_wait_for_others_until_they_are_enough_for_a_write(
    capacity: int, enough: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headgate.filters.line_writer.LINGER_SECONDS", 3600)
    writer = LineWriter(tmp_path / "log", capacity)
    written, writes = _written(writer), _sizes(writer)
    for line in LINES[: enough - 1]:
        writer.put(line)
    assert writes == []
    writer.put(LINES[-1])
    written()
    assert writes == [enough]
    writer.close()


def test_a_line_that_comes_while_the_last_ones_are_taken_out_is_written_without_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headgate.filters.line_writer.LINGER_SECONDS", 3600)
    writer = LineWriter(tmp_path / "log", 10_000)
    written, asleep = _written(writer), threading.Semaphore(0)

    class Marks(SimpleQueue[None]):
        def get(self, block: bool = True, timeout: float | None = None) -> None:
            asleep.release()
            super().get(block, timeout)

    class Slow(deque[bytes]):
        def append(self, line: bytes) -> None:
            if self:  # the thread comes in between, and has nothing more to do
                writer._hurry.put(None)
                written()
                assert asleep.acquire(timeout=15)
            super().append(line)

    writer._begun, writer._lines = Marks(), Slow()
    writer.put(b"a\n")
    assert asleep.acquire(timeout=15)
    writer.put(b"b\n")
    writer._hurry.put(None)
    written()
    assert (tmp_path / "log").read_bytes() == b"a\nb\n"
    writer.close()


def test_the_end_does_not_wait_for_other_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headgate.filters.line_writer.LINGER_SECONDS", 3600)
    writer = LineWriter(tmp_path / "log", 10_000)
    writer.put(b"a\n")
    writer.end()
    assert writer._thread is not None
    writer._thread.join(15)
    assert (tmp_path / "log").read_bytes() == b"a\n"


def test_after_closing_nothing_is_taken(tmp_path: Path) -> None:
    writer = LineWriter(tmp_path / "log", 3)
    writer.close()
    writer.close()
    assert not writer.put(b"x\n")
    assert not (tmp_path / "log").exists()


def test_what_the_file_does_not_take_is_counted_and_the_next_lines_try_again(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    writer = LineWriter(folder / "log", 10)
    written = _written(writer)
    writer.put(b"a\n")
    written()
    folder.mkdir()
    writer.put(b"b\n")
    writer.close()
    assert writer.lost == 1
    assert (folder / "log").read_bytes() == b"b\n"


def test_a_line_that_a_full_disk_has_cut_is_ended_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "log"
    writer = LineWriter(file, 10)
    written = _written(writer)
    real, room = os.write, [5]

    def write(fd: int, data: bytes) -> int:
        if room and not room[0]:
            room.clear()
            raise OSError(errno.ENOSPC, "full")
        count = real(fd, data[: room[0]]) if room else real(fd, data)
        if room:
            room[0] -= count
        return count

    monkeypatch.setattr("headgate.filters.line_writer.os.write", write)
    writer._write([b"abc\n", b"def\n", b"ghi\n"])
    assert writer.lost == 2
    writer.put(b"jkl\n")
    written()
    writer.close()
    assert file.read_bytes() == b"abc\nd\njkl\n"


def _written(writer: LineWriter):  # type: ignore[no-untyped-def]  # a function that waits for the next write
    done, write = threading.Event(), writer._write

    def tell(lines: list[bytes]) -> None:
        write(lines)
        done.set()

    def wait() -> None:
        assert done.wait(15)
        done.clear()

    writer._write = tell  # type: ignore[method-assign]
    return wait


def _sizes(writer: LineWriter) -> list[int]:
    """How many lines each write has had."""
    sizes: list[int] = []
    write = writer._write

    def tell(lines: list[bytes]) -> None:
        sizes.append(len(lines))
        write(lines)

    writer._write = tell  # type: ignore[method-assign]
    return sizes
