"""Who calls: API keys.

A key is known here only as its HMAC-SHA-256 under a secret of this process. What a caller presents is digested the same
way and looked up by digest, so the time it takes says nothing about any key, and neither a dump of memory structures
nor a repr shows one. Any bytes may be presented; all but a known key are 401.

While no key is configured at all, everybody is let in as anonymous: the config refuses to combine that with an address
that others can reach.

A browser that opens a WebSocket may send its key as the sub-protocol `openai-insecure-api-key.KEY`.

Of what a key may do only its `paths` are checked here: a path that they do not name is 403. Not here: roles (the admin
listener), and whose objects it sees (proxy/claims.py).

Status: stable. Trusts: nothing.
"""

from __future__ import annotations

import hmac
import secrets
from typing import TYPE_CHECKING

from ..proxy.errors import PathNotAllowedError, UnauthorizedError
from ..proxy.exchange import Principal
from ..proxy.filter import Filter
from ..proxy.headers import AZURE
from ..proxy.path_globs import PathGlobs
from ..proxy.websocket.handshake import key_of

if TYPE_CHECKING:
    from ..config import AuthConfig
    from ..proxy.exchange import Exchange

_BEARER = b"bearer "
_AZURE_HEADER = b"api-key"
"""Where Azure's clients send their key; taken on the paths they call."""
_MAX_KEY = 8192


class Auth(Filter):
    """Lets known keys pass and sets `ex.principal`."""

    reads_body = False
    admits = True

    def __init__(self, config: AuthConfig) -> None:
        self.name = "auth"
        self.header = config.header.lower().encode()
        self.admitted = 0
        self.refused = 0
        self._pepper = secrets.token_bytes(32)
        self._principals = {
            self._digest(key.key.reveal().encode()): Principal(
                key.name,
                team=key.team,
                owner=key.owner,
                roles=frozenset(key.roles),
                paths=PathGlobs(key.paths) if key.paths is not None else None,
            )
            for key in config.keys
        }

    @property
    def is_open(self) -> bool:
        """No key is configured: everybody passes."""
        return not self._principals

    def on_request(self, ex: Exchange) -> None:
        """Find the principal; raises UnauthorizedError, PathNotAllowedError."""
        if self._principals:
            presented = ex.head.header(self.header)
            if presented is None and ex.head.websocket:
                presented = key_of(ex.head)  # a browser can set no header there
            if presented is None and ex.head.path.startswith(AZURE):
                presented = ex.head.header(_AZURE_HEADER)
            ex.principal = principal = self.identify(presented)
            if principal.paths is not None and not principal.paths.names(ex.head.path):
                self.refused += 1
                raise PathNotAllowedError(f"This key may not call '{ex.head.path[:128]}': its paths do not name it.")
        self.admitted += 1

    def identify(self, presented: bytes | None) -> Principal:
        """Whose key this header value holds, with or without `Bearer `; raises UnauthorizedError."""
        if presented is None:
            self.refused += 1
            raise UnauthorizedError(f"No API key. Send yours in the header '{self._usage()}'.")
        token = presented[7:] if presented[:7].lower() == _BEARER else presented
        principal = self._principals.get(self._digest(token.strip())) if len(token) <= _MAX_KEY else None
        if principal is None:
            self.refused += 1
            raise UnauthorizedError("Incorrect API key. Check it against the gateway's auth.keys.")
        return principal

    def _usage(self) -> str:
        name = self.header.decode()
        return "Authorization: Bearer YOUR_KEY" if name == "authorization" else f"{name}: YOUR_KEY"

    def _digest(self, key: bytes) -> bytes:
        return hmac.digest(self._pepper, key, "sha256")
