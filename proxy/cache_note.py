"""What a cache had to do with an exchange: a word for the head and the row, and why, for who asks.

Who is answered from the cache, or by the call that another has begun, costs nothing: that is set here, once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from .edge.downstream import Headers
    from .exchange import Exchange
    from .tape import Recorded, Tape

Verdict = Literal["hit", "joined", "miss", "bypass"]
COST_SOURCE: Final = "cache"
"""Why an answer was free."""


class CacheNote(NamedTuple):
    """`joined` is a hit to the client: an answer without a call of its own."""

    verdict: Verdict
    why: str
    fields: Headers


MISS: Final = CacheNote("miss", "nobody had asked this lately", [(b"x-headgate-cache", b"miss")])
JOINED: Final = CacheNote("joined", "another exchange was asking the same", [(b"x-headgate-cache", b"hit")])


def bypass(why: str) -> CacheNote:
    """It is no matter for the cache."""
    return CacheNote("bypass", why, [(b"x-headgate-cache", b"bypass")])


def note_hit(ex: Exchange, recorded: Recorded, wall: float) -> None:
    """Its answer was kept. `wall` in Unix seconds."""
    age = max(0.0, wall - recorded.at)
    fields = [(b"x-headgate-cache", b"hit"), (b"age", b"%d" % age), *_origin(recorded.provider, recorded.model)]
    ex.cache = CacheNote("hit", f"the answer was made {age:.1f} s before, for {recorded.by}", fields)
    _free(ex)


def note_joined(ex: Exchange) -> None:
    """Its answer comes from a call that another exchange has begun."""
    ex.cache = JOINED
    _free(ex)


def note_miss(ex: Exchange) -> None:
    """It makes the call, which costs what it costs."""
    ex.cache = MISS
    ex.cost_usd, ex.cost_source = None, ""


def name_origin(ex: Exchange, tape: Tape) -> None:
    """Who answers is known now; who makes the call itself says so anyway."""
    note = ex.cache
    if note is not None and note.verdict == "joined":
        ex.cache = note._replace(fields=[*note.fields, *_origin(tape.provider, tape.model)])


def _origin(provider: str, model: str) -> Headers:
    named = ((b"x-headgate-provider", provider), (b"x-headgate-model", model))
    return [(name, value.encode()) for name, value in named if value]


def _free(ex: Exchange) -> None:
    ex.cost_usd, ex.cost_source = 0.0, COST_SOURCE
