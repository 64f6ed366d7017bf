"""openai-python's own API tests with Headgate between, by a catch-all route to one provider.

Always: each request of `tests/api_resources` goes once directly and once through Headgate to a provider that records
it, and the two must be equal (tests/support/heard.py). It answers with the least that the SDK takes for an answer, so
what the tests make of the answers is compared, too.

With an OpenAPI file (`HEADGATE_OPENAPI`), also as the SDK's authors run it, against the mock server that validates
requests by it: whatever passes directly must pass through Headgate.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import signal
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests_support.answers import response
from tests_support.heard import by_mark, compare
from tests_support.process import gateway_process
from tests_support.upstream import FakeUpstream

from .packages import node_env, python_env, sdist, versions
from .suite import PLUGINS, finished, outcomes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests_support.upstream import Request, Step

SDK = "3.3.1"
MOCK = "@stdy/cli@0.22.1"
OPENAPI = "HEADGATE_OPENAPI"
ENVIRONMENT = (
    f"openai[aiohttp,realtime]=={SDK}", "pytest", "pytest-asyncio", "pytest-xdist", "inline-snapshot", "rich", "httpx",
    "botocore", "azure-identity",
)  # fmt: skip
KEY = "the-provider's"
MARK, ANSWER = "x-foreign-test", "x-foreign-answer"
ANSWERED_HERE = re.compile(r"GET /v1/models(/[^/]+)?")
SHOWN = 20
PEACE = 60.0
"""Seconds until the mock server must answer."""


async def run() -> bool:
    """Both parts; whether nothing was wrong. Raises UnavailableError."""
    source, python = sdist("openai", SDK), python_env("openai-python", ENVIRONMENT)
    print(f"  {versions(python, 'openai', 'httpx2', 'aiohttp', 'pytest')}; {source}")
    ok = await _requests(source, python)
    spec = os.environ.get(OPENAPI)
    if not spec:
        print(f"  against the OpenAPI mock: skipped, {OPENAPI} does not name the OpenAPI file (it is not in the sdist)")
        return ok
    return await _against_mock(source, python, Path(spec)) and ok


def through(url: str) -> dict[str, Any]:
    """One provider, and a catch-all route to it."""
    return {
        "providers": {"up": {"base_url": url, "api_key": KEY, "list_models": False}},
        "routes": [{"name": "rest", "match": {"path": "/v1/**"}, "provider": "up"}],
    }


async def _requests(source: Path, python: Path) -> bool:
    heard, passed = [], []
    async with FakeUpstream(_answer) as recorder, gateway_process(through(recorder.base_url)) as gateway:
        for way, base_url in (("directly", recorder.base_url), ("through Headgate", gateway.base_url)):
            recorder.requests.clear()
            print(f"  tests/api_resources against the recorder, {way} …", flush=True)
            results = await _suite(source, python, base_url, "-p", "mark_requests")
            heard.append(by_mark(recorder.requests, MARK))
            passed.append({test for test, outcome in results.items() if outcome == "passed"})
            print(f"    {len(passed[-1])} of {len(results)} tests passed with {len(recorder.requests)} requests")
    direct, through_us = heard
    compared = compare(direct, through_us, answered_here=ANSWERED_HERE, credential=f"Bearer {KEY}")
    for difference in compared.differences[:SHOWN]:
        print(f"    {difference}")
    for what, count in compared.rewrites.items():
        print(f"    as documented, on {count} requests: {what}")
    print(f"    as documented, {compared.answered} requests to /v1/models answered by Headgate itself")
    print(f"  requests: {compared.equal} of {len(direct)} arrived equal, {len(compared.differences)} differences")
    return bool(direct) and not compared.differences and _none_lost(*passed)


def _answer(asked: Request) -> Sequence[Step]:
    """What the request itself says would do (plugins/valid_answers.py)."""
    kind, _, body = (asked.header(ANSWER) or "").partition(" ")
    return [response(200, base64.b64decode(body), [("content-type", kind)])]


async def _against_mock(source: Path, python: Path, spec: Path) -> bool:
    passed = []
    async with _mock_server(spec) as mock, gateway_process(through(mock)) as gateway:
        for way, base_url in (("directly", mock), ("through Headgate", gateway.base_url)):
            print(f"  tests/api_resources against {MOCK} on {spec}, {way} …", flush=True)
            results = await _suite(source, python, base_url)
            passed.append({test for test, outcome in results.items() if outcome == "passed"})
            print(f"    {len(passed[-1])} of {len(results)} passed")
    return _none_lost(*passed)


def _none_lost(direct: set[str], through: set[str]) -> bool:
    lost = sorted(direct - through)
    for test in lost[:SHOWN]:
        print(f"    passes only directly: {test}")
    print(f"  API tests: {len(direct)} pass directly, {len(through)} through Headgate, {len(lost)} lost")
    return bool(direct) and not lost


@contextlib.asynccontextmanager
async def _mock_server(spec: Path) -> AsyncIterator[str]:
    """The URL of the mock the SDK's `scripts/mock` starts, with its options."""
    folder = node_env("openapi-mock", [MOCK])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    brackets = [
        f"--validator-{place}-{kind}-format=brackets" for place in ("query", "form") for kind in ("array", "object")
    ]
    steady = folder / "node_modules" / ".bin" / "steady"
    process = await asyncio.create_subprocess_exec(
        *(str(steady), "--host", "127.0.0.1", "-p", str(port), *brackets, str(spec)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(PEACE):
            while process.returncode is None and not await _listens(port):  # noqa: ASYNC110 - it sends no event
                await asyncio.sleep(0.1)
        if process.returncode is not None:
            raise RuntimeError(f"{MOCK} ended with {process.returncode} on {spec}")
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def _suite(source: Path, python: Path, base_url: str, *options: str) -> dict[str, str]:
    """The outcome of each test of `tests/api_resources`."""
    with tempfile.TemporaryDirectory(prefix="headgate-foreign-") as name:
        report = Path(name) / "report.xml"
        quiet = ("-n", "2", "-q", "--tb=no", "--no-header", "-p", "no:cacheprovider")
        await finished(
            [str(python), "-m", "pytest", *quiet, *options, f"--junitxml={report}", "tests/api_resources"],
            source,
            {"TEST_API_BASE_URL": base_url, "PYTHONPATH": str(PLUGINS), "DEFER_PYDANTIC_BUILD": "false"},
        )
        return outcomes(report)
