"""Who calls: API keys, and tokens of an identity provider (tokens.py).

A key is known here only as its HMAC-SHA-256 under a secret of this process, or under the pepper of the `keys_file`.
What a caller presents is digested the same way and looked up by digest, so the time it takes says nothing about any
key, and neither a dump of memory structures nor a repr shows one. Any bytes may be presented; all but a known key are
401.

While no key is configured at all, everybody is let in as anonymous: the config refuses to combine that with an address
that others can reach.

A browser that opens a WebSocket may send its key as the sub-protocol `openai-insecure-api-key.KEY`.

What a key may do: a path that its `paths` do not name is 403 at once; of models that its `models` do not allow every
target is vetoed. A request that names no model could use any, so a key with `models` may only look and delete with it,
unless its `paths` name the path. Not here: roles (the admin listener), whose objects it sees (proxy/claims.py), and
what `/v1/models` shows it (proxy/model_list.py).

Status: stable. Trusts: nothing.
"""

from __future__ import annotations

import secrets
from functools import partial
from hashlib import sha256
from math import inf
from typing import TYPE_CHECKING

from ..proxy.errors import ExpiredKeyError, PathNotAllowedError, UnauthorizedError
from ..proxy.exchange import Principal
from ..proxy.filter import Filter
from ..proxy.headers import AZURE
from ..proxy.model_names import ModelNames
from ..proxy.path_globs import PathGlobs
from ..proxy.plan import POLICY
from ..proxy.websocket.handshake import key_of
from .filed_keys import read_table
from .keys_file import digest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..config import AuthConfig
    from ..config.chain import JwtConfig, Key
    from ..proxy.exchange import Exchange
    from ..proxy.plan import Target
    from .filed_keys import KeyTable
    from .tokens import Tokens

_BEARER = b"bearer "
_AZURE_HEADER = b"api-key"
"""Where Azure's clients send their key; taken on the paths they call."""
_MAX_KEY = 8192
_MAX_SEEN = 4096
_SAFE_METHODS = frozenset(("GET", "HEAD", "DELETE"))
"""They make no model work."""


class Auth(Filter):
    """Lets known keys pass and sets `ex.principal`."""

    reads_body = False
    admits = True

    def __init__(self, config: AuthConfig) -> None:
        self.name = "auth"
        self.header = config.header.lower().encode()
        self.admitted = 0
        self.refused = 0
        self.settings = config
        self._closed = not config.is_open
        self._pepper = secrets.token_bytes(32)
        self._principals = self._own(self._pepper)
        self._table: KeyTable | None = None
        self.tokens = _tokens(config.jwt)
        self._secret = secrets.token_bytes(64)
        self._mac = sha256(self._secret)
        """The beginning of every MAC under it: the secret fills a block, so a copy has it done. What a MAC is stays in
        this process, so nobody can extend one."""
        self._seen: dict[bytes, Principal] = {}
        """Keys that were found, by a MAC of what was presented that costs a third of HMAC-SHA-256."""

    @property
    def is_open(self) -> bool:
        """No key is configured: everybody passes."""
        return not self._closed

    def read(self) -> KeyTable | None:
        """The keys of the `keys_file`, for `adopt`. Blocking. Raises KeysFileError."""
        return read_table(self.settings, self._table)

    def adopt(self, table: KeyTable | None) -> None:
        """From now on these are the keys beside those of the config; None: there are no others."""
        self._seen.clear()
        pepper = table.pepper if table is not None else secrets.token_bytes(32)
        if pepper != self._pepper:
            self._pepper, self._principals = pepper, self._own(pepper)
        self._table = table

    def take_jwks(self, url: str, jwks: bytes) -> None:
        """The keys of tokens, as found at `url`. Raises ValueError where they are of no use."""
        if self.tokens is not None and self.settings.jwt is not None and self.settings.jwt.jwks_url == url:
            self.tokens.adopt(jwks)

    def _own(self, pepper: bytes) -> dict[bytes, Principal]:
        return {digest(pepper, key.key.reveal().encode()): _principal(key) for key in self.settings.keys}

    def on_request(self, ex: Exchange) -> None:
        """Find the principal; raises UnauthorizedError, ExpiredKeyError, PathNotAllowedError."""
        if self._closed:
            principal = None
            presented = ex.head.header(self.header)
            if presented is not None and len(presented) <= _MAX_KEY:
                mac = self._mac.copy()
                mac.update(presented)
                principal = self._seen.get(mac.digest())
            if principal is None or ex.wall >= principal.expires:
                principal = self._identify(ex, presented)
            ex.principal = principal
            if principal.paths is not None and not principal.paths.names(ex.head.path):
                self.refused += 1
                raise PathNotAllowedError(f"This key may not call '{ex.head.path[:128]}': its paths do not name it.")
            if principal.models is not None:
                ex.veto(partial(_objection, ex, principal.models))
        self.admitted += 1

    def _identify(self, ex: Exchange, presented: bytes | None) -> Principal:
        """Of what was not seen before, or may stand elsewhere."""
        if presented is None and ex.head.websocket:
            presented = key_of(ex.head)  # a browser can set no header there
        if presented is None and ex.head.path.startswith(AZURE):
            presented = ex.head.header(_AZURE_HEADER)
        try:
            return self.identify(presented, ex.wall)
        except UnauthorizedError:
            self.refused += 1
            raise

    def identify(self, presented: bytes | None, now: float) -> Principal:
        """Whose key this header value holds, with or without `Bearer `, at the Unix time `now`.

        Raises UnauthorizedError, ExpiredKeyError."""
        if presented is None:
            raise UnauthorizedError(f"No API key. Send yours in the header '{self._usage()}'.")
        token = presented[7:] if presented[:7].lower() == _BEARER else presented
        principal = None
        if len(token) <= _MAX_KEY:
            token = token.strip()
            mac = self._mac.copy()
            mac.update(presented)
            mark = mac.digest()
            principal = self._seen.get(mark) or self._find(token, mark)
            if principal is None and self.tokens is not None and token.count(b".") == 2:
                return self.tokens.identify(token, mark, now)
        if principal is None:
            raise UnauthorizedError("Incorrect API key. Check it against the gateway's auth.keys.")
        if now >= principal.expires:
            raise ExpiredKeyError("This API key has expired. Ask for a new one.")
        return principal

    def _find(self, key: bytes, mark: bytes) -> Principal | None:
        made = digest(self._pepper, key)
        found = self._principals.get(made)
        if found is None and self._table is not None:
            found = self._table.keys.get(made)
        if found is not None:
            if len(self._seen) >= _MAX_SEEN:
                self._seen.clear()
            self._seen[mark] = found
        return found

    def _usage(self) -> str:
        name = self.header.decode()
        return "Authorization: Bearer YOUR_KEY" if name == "authorization" else f"{name}: YOUR_KEY"


def _tokens(config: JwtConfig | None) -> Tokens | None:
    if config is None:
        return None
    from .tokens import Tokens

    return Tokens(config)


def find_auth(filters: Iterable[Filter]) -> Auth | None:
    """The one of a chain, if it has one."""
    return next((link for link in filters if isinstance(link, Auth)), None)


def _principal(key: Key) -> Principal:
    return Principal(
        key.name,
        team=key.team,
        owner=key.owner,
        roles=frozenset(key.roles),
        paths=PathGlobs(key.paths) if key.paths is not None else None,
        models=ModelNames(key.models) if key.models is not None else None,
        tags=frozenset(key.tags),
        allow_tags=frozenset(key.allow_tags),
        expires=key.expires.timestamp() if key.expires is not None else inf,
    )


def _objection(ex: Exchange, models: ModelNames, _: Target) -> str | None:
    if ex.model or not ex.face.passes:
        return None if models.allow(ex.model) else POLICY
    may = ex.head.method in _SAFE_METHODS or ex.principal.paths is not None
    return None if may else POLICY
