"""How full the memory is that this gateway may use.

Three bounds, the first that applies: what the operator wrote (`limits.memory`), what the container may use, what the
machine has. A container is judged as a whole, by what its processes hold without the files the kernel could drop (the
"working set" that Kubernetes shows): it is the container that gets killed. The other two are shared out over the
workers, and each compares its own resident memory with its share.

Linux only: elsewhere, and where files cannot be read, nothing is known and nobody is turned away.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ...proxy.observe import rss_bytes

MOST_BYTES = 64 * 1024
UNLIMITED = 1 << 60
"""Above this a version 1 limit means none: it is rounded down from 2^63 by a page."""


class _Container(NamedTuple):
    """The files of one control group."""

    limit: Path
    used: Path
    stat: Path
    inactive: str
    """The line of `stat` that says how much the kernel could drop at once."""


class Memory:
    """Reads what is used. `limit` in bytes for all `workers` together, None for what the system says."""

    def __init__(self, limit: int | None, workers: int, root: Path = Path("/")) -> None:
        self._container, bound = (None, None) if limit is not None else _container(root)
        self._own = _machine(root) if limit is None else limit
        self.limit = bound if bound is not None else self._own // workers
        """Bytes: of the container, or of this worker's share; 0 where nobody knows."""

    def fraction(self) -> float:
        """The part that is in use; 0 where that is not known."""
        if not self.limit:
            return 0.0
        if self._container is None:
            return rss_bytes() / self.limit
        return _working_set(self._container) / self.limit


def _container(root: Path) -> tuple[_Container | None, int | None]:
    """The control group with the least limit among those around this process, and that limit."""
    found = [(limit, group) for group in _groups(root) if (limit := _number(group.limit)) is not None]
    limit, group = min(found, key=lambda one: one[0], default=(UNLIMITED, None))
    return (group, limit) if group is not None and limit < min(UNLIMITED, _machine(root) or UNLIMITED) else (None, None)


def _groups(root: Path) -> list[_Container]:
    """This process's own, and all above it."""
    groups = []
    mounted = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, names = mounted, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base, names = mounted / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        here = base / path.lstrip("/")
        # Inside a container the path may be the host's, and not be there: then the group is what is mounted.
        for folder in (here, *here.parents):
            if not folder.is_relative_to(base):
                break
            groups.append(_Container(folder / names[0], folder / names[1], folder / "memory.stat", names[2]))
    return groups


def _working_set(group: _Container) -> int:
    _, _, after = ("\n" + _text(group.stat)).partition(f"\n{group.inactive} ")
    inactive = after.partition("\n")[0]
    return max(0, (_number(group.used) or 0) - (int(inactive) if inactive.isdigit() else 0))


def _machine(root: Path) -> int:
    """Bytes of RAM; 0 where that is not known."""
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    """A small file of the kernel's; empty where it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(descriptor, MOST_BYTES).decode("ascii", "replace")
    except OSError:  # a folder
        return ""
    finally:
        os.close(descriptor)
