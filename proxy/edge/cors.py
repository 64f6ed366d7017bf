"""What a browser must be told so that a page of another origin may use the gateway.

Only for origins that the operator lists. A preflight is answered here and reaches nobody above; it carries no key, and
says nothing but what every page may know. Credentials are never allowed: the gateway's keys travel in a field that the
page itself sets, and cookies mean nothing here.

Whether an origin may come in at all is guard.py's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .downstream import Headers

MAX_AGE = b"600"
_EXPOSED = b"*"
_METHODS = b"GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"


class Cors:
    """`origins` as browsers write them: scheme, host and, where it is not the usual one, port."""

    __slots__ = ("_fields",)

    def __init__(self, origins: Iterable[str]) -> None:
        self._fields = {
            origin.lower().encode(): (
                (b"access-control-allow-origin", origin.lower().encode()),
                (b"access-control-expose-headers", _EXPOSED),
                (b"vary", b"origin"),
            )
            for origin in origins
        }

    def fields(self, origin: bytes) -> tuple[tuple[bytes, bytes], ...]:
        """What an answer to a page of `origin` says; nothing where it is not listed."""
        return self._fields.get(origin.lower(), ())

    def preflight(self, fields: dict[bytes, bytes]) -> Headers | None:
        """What the answer to a browser that asks beforehand says besides `fields`; None where nobody asks so."""
        wanted = fields.get(b"access-control-request-method")
        if wanted is None or not self.fields(fields.get(b"origin", b"")):
            return None
        asked = fields.get(b"access-control-request-headers")
        return [
            (b"access-control-allow-methods", _METHODS),
            # The names are the page's own, and what it sends is checked like anything else.
            *([(b"access-control-allow-headers", asked)] if asked else []),
            (b"access-control-max-age", MAX_AGE),
        ]
