"""file_watch: a change is told once, when it has come to rest, however the file was changed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from headgate.control.process.file_watch import FileWatch, marks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that is watched."""
    path = tmp_path / "secret"
    path.write_text("one")
    return path


def write_more(path: Path) -> None:
    path.write_text("one and more")


def write_the_same_length(path: Path) -> None:
    path.write_text("two")
    os.utime(path, ns=(1, 1))


def rename_over(path: Path) -> None:
    new = path.with_name("new")
    new.write_text("one")
    new.rename(path)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [write_more, write_the_same_length, rename_over, remove])
def test_a_change_is_told_once_at_the_second_look(secret: Path, change: Callable[[Path], None]) -> None:
    watch = FileWatch(marks([secret]))
    assert watch.changed() == []
    change(secret)
    assert [watch.changed() for _ in range(4)] == [[], [secret], [], []]


def test_a_link_that_is_turned_to_another_file_is_a_change(tmp_path: Path, secret: Path) -> None:
    """As Kubernetes mounts secrets."""
    link, other = tmp_path / "link", tmp_path / "other"
    link.symlink_to(secret)
    other.write_text("two")
    watch = FileWatch(marks([link]))
    link.unlink()
    link.symlink_to(other)
    assert [watch.changed() for _ in range(3)] == [[], [link], []]


def test_a_file_that_is_still_being_written_is_waited_for(secret: Path) -> None:
    watch = FileWatch(marks([secret]))
    for length in range(4, 8):
        secret.write_text("x" * length)
        assert watch.changed() == []
    assert watch.changed() == [secret]


def test_a_file_that_is_put_back_in_time_has_not_changed(secret: Path) -> None:
    before = secret.stat()
    watch = FileWatch(marks([secret]))
    secret.write_text("other")
    assert watch.changed() == []
    secret.write_text("one")
    os.utime(secret, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [watch.changed() for _ in range(3)] == [[], [], []]


def test_without_files_there_is_nothing_to_watch() -> None:
    assert not FileWatch({})
    assert FileWatch({}).changed() == []
