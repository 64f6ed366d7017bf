"""What the benchmark carries: a chat request and its answer, a stream of chunks, and a request each for two other
endpoints, in sizes met in practice.

Bytes are built once and sent as they are, so the two ends cost as little as possible. A stream's n-th content event
holds `marker(n)`, which no other event holds: finding it in what came out of the gateway proves that this very event
arrived.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any

MODEL = "gpt-4o-mini"
EMBEDDING_MODEL = "text-embedding-3-small"
PATH = "/v1/chat/completions"

_SYSTEM = (
    "You are the support assistant of a web shop. Answer in two or three sentences, name the article number where you "
    "know it, and never promise a delivery date that the order system did not confirm. If the customer is angry, "
    "apologise once and offer to hand over to a colleague. Use the customer's language; write prices with the currency "
    "and two decimals."
)
_USER = (
    "Hello, I ordered the blue garden hose (25 m) eleven days ago, order 40-118-2297, and the tracking page still says "
    "'label created'. My neighbour's parcel from the same shop arrived in three days. Can you find out where mine is, "
    "and whether I could change it to the 50 m one before it leaves?"
)
_REPLY = (
    "I am sorry for the wait. Order 40-118-2297 was packed today and has not left our warehouse, so it can still be "
    "changed. Shall I replace the 25 m hose (GH-25-B) by the 50 m one (GH-50-B) for an extra 14.90 EUR?"
)


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def marker(n: int) -> bytes:
    """The text of the n-th content event; six bytes, unique within a stream."""
    return b" w%04d" % n


def chat_body(stream_id: int | None = None) -> bytes:
    """A request body of about 1 KiB; with a stream id (at most 4 digits), a request for a stream that carries it."""
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": "Hi, do you speak German? I would rather write English if both work."},
            {
                "role": "assistant",
                "content": "Both work. How may I help you today? If it is about an order, tell me its number.",
            },
            {"role": "user", "content": _USER},
        ],
        "temperature": 0.2,
        "max_tokens": 512,
    }
    if stream_id is not None:
        body |= {"stream": True, "user": f"stream-{stream_id:04d}"}
    return _compact(body)


def embeddings_body() -> bytes:
    """What an SDK asks for: one text, its vector in base64."""
    return _compact({"input": f"{_SYSTEM} {_USER}", "model": EMBEDDING_MODEL, "encoding_format": "base64"})


def responses_body() -> bytes:
    """The chat request for the responses endpoint."""
    said = {"role": "user", "content": [{"type": "input_text", "text": _USER}]}
    return _compact({"model": MODEL, "instructions": _SYSTEM, "input": [said], "max_output_tokens": 512})


def stream_id(request: bytes) -> int | None:
    """The id that `chat_body` wrote into a request, wherever a gateway moved it; None for a plain request."""
    at = request.find(b"stream-")
    return int(request[at + 7 : at + 11]) if at >= 0 else None


_USAGE = {
    "prompt_tokens": 187,
    "completion_tokens": 62,
    "total_tokens": 249,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}


def _whole(value: Any) -> bytes:
    body = _compact(value)
    return _head("application/json") + b"content-length: %d\r\n\r\n" % len(body) + body


def _embeddings_answer() -> bytes:
    vector = base64.b64encode(bytes(range(256)) * 24).decode()  # 1536 floats
    data = [{"object": "embedding", "index": 0, "embedding": vector}]
    usage = {"prompt_tokens": 187, "total_tokens": 187}
    return _whole({"object": "list", "data": data, "model": EMBEDDING_MODEL, "usage": usage})


def _responses_answer() -> bytes:
    text = {"type": "output_text", "annotations": [], "logprobs": [], "text": _REPLY}
    message = {
        "id": "msg_68af4030592c",
        "type": "message",
        "status": "completed",
        "content": [text],
        "role": "assistant",
    }
    return _whole(
        {
            "id": "resp_68af4030592c81938ec0a5fbab4a3e9f",
            "object": "response",
            "created_at": 1763600000,
            "status": "completed",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": _SYSTEM,
            "max_output_tokens": 512,
            "model": "gpt-4o-mini-2024-07-18",
            "output": [message],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": True,
            "temperature": 1.0,
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": {
                "input_tokens": 187,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": 62,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 249,
            },
            "user": None,
            "metadata": {},
        }
    )


def _answer() -> bytes:
    return _whole(
        {
            "id": "chatcmpl-C7yJ2mQkX0bVwq9fPtZr4sLd8uHnA",
            "object": "chat.completion",
            "created": 1763600000,
            "model": "gpt-4o-mini-2024-07-18",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": _REPLY},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": _USAGE,
            "system_fingerprint": "fp_560af6e559",
        }
    )


def _head(content_type: str) -> bytes:
    return (
        f"HTTP/1.1 200 OK\r\ndate: Thu, 20 Nov 2025 09:00:00 GMT\r\ncontent-type: {content_type}\r\n"
        "openai-organization: org-bench\r\nopenai-processing-ms: 412\r\nopenai-version: 2020-10-01\r\n"
        "x-ratelimit-limit-requests: 10000\r\nx-ratelimit-remaining-requests: 9999\r\n"
        "x-request-id: req_5c1f6b0ed7a94cf2a1d1\r\n"
    ).encode()


_CHUNK = {
    "id": "chatcmpl-C7yJ2mQkX0bVwq9fPtZr4sLd8uHnA",
    "object": "chat.completion.chunk",
    "created": 1763600000,
    "model": "gpt-4o-mini-2024-07-18",
    "system_fingerprint": "fp_560af6e559",
}


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    return _sse({**_CHUNK, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]})


def _sse(value: dict[str, Any]) -> bytes:
    return b"data: " + _compact(value) + b"\n\n"


def chunk(data: bytes) -> bytes:
    """One chunk of the chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


ANSWER = _answer()
ENDPOINTS: Mapping[str, tuple[bytes, bytes]] = {
    PATH: (chat_body(), ANSWER),
    "/v1/embeddings": (embeddings_body(), _embeddings_answer()),
    "/v1/responses": (responses_body(), _responses_answer()),
}
"""Path -> a request's body, and the answer."""
STREAM_HEAD = _head("text/event-stream; charset=utf-8") + b"transfer-encoding: chunked\r\n\r\n"
ROLE = chunk(_event({"role": "assistant", "content": ""}))
FINISH = chunk(_event({}, "stop"))
USAGE = chunk(_sse({**_CHUNK, "choices": [], "usage": _USAGE}))
DONE = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def content(n: int) -> bytes:
    """The n-th content event as one chunk, about 250 bytes."""
    return chunk(_event({"content": marker(n).decode()}))


def answer_to(request: bytes) -> bytes:
    """The whole answer of the provider; to what it does not know, that of chat."""
    path = request[: request.find(b" HTTP/")].rpartition(b" ")[2].decode("latin-1")
    return ENDPOINTS[path][1] if path in ENDPOINTS and path != PATH else ANSWER


def request(host: str, headers: Mapping[str, str], body: bytes, path: str = PATH) -> bytes:
    """A whole POST to `path`, head and body in one piece, with the headers an OpenAI SDK sends."""
    lines = {
        "Host": host,
        "Accept": "application/json",
        "Content-Type": "application/json",
        "User-Agent": "OpenAI/Python 3.51.0",
        "X-Stainless-Lang": "python",
        "X-Stainless-Package-Version": "3.51.0",
        "X-Stainless-OS": "Linux",
        "X-Stainless-Arch": "x64",
        "X-Stainless-Runtime": "CPython",
        "X-Stainless-Runtime-Version": "3.11.7",
        "X-Stainless-Async": "false",
        "X-Stainless-Retry-Count": "0",
        "X-Stainless-Read-Timeout": "600",
        **headers,
        "Content-Length": str(len(body)),
    }
    return (f"POST {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n").encode() + body


def is_complete(message: bytes) -> bool:
    """Whether these bytes hold one whole HTTP/1.1 message; for messages without pipelining or trailers, as here."""
    end = message.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = message[: end + 2].lower()
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        return len(message) >= end + 4 + int(head[at + 17 : head.find(b"\r\n", at + 2)])
    return b"\r\ntransfer-encoding:" not in head or message.endswith(b"0\r\n\r\n")
