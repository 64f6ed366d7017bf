"""Canary secrets through every failing path: none comes out in an answer, a log, a metric, a page or the ledger (G8).

A secret is found whole, or any eight characters of it, plain, as base64, hex or URL-encoded (tests_support.canaries). A
provider's own words pass unchanged, so its echo of our key is looked for only where we answer in its place.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import ssl
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from headgate.control.mock.catalogue import FAULTS, MODEL_PREFIX
from headgate.control.mock.provider import MockProvider
from headgate.control.mock.server import serve
from headgate.proxy.clock import LoopClock
from headgate.proxy.edge.listen import bind
from tests_support.answers import chat_completion, error_response, json_response
from tests_support.command import command
from tests_support.failing_paths import Path as FailingPath
from tests_support.failing_paths import (
    admin_requests,
    ask,
    bad_requests,
    heads,
    post,
    scripted,
    sessions,
    spoken,
    texts,
    unknown_callers,
    uploads,
)
from tests_support.gateway import CLIENT_KEY, PROVIDER_KEY, bearer, written
from tests_support.process import gateway_process
from tests_support.raw import RawClient, request
from tests_support.secret_config import (
    ADMIN_KEY,
    CANARIES,
    CARD,
    ENVIRONMENT,
    ISSUER,
    KEYS,
    MADE_KEY,
    OUR_OWN,
    PERSON,
    PRIVATE_KEY,
    REDIS_PASSWORD,
    TLS_KEY,
    TOKEN,
    WRONG_KEY,
    bad_files,
    config_in,
    leaks,
)
from tests_support.upstream import FakeUpstream, Request, Step

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from tests_support.process import GatewayProcess

SCRIPTS = spoken(PROVIDER_KEY)
SPEED = 40.0
AT_ONCE = 24
COMMANDS = (["usage"], ["keys", "list"], ["explain", "hg_1"])
QUICK = [name for name in FAULTS if not name.startswith(("h2-", "gzip-bomb", "big-", "huge-", "split-", "endless"))]
"""Of the mock's faults, those that take no megabytes."""


class Provider:
    """Says what a request asks for; serves the keys of tokens, but not at the first time."""

    def __init__(self) -> None:
        self.asked_for_keys = 0

    def __call__(self, asked: Request) -> Sequence[Step]:
        if asked.target.startswith("/v1/keys"):
            self.asked_for_keys += 1
            if self.asked_for_keys == 1:
                return [error_response(500, "no")]
            return [json_response(json.loads(ISSUER.jwks()))]
        if asked.target.endswith("/judge"):
            return [error_response(500, f"{asked.header('authorization')} may not say {asked.body.decode()}")]
        script = asked.header("x-script") or "fine"
        if script.startswith("says "):
            return [json_response(chat_completion(f"it is {script[5:]}, and more"))]
        return SCRIPTS[script]


def sent_up(asked: Request) -> bytes:
    """What a provider hears, but for what a client itself has written to it."""
    own = ("x-script", "traceparent", "content-type", "expect")
    fields = [f"{name}: {value}" for name, value in asked.headers if name not in own]
    return "\n".join([asked.target if "/keys" not in asked.target else "", *fields]).encode()


def arguments(*pids: int) -> bytes:
    """What `ps` shows of these processes."""
    return b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)


async def said_on(port: int, data: bytes, within: float = 5.0) -> bytes:
    """Everything that comes back on a connection, in this time."""
    async with RawClient(port, within) as client:
        await client.send(data)
        try:
            return (await client.answer(bodiless=data.startswith(b"HEAD"))).raw
        except AssertionError as closed:
            return str(closed).encode()
        except TimeoutError:  # a request that is not over, or a session
            return b"HTTP/1.1 ... " + client.heard


async def ask_all(port: int, paths: Iterable[FailingPath], said: list[tuple[str, bytes]], within: float = 5.0) -> None:
    """Each on a connection of its own, some at once."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(path: FailingPath) -> None:
        async with room:
            said.append((path.name, await said_on(port, path.data, within)))

    await asyncio.gather(*map(one, paths))


@asynccontextmanager
async def fault_provider() -> AsyncIterator[int]:
    """The mock's faults, on a port."""
    mock = await serve(bind("127.0.0.1", 0), MockProvider(), LoopClock(), speed=SPEED)
    try:
        yield mock.port
    finally:
        await mock.aclose()


async def offer(gateway: GatewayProcess, text: str) -> bool:
    """This config to a running gateway; whether it was refused."""
    gateway.config_file.write_text(text)
    await told(gateway, '"event": "reload')
    return gateway.log.rindex('"event": "reload') == gateway.log.rindex('"event": "reload_refused"')


async def told(gateway: GatewayProcess, event: str) -> None:
    """SIGHUP, until the log speaks of it."""
    before = gateway.log.count(event)
    gateway.signal(signal.SIGHUP)
    await gateway.until(lambda: gateway.log.count(event) > before, event)


def on_data(every: int) -> list[FailingPath]:
    """What is asked of the data listener; of the mock's faults one in so many."""
    faults = [
        post(f"{name}, {stream}", ask(MODEL_PREFIX + name, stream=stream), bearer(CLIENT_KEY))
        for name in QUICK[::every]
        for stream in (False, True)
    ]
    refused_there = dict.fromkeys(("fine", "error", "reset", "garbage"))
    return [
        *faults,
        *unknown_callers(KEYS),
        *bad_requests(KEYS),
        *sessions(KEYS, refused_there),
        *uploads(KEYS),
        *heads(KEYS),
        *texts(PERSON, CARD),
    ]


def why(id_: str) -> FailingPath:
    """The question why it failed."""
    return FailingPath(f"decision {id_}", request("GET", f"/admin/decisions/{id_}", None, bearer(ADMIN_KEY)))


@pytest.mark.parametrize(
    ("workers", "every"),
    [(1, 3), pytest.param(1, 1, marks=pytest.mark.slow), pytest.param(2, 1, marks=pytest.mark.slow)],
)
async def test_no_secret_comes_out_of_a_gateway(workers: int, every: int, tmp_path: Path) -> None:
    said: list[tuple[str, bytes]] = []
    async with fault_provider() as faults, FakeUpstream(Provider()) as upstream:
        config = config_in(tmp_path, upstream, faults)
        async with gateway_process(config, workers=workers, env=ENVIRONMENT) as gateway:
            # Until the keys of tokens are there, every token is one more way to fail.
            while not (early := await said_on(gateway.port, post("", ask(), bearer(TOKEN)).data)).startswith(
                b"HTTP/1.1 200"
            ):
                said.append(("the keys of tokens are away", early))
                await asyncio.sleep(0.1)
            await ask_all(gateway.port, on_data(every), said)
            await ask_all(gateway.admin_port, [*admin_requests(KEYS), *heads(KEYS)], said)
            # One after the other, because a key that was refused rests; and then whoever meets that.
            for path in scripted(KEYS, SCRIPTS):
                await ask_all(gateway.port, [path], said)
            at_rest = [post(f"{name}, as it is", ask(name), bearer(MADE_KEY)) for name in config["models"]]
            await ask_all(gateway.port, at_rest, said)
            ids = {found for _, text in said for found in re.findall(rb"x-headgate-decision-id: (\S+)", text)}
            await ask_all(gateway.admin_port, [why(id_.decode()) for id_ in ids], said)
            argv = arguments(gateway.pid, *gateway.worker_pids())
            offered = list(bad_files(tmp_path))[:: 12 * every]
            reloads = sum([await offer(gateway, text) for _, text in offered])
            assert not await offer(gateway, written(config, gateway.folder))
            drain = FailingPath("drain", request("POST", "/drain", b"", bearer(ADMIN_KEY)))
            await ask_all(gateway.admin_port, [drain], said)
            await ask_all(gateway.port, [one for one in unknown_callers(KEYS) if ": chat" in one.name], said)
            file = str(gateway.config_file)
            for line in (["check", file], *([*one, "--config", file] for one in COMMANDS)):
                done = await command(*line, env=ENVIRONMENT)
                said.append((line[0], f"{done.out}{done.err}".encode()))
            assert await gateway.terminate() == 0
            kept = {path.name: path.read_bytes() for path in gateway.folder.rglob("*") if path.is_file()}
            kept |= {"stdout": gateway.said, "argv": argv, "access.log": (tmp_path / "access.log").read_bytes()}
    kept.pop("gateway.yaml")
    failed = {name for name, text in said if not text.startswith(b"HTTP/1.1 2")}
    assert len(failed) + reloads > 700
    assert len(upstream.requests) > len(SCRIPTS)
    assert leaks(said) == []
    assert leaks(kept.items()) == []
    assert leaks(((one.target, sent_up(one)) for one in upstream.requests), OUR_OWN) == []
    assert [one for one in upstream.requests if "a person's address" in CANARIES.found(one.body)] == []


KEY_FILES = {
    "garbage": f"-----BEGIN PRIVATE KEY-----\n{PRIVATE_KEY[:60]}\n-----END PRIVATE KEY-----\n",
    "a cut one": TLS_KEY.private_key_pem.bytes().decode()[:-200],
    "another's": trustme.CA().issue_cert("127.0.0.1").private_key_pem.bytes().decode() + PRIVATE_KEY,
    "no key": WRONG_KEY,
}


async def test_no_secret_comes_out_of_a_listener_with_tls(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(b"".join(one.bytes() for one in TLS_KEY.cert_chain_pems))
    key.write_bytes(TLS_KEY.private_key_pem.bytes())
    config = config_in(tmp_path)
    config["listeners"] = {"data": {"port": 0, "tls": {"cert": str(cert), "key": str(key)}}, "admin": {"port": 0}}
    strangers = [one for one in heads(KEYS) if one.name != "no host"][::4]
    said: list[tuple[str, bytes]] = []
    async with gateway_process(config, env=ENVIRONMENT) as gateway:
        await ask_all(gateway.port, strangers, said, within=1.0)
        with pytest.raises(ssl.SSLError):  # who does not trust it
            await asyncio.open_connection("127.0.0.1", gateway.port, ssl=ssl.create_default_context())
        for page in ("/config_dump", "/server_info", "/metrics"):
            asked = request("GET", page, None, bearer(ADMIN_KEY))
            said.append((page, await said_on(gateway.admin_port, asked)))
        for text in KEY_FILES.values():
            key.write_text(text)
            await told(gateway, "certificate_not_renewed")
        said.append(("the log", gateway.log.encode()))
    for name, text in KEY_FILES.items():
        key.write_text(text)
        (tmp_path / "gateway.yaml").write_text(written(config, tmp_path))
        done = await command("serve", str(tmp_path / "gateway.yaml"), env=ENVIRONMENT)
        assert done.code != 0
        said.append((name, f"{done.out}{done.err}".encode()))
    assert leaks(said) == []


@pytest.mark.parametrize("text", [f"{MADE_KEY}\n", f'{{"name":"a","digest":"{MADE_KEY}"}}\n', f'{{"key":"{MADE_KEY}'])
async def test_no_secret_comes_out_of_a_keys_file_that_is_none(text: str, tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(written(config_in(tmp_path), tmp_path))
    (tmp_path / "keys.db").write_text(text)
    done = await command("serve", str(file), env=ENVIRONMENT)
    assert done.code != 0
    assert leaks([("boot", f"{done.out}{done.err}".encode())]) == []


@pytest.mark.parametrize("server", ["nobody", "lists arguments", "echoes", "closes"])
async def test_no_secret_comes_out_of_a_store_that_fails(server: str, tmp_path: Path) -> None:
    """A Redis that does not know a command says with which arguments it came."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        known = ", with args beginning with" if server == "lists arguments" else ": you said"
        while server in ("echoes", "lists arguments") and (heard := await reader.read(65536)):
            words = b" ".join(b"`%b`," % word for word in heard.split(b"\r\n") if word[:1] not in (b"*", b"$", b""))
            writer.write(b"-ERR unknown command%b: %b\r\n" % (known.encode(), words))
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = 9 if server == "nobody" else listening.sockets[0].getsockname()[1]
    said: list[tuple[str, bytes]] = []
    async with listening, FakeUpstream(Provider()) as upstream:
        config = config_in(tmp_path, upstream) | {"stores": {"redis": {"url": "${REDIS_URL}"}}}
        env = ENVIRONMENT | {"REDIS_URL": f"redis://app:{REDIS_PASSWORD}@127.0.0.1:{port}/0"}
        async with gateway_process(config, env=env) as gateway:
            await ask_all(gateway.port, [post(f"{n}", ask(), bearer(CLIENT_KEY)) for n in range(20)], said)
            pages = [one for one in admin_requests(KEYS) if "an admin" in one.name]
            await ask_all(gateway.admin_port, pages, said)
            assert await gateway.terminate() == 0
            kept = {path.name: path.read_bytes() for path in gateway.folder.rglob("*") if path.is_file()}
    assert leaks(said) == []
    kept.pop("gateway.yaml")
    assert b"redis_away" in kept["stderr.log"]
    assert leaks(kept.items()) == []
