"""The tree of a configuration, whose every node knows the place it was written at.

Scalars stay text; `resolve` says what a plain one means by the YAML 1.2 core schema, where `on` and `off` are words
and neither 1:30 nor 2026-01-01 is a number. Who asks for it is bind.py, which knows the type that is wanted.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from .errors import Place
from .suggest import shown

_BARE_KEY = re.compile(r"[A-Za-z0-9_*-]+")
_INT = re.compile(r"[-+]?[0-9]{1,40}")
_OCTAL_OR_HEX = re.compile(r"0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,4})?")
_INFINITY = re.compile(r"[-+]?\.(inf|Inf|INF)")
_WORDS: Final[dict[str, bool | float | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass(slots=True, eq=False, kw_only=True)
class _Placed:
    line: int
    column: int
    parent: "Node | None" = None
    step: str | int | None = None

    @property
    def path(self) -> str:
        """Where it was written: `filters[2].retry.attempts`; empty for the root."""
        steps: list[str] = []
        node: _Placed | None = self
        while node is not None and node.step is not None:
            steps.append(_step(node.step))
            node = node.parent
        return "".join(reversed(steps)).removeprefix(".")

    def below(self, key: str) -> str:
        """The path of `key` below this node, whether it is there or not."""
        return (self.path + _step(key)).removeprefix(".")

    def key(self, name: str) -> Place:
        """Where the key `name` stands, or would stand if it were there."""
        return Place(self.line, self.column, self.below(name))


@dataclass(slots=True, eq=False, kw_only=True)
class Scalar(_Placed):
    """A single value, as text. `plain`: it had no quotes. `written`: it stands in the file."""

    text: str
    plain: bool = True
    written: bool = True

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in _WORDS and _WORDS[self.text] is None


@dataclass(slots=True, eq=False, kw_only=True)
class Items(_Placed):
    """A list."""

    items: list["Node"] = field(default_factory=list)


@dataclass(slots=True, eq=False, kw_only=True)
class Table(_Placed):
    """A mapping. `keys` holds the place of each key; keys are text, whatever they look like."""

    entries: dict[str, "Node"] = field(default_factory=dict)
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)

    def key(self, name: str) -> Place:
        return Place(*self.keys.get(name, (self.line, self.column)), self.below(name))


Node: TypeAlias = Scalar | Items | Table


def _step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    if _BARE_KEY.fullmatch(step):
        return f".{step}"
    return f"[{json.dumps(shown(step), ensure_ascii=False)}]"


def resolve(text: str) -> object:
    """What a plain scalar means by the YAML 1.2 core schema: null, bool, int, float, else itself."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL_OR_HEX.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITY.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def size_of(node: Node) -> int:
    """How many nodes there are, from this one down."""
    if isinstance(node, Scalar):
        return 1
    return 1 + sum(map(size_of, node.items if isinstance(node, Items) else node.entries.values()))
