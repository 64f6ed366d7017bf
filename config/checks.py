"""What no single field can tell: names that refer to each other, and who may listen in public.

Works on the plain data of bind.py, which may be wrong anywhere, so that a dangling name is
reported together with a mistyped one. Each check yields the place within the data and a message.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from os.path import dirname, isdir, isfile
from typing import Any, Final, TypeAlias

from .listeners import ADMIN_PORT, DATA_PORT, is_address, is_loopback
from .secret import ExpandedText, Secret
from .suggest import hint, shown

Step: TypeAlias = str | int
Loc: TypeAlias = tuple[Step, ...]
Found: TypeAlias = Iterator[tuple[Loc, str]]

MEMORY_OF_MANY: Final = "several workers cannot count in the memory of one; leave it out, or write shared"


READS_HEADGATE_KEY: Final = 'filters: [auth: {keys: [{name: app, key: "${HEADGATE_KEY:-}"}]}]'


def check(data: Mapping[str, Any]) -> Found:
    """Every problem that lies between fields."""
    yield from _targets(data)
    yield from _routes(data)
    yield from _chain(data)
    yield from _keys(data)
    yield from _listeners(data)
    yield from _files(data)
    yield from _stores(data)
    yield from _caches(data)


def dropped_keys(data: Mapping[str, Any]) -> dict[str, str | None]:
    """Names of the keys that expanded to nothing, each with the variable or file that is empty."""
    found = ((key.get("name"), key.get("key")) for _, key in _all_keys(data))
    return {str(name): secret.origin for name, secret in found if isinstance(secret, Secret) and not secret}


def _targets(data: Mapping[str, Any]) -> Found:
    providers = _mapping(data.get("providers"))
    for name, model in _mapping(data.get("models")).items():
        for index, target in enumerate(_listing(_mapping(model).get("targets"))):
            loc = ("models", name, "targets", index)
            yield from _dangling((*loc, "provider"), _mapping(target).get("provider"), "provider", providers)
            upstream = _mapping(target).get("model")
            if isinstance(upstream, str) and upstream.endswith("*"):
                yield (*loc, "model"), "must be one model, without *"


def _routes(data: Mapping[str, Any]) -> Found:
    routes = [_mapping(route) for route in _listing(data.get("routes"))]
    for index, route in enumerate(routes):
        yield from _dangling(("routes", index, "provider"), route.get("provider"), "provider", data.get("providers"))
    yield from _twice([(("routes", index, "name"), route.get("name")) for index, route in enumerate(routes)], "route")


def _chain(data: Mapping[str, Any]) -> Found:
    entries = [_mapping(entry) for entry in _listing(data.get("filters"))]
    yield from _twice([(("filters", index), entry.get("name")) for index, entry in enumerate(entries)], "filter")
    for index, entry in enumerate(entries[1:], start=1):
        if entry.get("kind") == "auth":
            twice = entries[0].get("kind") == "auth"
            yield ("filters", index), "'auth' may stand once" if twice else "'auth' must stand first"
    yield from _caller_key(entries)


def _caller_key(entries: list[dict[str, Any]]) -> Found:
    """A rule on the header of `auth` would have no effect: it never goes up."""
    header = next((_mapping(one.get("config")).get("header") for one in entries if one.get("kind") == "auth"), None)
    if isinstance(header, str):
        for index, entry in enumerate(entries):
            rules = _mapping(_mapping(entry.get("config")).get("request")) if entry.get("kind") == "headers" else {}
            for where in ("rename", "set"):
                names = [*_mapping(rules.get(where)), *_mapping(rules.get(where)).values()]
                if any(isinstance(name, str) and name.lower() == header.lower() for name in names):
                    yield ("filters", index, "config", "request", where), f"'{shown(header)}' carries the caller's key"


def _keys(data: Mapping[str, Any]) -> Found:
    keys = list(_all_keys(data))
    yield from _twice([((*loc, "name"), key.get("name")) for loc, key in keys], "key")
    seen: dict[Secret, str] = {}
    for loc, key in keys:
        secret = key.get("key")
        if isinstance(secret, Secret) and secret:
            name = key.get("name")
            first = seen.setdefault(secret, name if isinstance(name, str) else "")
            if first != name:
                yield (*loc, "key"), f"the same key as {_quoted(first)}; nobody could tell them apart"


def _listeners(data: Mapping[str, Any]) -> Found:
    listeners = _mapping(data.get("listeners"))
    both = {name: _mapping(listeners.get(name)) for name in ("data", "admin")}
    for name, listener in both.items():
        address = listener.get("address")
        if isinstance(address, str) and is_address(address) and not is_loopback(address) and _is_open(data):
            yield (
                ("listeners", name, "address"),
                f"a public address needs a key: set HEADGATE_KEY, read by {READS_HEADGATE_KEY}",
            )
    port = both["data"].get("port", DATA_PORT)
    if port == both["admin"].get("port", ADMIN_PORT) and port != 0 and "port" in both["admin"] | both["data"]:
        where = "admin" if "port" in both["admin"] else "data"
        yield ("listeners", where, "port"), "both listeners have the same port"


def _files(data: Mapping[str, Any]) -> Found:
    for name, listener in _mapping(data.get("listeners")).items():
        for key, path in _mapping(_mapping(listener).get("tls")).items():
            if isinstance(path, str) and not isfile(path):
                yield ("listeners", name, "tls", key), "no such file"
    file = _mapping(data.get("prices")).get("file")
    if isinstance(file, str) and not isfile(file):
        yield ("prices", "file"), "no such file"
    for index, entry in enumerate(_listing(data.get("filters"))):
        log = (
            _mapping(_mapping(entry).get("config")).get("path") if _mapping(entry).get("kind") == "access_log" else None
        )
        if isinstance(log, str) and (not isdir(dirname(log) or ".") or isdir(log)):
            yield ("filters", index, "config", "path"), "must be a file in a folder that exists"


def _stores(data: Mapping[str, Any]) -> Found:
    workers = data.get("workers")
    if _mapping(data.get("stores")).get("default") == "memory" and isinstance(workers, int) and workers > 1:
        yield ("stores", "default"), MEMORY_OF_MANY


def _caches(data: Mapping[str, Any]) -> Found:
    if "redis" in _mapping(data.get("stores")):
        return
    for index, entry in enumerate(_listing(data.get("filters"))):
        if _mapping(entry).get("kind") == "cache" and _mapping(_mapping(entry).get("config")).get("store") == "redis":
            yield ("filters", index, "config", "store"), "needs a server: write stores: {redis: {url: …}}"
    for at, route in enumerate(_listing(data.get("routes"))):
        for name, settings in _mapping(_mapping(route).get("filters")).items():
            if _mapping(settings).get("kind") == "cache" and _mapping(settings).get("store") == "redis":
                yield ("routes", at, "filters", name, "store"), "needs a server: write stores: {redis: {url: …}}"


def _is_open(data: Mapping[str, Any]) -> bool:
    return not any(key.get("key") for _, key in _all_keys(data)) and not any(
        _mapping(_mapping(entry).get("config")).get(other)
        for entry in _listing(data.get("filters"))
        for other in ("keys_file", "jwt")
    )


def _all_keys(data: Mapping[str, Any]) -> Iterator[tuple[Loc, dict[str, Any]]]:
    for index, entry in enumerate(_listing(data.get("filters"))):
        if _mapping(entry).get("kind") == "auth":
            config = _mapping(_mapping(entry).get("config"))
            for place, key in enumerate(_listing(config.get("keys"))):
                yield ("filters", index, "config", "keys", place), _mapping(key)


def _dangling(loc: Loc, name: object, what: str, known: Any) -> Found:
    if isinstance(name, str) and name not in (names := _mapping(known)):
        yield loc, f"no {what} is named {_quoted(name)}{hint(name, names)}"


def _twice(named: list[tuple[Loc, Any]], what: str) -> Found:
    count: Counter[str] = Counter()
    for loc, name in named:
        if isinstance(name, str):
            count[name] += 1
            if count[name] > 1:
                yield loc, f"a second {what} named {_quoted(name)}"


def _quoted(name: str) -> str:
    return repr(name) if isinstance(name, ExpandedText) else f"'{shown(name)}'"


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _listing(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
