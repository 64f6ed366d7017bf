"""memory: the bound that would really end the process is the one that counts, in either version of control groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from headgate.control.process.memory import Memory
from headgate.proxy.observe import rss_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

GIB = 1 << 30
MACHINE = {"proc/meminfo": f"MemTotal:       {8 * GIB // 1024} kB\nMemFree: 1 kB\n"}
STAT = f"anon 5\ninactive_file {GIB // 4}\nactive_file 9\n"


def system(root: Path, files: Mapping[str, str]) -> Path:
    """A machine with 8 GiB and these files."""
    for name, text in {**MACHINE, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_container_is_judged_as_a_whole_without_what_the_kernel_could_drop(tmp_path: Path) -> None:
    here = "sys/fs/cgroup/app"
    files = {
        "proc/self/cgroup": "0::/app\n",
        f"{here}/memory.max": f"{GIB}\n",
        f"{here}/memory.current": f"{GIB // 2}\n",
        f"{here}/memory.stat": STAT,
    }
    memory = Memory(None, 4, system(tmp_path, files))
    assert memory.limit == GIB
    assert memory.fraction() == 0.25
    (tmp_path / here / "memory.current").write_text(str(GIB))
    assert memory.fraction() == 0.75


def test_so_it_is_in_the_first_version_of_control_groups(tmp_path: Path) -> None:
    here = "sys/fs/cgroup/memory/docker/abc"
    files = {
        "proc/self/cgroup": "5:cpu:/docker/abc\n4:memory:/docker/abc\n0::/\n",
        f"{here}/memory.limit_in_bytes": f"{GIB}\n",
        f"{here}/memory.usage_in_bytes": f"{GIB}\n",
        f"{here}/memory.stat": f"total_inactive_file {GIB // 2}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    memory = Memory(None, 1, system(tmp_path, files))
    assert (memory.limit, memory.fraction()) == (GIB, 0.5)


def test_the_narrowest_of_nested_groups_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/pod/app\n",
        "sys/fs/cgroup/pod/app/memory.max": "max\n",
        "sys/fs/cgroup/pod/memory.max": f"{2 * GIB}\n",
        "sys/fs/cgroup/pod/memory.current": f"{GIB}\n",
        "sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/memory.current": f"{3 * GIB}\n",
    }
    memory = Memory(None, 1, system(tmp_path, files))
    assert (memory.limit, memory.fraction()) == (2 * GIB, 0.5)


def test_inside_a_container_the_path_of_the_host_is_not_there(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/kubepods/pod1/c1\n",
        "sys/fs/cgroup/memory.max": f"{GIB}\n",
        "sys/fs/cgroup/memory.current": f"{GIB // 4}\n",
    }
    assert Memory(None, 1, system(tmp_path, files)).fraction() == 0.25


@pytest.mark.parametrize("limit", ["max", "9223372036854771712", str(64 * GIB)])
def test_a_limit_that_is_none_leaves_the_machine_shared_out_over_the_workers(tmp_path: Path, limit: str) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": limit, "sys/fs/cgroup/memory.current": "5"}
    memory = Memory(None, 4, system(tmp_path, files))
    assert memory.limit == 2 * GIB
    assert memory.fraction() == pytest.approx(rss_bytes() / (2 * GIB), rel=0.2)


def test_what_the_operator_wrote_comes_first(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000", "sys/fs/cgroup/memory.current": "999"}
    memory = Memory(GIB, 2, system(tmp_path, files))
    assert memory.limit == GIB // 2
    assert memory.fraction() == pytest.approx(rss_bytes() / (GIB // 2), rel=0.2)


def test_where_nobody_knows_nothing_is_in_use(tmp_path: Path) -> None:
    assert Memory(None, 1, tmp_path).fraction() == 0


def test_this_system_is_understood() -> None:
    memory = Memory(None, 1)
    assert memory.limit > rss_bytes()
    assert 0 < memory.fraction() < 1
