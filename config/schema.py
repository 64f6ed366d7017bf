"""The JSON Schema of gateway.yaml, for editors.

Generated from the models, but in the form people write: filters as one-key mappings, durations and
sizes as text, and `${…}` wherever a value may stand. The docstring under each field becomes its
description; it is read from the source here and not at boot, where that would cost more than all
the rest of the configuration.
"""

import ast
import inspect
from datetime import timedelta
from textwrap import dedent
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from .gateway import GatewayConfig
from .units import format_duration

_EXPANSION: Final = {"type": "string", "pattern": r"\$\{"}
_NAME: Final = {"type": "string", "description": "How routes, metrics and logs call it. Default: its kind."}
_BUILT_IN: Final = {
    "auth": "AuthConfig",
    "budget": "BudgetConfig",
    "cache": "CacheConfig",
    "circuit_breaker": "CircuitBreakerConfig",
    "access_log": "AccessLogConfig",
    "guard": "GuardConfig",
    "headers": "HeadersConfig",
    "rate_limit": "RateLimitConfig",
    "retry": "RetryConfig",
}


def json_schema() -> dict[str, Any]:
    """A JSON Schema (2020-12) for the whole file."""
    schema = GatewayConfig.model_json_schema(schema_generator=_Written)
    parts = schema["$defs"]
    for kind in _BUILT_IN.values():
        parts[kind]["properties"]["name"] = _NAME
    parts["FilterEntry"] = _filter_entry(parts.pop("UseConfig"))
    # Which settings may stand depends on the filter that is named so; load_config knows.
    parts["Route"]["properties"]["filters"]["additionalProperties"] = {"anyOf": [{"const": "off"}, {"type": "object"}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def field_docs(model: type[BaseModel]) -> dict[str, str]:
    """The docstring under each field of a model, by field name."""
    docs: dict[str, str] = {}
    for part in reversed(model.__mro__):
        if not issubclass(part, BaseModel) or part is BaseModel:
            continue
        tree = ast.parse(dedent(inspect.getsource(part))).body[0]
        for field, doc in zip(body := getattr(tree, "body", []), body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(doc):
                docs[field.target.id] = " ".join(doc.value.value.split())
    return docs


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _filter_entry(use: dict[str, Any]) -> dict[str, Any]:
    def one(kind: str, settings: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {kind: settings, **more},
            "required": [kind],
            "additionalProperties": False,
        }

    own = use["properties"]
    return {
        "description": "One place in the chain: a built-in filter, or one of your own.",
        "anyOf": [
            {"enum": list(_BUILT_IN)},
            *(
                one(kind, {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]})
                for kind, name in _BUILT_IN.items()
            ),
            one("use", own["target"], name=_NAME, config=own["config"]),
        ],
    }


class _Written(GenerateJsonSchema):
    """Models to schema, with descriptions and expansions, without internal fields."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        result = super().model_schema(schema)
        docs = field_docs(schema["cls"])
        for name, field in result.get("properties", {}).items():
            field["description"] = docs[name]
        return result

    def field_is_present(self, field: Any) -> bool:
        return not field.get("serialization_exclude") and super().field_is_present(field)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def encode_default(self, dft: Any) -> Any:
        return format_duration(dft) if isinstance(dft, timedelta) else super().encode_default(dft)

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return {"anyOf": [super().int_schema(schema), _EXPANSION]}

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return {"anyOf": [super().float_schema(schema), _EXPANSION]}

    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        return {"anyOf": [super().bool_schema(schema), _EXPANSION]}

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        return {"anyOf": [super().literal_schema(schema), _EXPANSION]}
