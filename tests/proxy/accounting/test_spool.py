"""spool: what `append` returned True for is in the file; a full or failing disk never reaches the exchange."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING

import pytest

from headgate.proxy.accounting.record import Done, Opened, encode
from headgate.proxy.accounting.spool import LOOK_AGAIN_SECONDS, Spool, SpoolFullError
from tests_support.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OPENED = encode(Opened(id="a" * 20, at=1.0, key="app"))
DONE = encode(Done(id="a" * 20, at=1.0, key="app", model="m" * 40))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def make(tmp_path: Path, clock: FakeClock) -> Iterator[Callable[..., Spool]]:
    """Makes spools in one directory, and closes them."""
    spools: list[Spool] = []

    def make(worker: str = "w0", **options: object) -> Spool:
        options = {"max_size": 1 << 20, "monotonic": clock.monotonic, **options}
        spools.append(Spool(tmp_path / "spool", worker, **options))  # type: ignore[arg-type]
        return spools[-1]

    yield make
    for spool in spools:
        spool.close()


def segments(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "spool").glob("*.seg"))


def written(tmp_path: Path) -> bytes:
    return b"".join(path.read_bytes() for path in segments(tmp_path))


def locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_records_are_in_the_file_when_append_returns(make: Callable[..., Spool], tmp_path: Path) -> None:
    spool = make()
    assert spool.append(OPENED)
    assert spool.append(DONE)
    assert written(tmp_path) == OPENED + DONE
    assert (spool.full, spool.dropped, spool.errors) == (False, 0, 0)


def test_each_worker_has_its_own_locked_files(make: Callable[..., Spool], tmp_path: Path) -> None:
    first, second = make("w0"), make("w0")
    assert first.name != second.name
    locks = sorted((tmp_path / "spool").glob("*.lock"))
    assert [locked(path) for path in locks] == [True, True]
    first.close()
    assert sorted(locked(path) for path in locks) == [False, True]


def test_nobody_else_can_read_the_spool(make: Callable[..., Spool], tmp_path: Path) -> None:
    make("w0").append(DONE)
    directory = tmp_path / "spool"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


def test_a_worker_name_cannot_leave_the_directory(make: Callable[..., Spool], tmp_path: Path) -> None:
    for worker in ("../../etc/passwd", "a/b", "", "x" * 500, "w 0\n"):
        make(worker).append(DONE)
    assert len(segments(tmp_path)) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["spool"]


def test_a_full_segment_is_sealed_and_the_next_one_begun(make: Callable[..., Spool], tmp_path: Path) -> None:
    spool = make(segment_size=3 * len(DONE))
    for _ in range(7):
        assert spool.append(DONE)
    assert [path.stat().st_size // len(DONE) for path in segments(tmp_path)] == [3, 3, 1]


def test_when_full_records_are_dropped_and_counted(make: Callable[..., Spool], tmp_path: Path) -> None:
    spool = make(max_size=10 * len(DONE), on_full="drop")
    kept = [spool.append(DONE) for _ in range(15)]
    assert kept == [True] * 10 + [False] * 5
    assert (spool.full, spool.dropped) == (True, 5)
    assert written(tmp_path) == DONE * 10


def test_room_is_kept_for_the_end_of_what_was_admitted(make: Callable[..., Spool]) -> None:
    spool = make(max_size=64 * len(DONE), on_full="drop")
    while spool.append(OPENED):
        pass
    assert spool.dropped == 1
    assert all(spool.append(DONE) for _ in range(7))


def test_under_refuse_nothing_new_is_admitted_and_every_end_is_written(
    make: Callable[..., Spool], tmp_path: Path
) -> None:
    spool = make(max_size=16 * len(DONE), on_full="refuse")
    admitted = 0
    while not spool.full:
        with contextlib.suppress(SpoolFullError):
            admitted += spool.append(OPENED)
    with pytest.raises(SpoolFullError):
        spool.append(OPENED)
    assert all(spool.append(DONE) for _ in range(40))
    assert spool.full
    assert spool.dropped == 0
    assert written(tmp_path).count(b'"done"') == 40
    assert written(tmp_path).count(b'"opened"') == admitted


def test_it_goes_on_once_the_ledger_has_caught_up(make: Callable[..., Spool], tmp_path: Path, clock: FakeClock) -> None:
    spool = make(max_size=16 * len(DONE), segment_size=4 * len(DONE), on_full="drop")
    while spool.append(DONE):
        pass
    for path in segments(tmp_path)[:-1]:
        path.unlink()
    assert not spool.append(DONE)  # it looked a moment ago
    clock.advance(LOOK_AGAIN_SECONDS)
    assert spool.append(DONE)
    assert not spool.full


def test_the_bound_is_of_the_directory_and_not_of_one_worker(make: Callable[..., Spool]) -> None:
    first = make("w0", max_size=32 * len(DONE))
    while first.append(DONE):
        pass
    second = make("w1", max_size=32 * len(DONE))
    assert not second.append(DONE)
    assert second.full


def failing(error: int) -> Callable[[int, bytes], int]:
    def write(fd: int, data: bytes) -> int:
        raise OSError(error, os.strerror(error))

    return write


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("on_full", ["drop", "refuse"])
def test_a_disk_that_fails_is_counted_and_never_raises(make: Callable[..., Spool], error: int, on_full: str) -> None:
    spool = make(on_full=on_full, write=failing(error))
    assert not spool.append(OPENED)
    assert not spool.append(DONE)
    assert (spool.errors, spool.dropped, spool.full) == (2, 0, False)


def test_half_a_line_costs_only_itself(make: Callable[..., Spool], tmp_path: Path) -> None:
    room = [len(DONE), 30, 0, 10**6, 10**6]

    def write(fd: int, data: bytes) -> int:
        take = room.pop(0)
        if not take:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(fd, data[:take])

    spool = make(write=write)
    assert [spool.append(DONE) for _ in range(5)] == [True, False, False, True, True]
    assert written(tmp_path) == DONE + DONE[:30] + b"\n" + DONE + DONE
    assert spool.errors == 2


@pytest.mark.parametrize(
    ("cut", "errors", "kept"),
    [
        (len(DONE) + 30, 1, DONE + DONE[:30] + b"\n" + DONE),
        (len(DONE), 1, DONE + DONE),
        (30, 2, DONE[:30] + b"\n" + DONE),
        (0, 2, DONE),
    ],
)
@pytest.mark.parametrize("before", [0, 1, 2], ids=["from the first", "from one that was measured", "after half a line"])
def test_of_two_records_in_one_piece_what_is_whole_is_kept(
    make: Callable[..., Spool], tmp_path: Path, before: int, cut: int, errors: int, kept: bytes
) -> None:
    room = [[cut], [len(DONE), cut], [20, cut + 1 if cut else 0]][before]

    def write(fd: int, data: bytes) -> int:
        return os.write(fd, data[: room.pop(0)]) if room else os.write(fd, data)

    spool = make(write=write)
    first = [b"", DONE, DONE[:20] + b"\n"][before]
    if before:
        assert spool.append(DONE) is (before == 1)
    assert not spool.append(DONE + DONE)
    assert spool.append(DONE)
    assert written(tmp_path) == first + kept
    assert spool.errors == errors + (before == 2)


def test_of_what_does_not_fit_each_record_is_counted(make: Callable[..., Spool], tmp_path: Path) -> None:
    spool = make(max_size=8 * len(DONE), on_full="drop")
    assert [spool.append(DONE + DONE) for _ in range(6)] == [True] * 4 + [False] * 2
    assert (spool.dropped, written(tmp_path)) == (4, DONE * 8)
    failed = make("w1", write=failing(errno.EIO))
    assert not failed.append(DONE + DONE)
    assert failed.errors == 2


def test_when_no_segment_can_be_begun_the_old_one_goes_on(
    make: Callable[..., Spool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = make(segment_size=len(DONE))
    real = os.open

    def no_new_files(path: object, flags: int, *args: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path, flags, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", no_new_files)
    assert all(spool.append(DONE) for _ in range(3))
    monkeypatch.undo()
    assert spool.append(DONE)
    assert spool.errors == 2
    assert [path.stat().st_size // len(DONE) for path in segments(tmp_path)] == [3, 1]


def test_a_directory_that_cannot_be_read_keeps_the_last_known_size(
    make: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = make(max_size=10 * len(DONE))
    monkeypatch.setattr(os, "scandir", lambda path: failing(errno.EACCES)(0, b""))
    assert [spool.append(DONE) for _ in range(12)].count(True) == 10
    assert spool.errors > 0


def test_a_segment_that_goes_while_it_is_measured_is_nothing(
    make: Callable[..., Spool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = make(max_size=10 * len(DONE))
    gone = tmp_path / "spool" / "w9-000000000000.00000001.seg"
    gone.write_bytes(b"x" * 5000)
    real = os.scandir

    class Entries:
        def __enter__(self) -> list[os.DirEntry[str]]:
            with real(tmp_path / "spool") as entries:
                found = list(entries)
            gone.unlink(missing_ok=True)
            return found

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", lambda path: Entries())
    assert [spool.append(DONE) for _ in range(12)].count(True) == 10


def test_a_directory_that_cannot_be_made_stops_the_boot(make: Callable[..., Spool], tmp_path: Path) -> None:
    (tmp_path / "spool").write_bytes(b"a file")
    with pytest.raises(FileExistsError):
        make()


def test_a_boot_that_fails_leaves_nothing_behind(
    make: Callable[..., Spool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def no_segments(path: object, flags: int, *args: int) -> int:
        if str(path).endswith(".seg"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, flags, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", no_segments)
    with pytest.raises(OSError, match="No space left"):
        make()
    monkeypatch.setattr(fcntl, "flock", lambda fd, how: failing(errno.ENOLCK)(0, b""))
    with pytest.raises(OSError, match=os.strerror(errno.ENOLCK)):
        make()
    assert list((tmp_path / "spool").iterdir()) == []


def test_closing_twice_is_harmless(make: Callable[..., Spool]) -> None:
    spool = make()
    spool.close()
    spool.close()
    assert not spool.append(DONE)
    assert spool.errors == 1
