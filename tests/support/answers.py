"""The bytes of well-formed provider answers, for scripts of FakeUpstream and for FakeCall.feed.

A stream comes as a list, head first, then one item for each event and one for the end, so that a test may slice it, put
a `Pause()` between two events or leave the end away.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DONE = b"data: [DONE]\n\n"
LAST_CHUNK = b"0\r\n\r\n"
USAGE = {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}


def response_head(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    """A status line and field lines, exactly those given."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def response(status: int, body: bytes, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """A whole answer with content-length."""
    return response_head(status, [*headers, ("content-length", str(len(body)))]) + body


def json_response(obj: object, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """A whole JSON answer; `obj` may be bytes, which are sent as they are."""
    body = obj if isinstance(obj, bytes) else json.dumps(obj).encode()
    return response(status, body, [("content-type", "application/json"), *headers])


def error_response(
    status: int, message: str, *, code: str | None = None, headers: Iterable[tuple[str, str]] = ()
) -> bytes:
    """An error in the shape of the OpenAI API."""
    error = {"message": message, "type": "upstream_made_error", "param": None, "code": code}
    return json_response({"error": error}, status, headers)


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(obj: Mapping[str, Any] | bytes) -> bytes:
    """One SSE event; bytes are taken as they are."""
    if isinstance(obj, bytes):
        return obj
    return b"data: " + json.dumps(obj, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def sse(
    events: Iterable[Mapping[str, Any] | bytes],
    *,
    chunked: bool = True,
    headers: Iterable[tuple[str, str]] = (),
    content_type: str = "text/event-stream; charset=utf-8",
) -> list[bytes]:
    """A stream: head, one item per event, and the last chunk; not `chunked`, it ends with the connection."""
    framing = [("transfer-encoding", "chunked")] if chunked else [("connection", "close")]
    head = response_head(200, [("content-type", content_type), *headers, *framing])
    frame = chunk if chunked else bytes
    return [head, *(frame(event(one)) for one in events), *([LAST_CHUNK] if chunked else [])]


def chat_completion(
    text: str | None = "Hello there.",
    *,
    model: str = "gpt-4o-mini",
    usage: Mapping[str, Any] | None = USAGE,
    finish_reason: str = "stop",
    message: Mapping[str, Any] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """The body of a chat completion; `message` adds fields to the message, `fields` to the top."""
    answer: dict[str, Any] = {
        "id": "chatcmpl-test",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None, **(message or {})},
                "logprobs": None,
                "finish_reason": finish_reason,
            }
        ],
        **fields,
    }
    if usage is not None:
        answer["usage"] = dict(usage)
    return answer


def chat_chunk(
    delta: Mapping[str, Any] | None, *, finish_reason: str | None = None, model: str = "gpt-4o-mini", **fields: Any
) -> dict[str, Any]:
    """One chunk; `delta` None makes `choices` empty."""
    choices = [] if delta is None else [{"index": 0, "delta": dict(delta), "finish_reason": finish_reason}]
    return {
        "id": "chatcmpl-test",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": model,
        "choices": choices,
        **fields,
    }


def chat_chunks(
    text: str | Sequence[str] = ("Hel", "lo ", "there."),
    *,
    usage: Mapping[str, Any] | None = None,
    finish_reason: str = "stop",
    done: bool = True,
    **fields: Any,
) -> list[dict[str, Any] | bytes]:
    """The events of a stream: role, one per piece of text, finish, usage if given, `[DONE]`."""
    pieces = [text] if isinstance(text, str) else text
    return [
        chat_chunk({"role": "assistant", "content": ""}, **fields),
        *(chat_chunk({"content": piece}, **fields) for piece in pieces),
        chat_chunk({}, finish_reason=finish_reason, **fields),
        *([chat_chunk(None, usage=dict(usage), **fields)] if usage is not None else []),
        *([DONE] if done else []),
    ]


def typed_event(kind: str, **fields: Any) -> bytes:
    """One event that names its type twice, as OpenAI's do."""
    data = json.dumps({"type": kind, **fields}, separators=(",", ":"), ensure_ascii=False).encode()
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


RESPONSE_USAGE = {
    "input_tokens": 36,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 11,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 47,
}


def response_object(
    text: str | None = "Hello there.",
    *,
    model: str = "gpt-4o-mini",
    status: str = "completed",
    usage: Mapping[str, Any] | None = RESPONSE_USAGE,
    **fields: Any,
) -> dict[str, Any]:
    """The body of the responses endpoint; `text` None leaves the output empty."""
    content: dict[str, Any] = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    item = {"id": "msg_test", "type": "message", "role": "assistant", "status": status, "content": [content]}
    return {
        "id": "resp_test",
        "object": "response",
        "created_at": 1_700_000_000,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [] if text is None else [item],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": None if usage is None else dict(usage),
        **fields,
    }


def response_events(
    text: Sequence[str] = ("Hel", "lo ", "there."), *, end: str | None = "response.completed", **fields: Any
) -> list[bytes]:
    """The events of a streamed response: four that come before content, one per piece of text, and `end`."""
    begun = response_object(None, status="in_progress", usage=None)
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
    ]
    if text:
        item = {"id": "msg_test", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        kinds.append(("response.output_item.added", {"output_index": 0, "item": item}))
    place = {"item_id": "msg_test", "output_index": 0, "content_index": 0}
    if text:
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        kinds.append(("response.content_part.added", {**place, "part": part}))
    kinds += [("response.output_text.delta", {**place, "delta": piece, "logprobs": []}) for piece in text]
    if end is not None:
        whole = response_object("".join(text) or None, status=end.removeprefix("response."), **fields)
        kinds.append((end, {"response": whole}))
    return [typed_event(kind, sequence_number=number, **data) for number, (kind, data) in enumerate(kinds)]
