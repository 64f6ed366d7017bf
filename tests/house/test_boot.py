"""A running gateway has imported a fixed, short list of other people's packages: the rest costs seconds and memory."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:
    from pathlib import Path

# What a gateway in its default form may load, with what that brings along.
ALLOWED = {
    *(
        "anyio",
        "httptools",
        "msgspec",
        "prometheus_client",
        "pydantic",
        "starlette",
        "structlog",
        "uvicorn",
        "uvloop",
        "yaml",
    ),
    *("annotated_types", "click", "h11", "idna", "pydantic_core", "typing_extensions", "typing_inspection"),
}
CLIENT_LIBRARIES = {
    "cryptography",
    "genai_prices",
    "h2",
    "httpcore",
    "httpcore2",
    "httpx",
    "httpx2",
    "jwt",
    "openai",
    "redis",
}
# structlog and anyio take them where they are installed: the checks need them, the gateway's own lock has none.
OF_THE_CHECKS = {"rich", "pygments", "markdown_it", "mdurl", "sniffio"}
MAIN = """
import atexit, sys
before = set(sys.modules)
def tell():
    new = {name.partition(".")[0] for name in sys.modules} - before
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in new}
    print("loaded", *(name for name, file in files.items() if file and "site-packages" in file), flush=True)
atexit.register(tell)
from headgate.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


async def loaded_by(*arguments: str) -> set[str]:
    """Run the command, end it when it says that it serves, and say what it had loaded at its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", MAIN, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            async for line in process.stdout:
                if b" serves " in line:
                    process.send_signal(signal.SIGTERM)
                if line.startswith(b"loaded"):
                    assert await process.wait() == 0
                    return set(line.decode().split()[1:])
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    pytest.fail(f"it ended with {process.returncode} and did not say what it loaded")


async def test_a_served_gateway_has_loaded_the_short_list_and_no_client_library(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    listeners = {"data": {"port": 0}, "admin": {"port": 0}}
    events = {"path": str(tmp_path / "events.db"), "spool": {"path": str(tmp_path / "spool")}}
    file.write_text(json.dumps({"listeners": listeners, "events": events}))
    loaded = await loaded_by("serve", str(file))
    assert {"pydantic", "uvloop", "httptools"} <= loaded
    assert loaded & CLIENT_LIBRARIES == set()
    assert loaded - ALLOWED - OF_THE_CHECKS == set()


async def test_the_library_for_tokens_is_loaded_where_they_are_configured(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    listeners = {"data": {"port": 0}, "admin": {"port": 0}}
    events = {"path": str(tmp_path / "events.db"), "spool": {"path": str(tmp_path / "spool")}}
    jwt = {"issuer": "i", "audience": "a", "jwks_url": "http://127.0.0.1:9/keys"}
    file.write_text(json.dumps({"listeners": listeners, "events": events, "filters": [{"auth": {"jwt": jwt}}]}))
    loaded = await loaded_by("serve", str(file))
    assert loaded & CLIENT_LIBRARIES == {"jwt", "cryptography"}


async def test_a_command_that_serves_nothing_loads_nothing() -> None:
    assert await loaded_by("version") == set()


def test_the_root_config_opens_only_loopback_and_keeps_no_secret(root: Path) -> None:
    config = yaml.safe_load((root / "gateway.yaml").read_text())
    assert config["listeners"]["data"]["address"] == "${HEADGATE_ADDRESS:-127.0.0.1}"
    assert config["listeners"]["admin"]["address"] == "127.0.0.1"
    assert all(provider.get("api_key", "${").startswith("${") for provider in config["providers"].values())
