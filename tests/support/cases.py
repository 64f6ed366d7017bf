"""Random requests, and what the providers say to each: the same for the same seed and number.

    case = make_case(17, seed="three ways")
    case.scripts[0]                 # the steps of the first provider; the second's follow

Endpoints, whole and streamed answers, errors of either side, cuts, and clients that leave.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from .answers import (
    DONE,
    LAST_CHUNK,
    RESPONSE_USAGE,
    chat_chunks,
    chat_completion,
    chunk,
    error_response,
    event,
    json_response,
    response_events,
    response_head,
    response_object,
    typed_event,
)
from .gateway import CLIENT_KEY
from .upstream import FIN, RST, STALL, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MODELS = ("gpt-4o-mini", "gpt-4.1", "gpt-image-1", "text-embedding-3-small", "omni-moderation-latest", "rerank-2")
BODY_LIMIT = 64 * 1024
SSE = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
SOUND = response_head(200, [("content-type", "audio/mpeg"), ("transfer-encoding", "chunked")])
ENDS: tuple[Step, ...] = (FIN, RST, LAST_CHUNK)
WORDS = ("alpha", "Straße", "日本語", "\u2028", '"quoted"', "back\\slash", "🙂", "model", "usage", "[DONE]")


@dataclass(frozen=True)
class Case:
    """One request. `leave_at`: the client goes once it has seen these bytes."""

    number: int
    kind: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | None
    scripts: tuple[Sequence[Step], ...] = ((), ())
    leave_at: bytes | None = None

    def __repr__(self) -> str:
        return f"<Case {self.number} {self.kind} {self.method} {self.path}>"


@dataclass(frozen=True)
class Ask:
    """An endpoint: what a client sends to it, and the two kinds of answer."""

    path: str
    body: dict[str, Any]
    whole: Any
    events: list[bytes] | None


def make_case(number: int, seed: str) -> Case:
    """The case of that number."""
    rng = Random(f"{seed}/{number}")
    kinds = list(_KINDS)
    kind = rng.choices(kinds, [_KINDS[name][0] for name in kinds])[0]
    return _KINDS[kind][1](_Maker(number, kind, rng))


class _Maker:
    """Makes the parts of one case."""

    def __init__(self, number: int, kind: str, rng: Random) -> None:
        self.number = number
        self.kind = kind
        self.rng = rng

    def text(self, most: int = 12) -> str:
        return " ".join(self.rng.choices(WORDS, k=self.rng.randint(1, most)))

    def ask(self, *, streamed: bool = False, typed: bool = True) -> Ask:
        """A random endpoint; `streamed`: one that can stream; `typed` False: chat alone."""
        rng, text = self.rng, self.text()
        pieces = [self.text(3) for _ in range(rng.randint(1, 6))]
        usage = {"prompt_tokens": rng.randint(1, 900), "completion_tokens": rng.randint(1, 900)}
        usage["total_tokens"] = sum(usage.values())
        asks_usage = rng.random() < 0.3
        options: dict[str, Any] = {"stream_options": {"include_usage": True}} if asks_usage else {}
        chat = Ask(
            "/v1/chat/completions",
            {"model": rng.choice(MODELS[:2]), "messages": [{"role": "user", "content": text}], "n": 1, **options},
            chat_completion(text, usage=usage if rng.random() < 0.8 else None),
            [event(one) for one in chat_chunks(pieces, usage=usage if rng.random() < 0.8 else None)],
        )
        if not typed:
            return chat
        response = Ask(
            "/v1/responses",
            {"model": rng.choice(MODELS[:2]), "input": text},
            response_object(text, usage=RESPONSE_USAGE if rng.random() < 0.8 else None),
            response_events(pieces, end=rng.choice(["response.completed", "response.incomplete"])),
        )
        choice = {"index": 0, "text": text, "finish_reason": "stop"}
        texts = [{"index": 0, "text": piece, "finish_reason": None} for piece in pieces]
        chunks: list[Any] = [{"object": "text_completion", "choices": [one]} for one in (*texts, choice)]
        older = Ask(
            "/v1/completions",
            {"model": MODELS[0], "prompt": text},
            {"object": "text_completion", "choices": [choice], "usage": usage},
            [*map(event, chunks), DONE],
        )
        reported = {"input_tokens": 5, "output_tokens": rng.randint(1, 5000)}
        image = typed_event("image_generation.completed", b64_json="A" * rng.randint(1, 2000), usage=reported)
        if rng.random() < 0.1:
            image = typed_event("image_generation.completed", b64_json="A" * 700_000, usage=reported)
        images = Ask(
            "/v1/images/generations",
            {"prompt": text, **({"model": MODELS[2]} if rng.random() < 0.7 else {})},
            {"created": 1, "data": [{"b64_json": "QUJD"}], "usage": reported},
            [typed_event("image_generation.partial_image", b64_json="QUJD"), image],
        )
        if streamed:
            return rng.choice([chat, chat, response, response, older, images])
        vector = {"object": "embedding", "index": 0, "embedding": "AAAA" * rng.randint(1, 400)}
        spent = {"prompt_tokens": usage["prompt_tokens"], "total_tokens": usage["prompt_tokens"]}
        embeddings = Ask(
            "/v1/embeddings", {"model": MODELS[3], "input": text}, {"data": [vector], "usage": spent}, None
        )
        moderations = Ask("/v1/moderations", {"input": text}, {"id": "modr", "results": []}, None)
        rerank = Ask(
            "/v1/rerank", {"model": MODELS[5], "query": text}, {"results": [], "usage": {"total_tokens": 9}}, None
        )
        return rng.choice([chat, chat, response, older, images, embeddings, embeddings, moderations, rerank])

    def case(
        self,
        ask: Ask,
        *scripts: Sequence[Step],
        stream: bool = False,
        leave_at: bytes | None = None,
        **changes: Any,
    ) -> Case:
        """A request to that endpoint, spelled at random."""
        fields = {**ask.body, **({"stream": True} if stream else {})}
        items = list(fields.items())
        self.rng.shuffle(items)
        indent = self.rng.choice([None, None, 1])
        body = json.dumps(dict(items), ensure_ascii=self.rng.random() < 0.5, indent=indent).encode()
        settings: dict[str, Any] = {"method": "POST", "path": ask.path, "headers": self.headers(), "body": body}
        first = scripts[0] if scripts else ()
        return Case(
            self.number,
            self.kind,
            **{**settings, **changes},
            scripts=(first, scripts[1] if len(scripts) > 1 else first),
            leave_at=leave_at,
        )

    def headers(self, key: str | None = CLIENT_KEY, **more: str) -> tuple[tuple[str, str], ...]:
        extra = [("x-own", self.rng.choice(["a", "b"])), ("x-headgate-tags", "t"), ("cookie", "secret=1")]
        own = self.rng.sample(extra, self.rng.randint(0, 3))
        if self.rng.random() < 0.2:
            own.append(("x-headgate-stream-metadata", "off"))
        bearer = [] if key is None else [("authorization", f"Bearer {key}")]
        named = [(name.replace("_", "-"), value) for name, value in more.items()]
        identity = [("x-request-id", f"case-{self.number}"), ("x-case", str(self.number))]
        return (*bearer, ("content-type", "application/json"), *identity, *own, *named)

    def answered(self, body: Any) -> list[Step]:
        """A whole answer, in a few segments."""
        fields = [("x-request-id", "req_up"), ("x-ratelimit-remaining-requests", "5"), ("set-cookie", "a=b")]
        return self.shredded(json_response(body, headers=fields if self.rng.random() < 0.5 else ()))

    def shredded(self, data: bytes) -> list[Step]:
        """The same bytes in up to five segments."""
        places = sorted(self.rng.sample(range(len(data)), min(len(data), self.rng.randint(0, 4))))
        return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True) if a < b]

    def streamed(self, events: Sequence[bytes], *end: Step) -> list[Step]:
        """A stream whose segments know nothing of its events."""
        return [SSE, *self.shredded(b"".join(map(chunk, events))), *end] if events else [SSE, *end]


def _whole(make: _Maker) -> Case:
    ask = make.ask()
    return make.case(ask, make.answered(ask.whole))


def _stream(make: _Maker) -> Case:
    ask = make.ask(streamed=True)
    assert ask.events is not None
    return make.case(ask, make.streamed(ask.events, LAST_CHUNK), stream=True)


def _provider_error(make: _Maker) -> Case:
    # After a 401, or a 429 that says for how long, a key rests, and what follows would depend on the time.
    status = make.rng.choice([400, 403, 404, 409, 422, 429, 500, 502, 503])
    fields = [("x-request-id", "req_up"), *([("retry-after", "7")] if status != 429 else [])]
    scripts = [make.shredded(error_response(status, make.text(), headers=fields)) for _ in range(2)]
    return make.case(make.ask(), *scripts, stream=make.rng.random() < 0.3)


def _made_good(make: _Maker) -> Case:
    ask = make.ask(streamed=True)
    assert ask.events is not None
    error = event({"error": {"message": make.text(), "type": "server_error", "param": None, "code": None}})
    first: Sequence[Step] = make.rng.choice(
        [
            [error_response(make.rng.choice([429, 500, 503]), "no")],
            [make.rng.choice([FIN, RST])],
            make.streamed([error], LAST_CHUNK),
            make.streamed([], make.rng.choice(ENDS)),
        ]
    )
    return make.case(ask, first, make.streamed(ask.events, LAST_CHUNK), stream=True)


def _cut_stream(make: _Maker) -> Case:
    """After commit, anywhere before the end."""
    ask = make.ask(streamed=True, typed=make.rng.random() < 0.5)
    assert ask.events is not None
    whole = b"".join(ask.events)
    at = make.rng.randint(len(whole) * 2 // 3, len(whole) - 1) if len(whole) < 100_000 else 50_000
    end = make.rng.choice(ENDS)
    return make.case(ask, [SSE, chunk(whole[:at]), end], stream=True)


def _cut_whole(make: _Maker) -> Case:
    ask = make.ask()
    raw = json_response(ask.whole)
    cut = raw[: make.rng.randint(len(raw) // 2, len(raw) - 1)]
    good = make.rng.random() < 0.5
    return make.case(ask, [cut, make.rng.choice([FIN, RST])], make.answered(ask.whole) if good else [cut, FIN])


def _left(make: _Maker) -> Case:
    """The client leaves a stream that stands still, once it has seen all of it."""
    ask = make.ask(streamed=True)
    assert ask.events is not None
    ends = (b"event: response.completed", b"event: response.incomplete", b"event: image_generation.completed")
    going = [one for one in ask.events if one != DONE and not one.startswith(ends) and b'"choices":[]' not in one]
    seen = going[: make.rng.randint(5, 7)]
    return make.case(ask, [SSE, *map(chunk, seen), STALL], stream=True, leave_at=b"".join(seen))


def _late(make: _Maker) -> Case:
    return make.case(make.ask(), [STALL], headers=make.headers(x_headgate_timeout_ms="150"))


def _sound(make: _Maker) -> Case:
    ask = Ask("/v1/audio/speech", {"model": MODELS[0], "input": make.text(), "voice": "v"}, None, None)
    sound = make.rng.randbytes(make.rng.randint(1, 200_000))
    end = make.rng.choice((*ENDS, LAST_CHUNK))
    return make.case(ask, [SOUND, chunk(sound), end])


def _listed(make: _Maker) -> Case:
    path = make.rng.choice(["/v1/models", "/v1/models/named", "/v1/models/org%2Fother%3Afree", "/v1/models/unknown"])
    return Case(make.number, make.kind, "GET", path, make.headers(make.rng.choice([CLIENT_KEY, None])), None)


def _refused(make: _Maker) -> Case:
    ask = make.ask()
    deep = b'{"model":"gpt-4.1","x":' + b"[" * 70 + b"]" * 70 + b"}"
    changes: list[dict[str, Any]] = [
        {"headers": make.headers("sk-wrong-key-000001")},
        {"headers": make.headers(None)},
        {"headers": make.headers(x_headgate_timeout_ms="soon")},
        {"headers": make.headers(content_encoding="gzip")},
        {"headers": (*make.headers()[:1], ("content-type", "multipart/form-data; boundary=x"), *make.headers()[2:])},
        {"body": b"{"},
        {"body": b"[]"},
        {"body": b""},
        {"body": deep},
        {"body": b'{"model":"gpt-4.1","model":"gpt-4.1"}'},
        {"body": b'{"model":"claude-x","messages":[]}'},
        {"body": b'{"model":"gpt-4.1","stream":"yes"}', "path": "/v1/chat/completions"},
        {"body": b'{"messages":[]}', "path": "/v1/chat/completions"},
        {"body": b'{"model":"gpt-4.1","x":"' + b"x" * BODY_LIMIT + b'"}'},
        {"method": "PUT"},
        {"method": "GET", "body": None},
    ]
    return make.case(ask, [error_response(500, "not for the provider")], **make.rng.choice(changes))


_KINDS: dict[str, tuple[int, Callable[[_Maker], Case]]] = {
    "whole": (22, _whole),
    "stream": (22, _stream),
    "provider_error": (10, _provider_error),
    "made_good": (8, _made_good),
    "cut_stream": (10, _cut_stream),
    "cut_whole": (5, _cut_whole),
    "left": (8, _left),
    "late": (1, _late),
    "sound": (4, _sound),
    "listed": (4, _listed),
    "refused": (14, _refused),
}
