"""The filters of one config, and the chains they form.

A set is built beside the one in force and takes from it every filter whose settings are equal, counters and all. So a
reload keeps what did not change, and a config that is refused half-way has changed nothing.

Not here: which built-in filters there are (filter_factory.py), how a chain is walked (proxy/chain.py).
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, NamedTuple

from ..config import ConfigError, Problem
from ..filters.keys_file import KeysFileError
from ..proxy.chain import Chain, misplaced, prefix_length
from ..proxy.filter import Filter
from ..proxy.graph import Route

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ..config import FilterEntry, GatewayConfig, UseConfig
    from ..filters.auth import Auth
    from ..filters.filed_keys import KeyTable

ENTRY_POINTS = "headgate.filters"
"""The group in which an installed package offers its filters by name."""

Kept = tuple[object, Filter]
"""A filter and the settings it was built from."""


class Chains(NamedTuple):
    """The filters every route has in common, the route for what no other matches, and the written routes."""

    prefix: Chain
    default: Route
    routes: list[Route]


class FilterSet:
    """The filters of `config`. `make` builds one from its settings and its place (its name in the chain, or the route's
    and its own); what it raises leaves the set before it as it was.

    `kept` is for the next set.
    """

    def __init__(
        self, config: GatewayConfig, make: Callable[[object, str], Filter], before: Mapping[str, Kept] | None = None
    ) -> None:
        self.kept: dict[str, Kept] = {}
        self._make = make
        self._before = before or {}
        self.chains = self._compile(config)

    def _compile(self, config: GatewayConfig) -> Chains:
        if config.files:
            _make_importable(config.files[0].resolve().parent)
        links = [self._get(entry, entry.config, entry.name) for entry in config.filters]
        kinds = [entry.kind for entry in config.filters]
        for at, later in misplaced(kinds, [link.after for link in links]):
            raise refused(f"filters[{at}]: '{kinds[at]}' must come after '{later}'")
        overridden = frozenset(name for route in config.routes for name in route.filters)
        length = prefix_length(links, overridden)
        routes: list[Route] = []
        for written in config.routes:
            chain: list[Filter] = []
            for entry, link in zip(config.filters, links, strict=True):
                override = written.filters.get(entry.name)
                if override is None:
                    chain.append(link)
                elif override != "off":
                    chain.append(self._get(entry, override, f"{written.name}/{entry.name}"))
            match = written.match
            routes.append(
                Route(
                    written.name,
                    Chain(chain, length),
                    path=match.path,
                    model=match.model,
                    key=match.key,
                    provider=written.provider,
                    tags=frozenset(match.tags),
                )
            )
        return Chains(Chain(links[:length]), Route("default", Chain(links, length)), routes)

    def _get(self, entry: FilterEntry, settings: object, place: str) -> Filter:
        """The filter for `entry`; `place` is its own in the chain or in a route."""
        kept = self._before.get(place)
        if kept is None or kept[0] != settings:
            kept = (settings, self._make(settings, place))
            kept[1].name = entry.name
        self.kept[place] = kept
        return kept[1]


def users_filter(settings: UseConfig) -> Filter:
    """A filter of the operator's own. Raises ConfigError with what its code said."""
    where = f"filters: use: '{settings.target}'"
    try:
        kind = _find(settings.target)
    except Exception as error:  # whatever a module does while it is imported
        raise refused(f"{where}: cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Filter)):
        raise refused(f"{where}: is not a subclass of headgate.Filter")
    try:
        return kind.from_config(settings.config)
    except Exception as error:
        raise refused(f"{where}: its config was refused: {type(error).__name__}: {error}") from error


def _find(target: str) -> object:
    module, colon, name = target.partition(":")
    if colon:
        return getattr(import_module(module), name)
    for point in entry_points(group=ENTRY_POINTS, name=target):
        return point.load()
    raise ImportError(f"no installed package has an entry point '{target}' in the group {ENTRY_POINTS}")


def _make_importable(folder: Path) -> None:
    """A user's filter lies beside the file that names it."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def read_keys(auth: Auth) -> KeyTable | None:
    """The keys of a `keys_file`, for `auth.adopt`. Blocking. Raises ConfigError."""
    try:
        return auth.read()
    except (KeysFileError, OSError) as error:
        raise refused(f"auth.keys_file: {error}") from error


def refused(message: str) -> ConfigError:
    """A problem that only building shows, so it has no line, and no file before somebody knows which (`in_file`)."""
    return ConfigError([Problem("", 0, 0, "", message)])
