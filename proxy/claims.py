"""Holds each request to the objects it names, and writes down those that its answer names.

    wanted   before the route's filters: which ids must be asked for, if any
    pin      when it is known who made them: the exchange may go there and nowhere else, or is refused
    note     before an answer goes down: what was made for it, and what was deleted

Nothing is asked while only one provider could be meant and all keys are of one team, and a graph for which that holds
by itself does not even look at the body. What is made is written down all the same: a second provider may come.

Not here: the rules (stateful.py), the memory (issuers.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import IssuersAwayError, ModelNotFoundError, NotIssuedError
from .stateful import Ref, deleted, judge, locate, made

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .accounting.record import Issued
    from .dialect import Operation
    from .exchange import Exchange
    from .issuers import Issuers
    from .stateful import Said


def wanted(ex: Exchange, operation: Operation) -> list[Ref]:
    """What must be known before this request may go on, the object of its path first. Raises NotIssuedError for a list
    that would show what other teams have made."""
    refs = _in_path(ex) if ex.face.passes else []
    if ex.facts is not None:
        refs += operation.references(ex.facts)
    return refs if refs and (ex.graph.divided or len(_possible(ex)) > 1) else []


def _in_path(ex: Exchange) -> list[Ref]:
    place = locate(ex.head.path)
    if not place.id and ex.graph.divided and ex.head.method != "POST" and not _opens(ex, ex.head.path):
        raise NotIssuedError(
            f"'{ex.head.path[:128]}' shows what every team has made: only a key whose paths name it may call it."
        )
    return [Ref(place.kind, place.id, "id")] if place.id else []


def pin(ex: Exchange, refs: Sequence[Ref], found: Mapping[str, Sequence[Issued]] | None) -> None:
    """Bind the exchange to who made what it names. Raises what `judge` does, and IssuersAwayError."""
    if found is None:
        raise IssuersAwayError(f"The gateway could not find out in time who made '{refs[0].id[:128]}'.", retry_after=1)
    verdict = judge(
        refs,
        found,
        allowed=_possible(ex),
        team=ex.principal.team or "",
        divided=ex.graph.divided,
        opens=lambda path: _opens(ex, path),
    )
    ex.is_stranger = not verdict.known
    if verdict.provider is not None:
        ex.pin(verdict.provider)


def note(ex: Exchange, issuers: Issuers, said: Said, provider: str) -> None:
    """Write down what a good answer of `provider` says of objects, before anybody can have read it."""
    team = ex.principal.team or ""
    if not ex.face.passes:
        new = [(ex.face.kind, said.id)] if said.id else []
        issuers.made([*new, *said.others], provider, team)
        return
    method, place = ex.head.method, locate(ex.head.path)
    if deleted(method, place, said):
        issuers.deleted(place.id, provider)
    elif not (ex.is_stranger and place.id):
        issuers.made(made(method, place, said), provider, team)


def _possible(ex: Exchange) -> frozenset[str]:
    """The providers that may answer, as far as the config, the route and the caller go."""
    models = ex.graph.models
    only = ex.provider or (ex.route.provider if ex.route is not None else None)
    if not ex.face.passes:
        try:
            return models.usable_of(ex.candidates)
        except ModelNotFoundError:
            pass  # a filter may yet choose another model
    return models.usable(only)


def _opens(ex: Exchange, path: str) -> bool:
    paths = ex.principal.paths
    return paths is not None and paths.names(path)
