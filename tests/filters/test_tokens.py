"""tokens: a good one names its principal; sixty kinds of bad ones are 401, and never a 500."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.config import AuthConfig, ConfigError, parse_config
from headgate.filters.auth import Auth
from headgate.filters.tokens import ASK_SECONDS, LEEWAY_SECONDS, REMEMBERED, JwksError, read_jwks
from headgate.proxy.errors import ExpiredKeyError, KeysAwayError, UnauthorizedError
from tests_support.tokens import AUDIENCE, ISSUER, NOW, Issuer, ec_key, ed_key, public, rsa_key

if TYPE_CHECKING:
    from collections.abc import Callable

URL = "https://id.example/keys"
KEY = "hg-4f1c9a7be2d05863"


def auth_for(issuer: Issuer, **changes: Any) -> Auth:
    config = AuthConfig.model_validate({"jwt": issuer.config(URL, **changes), "keys": [{"name": "app", "key": KEY}]})
    auth = Auth(config)
    auth.take_jwks(URL, issuer.jwks())
    return auth


ISSUED = Issuer()
AUTH = auth_for(ISSUED)


def b64(data: bytes | dict[str, Any]) -> str:
    raw = json.dumps(data).encode() if isinstance(data, dict) else data
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def by_hand(header: bytes | dict[str, Any], payload: bytes | dict[str, Any] | None = None, signature: str = "") -> str:
    return f"{b64(header)}.{b64(ISSUED.claims() if payload is None else payload)}.{signature}"


def hs256(secret: bytes) -> str:
    """Signed with a public key as if it were a shared secret."""
    import hashlib
    import hmac

    said = f"{b64({'alg': 'HS256', 'kid': 'r1'})}.{b64(ISSUED.claims())}"
    return f"{said}.{b64(hmac.digest(secret, said.encode(), hashlib.sha256))}"


def pem() -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return rsa_key("r").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def flipped(token: str, part: int) -> str:
    parts = token.split(".")
    at = len(parts[part]) // 2
    other = "A" if parts[part][at] != "A" else "B"
    parts[part] = parts[part][:at] + other + parts[part][at + 1 :]
    return ".".join(parts)


GOOD = ISSUED.token()
BAD: dict[str, Callable[[], str]] = {
    "empty": lambda: "",
    "two dots": lambda: "..",
    "three words": lambda: "a.b.c",
    "a header alone": lambda: GOOD.split(".")[0],
    "no signature part": lambda: GOOD.rpartition(".")[0],
    "an empty signature": lambda: GOOD.rpartition(".")[0] + ".",
    "four parts": lambda: GOOD + ".x",
    "five parts": lambda: GOOD + ".x.y",
    "a changed header": lambda: flipped(GOOD, 0),
    "a changed payload": lambda: flipped(GOOD, 1),
    "a changed signature": lambda: flipped(GOOD, 2),
    "a shorter signature": lambda: GOOD[:-4],
    "a longer signature": lambda: GOOD + "AAAA",
    "the signature of another": lambda: GOOD.rpartition(".")[0] + "." + ISSUED.token(sub="bob").rpartition(".")[2],
    "a space within": lambda: GOOD.replace(".", " .", 1),
    "a header that is no JSON": lambda: by_hand(b"{", signature="AAAA"),
    "a header that is a list": lambda: by_hand(b"[]", signature="AAAA"),
    "a header that is deep": lambda: by_hand(b"[" * 3000, signature="AAAA"),
    "a header with bad bytes": lambda: by_hand(b"\xff\xfe", signature="AAAA"),
    "a payload that is no JSON": lambda: jwt.api_jws.encode(b"{", rsa_key("r"), "RS256", {"kid": "r1"}),
    "a payload that is a list": lambda: jwt.api_jws.encode(b"[]", rsa_key("r"), "RS256", {"kid": "r1"}),
    "a payload that is deep": lambda: jwt.api_jws.encode(b"[" * 4000, rsa_key("r"), "RS256", {"kid": "r1"}),
    "alg none": lambda: by_hand({"alg": "none", "kid": "r1"}),
    "alg None": lambda: by_hand({"alg": "None", "kid": "r1"}),
    "alg nOnE": lambda: by_hand({"alg": "nOnE", "kid": "r1"}, signature="AAAA"),
    "no alg": lambda: by_hand({"kid": "r1"}, signature="AAAA"),
    "alg is a number": lambda: by_hand({"alg": 256, "kid": "r1"}, signature="AAAA"),
    "alg is a list": lambda: by_hand({"alg": ["RS256"], "kid": "r1"}, signature="AAAA"),
    "alg rs256": lambda: by_hand({"alg": "rs256", "kid": "r1"}, signature="AAAA"),
    "HS256 with the public key in PEM": lambda: hs256(pem()),
    "HS256 with the public key as JSON": lambda: hs256(json.dumps(ISSUED.keys[0]).encode()),
    "HS256 with nothing": lambda: hs256(b""),
    "RS384, which is not taken": lambda: ISSUED.token(alg="RS384"),
    "PS256, which is not taken": lambda: ISSUED.token(alg="PS256"),
    "EdDSA, which is not taken": lambda: ISSUED.token(key=ed_key("d"), alg="EdDSA", headers={"kid": "d1"}),
    "RS256 under the name of an ES256 key": lambda: ISSUED.token(headers={"kid": "e1"}),
    "ES256 under the name of an RSA key": lambda: ISSUED.token(key=ec_key("e"), alg="ES256"),
    "another RSA key": lambda: ISSUED.token(key=rsa_key("other")),
    "another EC key": lambda: ISSUED.token(key=ec_key("other"), alg="ES256", headers={"kid": "e1"}),
    "an unknown kid": lambda: ISSUED.token(headers={"kid": "r2"}),
    "an empty kid": lambda: ISSUED.token(headers={"kid": ""}),
    "a kid that is a path": lambda: ISSUED.token(headers={"kid": "../../dev/null"}),
    "a kid that is a number": lambda: by_hand({"alg": "RS256", "kid": 1}, signature="AAAA"),
    "a kid that is a mapping": lambda: by_hand({"alg": "RS256", "kid": {}}, signature="AAAA"),
    "its own key in jwk": lambda: ISSUED.token(key=rsa_key("other"), headers={"jwk": public(rsa_key("other"))}),
    "its own key behind jku": lambda: ISSUED.token(key=rsa_key("other"), headers={"jku": "https://evil.example"}),
    "crit": lambda: ISSUED.token(headers={"crit": ["exp"]}),
    "an empty crit": lambda: by_hand({"alg": "RS256", "kid": "r1", "crit": []}, signature="AAAA"),
    "crit with what it names": lambda: ISSUED.token(headers={"crit": ["x"], "x": 1}),
    "b64": lambda: by_hand({"alg": "RS256", "kid": "r1", "b64": False}, signature="AAAA"),
    "no exp": lambda: ISSUED.token(exp=None),
    "exp is over": lambda: ISSUED.token(exp=NOW - LEEWAY_SECONDS),
    "exp is text": lambda: ISSUED.token(exp="tomorrow"),
    "exp is true": lambda: ISSUED.token(exp=True),
    "exp is infinite": lambda: ISSUED.token(exp=float("inf")),
    "exp is not a number": lambda: ISSUED.token(exp=float("nan")),
    "exp is huge": lambda: ISSUED.token(exp=10**400),
    "exp is a list": lambda: ISSUED.token(exp=[NOW + 600]),
    "nbf is to come": lambda: ISSUED.token(nbf=NOW + LEEWAY_SECONDS + 1),
    "nbf is text": lambda: ISSUED.token(nbf="now"),
    "iat is to come": lambda: ISSUED.token(iat=NOW + LEEWAY_SECONDS + 1),
    "no iss": lambda: ISSUED.token(iss=None),
    "another iss": lambda: ISSUED.token(iss=ISSUER + "/"),
    "iss is a list": lambda: ISSUED.token(iss=[ISSUER]),
    "no aud": lambda: ISSUED.token(aud=None),
    "another aud": lambda: ISSUED.token(aud="other"),
    "aud is an empty list": lambda: ISSUED.token(aud=[]),
    "aud holds a number": lambda: ISSUED.token(aud=[AUDIENCE, 7]),
    "aud is a mapping": lambda: ISSUED.token(aud={AUDIENCE: 1}),
    "no sub": lambda: ISSUED.token(sub=None),
    "sub is empty": lambda: ISSUED.token(sub=""),
    "sub is a number": lambda: ISSUED.token(sub=7),
    "sub has a line break": lambda: ISSUED.token(sub="ann\nadmin"),
    "sub is long": lambda: ISSUED.token(sub="a" * 129),
    "team is a list": lambda: ISSUED.token(team=["red"]),
    "roles is a mapping": lambda: ISSUED.token(roles={"admin": True}),
    "roles holds numbers": lambda: ISSUED.token(roles=[1]),
    "models is text": lambda: ISSUED.token(models="*"),
    "models holds null": lambda: ISSUED.token(models=[None]),
    "too long": lambda: ISSUED.token(more="x" * 8192),
}


def test_there_are_sixty() -> None:
    assert len(BAD) >= 60


@pytest.mark.parametrize("name", BAD)
def test_a_bad_token_is_refused(name: str) -> None:
    token = BAD[name]()
    with pytest.raises(UnauthorizedError) as refused:
        AUTH.identify(f"Bearer {token}".encode(), NOW)
    assert refused.value.status == 401
    assert not token or token not in refused.value.message
    assert AUTH.identify(f"Bearer {GOOD}".encode(), NOW).name == "jwt:ann", "a bad one spoilt a good one"


@settings(max_examples=100)
@given(st.binary(max_size=30), st.binary(max_size=30), st.binary(max_size=30))
def test_whatever_stands_between_the_dots_is_refused(header: bytes, payload: bytes, signature: bytes) -> None:
    for token in (b".".join((header, payload, signature)), f"{b64(header)}.{b64(payload)}.{b64(signature)}".encode()):
        with pytest.raises(UnauthorizedError):
            AUTH.identify(token, NOW)


def test_a_good_token_names_its_principal() -> None:
    auth = auth_for(ISSUED, roles_allowed=["viewer"])
    token = ISSUED.token(team="red", roles=["viewer", "admin", "else"], models=["gpt-*"], aud=["x", AUDIENCE])
    principal = auth.identify(f"Bearer {token}".encode(), NOW)
    assert (principal.name, principal.owner, principal.team) == ("jwt:ann", "ann", "red")
    assert principal.roles == {"viewer"}
    assert principal.models is not None
    assert (principal.models.allow("gpt-4o"), principal.models.allow("o3")) == (True, False)


def test_roles_are_none_unless_they_are_allowed_and_no_models_are_none() -> None:
    principal = AUTH.identify(ISSUED.token(roles="viewer admin", models=[]).encode(), NOW)
    assert principal.roles == frozenset()
    assert principal.models is not None
    assert not principal.models.allow("gpt-4o")
    assert AUTH.identify(GOOD.encode(), NOW).models is None


def test_claims_may_have_other_names() -> None:
    auth = auth_for(ISSUED, claims={"user": "email", "team": "https://id.example/team"})
    claims: dict[str, Any] = {"email": "ann@example.org", "https://id.example/team": "blue"}
    token = ISSUED.token(**claims)
    principal = auth.identify(token.encode(), NOW)
    assert (principal.name, principal.team) == ("jwt:ann@example.org", "blue")


def test_keys_and_tokens_may_both_be_on() -> None:
    assert AUTH.identify(KEY.encode(), NOW).name == "app"
    assert not AUTH.is_open
    assert not Auth(AuthConfig.model_validate({"jwt": ISSUED.config(URL)})).is_open


@pytest.mark.parametrize("alg", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "EdDSA"])
def test_every_algorithm_works_where_it_is_allowed(alg: str) -> None:
    issuer = Issuer()
    issuer.keys.append(public(ed_key("d"), kid="d1"))
    auth = auth_for(issuer, algorithms=[alg])
    key, kid = (ed_key("d"), "d1") if alg == "EdDSA" else (None, "r1")
    assert auth.identify(issuer.token(key=key, alg=alg, headers={"kid": kid}).encode(), NOW).owner == "ann"
    assert auth.identify(issuer.token(key=key, alg=alg, headers={"kid": None}).encode(), NOW).owner == "ann"


def test_without_a_kid_two_keys_are_nobodys() -> None:
    issuer = Issuer()
    issuer.keys.append(public(rsa_key("other"), kid="r2"))
    auth = auth_for(issuer)
    with pytest.raises(UnauthorizedError):
        auth.identify(issuer.token(headers={"kid": None}).encode(), NOW)
    assert auth.identify(issuer.token(key=rsa_key("other"), headers={"kid": "r2"}).encode(), NOW).owner == "ann"


def test_a_token_that_is_remembered_ends_all_the_same() -> None:
    auth = auth_for(ISSUED)
    last = NOW + 600 + LEEWAY_SECONDS
    for now in (NOW, last - 1):
        assert auth.identify(GOOD.encode(), now).owner == "ann"
    for _ in range(2):
        with pytest.raises(ExpiredKeyError, match="has expired"):
            auth.identify(GOOD.encode(), last)


def test_other_keys_end_what_earlier_ones_made_good() -> None:
    issuer = Issuer()
    auth = auth_for(issuer)
    token = issuer.token().encode()
    auth.identify(token, NOW)
    issuer.keys = issuer.keys[1:]
    auth.take_jwks(URL, issuer.jwks())
    with pytest.raises(UnauthorizedError, match="key is not known"):
        auth.identify(token, NOW)
    auth.take_jwks("https://id.example/others", ISSUED.jwks())
    with pytest.raises(UnauthorizedError):
        auth.identify(token, NOW)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headgate.filters.tokens.REMEMBERED", 3)
    assert REMEMBERED > 3
    auth = auth_for(ISSUED)
    assert auth.tokens is not None
    for number in range(8):
        auth.identify(ISSUED.token(sub=f"u{number}").encode(), NOW)
        assert len(auth.tokens._known) <= 3


def test_while_no_keys_are_known_a_token_is_503_and_asks_for_them_once() -> None:
    auth = Auth(AuthConfig.model_validate({"jwt": ISSUED.config(URL)}))
    assert auth.tokens is not None
    asked: list[float] = []
    auth.tokens.ask = lambda: asked.append(now)
    for now in (NOW, NOW + 1, NOW + ASK_SECONDS - 1):
        with pytest.raises(KeysAwayError) as away:
            auth.identify(GOOD.encode(), now)
        assert (away.value.status, away.value.retry_after) == (503, 1.0)
    assert asked == [NOW]
    with pytest.raises(UnauthorizedError):
        auth.identify(by_hand({"alg": "none"}).encode(), NOW)


def test_a_flood_of_unknown_keys_asks_once_in_thirty_seconds() -> None:
    auth = auth_for(ISSUED)
    assert auth.tokens is not None
    asked: list[float] = []
    auth.tokens.ask = lambda: asked.append(now)
    for number in range(200):
        now = NOW + number / 2
        with pytest.raises(UnauthorizedError):
            auth.identify(by_hand({"alg": "RS256", "kid": f"k{number}"}, signature="AAAA").encode(), now)
    assert len(asked) == 4


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[]", b'{"keys": {}}', b'{"keys": []}', b"[" * 100_000, b'{"keys": [1, null, "x", []]}',
        b'{"keys": [{"kty": "oct", "k": "AAAA", "kid": "r1"}]}', b'{"keys": [{"kty": "RSA"}]}',
        b'{"keys": [{"kty": "RSA", "n": 7, "e": []}]}', b'{"keys": [{"kty": "EC", "crv": "P-256", "x": "!", "y": ""}]}',
        json.dumps({"keys": [public(rsa_key("weak", 1024), kid="w")]}).encode(),
        json.dumps({"keys": [public(rsa_key("r"), use="enc")]}).encode(),
        json.dumps({"keys": [public(rsa_key("r"), alg="RS512")]}).encode(),
        json.dumps({"keys": [public(rsa_key("r"), key_ops=["encrypt"])]}).encode(),
    ],
)  # fmt: skip
def test_a_set_without_a_key_of_use_is_refused(data: bytes) -> None:
    with pytest.raises(JwksError):
        read_jwks(data, ("RS256", "ES256"))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ("{}", "is required"),
        ("{issuer: i, audience: a, jwks_url: 'http://id.example/keys'}", "must be an https URL"),
        ("{issuer: i, audience: a, jwks_url: 'file:///etc/passwd'}", "must be an https URL"),
        ("{issuer: i, audience: a, jwks_url: 'https://u:p@id.example'}", "must be an https URL"),
        ("{issuer: i, audience: a, jwks_url: 'https://[::1'}", "must be a URL"),
        ("{issuer: i, audience: a, jwks_url: 'https://a/', algorithms: [HS256]}", "algorithms"),
        ("{issuer: i, audience: a, jwks_url: 'https://a/', algorithms: [none]}", "algorithms"),
        ("{issuer: i, audience: a, jwks_url: 'https://a/', algorithms: []}", "algorithms"),
        ("{issuer: i, audience: a, jwks_url: 'https://a/', roles_allowed: [root]}", "roles_allowed"),
    ],
)
def test_a_config_that_lets_too_much_in_is_refused(settings_: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(f"filters: [{{auth: {{jwt: {settings_}}}}}]", env={})
