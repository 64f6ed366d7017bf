"""Walks the tree beside the models: which keys may stand, what each scalar means, what `${…}` gives.

The model says what a scalar is, not its looks: where text is wanted `key: 0123` is that text, where
a number is wanted `port: "${PORT}"` is one. What fails here is reported and left out of the data,
and remembered, so that pydantic's complaint about the gap is not reported a second time.

Not here: ranges and formats (the models) and names that refer to each other (checks.py).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .errors import Report
from .expand import Expander, ExpandError, ExpansionLimitError
from .fields import internal
from .nodes import Items, Node, Scalar, Table, resolve
from .secret import ExpandedText, Secret
from .suggest import did_you_mean
from .versions import LATER_KEYS, LATER_VALUES, not_yet
from .yaml_nodes import has_forbidden

# `$NAME` would be a key that whoever reads the file's documentation can guess.
_UNEXPANDED: Final = re.compile(r"^[$%<]|[{}]")

GAP: Final = object()
"""Nothing usable was written here, and that has been reported."""


class Binder:
    """One walk over one tree."""

    def __init__(self, expander: Expander, report: Report) -> None:
        self._expander = expander
        self._report = report
        self._gaps: set[int] = set()
        self._meant: set[tuple[int, str]] = set()

    def bind(self, root: Table, model: type[BaseModel]) -> dict[str, Any]:
        """Plain data for `model`: mappings, lists, scalars and Secrets."""
        return self._model(root, model)

    def is_reported(self, node: Node, missing: str | None = None) -> bool:
        """Whether this node, or the missing key of this table, is already complained about. What a table lacks as a
        whole is known only once its keys are spelt right."""
        if missing is None:
            return id(node) in self._gaps or any(table == id(node) for table, _ in self._meant)
        return (id(node), missing) in self._meant

    def _node(self, node: Node, annotation: Any) -> Any:
        annotation = _narrow(annotation, node)
        if isinstance(node, Scalar):
            return self._scalar(node, annotation)
        if isinstance(node, Items):
            inner = _item(annotation)
            bound_items = [(item, value) for item in node.items if (value := self._node(item, inner)) is not GAP]
            # The tree loses the gaps too, so that an index means the same in both.
            node.items = [item for item, _ in bound_items]
            return [value for _, value in bound_items]
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return self._model(node, annotation)
        inner = _value(annotation)
        return {
            key: value
            for key, child in node.entries.items()
            if (value := {} if _is_null(child) and annotation is not Any else self._node(child, inner)) is not GAP
        }

    def _model(self, table: Table, model: type[BaseModel]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key, node in table.entries.items():
            info = model.model_fields.get(key)
            if info is None or (internal(info) and not (isinstance(node, Scalar) and not node.written)):
                self._refuse_key(table, key, model)
            elif isinstance(node, Scalar) and node.text in LATER_VALUES.get((model, key), ()):
                self._gap(node, not_yet(node.text))
            elif _is_null(node):
                continue
            elif (value := self._field(node, info)) is not GAP:
                data[key] = value
        return data

    def _field(self, node: Node, info: FieldInfo) -> Any:
        value = self._node(node, info.annotation)
        # An expansion to nothing means the same as a key with nothing behind it: the default.
        return GAP if value is None else value

    def _refuse_key(self, table: Table, key: str, model: type[BaseModel]) -> None:
        if key in LATER_KEYS.get(model, ()):
            self._report.add(table.key(key), not_yet(key))
            # It may stand instead of what this version requires, as `endpoints` does for `base_url`.
            self._meant.update((id(table), name) for name, info in model.model_fields.items() if info.is_required())
            return
        known = {name for name, info in model.model_fields.items() if not internal(info)}
        meant = did_you_mean(key, known - table.entries.keys()) if self._report.has_room else None
        if meant is not None:
            self._meant.add((id(table), meant))
        self._report.add(table.key(key), f"unknown key, did you mean '{meant}'?" if meant else "unknown key")

    def _scalar(self, node: Scalar, annotation: Any) -> Any:
        if not node.written:
            return node.text
        try:
            expansion = self._expander.expand(node.text)
        except ExpansionLimitError as error:
            self._report.refuse(node, str(error))
        except ExpandError as error:
            return self._gap(node, str(error))
        text, origin = expansion.text, expansion.origin
        if origin is not None and has_forbidden(text):
            return self._gap(node, f"{origin} holds a control character")
        if annotation is Secret:
            if origin is None and _UNEXPANDED.search(node.text):
                return self._gap(node, "looks like an expansion, but is none; write ${NAME}")
            return Secret(text, origin)
        if origin is not None and not text:
            return None
        value: object = text
        if _is_text(annotation):
            value = None if node.is_null else text
        elif node.plain or (origin is not None and annotation is not Any):
            value = resolve(text)
        return ExpandedText(value) if origin is not None and isinstance(value, str) else value

    def _gap(self, node: Node, message: str) -> object:
        self._report.add(node, message)
        self._gaps.add(id(node))
        return GAP


def _is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.is_null


def _narrow(annotation: Any, node: Node) -> Any:
    """The one type that can be meant: Annotated and Optional taken off, a union decided by the node."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in {Union, UnionType}:
        return annotation
    choices = [_narrow(choice, node) for choice in get_args(annotation) if choice is not NoneType]
    if isinstance(node, Table) and isinstance(kind := node.entries.get("kind"), Scalar):
        choices = [choice for choice in choices if _kind(choice) == kind.text] or choices
    elif isinstance(node, Scalar):
        choices = [choice for choice in choices if _kind(choice) is None] or choices
    return choices[0]


def _kind(choice: Any) -> str | None:
    if not (isinstance(choice, type) and issubclass(choice, BaseModel)):
        return None
    info = choice.model_fields.get("kind")
    return info.default if info is not None else None


def _item(annotation: Any) -> Any:
    """What a list of this type holds."""
    return _narrow(get_args(annotation)[0], _NOWHERE) if get_origin(annotation) in {tuple, frozenset} else Any


def _value(annotation: Any) -> Any:
    """What a mapping of this type holds."""
    return get_args(annotation)[1] if get_origin(annotation) is Mapping else Any


def _is_text(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return all(isinstance(choice, str) for choice in get_args(annotation))
    return annotation in {str, Path}


_NOWHERE: Final = Scalar(line=0, column=0, text="")
