"""A config that holds every kind of secret there is, what it is told by its clients, and the ways to get it wrong.

Each secret is a canary: `leaks` says which of them stand in what was said.
"""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Any

import msgspec
import trustme

from headgate.control.mock.catalogue import MODEL_PREFIX
from headgate.filters.keys_file import KeyRecord, digest

from .canaries import Canaries
from .failing_paths import BODY_LIMIT, Keys
from .gateway import CLIENT_KEY, NOBODY, PROVIDER_KEY, written
from .tokens import Issuer, rsa_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from .upstream import FakeUpstream

ADMIN_KEY = "Wd5Gx0nQ3bT8vLsE7yKzM2pA"
WRONG_KEY = "Hj9Cr4uF6aN1oVtB3iSxP8qD"
MADE_KEY = "hg-Vb7Lq2Xs9Tn4Zr6Ky1Wm3Pd8"
TIGHT_KEY = "Fo2Nz7Ct5Mh9Wq4Lx1Rb8Ve6"
PEPPER = "c7e19fb04d6a8352c1b7e90f5da26483"
SECOND_KEY = "Ud4Rk9Sy2Bn7Qm1Gw6Hx3Zc8"
FILED_KEY = "Tg6Pb1Yx8Kd3Jv9Lr4Nf7Qs2"
LITERAL_KEY = "Ew3Mh8Vc6Tz1Ka9Xj4Ug7Ro5"
RELAY_TOKEN = "Ib8Wf2Gs7Dn4Yq9Ck1Zp6Lt3"
REDIS_PASSWORD = "Lw6Qe1Zu8Fp3Kj5Tn9Yb2Hd7"
GUARD_KEY = "Rv5Hx8Mc2Tq7Wd4Zn9Jk6Ya3"
JWKS_SECRET = "Oa5Vt9Re2Kx7Jm4Bh8Sy3Nd1"
PERSON = "zora.quill+7vk3w@mxnobleharp.com"
CARD = "4000 0027 6000 3184"
NOW = time.time()
ISSUER = Issuer(NOW)
TOKEN, EXPIRED = ISSUER.token(), ISSUER.token(sub="ben", exp=int(NOW) - 600)
STRANGER = ISSUER.token(key=rsa_key("stranger"), headers={"kid": "unknown"})
FORGED = f"{TOKEN.rpartition('.')[0]}.{ISSUER.token(key=rsa_key('forger')).rpartition('.')[2]}"
TLS_KEY = trustme.CA().issue_cert("127.0.0.1")
PRIVATE_KEY = "".join(TLS_KEY.private_key_pem.bytes().decode().splitlines()[1:-1])
SECRETS = {
    "a client's key": CLIENT_KEY,
    "an admin's key": ADMIN_KEY,
    "a limited key": TIGHT_KEY,
    "a key of the keys_file": MADE_KEY,
    "a wrong key": WRONG_KEY,
    "a token": TOKEN.rpartition(".")[2],
    "a token's claims": TOKEN.split(".")[1],
    "a forged token": FORGED.rpartition(".")[2],
    "an expired token": EXPIRED.rpartition(".")[2],
    "a stranger's token": STRANGER.rpartition(".")[2],
    "the pepper": PEPPER,
    "the provider's key": PROVIDER_KEY,
    "the provider's second key": SECOND_KEY,
    "a key from a file": FILED_KEY,
    "a key in the config": LITERAL_KEY,
    "a field's value": RELAY_TOKEN,
    "what stands in a URL": JWKS_SECRET,
    "the store's password": REDIS_PASSWORD,
    "the guard's key": GUARD_KEY,
    "the listener's private key": PRIVATE_KEY,
    "a person's address": PERSON,
}
OUR_OWN = {"the provider's key", "the provider's second key", "a key from a file", "a field's value", "the guard's key"}
"""A provider hears these."""
CANARIES = Canaries(SECRETS)
KEYS = Keys(
    client=CLIENT_KEY,
    admin=ADMIN_KEY,
    made=MADE_KEY,
    wrong=WRONG_KEY,
    token=TOKEN,
    forged=FORGED,
    stranger=STRANGER,
    expired=EXPIRED,
    tight=TIGHT_KEY,
    provider=PROVIDER_KEY,
    other_provider=SECOND_KEY,
)
ENVIRONMENT = {
    "UP_KEY": PROVIDER_KEY,
    "SECOND_KEY": SECOND_KEY,
    "APP_KEY": CLIENT_KEY,
    "BOSS_KEY": ADMIN_KEY,
    "TIGHT_KEY": TIGHT_KEY,
    "RELAY_TOKEN": RELAY_TOKEN,
    "GUARD_KEY": GUARD_KEY,
}
TIMEOUTS = {"connect": "1s", "first_token": "300ms", "idle": "300ms", "total": "700ms"}
NAMED = ("provider", "keys_file")


def config_in(folder: Path, upstream: FakeUpstream | None = None, faults: int = 9) -> dict[str, Any]:
    """A config with all the secrets in it, and files in `folder` for those that come from files."""
    made = KeyRecord("made", digest(PEPPER.encode(), MADE_KEY.encode()).hex(), 0.0)
    (folder / "keys.db").write_bytes(msgspec.json.encode(made) + b"\n")
    (folder / "pepper").write_text(PEPPER)
    (folder / "filed-key").write_text(FILED_KEY)
    up = {"base_url": upstream.base_url if upstream is not None else NOBODY, "list_models": False}
    targets = {
        "m": "up",
        "guarded": "up",
        "pooled": "pool",
        "filed": "filed",
        "dead": "literal",
        "unset": "unset",
        f"{MODEL_PREFIX}*": "faults",
    }
    jwks = f"{up['base_url']}/keys?token={JWKS_SECRET}"
    return {
        "limits": {"body": f"{BODY_LIMIT}B"},
        "providers": {
            "up": {**up, "api_key": "${UP_KEY}"},
            "pool": {**up, "api_keys": [{"name": "a", "key": "${UP_KEY}"}, {"name": "b", "key": "${SECOND_KEY}"}]},
            "filed": {**up, "api_key": f"${{file:{folder / 'filed-key'}}}"},
            "literal": {"base_url": NOBODY, "api_key": LITERAL_KEY, "list_models": False},
            "unset": {**up, "api_key": "${UNSET_KEY:-}"},
            "faults": {**up, "base_url": f"http://127.0.0.1:{faults}/v1", "api_key": SECOND_KEY, "timeouts": TIMEOUTS},
        },
        "models": {name: {"targets": [{"provider": provider}]} for name, provider in targets.items()},
        "routes": [
            {"name": "guarded", "match": {"model": "guarded"}},
            {"name": "tight", "match": {"key": "tight"}, "filters": {"rate_limit": {"requests_per_minute": 1}}},
            {"name": "plain", "match": {"key": "app"}, "filters": {"guard": "off"}},
        ],
        "filters": [
            {
                "auth": {
                    "keys": [
                        {"name": "app", "key": "${APP_KEY}"},
                        {"name": "boss", "key": "${BOSS_KEY}", "roles": ["admin", "viewer"]},
                        {"name": "tight", "key": "${TIGHT_KEY}"},
                    ],
                    "keys_file": str(folder / "keys.db"),
                    "pepper": f"${{file:{folder / 'pepper'}}}",
                    "jwt": ISSUER.config(jwks),
                }
            },
            {"rate_limit": {"per": "key", "requests_per_minute": 100_000}},
            {
                "guard": {
                    "rules": [
                        {"name": "person", "pattern": "email", "action": "redact"},
                        {"name": "card", "pattern": "credit_card"},
                        {
                            "name": "service",
                            "http": {"url": f"{up['base_url']}/judge", "api_key": "${GUARD_KEY}"},
                            "fail": "open",
                        },
                    ]
                }
            },
            {"headers": {"request": {"set": {"x-relay-token": "${RELAY_TOKEN}"}}}},
            {"retry": {"attempts": 2}},
            {"access_log": {"path": str(folder / "access.log")}},
        ],
    }


def leaks(said: Iterable[tuple[str, bytes]], allowed: Collection[str] = ()) -> list[tuple[str, list[str]]]:
    """Which secrets were found where."""
    return [(name, hits) for name, text in said if (hits := CANARIES.found(text, allowed))]


def bad_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Configs that are refused, each wrong in one place, with secrets in or beside it."""
    good = config_in(folder)
    for path, value in places(good):
        secret = "${UP_KEY}" if isinstance(value, str) and value.startswith("${") else WRONG_KEY
        wrong: dict[str, Any] = {
            "a list": [secret],
            "a list of lists": [[secret]],
            "a mapping": {"x": secret},
            "a mapping in a list": [{"x": secret}],
            "a key": secret,
            "a key from the environment": "${UP_KEY}",
            "a key in a text": f"key {WRONG_KEY} key",
            "an expansion that is none": f"${{{WRONG_KEY}-x}}",
            "half an expansion": f"${{UP_KEY}} {WRONG_KEY} ${{",
            "a control character": f"{WRONG_KEY}\x07",
        }
        for name, one in wrong.items():
            if path[-1] in NAMED and isinstance(one, str):
                continue  # a complaint says which provider, which file
            yield f"{name} at {path}", written(changed(good, path, one), folder)
    for path in sorted({path[:-1] for path, _ in places(good)}):
        yield f"an unknown key in {path}", written(changed(good, (*path, "kee"), WRONG_KEY), folder)
    text = written(good, folder)
    for at in range(60, len(text), 120):
        yield f"cut at {at}", f"{text[:at]}\n{WRONG_KEY}"
        yield f"a tab at {at}", f"{text[:at]}\t{text[at:]}"
    for name, url in {
        "a password": f"https://ann:{WRONG_KEY}@up.example/v1",
        "a user": f"https://{WRONG_KEY}@up.example/v1",
        "a query": f"https://up.example/v1?key={WRONG_KEY}",
        "a fragment": f"https://up.example/v1#{WRONG_KEY}",
        "a host that is none": f"https://{WRONG_KEY}_%/v1",
        "a port that is none": f"https://up.example:{WRONG_KEY}/v1",
        "another scheme": f"redis://:{WRONG_KEY}@up.example",
    }.items():
        for path in (("providers", "up", "base_url"), ("filters", 0, "auth", "jwt", "jwks_url")):
            if name != "a query" or path[0] == "providers":
                yield f"a URL with {name} at {path}", written(changed(good, path, url), folder)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every scalar of a config, and where it stands."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from places(one, (*path, name))
    elif isinstance(value, list):
        for n, one in enumerate(value):
            yield from places(one, (*path, n))
    else:
        yield path, value


def changed(config: dict[str, Any], path: Sequence[Any], value: Any) -> dict[str, Any]:
    """The config with another value at one place."""
    made = copy.deepcopy(config)
    at: Any = made
    for name in path[:-1]:
        at = at[name]
    if isinstance(at, list):
        at[path[-1] if isinstance(path[-1], int) else 0] = value
    else:
        at[path[-1]] = value
    return made
