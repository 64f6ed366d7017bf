"""README.md and docs/: every example of the three ways runs as it stands, and the endpoint table is the product's."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

from headgate.control.endpoints import FACES
from headgate.dialects.one_shot import OneShot
from headgate.dialects.openai import OpenAI
from tests_support.asgi import Lifespan, ask
from tests_support.gateway import running_gateway

ROOT = Path(__file__).resolve().parents[2]
CHAT_BODY = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hello"}]}'
CONFIG = json.dumps({"providers": {"mock": {"base_url": "mock:"}}})
PATIENCE = 30.0


def examples(file: str) -> list[str]:
    """The Python of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / file).read_text(), re.DOTALL | re.MULTILINE)


QUICK_START, MIDDLEWARE, TRANSPORT = examples("README.md")
ADDED, ADMIN, STREAMED = examples("docs/embedding.md")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a `gateway.yaml`, as the examples have one."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.endswith("_API_KEY") or name == "HEADGATE_KEY"]:
        monkeypatch.delenv(name)
    Path("gateway.yaml").write_text(CONFIG)


def execute(example: str) -> dict[str, Any]:
    """What the example leaves behind."""
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, "example", "exec"), names)  # noqa: S102 - our own page
    return names


async def test_the_sidecar_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert "127.0.0.1:8070" in QUICK_START
    async with running_gateway(CONFIG) as gateway, asyncio.timeout(PATIENCE):
        await to_thread.run_sync(execute, QUICK_START.replace("8070", str(gateway.port)))
    assert "You said: Hello" in capsys.readouterr().out


@pytest.mark.parametrize("example", [MIDDLEWARE, ADDED, ADMIN], ids=["readme", "added", "admin"])
async def test_the_middleware_examples_run(example: str) -> None:
    app = execute(example)["app"]
    async with Lifespan(app):
        answer = await ask(app, "POST", "/v1/chat/completions", CHAT_BODY, [("content-type", "application/json")])
    assert answer.status == 200
    assert b"You said: Hello" in answer.body


async def test_the_admin_example_mounts_it() -> None:
    app = execute(ADMIN)["app"]
    async with Lifespan(app):
        ready = await ask(app, "GET", "/gateway/ready")
    assert (ready.status, json.loads(ready.body)) == (200, {"state": "LIVE"})


@pytest.mark.parametrize("example", [TRANSPORT, STREAMED], ids=["readme", "streamed"])
async def test_the_transport_examples_run(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    async with asyncio.timeout(PATIENCE):
        await to_thread.run_sync(execute, example)
    assert "You said: Hello" in capsys.readouterr().out


def twin_of(path: str) -> str:
    """The path below `/v1` of one that has a deployment in it."""
    return path.replace("/openai/deployments/*/", "/v1/")


def test_the_endpoint_table_is_the_products() -> None:
    lines = re.findall(r"^\| `(\w+) (\S+)` \| (.*?) \| (.*?) \| (yes|no) \|$", ENDPOINTS, re.MULTILINE)
    written = {
        (method, path.replace("{id}", "").replace("{model}", "*")): (
            not streams.startswith("no"),
            not metered.startswith("not "),
            again == "yes",
        )
        for method, path, streams, metered, again in lines
    }
    rows = [face for face in FACES if not face.passes]
    assert "| `POST /openai/deployments/{model}/`… | as the same path below `/v1` | the same | yes |" in ENDPOINTS
    deployments = [face for face in rows if face.names_model]
    written |= {(face.method, face.path): written["POST", twin_of(face.path)] for face in deployments}
    assert written == {(face.method, face.path): (_streams(face), face.metered, face.repeatable) for face in rows}


def test_every_path_without_a_model_is_named() -> None:
    assert all(f"`{face.path}`" in ENDPOINTS for face in FACES if face.passes)


def test_the_terminal_events_are_named() -> None:
    for operation in OpenAI().operations.values():
        if isinstance(operation, OneShot):
            assert all(f"`{kind}`" in ENDPOINTS for kind in operation._events.terminal)


def _streams(face: Any) -> bool:
    operation = OpenAI().operations.get(face.operation)
    if isinstance(operation, OneShot):
        return bool(operation._events.terminal)
    return operation is not None


ENDPOINTS = (ROOT / "docs" / "endpoints.md").read_text()
