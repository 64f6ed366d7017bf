"""An identity provider's keys and tokens, good ones and any kind of bad.

issuer = Issuer()
issuer.token(sub="ann"), issuer.jwks(), issuer.config(url)
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

NOW = 1_800_000_000.0
ISSUER = "https://id.example"
AUDIENCE = "headgate"


@cache
def rsa_key(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """One for each name."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@cache
def ec_key(name: str) -> ec.EllipticCurvePrivateKey:
    """One for each name."""
    return ec.generate_private_key(ec.SECP256R1())


@cache
def ed_key(name: str) -> ed25519.Ed25519PrivateKey:
    """One for each name."""
    return ed25519.Ed25519PrivateKey.generate()


def public(key: Any, **fields: Any) -> dict[str, Any]:
    """A key's public half, as it stands in a set."""
    kind = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    algorithm: Any = next((one for base, one in kind.items() if isinstance(key, base)), OKPAlgorithm)
    written = json.loads(algorithm.to_jwk(key.public_key()))
    return {name: value for name, value in written.items() if name != "key_ops"} | fields


class Issuer:
    """`now` is the Unix time its tokens are made at."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now
        self.keys = [public(rsa_key("r"), kid="r1", use="sig"), public(ec_key("e"), kid="e1", alg="ES256")]

    def jwks(self) -> bytes:
        """Its key set."""
        return json.dumps({"keys": self.keys}).encode()

    def config(self, url: str, **changes: Any) -> dict[str, Any]:
        """`auth.jwt` for it."""
        return {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": url, **changes}

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Good ones; None takes one away."""
        made = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "iat": int(self.now), "exp": int(self.now) + 600}
        return {name: value for name, value in (made | changes).items() if value is not None}

    def token(
        self, *, key: Any = None, alg: str = "RS256", headers: dict[str, Any] | None = None, **claims: Any
    ) -> str:
        """Signed with the RSA key, unless `key`."""
        made = {"kid": "r1"} | (headers or {})
        fields = {name: value for name, value in made.items() if value is not None}
        key = rsa_key("r") if key is None else key
        return jwt.api_jws.encode(json.dumps(self.claims(**claims)).encode(), key, alg, fields)
