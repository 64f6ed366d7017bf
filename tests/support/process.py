"""The real command, `headgate serve FILE`, as a process of its own: for signals, workers and what a crash leaves.

    async with gateway_process(config_for(upstream), workers=2) as gateway:
        os.kill(gateway.worker_pids()[0], signal.SIGKILL)

It is ended by SIGTERM at the end of the block, and killed by its own pid if that does not help. What it logged is in
`log`, what it recorded in `ledger()`.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import sys
import tempfile
import time
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .gateway import Asking, written
from .upstream import WITHIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping

READY_WITHIN = 20.0
_ANNOUNCED = re.compile(rb"serves https?://[^ ]*:(\d+)/v1 .* admin https?://[^ ]*:(\d+)/")


class GatewayProcess(Asking):
    """See the top."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.admin_port = 0
        self.said = b""

    @property
    def pid(self) -> int:
        """Of the process that was started: both halves, or the supervisor."""
        return self.process.pid

    @property
    def admin(self) -> Asking:
        """Asks the admin listener."""
        asking = Asking()
        asking.port = self.admin_port
        return asking

    @property
    def log(self) -> str:
        """Everything it wrote to stderr so far."""
        return (self.folder / "stderr.log").read_text(errors="backslashreplace")

    @property
    def config_file(self) -> Path:
        """The file it was started with; change it and `signal(SIGHUP)`."""
        return self.folder / "gateway.yaml"

    def rewrite(self, config: Mapping[str, Any]) -> None:
        """Replace the file as an editor does, by renaming."""
        new = self.folder / "gateway.yaml.new"
        new.write_text(written(config, self.folder))
        new.rename(self.config_file)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started."""
        self.process.send_signal(number)

    def worker_pids(self) -> list[int]:
        """Its children, oldest first."""
        try:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except FileNotFoundError:
            return []
        return sorted(map(int, children.split()))

    def open_fds(self) -> int:
        """How many descriptors the process that was started has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    async def ready_workers(self, n: int, without: Collection[int] = (), within: float = 30.0) -> list[int]:
        """The pids of the workers that serve, once there are `n` that are not in `without`."""
        deadline = time.monotonic() + within
        while True:
            workers = (await self.admin.send("GET", "/server_info", key=None)).json()["workers"]
            ready = sorted(one["pid"] for one in workers if one["ready"] and one["pid"] not in without)
            if len(ready) == n:
                return ready
            assert time.monotonic() < deadline, f"waited {within} s for {n} workers\n{self.log[-4000:]}"
            await asyncio.sleep(0.05)

    async def until(self, ready: Callable[[], bool], what: str, within: float = WITHIN) -> None:
        """Look again every 10 ms until `ready()`."""
        deadline = time.monotonic() + within
        while not ready():
            assert time.monotonic() < deadline, f"waited {within} s for {what}\n{self.log[-4000:]}"
            await asyncio.sleep(0.01)

    def ledger(self) -> list[dict[str, Any]]:
        """Every row of the ledger, oldest first; none before there is a ledger."""
        path = self.folder / "events.db"
        if not path.exists():
            return []
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as store:
            if not store.execute("SELECT 1 FROM sqlite_master WHERE name = 'usage'").fetchone():
                return []
            store.row_factory = sqlite3.Row
            return [dict(row) for row in store.execute("SELECT * FROM usage ORDER BY at, id")]

    async def rows(self, n: int, within: float = 20.0) -> list[dict[str, Any]]:
        """The rows of the ledger, once there are `n`."""
        await self.until(lambda: len(self.ledger()) >= n, f"{n} rows, there are {len(self.ledger())}", within)
        rows = self.ledger()
        assert len(rows) == n
        return rows

    async def ended(self, within: float = 20.0) -> int:
        """Its exit code, once it has ended by itself."""
        async with asyncio.timeout(within):
            return await self.process.wait()

    async def terminate(self, within: float = 20.0) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return await self.ended(within)

    async def _ready(self) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(READY_WITHIN):
            while (found := _ANNOUNCED.search(self.said)) is None:
                line = await self.process.stdout.readline()
                assert line, f"ended before it was ready:\n{self.said.decode()}{self.log}"
                self.said += line
        self.port, self.admin_port = int(found[1]), int(found[2])


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without keys that would change what the gateway does."""
    kept = {name: value for name, value in os.environ.items() if not re.search(r"API_KEY|HEADGATE", name)}
    return {**kept, **(extra or {})}


@asynccontextmanager
async def gateway_process(
    config: Mapping[str, Any] | str, *, workers: int | None = None, env: Mapping[str, str] | None = None
) -> AsyncIterator[GatewayProcess]:
    """Start the command on `config` and wait until it says that it serves."""
    with tempfile.TemporaryDirectory(prefix="headgate-test-") as name:
        folder = Path(name)
        file = folder / "gateway.yaml"
        file.write_text(config if isinstance(config, str) else written(config, folder))
        options = [] if workers is None else ["--workers", str(workers)]
        with (folder / "stderr.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "headgate", "serve", str(file), *options),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=environment(env),
                cwd=folder,
            )
        gateway = GatewayProcess(process, folder)
        try:
            await gateway._ready()
            yield gateway
        finally:
            if process.returncode is None:
                try:
                    await gateway.terminate()
                except TimeoutError:
                    process.kill()
                    await process.wait()
