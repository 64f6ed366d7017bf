"""YAML to nodes: the only way a configuration comes in.

Built from the parser's events, so a hostile file is refused when its first bad event arrives and never stands in
memory as what it means: no anchors and aliases (306 bytes of them can stand for 387 million leaves), no tags, one
document, bounded size, depth and count.

Not here: what a scalar means (nodes.py), `${…}` (expand.py), which keys may stand (bind.py).
"""

import re
from typing import TYPE_CHECKING, Final, NoReturn

import yaml

from .errors import Place, Report
from .nodes import Items, Node, Scalar, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 64
MAX_NODES: Final = 20_000
MAX_KEY: Final = 256

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")
_DIRECTIVE = re.compile("^%", re.MULTILINE)


def has_forbidden(text: str) -> bool:
    """Whether a control character, a lone surrogate or a byte order mark stands in `text`."""
    return _FORBIDDEN.search(text) is not None


def parse(text: str, report: Report) -> Table:
    """The tree of a whole file; an empty file is an empty table.

    Duplicate keys are reported and the first one kept. Raises ConfigError, with all that was
    reported so far, where the text cannot be read on: bad syntax, or a construct that is refused.
    """
    text = text.removeprefix("\ufeff")
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        report.refuse(Place(), "larger than 1 MiB")
    if bad := _FORBIDDEN.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        column = bad.start() - text.rfind("\n", 0, bad.start())
        report.refuse(Place(line, column), f"control character U+{ord(bad.group()):04X}")
    # Looked for here, because the parser compares each %TAG with all before it: 30 000 of them take it a second.
    if directive := _DIRECTIVE.search(text):
        report.refuse(
            Place(text.count("\n", 0, directive.start()) + 1, 1), "a directive; directives and tags are not read"
        )
    try:
        return _Composer(text, report).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else Place()
        report.refuse(place, f"not YAML: {error.problem or error.context}{_flow_hint(text, place.line)}")
    except yaml.YAMLError:
        report.refuse(Place(), "not YAML")


def _flow_hint(text: str, line: int) -> str:
    # `{port: ${PORT}}` looks right, but a brace ends a plain scalar there.
    written = text.split("\n", line)[line - 1] if line <= text.count("\n") + 1 else ""
    return '; inside { } and [ ] an expansion needs quotes: "${NAME}"' if "${" in written else ""


class _Composer:
    """Events to nodes, counting as it goes."""

    def __init__(self, text: str, report: Report) -> None:
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=_LOADER)
        self._report = report
        self._count = 0

    def document(self) -> Table:
        root: Node | None = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    self._stop(event, "a second document")
                root = self._node(next(self._events), None, None, 1)
        if root is None or (isinstance(root, Scalar) and root.is_null):
            return Table(line=1, column=1)
        if not isinstance(root, Table):
            self._report.refuse(root, "the file must be a mapping (key: value)")
        return root

    def _node(self, event: yaml.Event, parent: Node | None, step: str | int | None, depth: int) -> Node:
        self._count += 1
        if self._count > MAX_NODES:
            self._stop(event, f"more than {MAX_NODES} values")
        if depth > MAX_DEPTH:
            self._stop(event, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            self._stop(event, "an alias; anchors and aliases are not read")
        if getattr(event, "anchor", None) is not None:
            self._stop(event, "an anchor; anchors and aliases are not read")
        if getattr(event, "tag", None) is not None:
            self._stop(event, "a tag; tags are not read")
        line, column = _place(event)
        if isinstance(event, yaml.ScalarEvent):
            if has_forbidden(event.value):
                self._stop(event, "a control character")
            return Scalar(
                line=line, column=column, parent=parent, step=step, text=event.value, plain=event.style in {None, ""}
            )
        if isinstance(event, yaml.SequenceStartEvent):
            return self._items(Items(line=line, column=column, parent=parent, step=step), depth)
        return self._table(Table(line=line, column=column, parent=parent, step=step), depth)

    def _items(self, items: Items, depth: int) -> Items:
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.items.append(self._node(event, items, len(items.items), depth + 1))
        return items

    def _table(self, table: Table, depth: int) -> Table:
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            name = self._node(event, table, None, depth + 1)
            if not isinstance(name, Scalar):
                self._stop(event, "a key must be text")
            key = name.text
            if len(key) > MAX_KEY:
                self._stop(event, f"a key is longer than {MAX_KEY} characters")
            if "${" in key:
                self._report.add(Place(*_place(event), table.below(key)), "nothing is expanded in a key")
            value = self._node(next(self._events), table, key, depth + 1)
            if key in table.entries:
                first = table.keys[key][0]
                place = Place(*_place(event), table.below(key))
                self._report.add(place, f"duplicate key, it stands already in line {first}")
                continue
            table.entries[key] = value
            table.keys[key] = _place(event)
        return table

    def _stop(self, event: yaml.Event, message: str) -> NoReturn:
        self._report.refuse(Place(*_place(event)), message)


def _place(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (0, 0)
