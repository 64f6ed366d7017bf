"""kept connections: what one has carried before changes no answer, and nothing that a provider is sent.

Heads that come again are read against the one before, answers that are whole go down in one piece, a provider's lines
are ready: each a second way to what the first one does. So the same requests are sent twice, all over one connection,
and each over its own; whatever can be seen of them must be the same.
"""

from __future__ import annotations

import json
import random
import re
from typing import TYPE_CHECKING, Any

import pytest

from headgate.proxy.accounting.record import Done
from tests_support.answers import (
    LAST_CHUNK,
    chat_chunks,
    chat_completion,
    chunk,
    error_response,
    json_response,
    response,
    response_head,
    sse,
)
from tests_support.gateway import CLIENT_KEY, config_for, load, running_gateway, spooled, written
from tests_support.raw import CHAT, RawClient, request
from tests_support.upstream import FakeUpstream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests_support.raw import Answer
    from tests_support.upstream import Request, Step

OTHER_KEY = "hg-another-canary-9Kd8sJ2hG5fD7aSq"
COMPLETION = json.dumps(chat_completion()).encode()
ANSWERS: dict[str, Sequence[Step]] = {
    "plain": [json_response(chat_completion(), headers=[("x-up", "1")])],
    "last": [json_response(chat_completion(), headers=[("connection", "close")])],
    "twice": [json_response(chat_completion(), headers=[("x-up", "1"), ("x-up", "2")])],
    "chunked": [
        response_head(200, [("content-type", "application/json"), ("transfer-encoding", "chunked")]),
        chunk(COMPLETION),
        LAST_CHUNK,
    ],
    "in halves": [response(200, COMPLETION, [("content-type", "application/json")])[:90],
                  response(200, COMPLETION, [("content-type", "application/json")])[90:]],
    "broken": [response(200, COMPLETION[:-9], [("content-type", "application/json")])],
    "no JSON": [response(200, b"hello", [("content-type", "text/plain")])],
    "empty": [response_head(204, [("x-up", "1")])],
    "refused": [error_response(400, "no")],
    "down": [error_response(503, "no")],
    "stream": sse(chat_chunks()),
}  # fmt: skip
_CHANGING = re.compile(rb"hg_[0-9a-f]{24}|[0-9a-f]{32}|\"latency_ms\":[0-9.]+|\"ttft_ms\":[0-9.]+|req_[0-9]+")


def answers(request: Request) -> Sequence[Step]:
    """What the model's name asks for."""
    return ANSWERS.get(request.json()["model"], ANSWERS["plain"])


def a_request(rng: random.Random, *, open_to_all: bool) -> bytes:
    """Most are like those before, but for key, body and id; where nobody needs a key, for a field that goes up."""
    body: bytes | None = json.dumps({"model": rng.choice(list(ANSWERS)), "messages": []}).encode()
    method, path, version, fields = "POST", CHAT, "1.1", [("host", "localhost"), ("content-type", "application/json")]
    key = rng.choice([CLIENT_KEY] * 4 + [OTHER_KEY] * 4 + ["wrong", None])
    if open_to_all:
        fields.append(("idempotency-key", f"k{rng.randrange(1000)}"))
    elif key is not None:
        fields.append(("authorization", f"Bearer {key}"))
    odd = rng.choice([None] * 14 + ["id"] * 6 + [
        "method", "path", "1.0", "1.0 kept", "close", "chunked", "expect", "ours", "bad", "explain", "field", "body",
        "models", "HEAD", "OPTIONS", "large", "origin", "host",
    ])  # fmt: skip
    match odd:
        case "id":
            fields.append(("x-request-id", f"req_{rng.randrange(1000)}"))
        case "method":
            method = "PUT"
        case "path":
            path = rng.choice(["/v1/nothing", "/v1/embeddings", "/healthz", CHAT + "?a=b"])
        case "1.0":
            version = "1.0"
        case "1.0 kept":
            version, fields = "1.0", [*fields, ("connection", "keep-alive")]
        case "close":
            fields.append(("connection", "close"))
        case "expect":
            fields.append(("expect", "100-continue"))
        case "ours":
            fields.append(("x-headgate-provider", rng.choice(["up", "nobody"])))
        case "bad":
            fields.append(("x-headgate-timeout-ms", "soon"))
        case "explain":
            fields.append(("x-headgate-stream-metadata", "off"))
        case "field":
            fields.append((rng.choice(["x-denied", "x-old", "x-plain"]), "v"))
        case "body":
            body = rng.choice([b"", b"{", b"[]", b'{"model":""}', b'{"model":"plain","messages":[],"model":"x"}'])
        case "models":
            method, path, body = "GET", "/v1/models", None
        case "HEAD" | "OPTIONS":
            method, body = odd, None
        case "large":
            body = json.dumps({"model": "plain", "messages": [], "x": "y" * 20_000}).encode()
        case "origin":
            fields.append(("origin", rng.choice(["https://a.example", "https://b.example"])))
        case "host":
            fields[0] = ("host", "gateway.example")
        case _:
            pass
    if odd == "chunked" and body is not None:
        fields.append(("transfer-encoding", "chunked"))
        body = chunk(body) + LAST_CHUNK
    elif body is not None:
        fields.append(("content-length", str(len(body))))
    lines = [f"{method} {path} HTTP/{version}", *(f"{name}: {value}" for name, value in fields)]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


_UNTOLD = frozenset(
    ("date", "server-timing", "x-headgate-latency-ms", "x-headgate-upstream-ms", "x-headgate-overhead-ms")
)


def seen(answer: Answer) -> Any:
    """Of an answer, what does not change from one time to the next."""
    fields = [
        (name, _CHANGING.sub(b"#", value.encode("latin-1"))) for name, value in answer.headers if name not in _UNTOLD
    ]
    size = [("content-length", b"?") if name == "content-length" else (name, value) for name, value in fields]
    return answer.status, size, _CHANGING.sub(b"#", answer.body), answer.whole


def sent_on(request: Request) -> Any:
    """What the provider got, but for ids."""
    return request.method, request.target, [f for f in request.headers if f[0] != "x-request-id"], request.body


def kept_of(row: Done) -> Any:
    """What does not change of a row."""
    used = row.prompt_tokens, row.completion_tokens, row.usage_source, row.cost_usd
    return row.key, row.endpoint, row.model, row.status, row.outcome, row.error_code, row.attempts, row.bytes_in, used


async def one_after_the_other(port: int, requests: list[bytes], rng: random.Random | None) -> list[Any]:
    """The answers. With `rng`, over as few connections as there can be, cut and pipelined anywhere; else each alone."""
    found: list[Any] = []
    waiting = list(requests)
    while waiting:
        async with RawClient(port) as client:
            kept = True
            while waiting and kept:
                batch = [waiting.pop(0)]
                data = batch[0]
                # What follows a request is sent with it only where the connection is sure to be kept.
                while rng is not None and waiting and rng.random() < 0.2 and _is_plain(batch[-1]):
                    batch.append(waiting.pop(0))
                    data += batch[-1]
                # Whether any of a body that waits to be asked for was here decides what becomes of the connection.
                whole = rng is None or b"expect:" in data or rng.random() < 0.7
                cut = 0 if rng is None or whole else rng.randrange(len(data))
                if cut:
                    await client.send(data[:cut])
                await client.send(data[cut:])
                for at, sent in enumerate(batch):
                    answer = await client.answer(bodiless=sent.startswith(b"HEAD"))
                    found.append(seen(answer))
                    kept = answer.header("connection") != "close" and b" HTTP/1.0" not in sent
                    if not kept:
                        waiting = batch[at + 1 :] + waiting
                        break
                if rng is None:
                    break
    return found


def _is_plain(sent: bytes) -> bool:
    return sent.startswith(b"POST " + CHAT.encode() + b" HTTP/1.1\r\n") and b'"plain"' in sent


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("where", ["behind keys", "behind keys, for pages", "open to all"])
async def test_what_a_connection_has_carried_changes_nothing(seed: int, where: str) -> None:
    rng = random.Random(seed)
    open_to_all, cors = where == "open to all", ["https://a.example"] if "pages" in where else []
    async with FakeUpstream(answers) as upstream:
        config = config_for(upstream, retry=False, auth=not open_to_all)
        if not open_to_all:
            config["filters"][0]["auth"]["keys"].append({"name": "other", "key": OTHER_KEY})
        rules = {"deny": ["x-denied"], "rename": {"x-old": "x-new"}, "set": {"x-set": "1"}}
        config["filters"].append({"headers": {"request": rules}})
        config["listeners"] = {"data": {"port": 0, "cors": {"origins": cors}}, "admin": {"port": 0}}
        requests = [a_request(rng, open_to_all=open_to_all) for _ in range(60)]
        async with running_gateway(config) as gateway:
            alone = await one_after_the_other(gateway.port, requests, None)
            went_up = [sent_on(one) for one in upstream.requests]
            upstream.requests.clear()
            kept = await one_after_the_other(gateway.port, requests, rng)
            rows = [kept_of(row) for row in spooled(gateway.folder) if isinstance(row, Done)]
    for sent, one, other in zip(requests, alone, kept, strict=True):
        assert other == one, sent
    assert [sent_on(one) for one in upstream.requests] == went_up
    assert rows[len(rows) // 2 :] == rows[: len(rows) // 2]


async def test_a_reload_holds_for_what_a_connection_has_asked_before() -> None:
    def config(key: str, provider_key: str, value: str) -> dict[str, Any]:
        made = config_for(upstream, retry=False, provider_key=provider_key)
        made["filters"][0]["auth"]["keys"] = [{"name": "app", "key": key}]
        sets = {way: {"set": {name: value}} for way, name in (("request", "x-set"), ("response", "x-back"))}
        made["filters"].append({"headers": sets})
        return made

    async with FakeUpstream(answers) as upstream:
        kinds = [
            (CLIENT_KEY, "sk-the-first", "1"),
            (OTHER_KEY, "sk-the-first", "2"),
            (CLIENT_KEY, "sk-the-second", "3"),
        ]
        async with running_gateway(config(*kinds[0])) as gateway, RawClient(gateway.port) as client:

            async def ask(key: str, host: str = "localhost") -> Answer:
                fields = [("authorization", f"Bearer {key}")]
                await client.send(request("POST", CHAT, b'{"model":"plain","messages":[]}', fields, host=host))
                return await client.answer()

            for key, provider_key, value in kinds:
                await gateway.server.reload(load(written(config(key, provider_key, value), gateway.folder)))
                for _ in range(4):
                    answer = await ask(key)
                    assert (answer.status, answer.header("x-back")) == (200, value)
                    got = upstream.requests[-1]
                    assert (got.header("x-set"), got.header("authorization")) == (value, f"Bearer {provider_key}")
                    assert (await ask(OTHER_KEY if key is CLIENT_KEY else CLIENT_KEY)).status == 401
            for _ in range(4):
                assert (await ask(CLIENT_KEY, "gateway.example")).status == 200
            await gateway.server.reload(load(written(config_for(upstream, auth=False), gateway.folder)))
            assert (await ask(CLIENT_KEY, "gateway.example")).error["code"] == "host_not_allowed"
