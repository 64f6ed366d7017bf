"""Notices that files a config names have changed: secrets from `${file:…}`, and the price file.

A look compares what the system says of each file, so it costs a `stat` and no watch that a rename, a symbolic link or a
network file system would defeat. A change is told when two looks in a row see the same: who writes has come to rest.

Not here: the config file itself, which is read again when somebody asks (SIGHUP). Blocking: look in a thread.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

Mark = tuple[int, int, int]
"""Modified (ns), size, inode."""
Marks = dict["Path", Mark | None]
"""None: not there, or not to be looked at."""


def marks(paths: Iterable[Path]) -> Marks:
    """What the files are like now."""
    return {path: _mark(path) for path in paths}


class FileWatch:
    """Compares with `known`, which was taken when the files were read."""

    def __init__(self, known: Mapping[Path, Mark | None]) -> None:
        self._known = dict(known)
        self._moving: Marks | None = None

    def __bool__(self) -> bool:
        return bool(self._known)

    def changed(self) -> list[Path]:
        """The files that have changed since, once they rest; told once."""
        now = marks(self._known)
        if now == self._known:
            self._moving = None
            return []
        if now != self._moving:
            self._moving = now
            return []
        found = [path for path in now if now[path] != self._known[path]]
        self._known, self._moving = now, None
        return found


def _mark(path: Path) -> Mark | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
