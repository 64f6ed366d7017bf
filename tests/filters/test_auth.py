"""auth: a known key passes and names its owner; whatever else is presented is a 401, never a 500."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.config import ConfigError, parse_config
from headgate.filters.auth import Auth
from headgate.filters.filed_keys import KeyTable
from headgate.filters.keys_file import digest
from headgate.proxy.edge.downstream import RequestHead
from headgate.proxy.errors import ExpiredKeyError, PathNotAllowedError, UnauthorizedError
from headgate.proxy.exchange import ANONYMOUS, Principal

if TYPE_CHECKING:
    from headgate.proxy.exchange import Exchange

KEY = "hg-4f1c9a7be2d05863"
NOW = 1_800_000_000.0
"""2027-01-15."""


def _auth(text: str) -> Auth:
    config = parse_config(f"filters: [{{auth: {text}}}]").auth
    assert config is not None
    return Auth(config)


def _exchange(*headers: tuple[bytes, bytes]) -> Exchange:
    head = RequestHead("POST", "/v1/chat/completions", list(headers))
    return cast("Exchange", SimpleNamespace(head=head, principal=ANONYMOUS, wall=NOW))


@pytest.fixture
def auth() -> Auth:
    return _auth(f"{{keys: [{{name: app, key: {KEY}, team: red, owner: ann, roles: [viewer]}}]}}")


@pytest.mark.parametrize("value", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER  {KEY} ", KEY])
def test_a_known_key_names_its_principal(auth: Auth, value: str) -> None:
    ex = _exchange((b"authorization", value.encode()))
    auth.on_request(ex)
    assert (ex.principal.name, ex.principal.team, ex.principal.owner) == ("app", "red", "ann")
    assert ex.principal.roles == {"viewer"}
    assert (auth.admitted, auth.refused) == (1, 0)


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Basic abc", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", KEY.upper()]
)
def test_anything_else_is_refused(auth: Auth, value: str) -> None:
    with pytest.raises(UnauthorizedError):
        auth.on_request(_exchange((b"authorization", value.encode())))
    assert (auth.admitted, auth.refused) == (0, 1)


def test_no_key_at_all_says_where_to_put_it(auth: Auth) -> None:
    with pytest.raises(UnauthorizedError, match="Authorization: Bearer YOUR_KEY"):
        auth.on_request(_exchange())


def test_another_header_may_carry_the_key() -> None:
    auth = _auth(f"{{header: x-headgate-key, keys: [{{name: app, key: {KEY}}}]}}")
    auth.on_request(_exchange((b"x-headgate-key", KEY.encode())))
    with pytest.raises(UnauthorizedError, match="x-headgate-key"):
        auth.on_request(_exchange((b"authorization", KEY.encode())))


def test_without_any_key_everybody_is_anonymous() -> None:
    auth = _auth("{keys: []}")
    ex = _exchange()
    auth.on_request(ex)
    assert auth.is_open
    assert ex.principal is ANONYMOUS


@given(st.binary(max_size=64) | st.binary(min_size=8000, max_size=9000))
def test_whatever_bytes_are_presented_are_refused_and_nothing_breaks(value: bytes) -> None:
    auth = _auth(f"{{keys: [{{name: app, key: {KEY}}}]}}")
    with pytest.raises(UnauthorizedError):
        auth.on_request(_exchange((b"authorization", value)))


def test_a_key_that_was_seen_is_forgotten_with_the_table_that_had_it(auth: Auth) -> None:
    known = _exchange((b"authorization", b"Bearer filed-key"))
    auth.adopt(KeyTable(b"p" * 32, {digest(b"p" * 32, b"filed-key"): Principal("filed")}))
    auth.on_request(known)
    auth.on_request(known)
    auth.adopt(KeyTable(b"p" * 32, {}))
    with pytest.raises(UnauthorizedError):
        auth.on_request(known)


def test_no_more_keys_are_remembered_than_the_bound(auth: Auth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headgate.filters.auth._MAX_SEEN", 2)
    keys = [b"key-%d" % number for number in range(5)]
    auth.adopt(KeyTable(b"p" * 32, {digest(b"p" * 32, key): Principal(key.decode()) for key in keys}))
    for key in keys * 2:
        assert auth.identify(b"Bearer " + key, 0.0).name == key.decode()
        assert len(auth._seen) <= 2


def test_neither_the_key_nor_its_plain_digest_is_kept(auth: Auth) -> None:
    auth.on_request(_exchange((b"authorization", KEY.encode())))
    kept = pickle.dumps(
        {name: getattr(auth, name) for name in ("_principals", "_pepper", "_seen", "_secret", "header", "name")},
        protocol=5,
    )
    assert KEY.encode() not in kept


@pytest.mark.parametrize(("path", "may"), [("/v1/files/a", True), ("/v1/files", False), ("/v1/models", False)])
def test_a_key_calls_only_the_paths_it_names(path: str, may: bool) -> None:
    auth = _auth(f'{{keys: [{{name: app, key: {KEY}, paths: ["/v1/files/**", /v1/batches]}}]}}')
    ex = _exchange((b"authorization", KEY.encode()))
    ex.head.path = path
    if may:
        auth.on_request(ex)
    else:
        with pytest.raises(PathNotAllowedError, match=f"may not call '{path}'"):
            auth.on_request(ex)
    assert (auth.admitted, auth.refused) == ((1, 0) if may else (0, 1))


@pytest.mark.parametrize(
    ("keys", "divided"),
    [
        ("", False),
        (f"{{name: a, key: {KEY}, team: red}}", False),
        (f"{{name: a, key: {KEY}, team: red}}, {{name: b, key: {KEY}2, team: red}}", False),
        (f"{{name: a, key: {KEY}, team: red}}, {{name: b, key: {KEY}2}}", True),
        (f"{{name: a, key: {KEY}, team: red}}, {{name: b, key: ''}}", False),
    ],
)
def test_two_teams_are_two_teams_only_if_both_have_a_key(keys: str, divided: bool) -> None:
    config = parse_config(f"filters: [{{auth: {{keys: [{keys}]}}}}]").auth
    assert config is not None
    assert config.divided is divided


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("[v1]", "must be paths that begin with /"),
        ("['/a b']", "must be paths that begin with /"),
        ("['/v1/**/a']", r"may hold \*\* only at the end"),
        ("['/v1/***']", r"may hold \*\* only at the end"),
        ("[]", "must name a path"),
        ("/v1/files", "must be a list"),
    ],
)
def test_paths_that_say_nothing_are_refused(paths: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _auth(f"{{keys: [{{name: app, key: {KEY}, paths: {paths}}}]}}")


@pytest.mark.parametrize(
    ("expires", "expired"),
    [
        ("2027-01-14", True),
        ("2027-01-15", False),
        ("'2027-01-15T08:00:00Z'", True),
        ("'2027-01-15T08:00:01Z'", False),
        ("'2027-01-15T09:00:00+01:00'", True),
    ],
)
def test_a_key_is_refused_from_the_moment_it_expires_and_is_told_so(expires: str, expired: bool) -> None:
    auth = _auth(f"{{keys: [{{name: app, key: {KEY}, expires: {expires}}}]}}")
    ex = _exchange((b"authorization", KEY.encode()))
    if expired:
        with pytest.raises(ExpiredKeyError, match="has expired") as caught:
            auth.on_request(ex)
        assert (caught.value.status, caught.value.code) == (401, "expired_api_key")
        assert (auth.admitted, auth.refused) == (0, 1)
    else:
        auth.on_request(ex)
        assert ex.principal.name == "app"


def test_an_expired_key_still_closes_the_gateway() -> None:
    assert not _auth(f"{{keys: [{{name: app, key: {KEY}, expires: 2001-01-01}}]}}").is_open


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("expires: tomorrow", "must be a date like 2026-12-31"),
        ("expires: 2026-02-30", "must be a date like"),
        ("expires: '2026-12-31T10:00:00'", "with time and zone"),
        ("expires: 7", "must be a date like"),
        ("models: []", "must name a model"),
        ("models: ['a*b']", r"with \* only at the end"),
        ("models: gpt-4o", "must be a list"),
        ("tags: ['a,b']", "letters, digits"),
        ("allow_tags: [' ']", "letters, digits"),
    ],
)
def test_scopes_that_say_nothing_are_refused(settings: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _auth(f"{{keys: [{{name: app, key: {KEY}, {settings}}}]}}")
