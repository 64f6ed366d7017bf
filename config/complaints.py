"""Pydantic's errors in our words, at the place in the file where the value stands.

Values are never echoed: a key that was written into the wrong line must not reach a log.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from .errors import Place, Placed
from .nodes import Items, Node, Scalar, Table

_MESSAGES: Final[Mapping[str, str]] = {
    "missing": "is required",
    "int_type": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "path_type": "must be a path",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "value_error": "{error}",
    **dict.fromkeys(
        ("model_type", "model_attributes_type", "dict_type", "mapping_type"), "must be a mapping (key: value)"
    ),
    **dict.fromkeys(("union_tag_not_found", "union_tag_invalid"), "must be a mapping of settings"),
    **dict.fromkeys(("tuple_type", "list_type", "frozen_set_type"), "must be a list"),
}


def message_of(error: Mapping[str, Any]) -> str:
    """One sentence for one entry of `ValidationError.errors()`."""
    template = _MESSAGES.get(error["type"])
    if template is None:
        return str(error["msg"])
    return template.format(**{name: _plain(value) for name, value in error.get("ctx", {}).items()})


def _plain(value: object) -> object:
    """Numbers as they are written in the file: 0.000001, not 1e-06."""
    return f"{Decimal(repr(value)).normalize():f}" if isinstance(value, float) else value


def find(root: Node, loc: Sequence[str | int]) -> tuple[Node, str | None]:
    """The node that pydantic's `loc` means, or the nearest above it and the key that is missing there.

    Steps that are in no tree, such as the tag of a union, are passed over.
    """
    node = root
    missing: str | None = None
    for step in loc:
        if step == "[key]":  # the key of a mapping is meant, and not its value
            break
        child: Node | None = None
        if isinstance(node, Table) and isinstance(step, str):
            child = node.entries.get(step)
        elif isinstance(node, Items) and isinstance(step, int) and step < len(node.items):
            child = node.items[step]
        lacking = child is None and isinstance(step, str) and isinstance(node, Table) and not _is_kind(node, step)
        missing = str(step) if lacking else None
        node = node if child is None else child
    return node, missing


def _is_kind(table: Table, step: str) -> bool:
    """Whether the step is the tag of a union, and no key that the table lacks."""
    kind = table.entries.get("kind")
    return isinstance(kind, Scalar) and kind.text == step


def place_of(node: Node, missing: str | None) -> Placed:
    """Where a complaint about this node, or about a key it lacks, stands."""
    return node if missing is None else Place(node.line, node.column, node.below(missing))
