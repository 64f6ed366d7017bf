"""Objects that live at one provider: which a request names, what an answer says of them, and who may answer for them.

    /v1/files/file-abc/content      kind `files`, id `file-abc`
    /v1/fine_tuning/jobs/ftjob-1    kind `fine_tuning/jobs`

An object has the path of its kind and its id; what lies below that belongs to it, so the first id of a path decides.
Only the provider that made an object knows it: a request that names one goes there, and nowhere else. And where there
are keys of two teams, an object exists for the team it was made for, while one that no team is known to have made may
be anybody's and is nobody's, unless the key's `paths` name it.

Pure. Not here: where ids stand in a body (dialects/), who remembers them (issuers.py), who asks (claims.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .errors import NotIssuedError, ObjectNotFoundError, UnknownIssuerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from .accounting.record import Issued

_NAMESPACES = frozenset(("chat", "fine_tuning", "realtime"))
"""First segments that hold kinds, not objects."""
_VERBS = frozenset(
    (("responses", "compact"), ("responses", "input_tokens"), ("threads", "runs"), ("fine_tuning/alpha", "graders"))
)
"""Second segments that are no id: what is sent there makes something, or only computes."""
_SHOWN_AT = frozenset(("", "cancel", "complete", "pause", "resume"))
"""Below an id: what answers with the object itself, and not with something a client has written."""
_REVEALING = frozenset(("batches", "uploads", "fine_tuning/jobs", "responses"))
"""Kinds whose objects name others that the provider made for them: result files, containers."""


class Ref(NamedTuple):
    """An object that a request names, and the parameter it stands in (`id` for the path)."""

    kind: str
    id: str
    param: str

    @property
    def path(self) -> str:
        """Where it lives."""
        return f"/v1/{self.kind}/{self.id}"


class Place(NamedTuple):
    """What a path is about. `id` empty: all of a kind, or something new of it. `below`: what follows the id."""

    kind: str
    id: str
    below: str


class Said(NamedTuple):
    """What an answer says of objects: its own `id`, `others` it names as (kind, id), and whether it was deleted, where
    it says so."""

    id: str = ""
    others: tuple[tuple[str, str], ...] = ()
    deleted: bool | None = None


NOTHING = Said()


def locate(path: str) -> Place:
    """What a path below /v1 is about."""
    parts = path.split("/")[2:]
    size = 2 if parts[0] in _NAMESPACES else 1
    kind, rest = "/".join(parts[:size]), parts[size:]
    if not rest or (kind, rest[0]) in _VERBS:
        return Place(kind, "", "")
    return Place(kind, rest[0], "/".join(rest[1:]))


def made(method: str, place: Place, said: Said) -> list[tuple[str, str]]:
    """The objects that a good answer says were made, as (kind, id)."""
    new = [(place.kind, said.id)] if method == "POST" and not place.id and said.id else []
    if place.kind in _REVEALING and place.below in _SHOWN_AT:
        new += said.others
    return new


def deleted(method: str, place: Place, said: Said) -> bool:
    """Whether a good answer says that the object of the path is gone."""
    return method == "DELETE" and bool(place.id) and not place.below and said.deleted is not False


class Verdict(NamedTuple):
    """Who answers. `provider` None: no id says. `known`: every id that was named is on record for this team."""

    provider: str | None
    known: bool


def judge(
    refs: Sequence[Ref],
    found: Mapping[str, Sequence[Issued]],
    *,
    allowed: AbstractSet[str],
    team: str,
    divided: bool,
    opens: Callable[[str], bool],
) -> Verdict:
    """Who may answer a request that names `refs`, of the providers in `allowed`.

    `found`: who made them, as far as anybody knows. `divided`: there are keys of two teams, so `team` counts. `opens`:
    whether the key's `paths` name a path. Raises ObjectNotFoundError for what another team made, NotIssuedError for
    what nobody is known to have made, UnknownIssuerError where several providers are left.
    """
    left = allowed
    unknown: Ref | None = None
    for ref in refs:
        rows = [row for row in found.get(ref.id, ()) if row.provider in allowed]
        if not rows:
            if divided and not opens(ref.path):
                raise NotIssuedError(
                    f"'{ref.id[:128]}' was not made through this gateway, so it may be another team's: "
                    f"a key whose paths name {ref.path[:160]} may use it.",
                    param=ref.param,
                )
            unknown = unknown or ref
            continue
        if divided:
            rows = [row for row in rows if row.team == team]
            if not rows:
                raise ObjectNotFoundError(f"No such object: '{ref.id[:128]}'.", param=ref.param)
        left = left & {row.provider for row in rows}
        if not left:
            raise UnknownIssuerError(f"'{ref.id[:128]}' is at another provider than what was named before it.")
    if len(left) > 1 and refs:
        named = unknown or refs[-1]
        raise UnknownIssuerError(
            f"Several providers could have made '{named.id[:128]}'. Name one in the header x-headgate-provider.",
            param=named.param,
        )
    return Verdict(next(iter(left), None) if refs else None, unknown is None)
