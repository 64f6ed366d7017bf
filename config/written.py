"""From the form people write to the form the models have, before anything is typed.

Two places differ. A filter entry `- retry: {name: r, attempts: 3}` becomes `{kind: retry, name: r,
config: {…}}`, and a route's override becomes the chain's settings with the route's laid over them,
so that whoever reads a Route has all settings at hand. Nodes keep the place they were written at,
and an entry that cannot be understood is reported and left out.
"""

from typing import Final

from .errors import Report
from .nodes import Items, Node, Scalar, Table, size_of
from .suggest import hint, shown
from .versions import LATER_FILTERS, not_yet
from .yaml_nodes import MAX_NODES

KINDS: Final = (
    "auth",
    "budget",
    "cache",
    "circuit_breaker",
    "access_log",
    "guard",
    "headers",
    "rate_limit",
    "retry",
    "use",
)
MAX_FILTERS: Final = 64


def rewrite(root: Table, report: Report) -> Table:
    """The same tree with `filters` and `routes.*.filters` in the form of the models."""
    entries = dict(root.entries)
    chain: dict[str, Table] = {}
    if isinstance(filters := entries.get("filters"), Items):
        found = _Chain(report).entries(filters)
        entries["filters"] = _items(filters, found)
        for entry in found:
            chain.setdefault(_text(entry, "name"), entry)
    if isinstance(routes := entries.get("routes"), Items):
        overrides = _Overrides(chain, report)
        entries["routes"] = _items(routes, [overrides.route(item) for item in routes.items])
    return _table(root, entries)


class _Chain:
    """The entries of `filters`."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def entries(self, filters: Items) -> list[Table]:
        if len(filters.items) > MAX_FILTERS:
            self._report.add(filters, f"must have at most {MAX_FILTERS} items")
        return [entry for item in filters.items[:MAX_FILTERS] if (entry := self._entry(item)) is not None]

    def _entry(self, item: Node) -> Table | None:
        if isinstance(item, Scalar) and not item.is_null:
            item = _table(item, {item.text: _synthetic(item, "")})
        if not isinstance(item, Table):
            self._report.add(item, "must be a filter, like '- retry' or '- retry: {attempts: 3}'")
            return None
        kind = self._kind(item)
        if kind is None:
            return None
        return self._use(item) if kind == "use" else self._built_in(item, kind)

    def _kind(self, item: Table) -> str | None:
        names = [key for key in item.entries if key in KINDS or key in LATER_FILTERS]
        names = names or [key for key in item.entries if key not in {"name", "config"}]
        if len(names) != 1:
            which = " and ".join(f"'{shown(name)}'" for name in names[:3]) or "none"
            self._report.add(item, f"must be one filter, here {'are' if names else 'is'} {which}")
        elif names[0] in LATER_FILTERS:
            self._report.add(item, not_yet(names[0]))
        elif names[0] not in KINDS:
            guess = hint(names[0], KINDS) or " (one of your own is written 'use: \"package.module:Class\"')"
            self._report.add(item, f"'{shown(names[0])}' is no filter{guess}")
        else:
            return names[0]
        return None

    def _built_in(self, item: Table, kind: str) -> Table | None:
        for key in item.entries.keys() - {kind}:
            self._report.add(item.key(key), f"unknown key; settings of '{kind}' stand one level below it")
        written = item.entries[kind]
        if isinstance(written, Scalar) and written.is_null:
            written = _table(written, {})
        if not isinstance(written, Table):
            self._report.add(written, "must be a mapping (key: value)")
            return None
        params = dict(written.entries)
        name = params.pop("name", None)
        return self._built(item, kind, _name(name, item, kind), written, params)

    def _use(self, item: Table) -> Table | None:
        for key in item.entries.keys() - {"use", "name", "config"}:
            self._report.add(item.key(key), f"unknown key{hint(key, ('name', 'config'))}")
        target = item.entries["use"]
        if not isinstance(target, Scalar) or target.is_null:
            self._report.add(target, "must be a class, written 'package.module:Class'")
            return None
        name = _name(item.entries.get("name"), item, target.text.rpartition(":")[2])
        params: dict[str, Node] = {"target": target, "name": name}
        if "config" in item.entries:
            params["config"] = item.entries["config"]
        return self._built(item, "use", name, item, params)

    def _built(self, item: Table, kind: str, name: Node, written: Table, params: dict[str, Node]) -> Table:
        if params.pop("kind", None) is not None:
            self._report.add(written.key("kind"), "unknown key")
        config = _table(written, {**params, "kind": _synthetic(written, kind)})
        return _table(item, {"kind": _synthetic(item, kind), "name": name, "config": config})


class _Overrides:
    """`filters` of the routes. What they repeat of the chain is bounded: a short file could repeat much."""

    def __init__(self, chain: dict[str, Table], report: Report) -> None:
        self._chain = chain
        self._sizes = {name: size_of(entry) for name, entry in chain.items()}
        self._repeated = 0
        self._report = report

    def route(self, item: Node) -> Node:
        if not isinstance(item, Table) or not isinstance(filters := item.entries.get("filters"), Table):
            return item
        overrides = {
            name: override
            for name, node in filters.entries.items()
            if (override := self._override(name, node)) is not None
        }
        return _table(item, {**item.entries, "filters": _table(filters, overrides)})

    def _override(self, name: str, node: Node) -> Node | None:
        entry = self._chain.get(name)
        if entry is None and name in LATER_FILTERS:
            self._report.add(node, not_yet(name))
        elif entry is None:
            self._report.add(node, f"no filter is named '{shown(name)}'{hint(name, self._chain)}")
        elif _text(entry, "kind") == "auth":
            self._report.add(node, "no route may switch off or change 'auth'")
        elif isinstance(node, Table):
            return self._laid_over(name, entry, node)
        elif isinstance(node, Scalar) and node.text == "off":
            return node
        else:
            self._report.add(node, "must be 'off' or a mapping of settings")
        return None

    def _laid_over(self, name: str, entry: Table, settings: Table) -> Table:
        self._repeated += self._sizes[name]
        if self._repeated > MAX_NODES:
            self._report.refuse(settings, f"the routes repeat more than {MAX_NODES} values of the chain")
        base = entry.entries["config"]
        if _text(entry, "kind") != "use":
            return _over(base, settings)
        params = base.entries if isinstance(base, Table) else {}
        return _table(settings, {**params, "config": _over(params.get("config"), settings)})


def _over(base: Node | None, settings: Table) -> Table:
    if not isinstance(base, Table):
        return settings
    table = _table(settings, {**base.entries, **settings.entries})
    table.keys = {**base.keys, **settings.keys}
    return table


def _name(name: Node | None, item: Node, default: str) -> Node:
    return _synthetic(item, default) if name is None or (isinstance(name, Scalar) and name.is_null) else name


def _text(table: Table, key: str) -> str:
    node = table.entries.get(key)
    return node.text if isinstance(node, Scalar) else ""


def _synthetic(place: Node, text: str) -> Scalar:
    return Scalar(line=place.line, column=place.column, parent=place.parent, step=place.step, text=text, written=False)


def _table(place: Node, entries: dict[str, Node]) -> Table:
    keys = place.keys if isinstance(place, Table) else {}
    return Table(line=place.line, column=place.column, parent=place.parent, step=place.step, entries=entries, keys=keys)


def _items(place: Items, items: list[Table] | list[Node]) -> Items:
    return Items(line=place.line, column=place.column, parent=place.parent, step=place.step, items=list(items))
