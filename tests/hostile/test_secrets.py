"""Canary secrets through every failing path: none comes out in an answer, a log, a metric, a page or the ledger (G8).

A secret is found whole, or any eight characters of it, plain, as base64, hex or URL-encoded. A provider's own words
pass unchanged, so its echo of our key is looked for only where we answer in its place.
"""

from __future__ import annotations

import base64
import signal
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from headgate.filters.keys_file import KeyRecord, digest
from tests_support.answers import chat_chunks, chat_completion, error_response, json_response, sse
from tests_support.gateway import CLIENT_KEY, PROVIDER_KEY, bearer, config_for
from tests_support.process import gateway_process
from tests_support.raw import CHAT, RawClient, request
from tests_support.upstream import FIN, RST, FakeUpstream, Request, Step
from tests_support.websocket import HANDSHAKE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ADMIN_KEY = "Wd5Gx0nQ3bT8vLsE7yKzM2pA"
WRONG_KEY = "Hj9Cr4uF6aN1oVtB3iSxP8qD"
MADE_KEY = "hg-Vb7Lq2Xs9Tn4Zr6Ky1Wm3Pd8"
PEPPER = "c7e19fb04d6a8352c1b7e90f5da26483"
SIGNED = "Uy5Hd9Rk2Mv7.Qx3Ez8Nf6Jc1Ag4Ts0Bw"
TOKEN = f"eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.{SIGNED}"
"""Its header is good, and nobody can check it: its issuer is away."""
SECRETS = {
    "a made key": MADE_KEY,
    "the pepper": PEPPER,
    "a token": SIGNED,
    "the client's key": CLIENT_KEY,
    "the provider's key": PROVIDER_KEY,
    "an admin's key": ADMIN_KEY,
    "a wrong key": WRONG_KEY,
}
WINDOW = 8

ADMIN_PATHS = [
    *("/", "/ready", "/metrics", "/stats", "/clusters", "/config_dump", "/server_info", "/admin/usage", "/admin/keys"),
    *("/admin/usage?by=key", "/admin/usage?by=nonsense", "/admin/decisions/1", "/admin/audit", "/nowhere"),
]
UPSTREAM: dict[str, list[Step]] = {
    "fine": [json_response(chat_completion())],
    "stream": [*sse(chat_chunks())],
    "cut": [*sse(chat_chunks())[:4], FIN],
    "error": [error_response(500, "no")],
    "reset": [RST],
    "fin": [FIN],
    "garbage": [f"Authorization: Bearer {PROVIDER_KEY}\r\n\r\n".encode(), FIN],
    "bad length": [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello", FIN],
    # The last ones: a key that was refused rests for a while.
    "our key may not": [error_response(403, f"{PROVIDER_KEY} is not allowed")],
    "our key is wrong": [error_response(401, f"Incorrect API key provided: {PROVIDER_KEY}.", code="invalid_api_key")],
}


def requests() -> Iterator[bytes]:
    """Requests that fail, or do not, in every way this gateway has; each carries secrets."""
    key = bearer(CLIENT_KEY)
    for name in ("fine", "error", "reset", "garbage"):
        for secret in (CLIENT_KEY, WRONG_KEY):
            offer = ("sec-websocket-protocol", f"realtime, openai-insecure-api-key.{secret}")
            yield request("GET", "/v1/realtime?model=m", headers=[*HANDSHAKE, offer, ("x-script", name)])
    for name in UPSTREAM:
        for stream in ("true", "false"):
            yield request("POST", CHAT, f'{{"model":"m","stream":{stream}}}'.encode(), [*key, ("x-script", name)])
    wrong = [
        f"Bearer {WRONG_KEY}",
        WRONG_KEY,
        f"Basic {WRONG_KEY}",
        f"Bearer {WRONG_KEY} {CLIENT_KEY}",
        f"Bearer {CLIENT_KEY}x",
        f"Bearer {MADE_KEY}x",
        f"Bearer {TOKEN}",
        f"Bearer x{TOKEN}",
    ]
    for name in ("fine", "error"):
        yield request("POST", CHAT, b'{"model":"m"}', [*bearer(MADE_KEY), ("x-script", name)])
    for value in wrong:
        yield request("POST", CHAT, b"{}", [("authorization", value)])
        yield request("GET", "/v1/models", headers=[("authorization", value)])
    for field in ("x-api-key", "api-key", "cookie", "proxy-authorization", "x-headgate-key", "x-request-id"):
        yield request("POST", CHAT, b'{"model":"m"}', [(field, WRONG_KEY)])
    for body in (b"{", b"[]", b"{}", b'{"model":7}', b'{"model":"m","model":"m"}', b"[" * 500, b'{"model":"unknown"}'):
        yield request("POST", CHAT, body, key)
    for target in ("/nowhere", f"/v1/models/{WRONG_KEY}x", f"/?key={CLIENT_KEY}", "/v1/%zz", "/admin/keys", "/metrics"):
        yield request("GET", target, headers=key)
    for fields in (
        [("content-encoding", "gzip")],
        [("content-type", "multipart/form-data")],
        [("origin", "https://evil.example")],
        [("x-headgate-timeout-ms", CLIENT_KEY)],
        [("transfer-encoding", "gzip")],
        [("x-fill", "y" * 70_000)],
        [("x bad", "1")],
    ):
        yield request("POST", CHAT, b'{"model":"m"}', [*key, *fields])
    for offered in (f"openai-insecure-api-key.{CLIENT_KEY} x", f"openai-insecure-api-key.{WRONG_KEY}\xff"):
        yield request("GET", "/v1/realtime?model=m", headers=[*HANDSHAKE, ("sec-websocket-protocol", offered)])
    yield request("DELETE", CHAT, headers=key)
    yield request("POST", CHAT, b'{"model":"m"}', key, host=None)
    yield b"GET / HTTP/9.9\r\nAuthorization: Bearer " + CLIENT_KEY.encode() + b"\r\n\r\n"
    yield b"Authorization: Bearer " + CLIENT_KEY.encode() + b"\r\n\r\n"
    yield CLIENT_KEY.encode() * 3000


def spellings(secret: str) -> set[bytes]:
    """Every piece of a secret that gives it away, in every coding it might wear."""
    windows = [secret[at : at + WINDOW].encode() for at in range(len(secret) - WINDOW + 1)]
    encoded = {base64.b64encode(b"x" * pad + secret.encode())[4:-4] for pad in range(3)}
    hexed = {secret.encode().hex().encode(), urllib.parse.quote(secret, safe="").encode()}
    return {*windows, *encoded, *hexed, *(b"".join(b"%%%02x" % byte for byte in secret.encode()),)}


def found(text: bytes, allowed: Sequence[str] = ()) -> list[str]:
    """The secrets in `text`."""
    return [
        name
        for name, secret in SECRETS.items()
        if name not in allowed and any(piece in text for piece in spellings(secret))
    ]


def test_the_search_finds_them_in_every_coding() -> None:
    for secret in SECRETS.values():
        for text in (
            f"x{secret}y",
            secret[3 : 3 + WINDOW],
            base64.b64encode(f"user:{secret}".encode()).decode(),
            secret.encode().hex(),
        ):
            assert found(text.encode())
    assert found(b"an answer without any") == []


def script(asked: Request) -> list[Step]:
    return UPSTREAM[asked.header("x-script") or "fine"]


def arguments(*pids: int) -> bytes:
    """What `ps` shows of these processes."""
    return b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)


async def said(port: int, data: bytes) -> bytes:
    """Everything that comes back on a connection."""
    async with RawClient(port) as client:
        await client.send(data)
        try:
            return (await client.answer()).raw
        except AssertionError as closed:
            return str(closed).encode()


@pytest.mark.parametrize("workers", [1, 2])
async def test_no_secret_comes_out_anywhere(workers: int, tmp_path: Path) -> None:
    made = KeyRecord("made", digest(PEPPER.encode(), MADE_KEY.encode()).hex(), 0.0)
    (tmp_path / "keys.db").write_bytes(msgspec.json.encode(made))
    (tmp_path / "headgate-pepper").write_text(PEPPER)
    async with FakeUpstream(script) as upstream:
        config: dict[str, Any] = config_for(upstream, retry=False)
        config["providers"]["up"]["api_key"] = "${UP_KEY}"
        config["providers"]["literal"] = {"base_url": "http://127.0.0.1:9/v1", "api_key": PROVIDER_KEY}
        config["models"] = {"m": {"targets": [{"provider": "up"}]}, "dead": {"targets": [{"provider": "literal"}]}}
        keys = config["filters"][0]["auth"]["keys"]
        keys[0]["key"] = "${APP_KEY}"
        keys.append({"name": "boss", "key": "${BOSS_KEY}", "roles": ["admin", "viewer"]})
        config["filters"][0]["auth"] |= {
            "keys_file": str(tmp_path / "keys.db"),
            "jwt": {"issuer": "i", "audience": "a", "jwks_url": "http://127.0.0.1:9/keys"},
        }
        env = {"UP_KEY": PROVIDER_KEY, "APP_KEY": CLIENT_KEY, "BOSS_KEY": ADMIN_KEY}
        async with gateway_process(config, workers=workers, env=env) as gateway:
            dead = request("POST", CHAT, b'{"model":"dead"}', bearer(CLIENT_KEY))
            answers = [(data, await said(gateway.port, data)) for data in (*requests(), dead)]
            for path in ADMIN_PATHS:
                for key in (None, CLIENT_KEY, ADMIN_KEY, WRONG_KEY, MADE_KEY, TOKEN):
                    asked = request("GET", path, headers=bearer(key))
                    answers.append((asked, await said(gateway.admin_port, asked)))
            argv = arguments(gateway.pid, *gateway.worker_pids())
            gateway.config_file.write_text(f"providers: {{up: {{api_key: {PROVIDER_KEY}, base_url: {CLIENT_KEY}")
            gateway.signal(signal.SIGHUP)
            await gateway.until(lambda: "gateway.yaml" in gateway.log, "the refusal")
            assert await gateway.terminate() == 0
            kept = {path.name: path.read_bytes() for path in gateway.folder.rglob("*") if path.is_file()}
            kept |= {"stdout": gateway.said, "argv": argv}
    kept.pop("gateway.yaml")
    assert len(answers) > 100
    assert len(upstream.requests) >= len(UPSTREAM)
    # What a client itself writes into its id or a path comes back to it, and its id stands on its row.
    echoed = (b"x-request-id", b"/v1/models/")
    assert [
        (data, hits) for data, text in answers if (hits := found(text)) and not any(e in data for e in echoed)
    ] == []
    assert {name: hits for name, text in kept.items() if (hits := found(text, allowed=["a wrong key"]))} == {}
