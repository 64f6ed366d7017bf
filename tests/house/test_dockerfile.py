"""The image, as far as its recipe tells: two stages, hash-locked, not root, one writable folder, a health check.

The recipe is read and its Python lines are compiled; no image is built here.
"""

from __future__ import annotations

import ast
import fnmatch
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

Instruction = tuple[str, str]


@pytest.fixture(scope="module")
def dockerfile(root: Path) -> list[Instruction]:
    """(keyword, rest) of each instruction; continued lines are joined."""
    lines = [line for line in (root / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def last(instructions: list[Instruction], word: str) -> str:
    return [rest for keyword, rest in instructions if keyword == word][-1]


def environment(instructions: list[Instruction]) -> dict[str, str]:
    return dict(pair.split("=", 1) for keyword, rest in instructions if keyword == "ENV" for pair in rest.split())


def test_two_stages_stand_on_the_same_tagged_slim_image(dockerfile: list[Instruction]) -> None:
    assert [rest for word, rest in dockerfile if word == "FROM"] == [
        "python:3.11-slim-bookworm AS wheel",
        "python:3.11-slim-bookworm",
    ]


def test_every_install_checks_hashes_or_has_no_index_to_ask(dockerfile: list[Instruction]) -> None:
    commands = [
        c
        for word, rest in dockerfile
        if word == "RUN"
        for c in rest.split("&&")
        if re.search(r"\bpip\b.*(install|wheel) ", c)
    ]
    assert len(commands) == 4
    for command in commands:
        locked = "--require-hashes --only-binary :all:" in command
        offline = "--no-index" in command and "--no-deps" in command
        assert locked != offline, command


def test_it_does_not_run_as_root_and_nothing_changes_that_later(dockerfile: list[Instruction]) -> None:
    assert [rest for word, rest in dockerfile if word == "USER"] == ["10001:10001"]


def test_the_one_writable_folder_is_a_volume_and_the_working_directory(dockerfile: list[Instruction]) -> None:
    # events.path and events.spool.path are relative to the working directory.
    assert last(dockerfile, "VOLUME") == last(dockerfile, "WORKDIR") == "/var/lib/headgate"


def test_the_entry_point_is_exec_form_so_that_signals_reach_the_gateway(dockerfile: list[Instruction]) -> None:
    assert json.loads(last(dockerfile, "ENTRYPOINT")) == ["headgate", "serve", "/etc/headgate/gateway.yaml"]
    assert ("COPY", "gateway.yaml /etc/headgate/gateway.yaml") in dockerfile
    assert last(dockerfile, "STOPSIGNAL") == "SIGTERM"


def test_it_listens_on_every_address_and_brings_no_key(dockerfile: list[Instruction]) -> None:
    env = environment(dockerfile)
    assert env["HEADGATE_ADDRESS"] == "0.0.0.0"
    assert [name for name in env if "KEY" in name or "TOKEN" in name] == []
    assert last(dockerfile, "EXPOSE") == "8070"


def test_health_is_asked_every_ten_seconds_with_python_alone(dockerfile: list[Instruction]) -> None:
    options, command = last(dockerfile, "HEALTHCHECK").split("CMD ", 1)
    assert options.split() == ["--interval=10s", "--timeout=5s", "--retries=3"]
    python, flag, code = json.loads(command)
    assert (python, flag) == ("python", "-c")
    assert "/v1/health" in code
    ast.parse(code)


def test_its_python_lines_import_what_is_there(dockerfile: list[Instruction]) -> None:
    lines = [json.loads(rest)[2] for word, rest in dockerfile if word == "RUN" and rest.startswith("[")]
    imports = [node for line in lines for node in ast.walk(ast.parse(line)) if isinstance(node, ast.ImportFrom)]
    assert [node.module for node in imports] == ["headgate.proxy.accounting.price_table"]
    for node in imports:
        module: Any = __import__(node.module or "", fromlist=["*"])
        assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_every_file_it_copies_is_in_the_build_context(dockerfile: list[Instruction], root: Path) -> None:
    ignored = [line for line in (root / ".dockerignore").read_text().splitlines() if line and line[0] not in "#!"]
    kept = [line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert ignored[0] == "*"
    sources = [rest.split()[0] for word, rest in dockerfile if word == "COPY"]
    assert all(source == "." or source.split("/")[0] in kept for source in sources)
    assert not any(
        fnmatch.fnmatch(secret, pattern) for pattern in kept for secret in (".env", ".git", "headgate-events.db")
    )


def test_the_context_holds_all_that_the_wheel_is_made_of(tracked: list[str], root: Path) -> None:
    kept = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    packages = {name.split("/")[0] for name in tracked if name.endswith(".py")} - {"tests", "perf", "docs", "deploy"}
    assert packages | {"pyproject.toml", "py.typed", "README.md", "LICENSE", "requirements"} <= kept
