"""From the form people write to the form the models have, before anything is typed.

Two places differ. A filter entry `- retry: {name: r, attempts: 3}` becomes `{kind: retry, name: r,
config: {…}}`, and a route's override becomes the chain's settings with the route's laid over them,
so that whoever reads a Route has all settings at hand. Nodes keep the place they were written at,
and an entry that cannot be understood is reported and left out.
"""

from .errors import Report
from .suggest import hint, shown
from .versions import LATER_FILTERS, not_yet
from .yaml_nodes import Items, Node, Scalar, Table

KINDS = ("auth", "retry", "use")


def rewrite(root: Table, report: Report) -> Table:
    """The same tree with `filters` and `routes.*.filters` in the form of the models."""
    entries = dict(root.entries)
    chain: dict[str, Table] = {}
    if isinstance(filters := entries.get("filters"), Items):
        found = [entry for item in filters.items if (entry := _entry(item, report)) is not None]
        entries["filters"] = _like(filters, found)
        for entry in found:
            chain.setdefault(_text(entry, "name"), entry)
    if isinstance(routes := entries.get("routes"), Items):
        entries["routes"] = _like(routes, [_route(item, chain, report) for item in routes.items])
    return _table(root, entries)


def _entry(item: Node, report: Report) -> Table | None:
    kind = _kind(item, report)
    if kind is None:
        return None
    written = item.entries[kind] if isinstance(item, Table) else _synthetic(item, "")
    extra = {key: node for key, node in item.entries.items() if key != kind} if isinstance(item, Table) else {}
    return _use(item, written, extra, report) if kind == "use" else _built_in(item, kind, written, extra, report)


def _kind(item: Node, report: Report) -> str | None:
    if isinstance(item, Items) or (isinstance(item, Scalar) and item.is_null):
        report.add(item, "must be a filter, like '- retry' or '- retry: {attempts: 3}'")
        return None
    if isinstance(item, Scalar):
        names = [item.text]
    else:
        names = [key for key in item.entries if key in KINDS or key in LATER_FILTERS]
        names = names or [key for key in item.entries if key not in {"name", "config"}]
    if len(names) != 1:
        which = " and ".join(f"'{shown(name)}'" for name in names[:3]) or "none"
        report.add(item, f"must be one filter, here {'are' if names else 'is'} {which}")
        return None
    if names[0] in LATER_FILTERS:
        report.add(item, not_yet(names[0]))
    elif names[0] not in KINDS:
        guess = hint(names[0], KINDS) or " (one of your own is written 'use: \"package.module:Class\"')"
        report.add(item, f"'{shown(names[0])}' is no filter{guess}")
    else:
        return names[0]
    return None


def _built_in(item: Node, kind: str, written: Node, extra: dict[str, Node], report: Report) -> Table | None:
    for key in extra:
        report.add(
            item.key(key), f"unknown key; settings of '{kind}' stand below it, as in {kind}: {{{shown(key)}: …}}"
        )
    if not isinstance(written, Table):
        if not (isinstance(written, Scalar) and written.is_null):
            report.add(written, "must be a mapping (key: value)")
            return None
        written = _table(written, {})
    params = dict(written.entries)
    name = params.pop("name", None)
    config = _settings(written, params, kind, report)
    return _table(item, {"kind": _synthetic(item, kind), "name": _named(name, item, kind), "config": config})


def _use(item: Node, target: Node, extra: dict[str, Node], report: Report) -> Table | None:
    for key in extra.keys() - {"name", "config"}:
        report.add(item.key(key), f"unknown key{hint(key, ('name', 'config'))}")
    if not isinstance(target, Scalar) or target.is_null:
        report.add(target, "must be a class, written 'package.module:Class'")
        return None
    name = _named(extra.get("name"), item, target.text.rpartition(":")[2])
    params: dict[str, Node] = {"target": target, "name": name}
    if "config" in extra:
        params["config"] = extra["config"]
    config = _settings(item, params, "use", report)
    return _table(item, {"kind": _synthetic(item, "use"), "name": name, "config": config})


def _settings(place: Node, params: dict[str, Node], kind: str, report: Report) -> Table:
    if params.pop("kind", None) is not None:
        report.add(place.key("kind"), "unknown key")
    keys = place.keys if isinstance(place, Table) else {}
    table = _table(place, {**params, "kind": _synthetic(place, kind)})
    table.keys = keys
    return table


def _route(item: Node, chain: dict[str, Table], report: Report) -> Node:
    if not isinstance(item, Table) or not isinstance(filters := item.entries.get("filters"), Table):
        return item
    overrides = {
        name: override
        for name, node in filters.entries.items()
        if (override := _override(name, node, chain, report)) is not None
    }
    return _table(item, {**item.entries, "filters": _table(filters, overrides)})


def _override(name: str, node: Node, chain: dict[str, Table], report: Report) -> Node | None:
    entry = chain.get(name)
    if entry is None and name in LATER_FILTERS:
        report.add(node, not_yet(name))
    elif entry is None:
        report.add(node, f"no filter is named '{shown(name)}'{hint(name, chain)}")
    elif _text(entry, "kind") == "auth":
        report.add(node, "no route may switch off or change 'auth'")
    elif isinstance(node, Scalar):
        if node.text == "off":
            return node
        report.add(node, "must be 'off' or a mapping of settings")
    elif isinstance(node, Items):
        report.add(node, "must be 'off' or a mapping of settings")
    else:
        return _laid_over(entry, node)
    return None


def _laid_over(entry: Table, settings: Table) -> Table:
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


def _named(name: Node | None, item: Node, default: str) -> Node:
    return _synthetic(item, default) if name is None or (isinstance(name, Scalar) and name.is_null) else name


def _text(table: Table, key: str) -> str:
    node = table.entries.get(key)
    return node.text if isinstance(node, Scalar) else ""


def _synthetic(place: Node, text: str) -> Scalar:
    return Scalar(line=place.line, column=place.column, parent=place.parent, step=place.step, text=text, written=False)


def _table(place: Node, entries: dict[str, Node]) -> Table:
    keys = place.keys if isinstance(place, Table) else {}
    return Table(line=place.line, column=place.column, parent=place.parent, step=place.step, entries=entries, keys=keys)


def _like(place: Items, items: "list[Table] | list[Node]") -> Items:
    return Items(line=place.line, column=place.column, parent=place.parent, step=place.step, items=list(items))
