"""Whose call it is, for filters that count by caller.

Who a caller is comes from its key or its connection, never from a field of the request. A model is the first target
that its name leads to, so two names of one model are one; names that lead nowhere count as one, too.

Each kind of name has a letter of its own: a key named like an owner is not that owner.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Final

from ..proxy.errors import ModelNotFoundError
from ..proxy.exchange import ANONYMOUS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..proxy.exchange import Exchange

_NO_MODEL = "-"
_UNKNOWN_MODEL = "?"
_WORDS: Final = {"k": "key", "u": "owner", "t": "team", "a": "address"}
"""What the letters stand for."""
MOST_PLAIN: Final = 128
"""Characters; a longer name is spelled as its digest."""
_SPECIAL: Final = re.compile(r"[&\\#'\"]")


def _key(ex: Exchange) -> str:
    return _address(ex) if ex.principal is ANONYMOUS else f"k{ex.principal.name}"


def _user(ex: Exchange) -> str:
    principal = ex.principal
    if principal is ANONYMOUS:
        return _address(ex)
    return f"u{principal.owner}" if principal.owner is not None else f"k{principal.name}"


def _team(ex: Exchange) -> str:
    return f"t{ex.principal.team or ''}"


def _address(ex: Exchange) -> str:
    """Of IPv6 the first half: whoever has one address of a network has them all."""
    client = ex.head.client
    if ":" in client:
        try:
            return f"a{IPv6Address(client.partition('%')[0]).packed[:8].hex()}"
        except ValueError:
            return f"a{client}"
    return f"a{client}"


def _model(ex: Exchange) -> str:
    if not ex.model or ex.face.handler is not None:
        return _NO_MODEL
    try:
        targets = ex.graph.models.resolve(ex.model)  # not ex.candidates: a caller may choose among those
    except ModelNotFoundError:
        return _UNKNOWN_MODEL
    return f"{targets[0].cluster.name}/{targets[0].model}" if targets else _UNKNOWN_MODEL


SCOPES: Mapping[str, Callable[[Exchange], str]] = {
    "key": _key,
    "user": _user,
    "team": _team,
    "model": _model,
    "address": _address,
}


def caller_of(per: Sequence[str]) -> Callable[[Exchange], str]:
    """Whose call it is, by all these together."""
    scopes = [SCOPES[name] for name in per]
    return scopes[0] if len(scopes) == 1 else lambda ex: "\0".join([scope(ex) for scope in scopes])


def spelled(caller: str) -> str:
    """A caller as plain text that can stand beside others: printable ASCII without `&`, and short. No two are spelled
    alike."""
    if len(caller) <= MOST_PLAIN and caller.isascii() and caller.isprintable() and not _SPECIAL.search(caller):
        return caller
    if len(caller) > MOST_PLAIN:
        return f"#{blake2b(caller.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"
    return ascii(caller)[1:-1].replace("&", "\\x26")


def named(per: str, caller: str) -> str:
    """For people: `team web & model up/gpt-4o` for `tweb & up/gpt-4o`, as counted per `team+model`. A name without
    anything behind it is `-`, one that is spelled as its digest stays so."""
    return " & ".join(
        f"{_WORDS[part[0]]} {part[1:] or '-'}" if scope != "model" and part[:1] in _WORDS else f"{scope} {part}"
        for scope, part in zip(per.split("+"), caller.split(" & "), strict=True)
    )
