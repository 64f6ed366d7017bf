"""Hundreds of requests that fail, each in a way of its own and each with secrets in it: for tests/hostile.

A `Path` is what goes over one connection. It carries credentials where a client would put them, and where one puts them
by mistake. What comes back to a client because it wrote it into a path, a model's name or its `x-request-id` is that
client's own word, so no path here writes a secret there.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from .answers import chat_chunks, chat_completion, chunk, error_response, event, json_response, response_head, sse
from .gateway import bearer
from .malformed import MALFORMED, OTHER_STATUS
from .raw import CHAT, request
from .upstream import FIN, RST
from .websocket import HANDSHAKE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .upstream import Step

BODY_LIMIT = 64 * 1024
ENDPOINTS = ("/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/moderations", "/v1/rerank", CHAT)
ADMIN = (
    *("/", "/ready", "/metrics", "/stats", "/clusters", "/clusters?format=json", "/config_dump", "/server_info"),
    *("/admin/usage", "/admin/usage?by=key", "/admin/usage?by=nonsense", "/admin/decisions/1", "/nowhere", "/drain"),
    *("/admin/keys", "/admin/keys/made", "/admin/audit", "/stats?filter=key"),
)


class Path(NamedTuple):
    """`data` over one connection."""

    name: str
    data: bytes


class Keys(NamedTuple):
    """What paths are made with."""

    client: str
    admin: str
    made: str
    """Of the keys_file."""
    wrong: str
    token: str
    forged: str
    """A token with another's signature."""
    stranger: str
    """A token with a key that nobody knows."""
    expired: str
    tight: str
    """May ask once a minute."""
    provider: str
    other_provider: str


def post(name: str, body: object, fields: Sequence[tuple[str, str]], target: str = CHAT) -> Path:
    """A request with a JSON body, or with these bytes."""
    return Path(name, request("POST", target, body if isinstance(body, bytes) else json.dumps(body).encode(), fields))


def ask(model: str = "m", **more: Any) -> dict[str, Any]:
    """A chat."""
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}


def spoken(provider: str) -> dict[str, list[Step]]:
    """What a provider says that fails, and repeats its key; by the name that a request asks for in `x-script`.

    Its own word passes, so the key stands where we speak in its place: in what is no answer, in a refusal of our key,
    and in fields and bytes that are never passed on.
    """
    key = provider.encode()
    stream = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
    return {
        "fine": [json_response(chat_completion())],
        "stream": [*sse(chat_chunks())],
        "cut": [*sse(chat_chunks())[:4], FIN],
        "reset in a stream": [*sse(chat_chunks())[:4], RST],
        "cut in an event": [stream, chunk(b"".join(map(event, chat_chunks()[:3]))), b'40\r\ndata: {"a": "' + key, FIN],
        "cut in an answer": [json_response({"a": provider})[:-4], FIN],
        "error": [error_response(500, "no")],
        "unavailable": [error_response(503, "no", headers=[("retry-after", "1")])],
        "no such model": [error_response(404, "no")],
        "bad request": [error_response(400, "no")],
        "reset": [RST],
        "fin": [FIN],
        "garbage": [b"Authorization: Bearer " + key + b"\r\n\r\n", FIN],
        "a head in a head": [b"HTTP/1.1 200 OK\r\nauthorization : Bearer " + key + b"\r\n\r\n", FIN],
        "a status of another kind": [b"HTTP/1.1 2x0 " + key + b"\r\n\r\n", FIN],
        "cut in a field": [b"HTTP/1.1 200 OK\r\nx-echo: Bearer " + key, FIN],
        "a length in words": [b"HTTP/1.1 200 OK\r\ncontent-length: " + key + b"\r\n\r\n", FIN],
        "a chunk in words": [
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
            + key
            + b"\r\nhello\r\n0\r\n\r\n",
            FIN,
        ],
        "two lengths": [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n" + key, FIN],
        "a cookie": [json_response(chat_completion(), headers=[("set-cookie", f"key={provider}")])],
        "the answer's own fields": [json_response(chat_completion(), headers=[("x-headgate-key", provider)])],
        "not json": [response_head(200, [("content-type", "application/json")]) + b"{" + key, FIN],
        # The last ones: a key that was refused rests for a while.
        "our key may not": [error_response(403, f"{provider} is not allowed")],
        "our key is wrong": [error_response(401, f"Incorrect API key provided: {provider}.", code="invalid_api_key")],
    }


def unknown_callers(keys: Keys) -> Iterator[Path]:
    """Whoever is refused by auth: each kind of credential, at each kind of endpoint."""
    offered: dict[str, Sequence[tuple[str, str]]] = {
        f"a wrong {kind}": [("authorization", value)]
        for kind, value in {
            "bearer": f"Bearer {keys.wrong}",
            "bare key": keys.wrong,
            "basic": f"Basic {keys.wrong}",
            "lower bearer": f"bearer{keys.wrong}",
            "pair": f"Bearer {keys.wrong} {keys.client}",
            "key with more": f"Bearer {keys.client}x",
            "key with less": f"Bearer {keys.client[:-1]}",
            "key in quotes": f'Bearer "{keys.client}"',
            "made key": f"Bearer {keys.made}x",
            "token that is forged": f"Bearer {keys.forged}",
            "token of a stranger": f"Bearer {keys.stranger}",
            "token that is over": f"Bearer {keys.expired}",
            "token with more": f"Bearer x{keys.token}",
            "token cut": f"Bearer {keys.token[:-9]}",
            "token of two parts": f"Bearer {keys.token.rpartition('.')[0]}",
            "key beyond ASCII": f"Bearer {keys.wrong}\xe9",
            "long one": f"Bearer {keys.wrong * 200}",
        }.items()
    }
    for field in ("x-api-key", "api-key", "cookie", "proxy-authorization", "x-headgate-key", "x-goog-api-key"):
        offered[f"a key in {field}"] = [(field, keys.client if field != "cookie" else f"key={keys.client}")]
    for name, fields in offered.items():
        yield post(f"{name}: chat", ask(), fields)
        yield post(f"{name}: stream", ask(stream=True), fields)
        yield post(f"{name}: responses", {"model": "m", "input": "x"}, fields, "/v1/responses")
        yield Path(f"{name}: models", request("GET", "/v1/models", headers=fields))
        yield Path(f"{name}: file", request("GET", "/v1/files/file-1", headers=fields))
        yield Path(f"{name}: session", request("GET", "/v1/realtime?model=m", headers=[*HANDSHAKE, *fields]))
    for target in (f"{CHAT}?key={keys.client}", f"{CHAT}?api_key={keys.provider}", f"/v1/models?token={keys.token}"):
        yield post(f"a key in the query of {target[:16]}", ask(), [], target)


def bad_requests(keys: Keys) -> Iterator[Path]:
    """Known callers whose request is refused."""
    key = bearer(keys.client)
    bodies: dict[str, bytes] = {
        "no JSON": b"{",
        "no JSON, a key": keys.client.encode(),
        "a cut string": f'{{"model":"m","key":"{keys.client}'.encode(),
        "a list": b"[]",
        "nothing": b"",
        "no model": b"{}",
        "a number as model": b'{"model":7}',
        "an object as model": f'{{"model":{{"key":"{keys.client}"}}}}'.encode(),
        "two models": b'{"model":"m","model":"m"}',
        "deep": b'{"model":"m","x":' + b"[" * 500,
        "a word for stream": f'{{"model":"m","stream":"{keys.client}"}}'.encode(),
        "a word for max_tokens": f'{{"model":"m","max_tokens":"{keys.client}"}}'.encode(),
        "no UTF-8": b'{"model":"m","x":"\xff' + keys.client.encode() + b'"}',
        "an unknown model": b'{"model":"unknown"}',
        "too large": b'{"model":"m","x":"' + keys.client.encode() * (BODY_LIMIT // 20) + b'"}',
    }
    for target in ENDPOINTS:
        for name, body in bodies.items():
            yield post(f"{name}: {target}", body, key, target)
    fields: dict[str, Sequence[tuple[str, str]]] = {
        "encoded": [("content-encoding", "gzip")],
        "a form": [("content-type", "multipart/form-data; boundary=x")],
        "another page": [("origin", f"https://{keys.wrong}.example")],
        "a page that is none": [("origin", keys.wrong)],
        "a timeout in words": [("x-headgate-timeout-ms", keys.client)],
        "a provider in words": [("x-headgate-provider", keys.client)],
        "a region in words": [("x-headgate-region", keys.client)],
        "a cache in words": [("x-headgate-cache", keys.client)],
        "explained": [("x-headgate-explain", "1")],
        "tags": [("x-headgate-tags", keys.client)],
        "framed": [("transfer-encoding", keys.client)],
        "filled": [("x-fill", keys.client * 4000)],
        "a bad name": [(f"x {keys.client}", "1")],
        "a trace": [("traceparent", f"00-{keys.wrong}-1-01")],
        "an expectation": [("expect", keys.wrong)],
    }
    for name, more in fields.items():
        for model in ("m", "dead", "unset"):
            yield post(f"{name}: {model}", ask(model), [*key, *more])
    for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "BREW"):
        for target in (CHAT, "/v1/realtime", "/nowhere", "/v1/models", "/v1/%zz", f"/?key={keys.client}"):
            yield Path(f"{method} {target[:16]}", request(method, target, headers=key))
    for name in ("unknown", "m/x", "dead"):
        yield Path(f"the model {name}", request("GET", f"/v1/models/{name}", headers=key))
    for kind in ("files/file-unknown", "responses/resp_unknown", "batches/batch_unknown"):
        yield Path(f"an object {kind}", request("GET", f"/v1/{kind}", headers=key))
    for n in range(3):
        yield post(f"above a limit {n}", ask(), bearer(keys.tight))


def sessions(keys: Keys, scripts: Mapping[str, object]) -> Iterator[Path]:
    """WebSockets that are refused, on either side."""
    for script in scripts:
        for name, secret in (("known", keys.client), ("wrong", keys.wrong)):
            offer = ("sec-websocket-protocol", f"realtime, openai-insecure-api-key.{secret}")
            headers = [*HANDSHAKE, offer, ("x-script", script)]
            yield Path(f"session, {name}, {script}", request("GET", "/v1/realtime?model=m", headers=headers))
    for n, offered in enumerate(
        (f"openai-insecure-api-key.{keys.client} x", f"openai-insecure-api-key.{keys.wrong}\xff")
    ):
        headers = [*HANDSHAKE, ("sec-websocket-protocol", offered)]
        yield Path(f"a bad offer {n}", request("GET", "/v1/realtime?model=m", headers=headers))
    for left_out in range(len(HANDSHAKE)):
        headers = [*HANDSHAKE[:left_out], *HANDSHAKE[left_out + 1 :], *bearer(keys.client)]
        yield Path(f"half a handshake {left_out}", request("GET", "/v1/realtime?model=m", headers=headers))


def uploads(keys: Keys) -> Iterator[Path]:
    """Forms that cannot be passed on."""
    key = bearer(keys.client)
    kind = ("content-type", "multipart/form-data; boundary=BB")
    file = '--BB\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    forms = {
        "no end": f"{file}{keys.client}\r\n",
        "no part": keys.client,
        "no model": f"{file}abc\r\n--BB--\r\n",
        "a head without end": f'--BB\r\nContent-Disposition: form-data; name="{keys.client}',
        "a file before its model": f"{file}{'x' * 80_000}\r\n--BB--\r\n",
    }
    for target in ("/v1/audio/transcriptions", "/v1/images/edits", "/v1/files"):
        for name, body in forms.items():
            yield post(f"{name}: {target}", body.encode(), [*key, kind], target)
        for value in ("multipart/form-data", f"multipart/form-data; boundary={keys.client}", "text/plain"):
            yield post(f"{value[:24]}: {target}", b"x", [*key, ("content-type", value)], target)


def heads(keys: Keys) -> Iterator[Path]:
    """Heads that are none, with a credential among them."""
    field = b"\r\nAuthorization: Bearer " + keys.client.encode() + b"\r\n"
    for name, data in [*MALFORMED.items(), *((name, data) for name, (_, data) in OTHER_STATUS.items())]:
        yield Path(name, data.replace(b"\r\n", field, 1))
    yield Path("no host", request("POST", CHAT, b'{"model":"m"}', bearer(keys.client), host=None))
    yield Path("another host", request("POST", CHAT, b"{}", bearer(keys.client), host=f"{keys.wrong}.example"))
    yield Path("a field alone", field.lstrip() + b"\r\n")
    yield Path("a key alone", keys.client.encode() * 3000)


def scripted(keys: Keys, scripts: Mapping[str, object]) -> Iterator[Path]:
    """Providers that fail."""
    for name in scripts:
        for stream in (False, True):
            fields = [*bearer(keys.client), ("x-script", name), ("x-headgate-explain", "1")]
            yield post(f"{name}, {stream}", ask(stream=stream), fields)


def texts(value: str, card: str) -> Iterator[Path]:
    """What the guard takes out of texts, or refuses; for the model `guarded`."""
    for key_of in ("user", "system", "assistant"):
        for stream in (False, True):
            for name, text in (("taken out", value), ("refused", card), ("both", f"{value}, {card}")):
                asked = ask("guarded", stream=stream) | {"messages": [{"role": key_of, "content": f"mine is {text}."}]}
                yield post(f"{name}, {key_of}, {stream}", asked, [("x-script", f"says {value}")])


def admin_requests(keys: Keys) -> Iterator[Path]:
    """Every page, for everybody."""
    callers = {
        "nobody": None,
        "a client": keys.client,
        "an admin": keys.admin,
        "a wrong one": keys.wrong,
        "a made one": keys.made,
        "a token": keys.token,
        "a forged one": keys.forged,
    }
    for path in ADMIN:
        for name, key in callers.items():
            yield Path(f"GET {path}, {name}", request("GET", path, headers=bearer(key)))
            if name != "an admin":
                yield Path(f"POST {path}, {name}", request("POST", path, b"{}", bearer(key)))
        yield Path(f"{path}?key=", request("GET", f"{path.partition('?')[0]}?key={keys.admin}"))
        page = [*bearer(keys.admin), ("origin", f"https://{keys.wrong}.example")]
        yield Path(f"{path}, another page", request("GET", path, headers=page))
