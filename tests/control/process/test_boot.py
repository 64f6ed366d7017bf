"""serve: what keeps a gateway from starting is said in lines that tell what to do, without a traceback."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests_support.command import Finished, command, exists
from tests_support.gateway import written
from tests_support.process import gateway_process

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT_FILE = Path(__file__).parents[3] / "gateway.yaml"
DIES_IN_A_WORKER = """
import os, sys
from headgate import Filter

class Dies(Filter):
    def __init__(self):
        if "_worker" in sys.argv:
            os._exit(3)
"""


async def serve(folder: Path, config: dict[str, Any] | str, *options: str, **env: str) -> Finished:
    """Try to serve a config that cannot be served."""
    file = folder / "gateway.yaml"
    file.write_text(config if isinstance(config, str) else written(config, folder))
    done = await command("serve", str(file), *options, cwd=folder, env=env)
    assert "Traceback" not in done.err
    assert done.out == ""
    return done


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_taken_port_is_named_with_its_setting(tmp_path: Path, taken_port: int, workers: str) -> None:
    listeners = {"data": {"port": taken_port}, "admin": {"port": 0}}
    done = await serve(tmp_path, {"listeners": listeners}, "--workers", workers)
    assert done.code == 1
    assert done.err.splitlines()[-1] == (
        f"headgate: port {taken_port} of 127.0.0.1 is in use: stop what listens there, or set listeners.data.port to "
        "another"
    )


async def test_the_admin_port_is_told_from_the_data_port(tmp_path: Path, taken_port: int) -> None:
    done = await serve(tmp_path, {"listeners": {"data": {"port": 0}, "admin": {"port": taken_port}}})
    assert (done.code, "set listeners.admin.port" in done.err) == (1, True)


async def test_an_address_of_another_machine_is_named_with_its_setting(tmp_path: Path) -> None:
    key = {"auth": {"keys": [{"name": "app", "key": "hg-client-canary-7Qm2xV9sLd4TzKpR"}]}}
    listeners = {"data": {"address": "192.0.2.1", "port": 0}, "admin": {"port": 0}}
    done = await serve(tmp_path, {"listeners": listeners, "filters": [key]})
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("headgate: cannot listen on 192.0.2.1 port 0: ")
    assert "check listeners.data.address" in done.err


async def test_every_problem_of_a_config_is_a_line_with_its_place(tmp_path: Path) -> None:
    """Faults §4 (34)."""
    done = await serve(tmp_path, "modles: {}\nworkers: many\nfilters:\n  - retry: {atempts: 3}\n")
    *problems, last = done.err.splitlines()
    assert done.code == 2
    assert [problem.removeprefix(str(tmp_path)).split(": ")[0] for problem in problems] == [
        "/gateway.yaml:1:1",
        "/gateway.yaml:2:10",
        "/gateway.yaml:4:13",
    ]
    assert "did you mean 'models'?" in problems[0]
    assert "did you mean 'attempts'?" in problems[2]
    assert last == "headgate: the config is refused: 3 problems"


async def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = await command("serve", "nowhere.yaml", cwd=tmp_path)
    assert (done.code, done.err.splitlines()[0]) == (2, "nowhere.yaml: no such file or directory")


async def test_a_public_address_without_a_key_says_set_headgate_key(tmp_path: Path) -> None:
    """Faults §4 (1). The root file, as the image uses it."""
    done = await serve(tmp_path, ROOT_FILE.read_text(), HEADGATE_ADDRESS="0.0.0.0")
    assert done.code == 2
    assert "set HEADGATE_KEY" in done.err


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_spool_that_cannot_be_written_is_named(tmp_path: Path, workers: str) -> None:
    (tmp_path / "file").write_text("no folder")
    events = {"path": str(tmp_path / "events.db"), "spool": {"path": str(tmp_path / "file" / "spool")}}
    done = await serve(tmp_path, {"events": events}, "--workers", workers)
    assert (done.code, done.err.splitlines()[-1]) == (
        1,
        f"headgate: cannot write records to {tmp_path}/file/spool: Not a directory; set events.spool.path to another",
    )


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_filter_that_cannot_be_imported_is_a_problem_of_the_config(tmp_path: Path, workers: str) -> None:
    (tmp_path / "mine.py").write_text("def broken(:\n")
    done = await serve(tmp_path, {"filters": [{"use": "mine:Mine"}]}, "--workers", workers)
    assert done.code == 2
    assert "use: 'mine:Mine': cannot be imported: SyntaxError" in done.err


async def test_a_price_table_that_cannot_be_made_stops_it(tmp_path: Path) -> None:
    (tmp_path / "genai_prices.py").write_text("raise ImportError('not for this Python')")
    done = await serve(tmp_path, {}, XDG_CACHE_HOME=str(tmp_path / "cache"), PYTHONPATH=str(tmp_path))
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("headgate: cannot compile the price table: ImportError: not for this")


async def test_workers_that_die_before_they_are_ready_end_it_with_what_to_do(tmp_path: Path) -> None:
    """Faults R7."""
    (tmp_path / "mine.py").write_text(DIES_IN_A_WORKER)
    started = time.monotonic()
    done = await serve(tmp_path, {"filters": [{"use": "mine:Dies"}]}, "--workers", "2")
    assert done.code == 1
    deaths = [json.loads(line) for line in done.err.splitlines() if '"worker_died"' in line]
    assert 5 <= len(deaths) <= 6
    assert all(death["code"] == 3 and death["was_ready"] is False for death in deaths)
    last = done.err.splitlines()[-1]
    assert last.startswith("headgate: 5 workers ended within 60 s before they were ready.")
    assert "--workers 1" in last
    assert time.monotonic() - started < 30
    assert not any(exists(death["pid"]) for death in deaths)


async def test_neither_a_cache_nor_a_ledger_that_cannot_be_written_keeps_it_from_serving(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    events = {"path": str(tmp_path / "file" / "events.db"), "spool": {"path": str(tmp_path / "spool")}}
    env = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    async with gateway_process({"events": events}, env=env) as gateway:
        assert (await gateway.post(key=None)).status == 200
        await gateway.until(lambda: '"ledger_away"' in gateway.log, "the ledger to be missed")
        ready = await gateway.admin.send("GET", "/ready", key=None)
        assert (ready.status, ready.json()["warnings"][-1]) == (
            200,
            "the event store is away; records wait in the spool",
        )
        assert await gateway.terminate() == 0
        assert '"ledger_behind"' in gateway.log
