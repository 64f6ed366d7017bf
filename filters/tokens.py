"""Tokens of an identity provider (JWT): whether one is good, and whom it names.

What a token says of itself decides nothing but which of the known keys is tried. Signatures are of the configured
algorithms, each with keys of its own kind alone, so a public key never becomes a shared secret; `iss`, `aud` and `exp`
must be there and right; `crit` announces rules that nobody here knows, and is refused. Keys come from the configured
URL (control/jwks_watch.py) and from nowhere else, whatever `jku`, `x5u` or `jwk` offer.

A token that was good is remembered under a digest until it ends or the keys change: a signature takes 0.2 ms. Any
bytes may be presented; all but a good token are a 401, and while no keys are known a 503.

Imported, and PyJWT with it, only where `auth.jwt` is configured.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Final

import jwt
import msgspec

from ..proxy.errors import ExpiredKeyError, KeysAwayError, UnauthorizedError
from ..proxy.exchange import Principal
from ..proxy.model_names import ModelNames

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..config.chain import JwtConfig

LEEWAY_SECONDS: Final = 10.0
"""How far the issuer's clock may be from ours."""
ASK_SECONDS = 30.0
"""Between two times that an unknown key makes us ask for the keys anew."""
MAX_KEYS = 100
MAX_NAME = 128
REMEMBERED = 4096
MIN_RSA_BITS = 2048
PREFIX = "jwt:"
"""Before the user, so that no token has the name of a key."""

_KINDS: Final[Mapping[str, tuple[str, str | None]]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", None)),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
_OPTIONS: Final[Any] = {
    "require": ["exp", "iss", "aud"],
    "verify_exp": False,  # by our clock, below
    "verify_nbf": False,
    "verify_iat": False,
}

Keys = dict[tuple[str | None, str], "jwt.PyJWK"]
"""By `kid` and algorithm; under the `kid` None: the only one of an algorithm."""


class JwksError(ValueError):
    """Not a set of keys, or none of them of use."""


class Tokens:
    """Knows the tokens of one issuer. `ask` is called when a token names a key that is not known."""

    def __init__(self, config: JwtConfig) -> None:
        self.ask: Callable[[], object] = _nobody
        self._config = config
        self._keys: Keys = {}
        self._known: dict[bytes, Principal] = {}
        self._asked = -inf

    def adopt(self, jwks: bytes) -> None:
        """Take the issuer's keys over, and forget what was good under earlier ones. Raises JwksError."""
        self._keys = read_jwks(jwks, self._config.algorithms)
        self._known.clear()

    def identify(self, token: bytes, digest: bytes, now: float) -> Principal:
        """Whom a token names at the Unix time `now`; `digest` is that of what it was found in.

        Raises UnauthorizedError, ExpiredKeyError, KeysAwayError.
        """
        principal = self._known.get(digest)
        if principal is None:
            principal = self._check(token, now)
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[digest] = principal
        elif now >= principal.expires:
            raise _expired()
        return principal

    def _check(self, token: bytes, now: float) -> Principal:
        config = self._config
        try:
            header = jwt.get_unverified_header(token)
        except Exception as error:  # what a stranger's bytes do to a parser is the stranger's fault
            raise _refused("it is not well formed") from error
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in config.algorithms:
            raise _refused("its signature is of a kind that is not taken here")
        if "crit" in header or "b64" in header:
            raise _refused("it asks for rules that are not known here")
        if kid is not None and not isinstance(kid, str):
            raise _refused("it is not well formed")
        if not self._keys:
            self._want(now)
            raise KeysAwayError("Tokens cannot be checked yet: their issuer's keys are on their way.", retry_after=1.0)
        key = self._keys.get((kid, algorithm))
        if key is None:
            self._want(now)
            raise _refused("its key is not known")
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=config.issuer,
                audience=config.audience,
                options=_OPTIONS,
            )
        except jwt.InvalidSignatureError as error:
            raise _refused("its signature is wrong") from error
        except Exception as error:  # as above
            raise _refused("it is not for this gateway") from error
        return self._principal(claims, now)

    def _principal(self, claims: Mapping[str, Any], now: float) -> Principal:
        end = _moment(claims, "exp") + LEEWAY_SECONDS
        if now >= end:
            raise _expired()
        if max(_moment(claims, "nbf", 0.0), _moment(claims, "iat", 0.0)) - LEEWAY_SECONDS > now:
            raise _refused("it is not valid yet")
        names = self._config.claims
        user = _name(claims, names.user)
        if user is None:
            raise _refused(f"it has no claim '{names.user}'")
        roles = claims.get(names.roles)
        models = claims.get(names.models)
        return Principal(
            PREFIX + user,
            owner=user,
            team=_name(claims, names.team),
            roles=frozenset(_words(roles.split() if isinstance(roles, str) else roles, names.roles))
            & frozenset(self._config.roles_allowed),
            models=None if models is None else ModelNames(_words(models, names.models)),
            expires=end,
        )

    def _want(self, now: float) -> None:
        if not self._asked <= now < self._asked + ASK_SECONDS:
            self._asked = now
            self.ask()


def read_jwks(data: bytes, algorithms: tuple[str, ...]) -> Keys:
    """The keys of a JSON Web Key Set that are of use with `algorithms`; others are passed over.

    Raises JwksError where none is.
    """
    try:
        written = msgspec.json.decode(data)["keys"]
        if not isinstance(written, list):
            raise TypeError
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise JwksError("not a JSON Web Key Set") from error
    keys: Keys = {}
    counts = dict.fromkeys(algorithms, 0)
    for one in written[:MAX_KEYS]:
        for algorithm in algorithms:
            key = _key(one, algorithm)
            if key is not None:
                kid = one.get("kid")
                counts[algorithm] += 1
                keys[None, algorithm] = key
                if isinstance(kid, str):
                    keys[kid, algorithm] = key
    for algorithm, count in counts.items():
        if count > 1:
            del keys[None, algorithm]  # nobody could say which
    if not keys:
        raise JwksError("holds no key for the configured algorithms")
    return keys


def _key(written: object, algorithm: str) -> jwt.PyJWK | None:
    kind, curve = _KINDS[algorithm]
    if not isinstance(written, dict) or written.get("kty") != kind or written.get("crv") != curve:
        return None
    operations = written.get("key_ops", ["verify"])
    if written.get("use", "sig") != "sig" or written.get("alg", algorithm) != algorithm or "verify" not in operations:
        return None
    public = {name: value for name, value in written.items() if name in ("kty", "crv", "n", "e", "x", "y")}
    try:
        key = jwt.PyJWK(public, algorithm=algorithm)
    except Exception:  # whatever a foreign key does to the library, it is of no use
        return None
    return key if getattr(key.key, "key_size", MIN_RSA_BITS) >= MIN_RSA_BITS or kind != "RSA" else None


def _moment(claims: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = claims.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        raise _refused(f"its claim '{name}' is not a time")
    return float(value)


def _name(claims: Mapping[str, Any], name: str) -> str | None:
    """For rows, logs and limits: short and printable."""
    value = claims.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not value.isprintable():
        raise _refused(f"its claim '{name}' is not a name")
    return value


def _words(value: object, name: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise _refused(f"its claim '{name}' is not a list of words")
    return value


def _refused(why: str) -> UnauthorizedError:
    return UnauthorizedError(f"This token is refused: {why}.")


def _expired() -> ExpiredKeyError:
    return ExpiredKeyError("This token has expired. Ask its issuer for a new one.")


def _nobody() -> None:
    """Nobody can be asked yet."""
