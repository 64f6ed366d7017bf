"""From the name a client asks for to the targets that may answer.

Exact names beat wildcards, of which the longest prefix wins. Without `models` in the config, `provider/model` addresses
any provider and a bare name goes to the first; with `models`, only providers marked `direct` can be addressed so. Where
a route or the caller names the provider, that is the same as the prefix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .errors import ModelNotFoundError, UnknownIssuerError
from .plan import Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from .accounting.prices import Price
    from .upstream.cluster import Cluster

_REMEMBERED = 1024
"""Names come from outside: what is kept of them is bounded."""


class ModelTarget(NamedTuple):
    """A target as written: `model` None sends the requested name on."""

    cluster: Cluster
    model: str | None
    priority: int
    price: Price | None


LEAST_BAD = "least_bad"
QUEUE = "queue"


class Exhaustion(NamedTuple):
    """What happens when every target of a model objects softly: `reject`, `least_bad`, or `queue` for `seconds`."""

    kind: str = "reject"
    seconds: float = 0.0


REJECT = Exhaustion()


class ModelTable:
    """Resolves names. Immutable but for a bounded memory of answers."""

    __slots__ = (
        "_anybody", "_clusters", "_direct", "_entries", "_exhaustions", "_first", "_names", "_resolved", "_usable",
        "_wildcards",
    )  # fmt: skip

    def __init__(
        self,
        entries: Mapping[str, Sequence[ModelTarget]],
        clusters: Mapping[str, Cluster],
        direct: frozenset[str],
        exhaustions: Mapping[str, Exhaustion] | None = None,
    ) -> None:
        self._entries = dict(entries)
        self._exhaustions = dict(exhaustions or {})
        self._wildcards = sorted((name[:-1] for name in entries if name.endswith("*")), key=len, reverse=True)
        self._direct = {name: clusters[name] for name in (direct if entries else clusters)}
        self._clusters = tuple(clusters.values())
        self._first = None if entries else next(iter(clusters.values()), None)
        usable = [cluster for cluster in clusters.values() if not (cluster.unconfigured or cluster.stand_in)]
        self._anybody = [ModelTarget(cluster, None, 0, None) for cluster in usable]
        """Who is asked when a request names no model: the first provider that can answer, or the route's."""
        self._names = frozenset(clusters)
        stand_ins = [cluster for cluster in clusters.values() if cluster.stand_in]
        self._usable = frozenset(cluster.name for cluster in usable or stand_ins) or self._names
        self._resolved: dict[tuple[str, str | None], tuple[Target, ...]] = {}

    def resolve(self, model: str, provider: str | None = None) -> tuple[Target, ...]:
        """Candidates in config order; `provider` keeps only that one's. Raises ModelNotFoundError."""
        known = self._resolved.get((model, provider))
        if known is not None:
            return known
        targets = self.targets(model, provider=provider)
        if len(self._resolved) >= _REMEMBERED:
            self._resolved.clear()
        self._resolved[model, provider] = targets
        return targets

    def targets(self, model: str, *, provider: str | None = None) -> tuple[Target, ...]:
        """As `resolve`, for names that nobody may ask for again: it remembers nothing."""
        found = self._find(model)
        if provider is not None:
            found = [entry for entry in found if entry.cluster.name == provider]
            if not found and provider in self._direct:
                found = [ModelTarget(self._direct[provider], model, 0, None)]
        if not found:
            who = "no provider serves it" if provider is None else f"the provider '{provider}' does not serve it"
            raise ModelNotFoundError(f"The model '{model[:128]}' does not exist or {who}.", param="model")
        targets = tuple(
            Target(entry.cluster, entry.model or model, priority=entry.priority, price=entry.price) for entry in found
        )
        return targets if model else targets[:1]

    def issuer(self, provider: str | None) -> tuple[Target, ...]:
        """Who answers what names no model: `provider`, or the only one there is. Raises UnknownIssuerError."""
        names = self.usable(provider)
        if len(names) != 1:
            raise UnknownIssuerError(
                "Several providers could be meant. Name one in the header x-headgate-provider, or by a route: "
                'routes: [{name: files, match: {path: "/v1/**"}, provider: NAME}].'
            )
        return tuple(Target(cluster, "") for cluster in self._clusters if cluster.name in names)

    def usable(self, provider: str | None = None) -> frozenset[str]:
        """Providers that may be asked for what names no model: `provider`, or all that can answer."""
        if provider is None:
            return self._usable
        return frozenset((provider,)) & self._names

    def usable_of(self, targets: Iterable[Target]) -> frozenset[str]:
        """The providers of these targets, less those that cannot answer as long as there are others."""
        names = frozenset(target.cluster.name for target in targets)
        return names & self._usable or names

    def exhaustion(self, model: str) -> Exhaustion:
        """What its entry says for when nobody is left."""
        return self._exhaustions.get(self._entry(model) or "", REJECT)

    def _entry(self, model: str) -> str | None:
        """The name of the entry that is meant."""
        if not model.endswith("*") and model in self._entries:
            return model
        for prefix in self._wildcards:
            if model.startswith(prefix):
                return prefix + "*"
        return None

    def _find(self, model: str) -> Sequence[ModelTarget]:
        if not model:
            return self._anybody
        entry = self._entry(model)
        if entry is not None:
            return self._entries[entry]
        name, slash, rest = model.partition("/")
        if slash and rest and name in self._direct:
            return [ModelTarget(self._direct[name], rest, 0, None)]
        if self._first is not None:
            return [ModelTarget(self._first, model, 0, None)]
        return []

    def names(self) -> list[str]:
        """The exact names, in config order."""
        return [name for name in self._entries if not name.endswith("*")]

    def listed(self) -> Iterator[tuple[str, Cluster, str]]:
        """Names by which models that providers list could be asked for: the name, the provider, the model's name there.

        Where a name really leads is for `targets` to say: several providers may list what only one is asked for.
        """
        for pattern, targets in self._entries.items():
            if pattern.endswith("*"):
                for cluster in dict.fromkeys(target.cluster for target in targets if target.model is None):
                    yield from ((id_, cluster, id_) for id_ in cluster.listed if id_.startswith(pattern[:-1]))
        if self._first is not None:
            yield from ((id_, self._first, id_) for id_ in self._first.listed)
        for name, cluster in self._direct.items():
            yield from ((f"{name}/{id_}", cluster, id_) for id_ in cluster.listed)
