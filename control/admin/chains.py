"""A graph's chains as JSON: which filters each route runs, and which of them take streams off the byte path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...proxy.filter import Filter

if TYPE_CHECKING:
    from ...proxy.graph import Graph, Route


def describe_chains(graph: Graph) -> list[dict[str, Any]]:
    """Every route in the order they are tried, the default one last."""
    return [_describe(route, len(graph.prefix.filters)) for route in (*graph.routes, graph.default)]


def _describe(route: Route, prefix: int) -> dict[str, Any]:
    links = route.chain.filters
    return {
        "route": route.name,
        "match": {
            name: value
            for name, value in (("path", route.path), ("model", route.model), ("key", route.key))
            if value is not None
        },
        "provider": route.provider,
        "filters": [link.name for link in links],
        "prefix": [link.name for link in links[:prefix]],
        "byte_path": route.chain.byte_path,
        "off_byte_path": [link.name for link in links if type(link).on_event is not Filter.on_event],
    }
