"""The key of an answer: a SHA-256 over everything that may change it.

Two requests get one key only where they are one request of one tenant, under one policy, to the same targets. So
nothing is cut off, every part carries its length, and what is not known to be without effect is part of the key: of
the header all that goes to a provider, but for names that only say who asks, by what way and with which id.

A JSON body counts by its value and not by its spelling: order of members, white space and escapes make no difference.
Where readers could understand it differently (a member twice, a number that no double holds), it counts byte by byte.

Not here: what is cached at all (cache.py).
"""

from __future__ import annotations

import json
from decimal import Decimal
from hashlib import sha256
from math import isinf
from typing import TYPE_CHECKING, Any, Final

from ..proxy.exchange import ANONYMOUS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..proxy.edge.downstream import Headers
    from ..proxy.exchange import Principal

CANONICAL_BYTES: Final = 256 * 1024
"""A larger body counts byte by byte: reading it would hold up everybody."""

NEUTRAL: Final = frozenset(
    (
        b"accept", b"accept-encoding", b"b3", b"baggage", b"cache-control", b"content-type", b"date", b"dnt",
        b"idempotency-key", b"pragma", b"priority", b"sentry-trace", b"traceparent", b"tracestate", b"user-agent",
        b"x-amzn-trace-id", b"x-client-request-id", b"x-cloud-trace-context", b"x-correlation-id", b"x-request-id",
        b"x-request-start",
    )
)  # fmt: skip
NEUTRAL_BEGINNINGS: Final = (b"x-stainless-", b"x-b3-", b"x-datadog-", b"sec-")
"""Request fields that change no answer: who asks, by what way, with which id."""

OWN_NEUTRAL: Final = frozenset(
    (b"x-headgate-cache", b"x-headgate-explain", b"x-headgate-stream-metadata", b"x-headgate-timeout-ms")
)
"""Those of our own."""


def digest(parts: Iterable[bytes]) -> bytes:
    """32 bytes over all parts, their number and their order."""
    return sha256(b"".join([b"%d:%b," % (len(part), part) for part in parts])).digest()


def tenant(principal: Principal) -> str:
    """Who shares answers: a team, else an owner, else one key. Each kind of name has a letter of its own: a key that
    is named like a team is not that team. Without auth all are one."""
    if principal is ANONYMOUS:
        return "a"
    if principal.team is not None:
        return f"t{principal.team}"
    return f"u{principal.owner}" if principal.owner is not None else f"k{principal.name}"


def fields(headers: Headers, ignored: frozenset[bytes] = frozenset()) -> bytes:
    """The request fields that may change an answer; `ignored` names more that do not. Their order does not matter, but
    for those of one name."""
    kept = [
        field
        for field in headers
        if field[0] not in NEUTRAL and field[0] not in ignored and not field[0].startswith(NEUTRAL_BEGINNINGS)
    ]
    kept.sort(key=_name)
    return digest([part for field in kept for part in field])


def wishes(headers: Headers) -> bytes:
    """What the caller asks of the gateway itself, as far as that may change an answer."""
    kept = [field for field in headers if field[0].startswith(b"x-headgate-") and field[0] not in OWN_NEUTRAL]
    kept.sort(key=_name)
    return digest([part for field in kept for part in field])


def canonical(body: bytes) -> bytes:
    """A body by its value; by its bytes where it is large, no JSON, or can be understood in two ways."""
    if len(body) <= CANONICAL_BYTES:
        try:
            value = json.loads(body.decode(), object_pairs_hook=_object, parse_float=_number, parse_constant=_ambiguous)
            return b"value:" + json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
        except (ValueError, RecursionError):
            return b"bytes:" + body
    return b"bytes:" + body


def _name(field: tuple[bytes, bytes]) -> bytes:
    return field[0]


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) != len(members):
        raise ValueError("a member stands twice: who reads the first understands another request")
    return found


def _number(text: str) -> float:
    number = float(text)
    if isinf(number) or Decimal(repr(number)) != Decimal(text):
        raise ValueError("another number for who reads more digits")
    return number


def _ambiguous(text: str) -> None:
    raise ValueError(f"{text} is no JSON")
