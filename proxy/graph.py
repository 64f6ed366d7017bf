"""One version of the config, compiled: everything an exchange needs, immutable, swapped whole on reload.

An exchange keeps the graph it began with. What must outlive a version (connections, counters) is in the clusters, which
graphs share.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from .headers import NEVER_UP

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .accounting.price_lookup import PriceTable
    from .accounting.prices import Price
    from .chain import Chain
    from .exchange import Exchange
    from .faces import FaceTable
    from .models import ModelTable
    from .plan import Target
    from .upstream.cluster import Cluster


class Route:
    """What matches, and the chain it gets. A field that is None matches everything; `model` may end in `*`."""

    __slots__ = ("catches", "chain", "field", "key", "model", "name", "path", "provider", "tags")

    def __init__(
        self,
        name: str,
        chain: Chain,
        *,
        path: str | None = None,
        model: str | None = None,
        key: str | None = None,
        provider: str | None = None,
        tags: frozenset[str] = frozenset(),
    ) -> None:
        self.name = name
        self.field = (b"x-headgate-route", name.encode())
        """What its answers carry."""
        self.chain = chain
        self.path = path
        self.model = model
        self.key = key
        self.provider = provider
        self.tags = tags
        self.catches = path is not None and path.endswith("*") and model is None and provider is not None
        """A wildcard path with a provider and no model: it takes only what names no model, such as files and
        whatever the endpoint table has no row for."""

    def matches(self, ex: Exchange) -> bool:
        """Whether an exchange whose body has been read takes this route."""
        return (
            (ex.face.passes or not self.catches)
            and _fits(self.path, ex.head.path)
            and (self.key is None or self.key == ex.principal.name)
            and _fits(self.model, ex.model)
            and (not self.tags or self.tags <= ex.tags)
        )


def _fits(pattern: str | None, value: str) -> bool:
    if pattern is None or pattern == value:
        return True
    return pattern.endswith("*") and value.startswith(pattern.rstrip("*"))


class Graph:
    """A compiled config."""

    __slots__ = (
        "auth_open",
        "body_limit",
        "clusters",
        "default",
        "divided",
        "faces",
        "field",
        "found_models",
        "json_depth",
        "models",
        "own_fields",
        "policy",
        "prefix",
        "prices",
        "routes",
        "tracks",
        "upload_limit",
        "version",
    )

    def __init__(
        self,
        *,
        version: str,
        faces: FaceTable,
        prefix: Chain,
        routes: Sequence[Route],
        default: Route,
        models: ModelTable,
        prices: PriceTable | None,
        clusters: Mapping[str, Cluster],
        body_limit: int,
        upload_limit: int,
        json_depth: int,
        auth_open: bool,
        own_fields: frozenset[bytes],
        divided: bool = False,
        policy: str = "",
    ) -> None:
        self.version = version
        self.policy = policy
        """As `version`, over all that may change an answer."""
        self.field = (b"x-headgate-config", version.encode())
        """What its answers carry."""
        self.faces = faces
        self.prefix = prefix
        self.routes = tuple(routes)
        self.default = default
        self.models = models
        self.prices = prices
        self.clusters = dict(clusters)
        self.body_limit = body_limit
        self.upload_limit = upload_limit
        self.json_depth = json_depth
        self.auth_open = auth_open
        """No key guards the data listener."""
        self.own_fields = own_fields - NEVER_UP
        """Request fields that carry our own keys: they never go upstream."""
        self.found_models: Mapping[str, bytes] = {}
        """Entries of `/v1/models` that providers' own lists have given, by name; replaced whole."""
        self.divided = divided
        """There are keys of two teams: what one has made does not exist for the other."""
        self.tracks = divided or len(models.usable()) > 1
        """Who made an object matters."""

    def price(self, target: Target) -> Price | None:
        """What the target costs now; None when nobody knows."""
        return target.price or target.cluster.price or target.listed or self._find_price(target)

    def _find_price(self, target: Target) -> Price | None:
        price = self.list_price(target)
        if price is not None and price.until == inf:
            target.listed = price  # a target lives as long as its graph, and so do the lists
        return price

    def list_price(self, target: Target) -> Price | None:
        """What the price lists say of the target's model; None when they do not know it there."""
        cluster = target.cluster
        if self.prices is None:
            return None
        return self.prices.lookup(cluster.host, target.model, dialect=cluster.dialect.name, price_as=cluster.price_as)

    def route(self, ex: Exchange) -> Route:
        """The first route that matches, else the default one with the whole chain."""
        for route in self.routes:
            if route.matches(ex):
                return route
        return self.default
