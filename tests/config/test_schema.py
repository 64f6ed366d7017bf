"""schema: an editor accepts what load_config accepts, and marks a misspelt key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from headgate.config import GatewayConfig, Provider, json_schema
from headgate.config.errors import Report
from headgate.config.fields import Section, internal
from headgate.config.nodes import Items, Node, Table, resolve
from headgate.config.schema import field_docs
from headgate.config.yaml_nodes import parse

if TYPE_CHECKING:
    from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json_schema()

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
NOTES = {"$defs", "$schema", "default", "description", "format", "title"}
# A keyword says nothing about a value of another type.
APPLIES = {
    **dict.fromkeys(("properties", "required", "additionalProperties"), "object"),
    **dict.fromkeys(("items", "minItems", "uniqueItems"), "array"),
    **dict.fromkeys(("pattern", "minLength", "maxLength"), "string"),
    **dict.fromkeys(("minimum", "maximum"), "number"),
}


def accepts(schema: Any, value: Any) -> bool:
    """JSON Schema, as far as this one uses it; any other keyword is an error."""
    if isinstance(schema, bool):
        return schema
    return all(
        holds(keyword, wanted, schema, value)
        for keyword, wanted in schema.items()
        if keyword not in NOTES and (keyword not in APPLIES or is_a(APPLIES[keyword], value))
    )


def is_a(name: str, value: Any) -> bool:
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def holds(keyword: str, wanted: Any, schema: dict[str, Any], value: Any) -> bool:
    match keyword:
        case "$ref":
            return accepts(SCHEMA["$defs"][wanted.removeprefix("#/$defs/")], value)
        case "type":
            return is_a(wanted, value)
        case "const":
            return bool(value == wanted)
        case "enum":
            return value in wanted
        case "anyOf":
            return any(accepts(one, value) for one in wanted)
        case "properties":
            return all(accepts(one, value[key]) for key, one in wanted.items() if key in value)
        case "required":
            return all(key in value for key in wanted)
        case "additionalProperties":
            return all(accepts(wanted, one) for key, one in value.items() if key not in schema.get("properties", {}))
        case "items":
            return all(accepts(wanted, one) for one in value)
        case "pattern":
            return re.search(wanted, value) is not None
        case "minimum" | "minItems" | "minLength":
            return bool((value if keyword == "minimum" else len(value)) >= wanted)
        case "maximum" | "maxLength":
            return bool((value if keyword == "maximum" else len(value)) <= wanted)
        case "uniqueItems":
            return len(set(value)) == len(value)
    raise AssertionError(f"{keyword} is not understood")


def read(text: str) -> Any:
    """YAML as an editor reads it: by the core schema, where `on` and `off` are words."""

    def value(node: Node) -> Any:
        if isinstance(node, Table):
            return {key: value(child) for key, child in node.entries.items()}
        if isinstance(node, Items):
            return [value(child) for child in node.items]
        return resolve(node.text) if node.plain else node.text

    return value(parse(text, Report("f")))


def test_the_file_in_the_root_is_accepted() -> None:
    assert accepts(SCHEMA, read((ROOT / "gateway.yaml").read_text()))


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "workers: 2",
        "workers: ${WORKERS:-2}",
        "limits: {body: 32MiB, drain: 1.5s}",
        "limits: {body: 1048576, drain: '${DRAIN}'}",
        "filters: [auth, retry, {retry: null}, {retry: {name: a, attempts: 2, on: [reset]}}]",
        "filters: [{use: 'a:B', name: x, config: {a: [1]}}]",
        "routes: [{name: a, filters: {retry: off}}]",
        "routes: [{name: a, filters: {retry: {attempts: 1}}}]",
        "models: {'gpt-*': {targets: [{provider: p, price: {input: 1, output: 2.5}}]}}",
        "providers: {p: {base_url: 'mock:', api_key: '${K:-}', direct: true, timeouts: {idle: 5s}}}",
    ],
)
def test_what_people_write_is_accepted(text: str) -> None:
    assert accepts(SCHEMA, read(text))


@pytest.mark.parametrize(
    "text",
    [
        "wrokers: 2",
        "workers: many",
        "workers: 0",
        "version: 2",
        "limits: {bodi: 1}",
        "limits: {drain: 30}",
        "limits: {body: 32MB}",
        "filters: [retri]",
        "filters: [{retry: {atempts: 1}}]",
        "filters: [{retry: {}, auth: {}}]",
        "filters: [{auth: {keys: [{name: a}]}}]",
        "models: {m: {targets: []}}",
        "routes: [{name: a, filters: {retry: never}}]",
        "providers: {p: {base_url: 'mock:', implicit: true}}",
        "warnings: []",
        "files: []",
    ],
)
def test_a_mistake_is_marked(text: str) -> None:
    assert not accepts(SCHEMA, read(text))


@pytest.mark.parametrize("model", Section.__subclasses__(), ids=lambda model: model.__name__)
def test_every_field_says_what_it_is_and_its_default(model: type[BaseModel]) -> None:
    docs = field_docs(model)
    for name, info in model.model_fields.items():
        if not internal(info):
            assert docs[name].endswith(".")
            # What code fills in from the way an entry is written has no default of its own.
            assert ("Default" in docs[name]) is not info.is_required() or model.__name__ == "FilterEntry"


def test_descriptions_come_from_the_docstrings() -> None:
    assert SCHEMA["$defs"]["Provider"]["properties"]["base_url"]["description"] == field_docs(Provider)["base_url"]
    assert SCHEMA["properties"].keys() == {
        name for name, info in GatewayConfig.model_fields.items() if not internal(info)
    }


def test_defaults_are_written_as_people_write_them() -> None:
    assert SCHEMA["$defs"]["Timeouts"]["properties"]["connect"]["default"] == "5s"
    assert SCHEMA["$defs"]["Limits"]["properties"]["drain"]["default"] == "30s"
    assert SCHEMA["properties"]["limits"]["default"]["body"] == "32MiB"
