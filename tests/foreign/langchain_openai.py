"""langchain-openai's recorded-cassette tests: once as they are, once with Headgate between client and cassette.

What passes as it is must pass through Headgate, and the ledger must have a row for each exchange that was asked for:
then the requests have really gone that way (plugins/cassette_provider.py).
"""

from __future__ import annotations

import socket
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests_support.process import gateway_process

from .packages import UnavailableError, python_env, sdist, versions
from .suite import PLUGINS, finished, outcomes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

VERSION = "1.7.4"
FAMILY = (
    f"langchain-openai=={VERSION}", "langchain-core", "langchain-tests", "langchain", "langgraph",
    "langgraph-checkpoint", "langgraph-prebuilt", "langgraph-sdk",
)  # fmt: skip
TOOLS = ("pytest-cov", "pytest-mock", "pytest-retry", "freezegun", "pillow")
QUIET = ("-q", "--tb=no", "--no-header", "-p", "no:cacheprovider", "-o", "addopts=", "--benchmark-disable")
RECORDED = ("--record-mode=none", "-m", "vcr", "tests/integration_tests")
SHOWN = 20


async def run() -> bool:
    """Whether nothing was lost. Raises UnavailableError."""
    source = sdist("langchain-openai", VERSION)
    if not any((source / "tests" / "cassettes").glob("*.gz")):
        raise UnavailableError(f"the source distribution of langchain-openai {VERSION} has no tests/cassettes")
    python = python_env("langchain-openai", TOOLS, above_floors=FAMILY)
    print(f"  {versions(python, 'langchain-openai', 'langchain-core', 'openai', 'vcrpy')}; {source}")
    print("  its cassettes, directly …", flush=True)
    direct = await _suite(source, python, {})
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    provider = {"base_url": f"http://127.0.0.1:{port}/v1", "list_models": False}
    async with gateway_process({"providers": {"up": provider}}) as gateway:
        print("  its cassettes, through Headgate …", flush=True)
        env = {"FOREIGN_GATEWAY": gateway.url, "FOREIGN_PROVIDER_PORT": str(port)}
        through = await _suite(source, python, env, "cassette_provider")
        rows = gateway.ledger()
    passed = {test for test, outcome in direct.items() if outcome == "passed"}
    lost = sorted(test for test in passed if through.get(test) != "passed")
    for test in lost[:SHOWN]:
        print(f"    passes only directly: {test}")
    print(f"    the ledger has {len(rows)} rows: {_count(rows)}")
    print(f"  cassettes: {len(passed) - len(lost)} of {len(passed)} that pass directly pass through Headgate")
    return bool(passed) and not lost and len(rows) >= len(passed)


def _count(rows: Iterable[Mapping[str, Any]]) -> str:
    counted = Counter((row["endpoint"], row["status"]) for row in rows)
    return ", ".join(f"{count} {endpoint} with {status}" for (endpoint, status), count in sorted(counted.items()))


async def _suite(source: Path, python: Path, env: Mapping[str, str], *plugins: str) -> dict[str, str]:
    """The outcome of each test that has a cassette."""
    with tempfile.TemporaryDirectory(prefix="headgate-foreign-") as name:
        report = Path(name) / "report.xml"
        options = [option for plugin in plugins for option in ("-p", plugin)]
        await finished(
            [str(python), "-m", "pytest", *QUIET, *options, f"--junitxml={report}", *RECORDED],
            source,
            {"OPENAI_API_KEY": "sk-none", "PYTHONPATH": str(PLUGINS), **env},
        )
        return outcomes(report)
