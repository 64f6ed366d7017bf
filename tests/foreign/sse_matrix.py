"""The Vercel AI SDK, openai-node and openai-python over streams of every kind, directly and through Headgate.

Both ask the same scripted provider (sse_rows.py), and what a client made of a stream is one outcome. A row that works
directly must have the same outcome through Headgate; a row that is cut must be an error there, also where the client
alone would take it for a whole answer; and our comment block must have been in what they read.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from contextlib import redirect_stdout
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from headgate.clients.transport import GatewayTransport
from tests_support.gateway import load, written
from tests_support.process import gateway_process
from tests_support.upstream import FakeUpstream

from .packages import UnavailableError, node_env
from .sse_python import IN_PROCESS, NAME, outcomes
from .sse_rows import TEXT, rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests_support.upstream import Request, Step

    from .sse_rows import Row

PACKAGES = ("ai@7.0.173", "@ai-sdk/openai@4.0.118", "@ai-sdk/openai-compatible@3.0.92", "openai@7.55.0")
CLIENTS = Path(__file__).parent / "sse_clients.mjs"
PATIENCE = 600.0
IDLE = "2s"
"""After which Headgate gives a silent provider up; the clients wait four times as long."""
SAME = ("text", "reasoning", "tools", "finish", "usage")


class Verdict(NamedTuple):
    """`wrong` None: as it must be."""

    kind: str
    wrong: str | None


async def run() -> bool:
    """Whether nothing was wrong. Raises UnavailableError."""
    folder = node_env("sse-matrix", PACKAGES)
    print(f"  {', '.join(PACKAGES)}, openai-python {version('openai')}; {folder}")
    matrix = rows()
    scripts = {row.name: row.steps for row in matrix}

    def play(asked: Request) -> Sequence[Step]:
        return scripts[asked.json()["model"]]

    async with FakeUpstream(play) as provider:
        config = _config(provider.base_url)
        alone = [row for row in matrix if not row.silent]  # there a client waits as long as it likes
        print(f"  {len(alone)} rows, directly …", flush=True)
        direct = await _outcomes(folder, provider.base_url, alone)
        print(f"  {len(matrix)} rows, through Headgate …", flush=True)
        async with gateway_process(config) as gateway:
            through = await _outcomes(folder, gateway.base_url, matrix)
        print(f"  {len(matrix)} rows, with Headgate in the client …", flush=True)
        with tempfile.TemporaryDirectory(prefix="headgate-foreign-") as records:
            transport = GatewayTransport(load(written(config, Path(records))))
            with redirect_stdout(StringIO()):  # its log
                through |= await outcomes("http://gateway/v1", matrix, transport)
    direct |= {(name, IN_PROCESS): outcome for (name, client), outcome in direct.items() if client == NAME}
    cut = {row.name: row.cut for row in matrix}
    verdicts = {key: judge(direct.get(key), got, cut=cut[key[0]]) for key, got in through.items()}
    for (name, client), verdict in verdicts.items():
        if verdict.wrong is not None:
            print(f"    {name} / {client}: {verdict.wrong}")
    kinds = [verdict.kind for verdict in verdicts.values()]
    for kind in sorted(set(kinds)):
        right = sum(verdict.kind == kind and verdict.wrong is None for verdict in verdicts.values())
        print(f"    {kind}: {right} of {kinds.count(kind)}")
    commented = sum(outcome["comment"] for outcome in through.values())
    print(f"    our comment block was read in {commented} answers")
    right = sum(verdict.wrong is None for verdict in verdicts.values())
    print(f"  SSE matrix: {right} of {len(verdicts)} outcomes right")
    return right == len(verdicts) and commented > 0


def _config(url: str) -> dict[str, Any]:
    timeouts = {"first_token": IDLE, "idle": IDLE}
    return {"providers": {"up": {"base_url": url, "timeouts": timeouts, "list_models": False}}}


def judge(direct: dict[str, Any] | None, through: dict[str, Any], *, cut: bool) -> Verdict:
    """What must hold of one row in one client. `direct` None: it was not asked."""
    if cut or direct is None:
        kind = (
            "a cut that shows directly" if direct and direct["error"] is not None else "a cut that is hidden directly"
        )
        right = through["error"] is not None and TEXT.startswith(through["text"])
        return Verdict(kind, None if right else f"a cut stream is made whole: {_short(through)}")
    if direct["error"] is not None:
        same = through["error"] == direct["error"] or (through["error"] is None and through["finish"] is not None)
        return Verdict(
            "an error directly", None if same else f"directly {_short(direct)}, through Headgate {_short(through)}"
        )
    equal = through["error"] is None and all(direct[field] == through[field] for field in SAME)
    return Verdict(
        "works directly", None if equal else f"directly {_short(direct)}, through Headgate {_short(through)}"
    )


def _short(outcome: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {str(value)[:80]!r}" for name, value in outcome.items() if value and name not in ("row", "client")
    )


async def _outcomes(folder: Path, base_url: str, matrix: Sequence[Row]) -> dict[tuple[str, str], dict[str, Any]]:
    """(row, client) -> what it made of it."""
    process = await asyncio.create_subprocess_exec(
        *("node", str(CLIENTS), str(folder), base_url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            asked = json.dumps([{"name": row.name, "api": row.api} for row in matrix])
            said, complaints = await process.communicate(asked.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise UnavailableError(f"node cannot run the clients: {complaints.decode(errors='replace')[-500:]}")
    return {(one["row"], one["client"]): one for one in json.loads(said)} | await outcomes(base_url, matrix)
