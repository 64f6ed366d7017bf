"""check and schema: what is wrong with a file, all of it, before anything is restarted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from tests_support.command import InProcess

ROOT_FILE = Path(__file__).parents[2] / "gateway.yaml"
GOOD = """
providers:
  openai: {base_url: "https://api.openai.com/v1", api_key: "${OPENAI_API_KEY:-}"}
  local: {base_url: "http://127.0.0.1:8000/v1"}
  pool: {endpoints: [{url: "http://10.0.0.1/v1"}, {url: "http://10.0.0.2/v1"}], api_keys: [{name: a, key: "${A:-}"}]}
models: {fast: {targets: [{provider: openai, model: gpt-4o-mini}, {provider: local, model: qwen}]}}
filters: [retry]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the test writes its config."""
    return tmp_path / "gateway.yaml"


def test_a_good_file_is_shown_as_it_will_work(file: Path, headgate: InProcess) -> None:
    file.write_text(GOOD)
    said = headgate("check", str(file))
    assert (said.code, said.err) == (0, "")
    first, *lines = said.out.splitlines()
    assert first.startswith(f"{file}: good (version ")
    assert lines == [
        "  provider openai: https://api.openai.com/v1 (not configured: set OPENAI_API_KEY)",
        "  provider local: http://127.0.0.1:8000/v1 (configured)",
        "  provider pool: http://10.0.0.1/v1, http://10.0.0.2/v1 (not configured: set A)",
        "  model fast: openai, local",
        "  chain: retry",
        "  warning: auth is open: every process of this machine may call; to close it, write "
        'filters: [auth: {keys: [{name: app, key: "${HEADGATE_KEY:-}"}]}] and set HEADGATE_KEY',
        "  warning: providers.openai: OPENAI_API_KEY is empty, so nothing is sent there",
        "  warning: providers.pool: A is empty, so nothing is sent there",
    ]


def test_the_root_file_is_good(headgate: InProcess) -> None:
    said = headgate("check", str(ROOT_FILE))
    assert (said.code, "  chain: auth -> retry" in said.out) == (0, True)


def test_without_a_file_the_one_of_the_working_directory_is_checked_else_the_defaults(
    file: Path, headgate: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    assert headgate("check").out.startswith("defaults: good")
    file.write_text(GOOD)
    assert headgate("check").out.startswith("gateway.yaml: good")


def test_secrets_are_not_shown(file: Path, headgate: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-provider-canary-3Wn8cB6yHg1JfXeU")
    file.write_text(GOOD)
    said = headgate("check", str(file))
    assert "openai: https://api.openai.com/v1 (configured)" in said.out
    assert "canary" not in said.out


def test_every_problem_is_a_line_with_its_place(file: Path, headgate: InProcess) -> None:
    """Faults §4 (34)."""
    file.write_text(GOOD.replace("filters:", "filtres:").replace("provider: local", "provider: locl"))
    said = headgate("check", str(file))
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines() == [
        f"{file}:6:78: models.fast.targets[1].provider: no provider is named 'locl', did you mean 'local'?",
        f"{file}:7:1: filtres: unknown key, did you mean 'filters'?",
        "headgate: the config is refused: 2 problems",
    ]


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ("filters: [{use: 'nowhere_at_all:Mine'}]", "cannot be imported: ModuleNotFoundError"),
        ("filters: [{use: 'json:JSONDecoder'}]", "is not a subclass of headgate.Filter"),
        ("filters: [{use: 'mine:Mine', config: {limit: many}}]", "its config was refused: ValueError"),
        ("filters: [{use: 'mine:Mine', config: {colour: red}}]", "its config was refused: TypeError"),
        ("filters: [{use: 'mine:Late'}, {use: 'mine:Mine'}]", "filters[0]: 'use' must come after 'use'"),
        ("prices: {file: FOLDER/prices.yaml}", "prices.file: "),
    ],
)
def test_what_only_building_shows_is_found_too(extra: str, why: str, file: Path, headgate: InProcess) -> None:
    file.with_name("mine.py").write_text(
        "from headgate import Filter\n"
        "class Mine(Filter):\n    def __init__(self, limit=1): self.limit = int(limit)\n"
        "class Late(Filter):\n    after = ('use',)\n"
    )
    file.with_name("prices.yaml").write_text("models: 7\n")
    file.write_text(extra.replace("FOLDER", str(file.parent)))
    said = headgate("check", str(file))
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"{file}: ")
    assert why in said.err
    assert said.err.endswith("headgate: the config is refused: 1 problem\n")
    assert "Traceback" not in said.err


def test_the_schema_is_json_schema_and_knows_every_key_of_the_root_file(headgate: InProcess) -> None:
    said = headgate("schema")
    assert (said.code, said.err) == (0, "")
    schema = json.loads(said.out)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert unknown(yaml.safe_load(ROOT_FILE.read_text()), schema, schema) == []
    assert unknown({"modles": {}, "limits": {"boddy": 1}}, schema, schema) == ["modles", "limits.boddy"]


def unknown(value: Any, schema: dict[str, Any], root: dict[str, Any], path: str = "") -> list[str]:
    """Keys of `value` that the schema has not. (A validator is no dependency of ours.)"""
    schema = resolved(schema, root)
    options = [option for key in ("anyOf", "oneOf", "allOf") for option in schema.get(key, ())]
    if options:
        return min((unknown(value, option, root, path) for option in options), key=len)
    if isinstance(value, list):
        items = schema.get("items", {})
        return [found for one in value for found in unknown(one, items, root, path)]
    if not isinstance(value, dict) or schema.get("type", "object") != "object":
        return []
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    found: list[str] = []
    for key, one in value.items():
        place = f"{path}.{key}".lstrip(".")
        if key in known:
            found += unknown(one, known[key], root, place)
        elif isinstance(others, dict):
            found += unknown(one, others, root, place)
        elif not others:
            found.append(place)
    return found


def resolved(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """What a `$ref` points at."""
    while "$ref" in schema:
        node: Any = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            node = node[step]
        schema = node
    return schema
