"""The rows of the SSE matrix: what providers put on the wire, the odd ones included, and where a stream may be cut.

A row is a whole answer, head and framing included, for FakeUpstream. `CUT` rows end in a way that no provider means:
what a client must see of those is an error, whatever it makes of them when it is alone.
"""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from tests_support.answers import (
    DONE,
    LAST_CHUNK,
    USAGE,
    chat_chunk,
    chat_chunks,
    chunk,
    error_response,
    event,
    response,
    response_events,
    response_head,
    typed_event,
)
from tests_support.upstream import FIN, RST, STALL, Sleep

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests_support.upstream import Step

GAP = 0.005
"""Seconds between pieces that must arrive as pieces."""
TEXT = "Grüße 🦀 there"
USAGE_EVENT = event(chat_chunk(None, usage=USAGE))
ERROR = b'data: {"error":{"message":"overloaded","type":"server_error","param":null,"code":null}}\n\n'


class Row(NamedTuple):
    """`name` is the model that asks for it."""

    name: str
    api: str
    steps: Sequence[Step]
    cut: bool = False

    @property
    def silent(self) -> bool:
        """The provider says nothing more and keeps the connection."""
        return STALL in self.steps


def _head(*fields: tuple[str, str]) -> bytes:
    return response_head(200, [("content-type", "text/event-stream; charset=utf-8"), *fields])


def _chunked(pieces: Iterable[bytes], end: Step = LAST_CHUNK, gap: float = 0) -> list[Step]:
    """Each piece a chunk and a write of its own; with a gap before what follows."""
    steps: list[Step] = [_head(("transfer-encoding", "chunked"))]
    for piece in pieces:
        steps += [chunk(piece), Sleep(gap)] if gap else [chunk(piece)]
    return [*steps, end]


def _events(*made: Any) -> list[bytes]:
    return [event(one) for one in made]


def _chat(**options: Any) -> list[bytes]:
    return _events(*chat_chunks(("Grü", "ße 🦀", " there"), usage=USAGE, **options))


PLAIN = _chat()
ROLE, *WORDS, FINISH, _, _ = PLAIN
BEGUN = [ROLE, *WORDS]
NO_DONE = PLAIN[:-1]


def _tool(index: int, **fields: Any) -> bytes:
    return event(chat_chunk({"tool_calls": [{"index": index, **fields}]}))


def _tools(*names: str) -> list[bytes]:
    calls: list[bytes] = []
    for index, name in enumerate(names):
        calls.append(_tool(index, id=f"call_{index}", type="function", function={"name": name, "arguments": ""}))
        calls += [_tool(index, function={"arguments": piece}) for piece in ('{"city":', '"Köln"}')]
    return [ROLE, *calls, event(chat_chunk({}, finish_reason="tool_calls")), USAGE_EVENT, DONE]


def _with(between: bytes, stream: Sequence[bytes] = PLAIN) -> list[bytes]:
    """`between` before the first event and behind each but the last."""
    return [between, *(part for one in stream[:-1] for part in (one, between)), stream[-1]]


def _each(pieces: bytes, size: int = 1) -> list[bytes]:
    return [pieces[at : at + size] for at in range(0, len(pieces), size)]


def _multi_line(one: bytes) -> bytes:
    return one.replace(b',"object"', b',\ndata: "object"')


AZURE = event({"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": []})
CHUNKS: dict[str, Iterable[bytes]] = {
    "plain": PLAIN,
    "in one piece": [b"".join(PLAIN)],
    "no usage event": [*BEGUN, FINISH, DONE],
    "usage on the finish chunk": [*BEGUN, event(chat_chunk({}, finish_reason="stop", usage=USAGE)), DONE],
    "usage null on each chunk": _events(*chat_chunks("Hi", usage=USAGE, service_tier="default"), ),
    "comment block": _with(b": OPENROUTER PROCESSING\n\n"),
    "comment of one colon": _with(b":\n"),
    "comment with CRLF": _with(b": ping\r\n\r\n"),
    "our comment, everywhere": _with(b': headgate {"cost_usd":0.1}\n\n'),
    "comment inside an event": [ROLE, b": ping\n" + WORDS[0], *WORDS[1:], FINISH, USAGE_EVENT, DONE],
    "comment in front of the usage": [*BEGUN, FINISH, b": x\n\n", USAGE_EVENT, b": y\n\n", DONE],
    "CRLF": [one.replace(b"\n", b"\r\n") for one in PLAIN],
    "CR": [one.replace(b"\n", b"\r") for one in PLAIN],
    "no space behind data:": [one.replace(b"data: ", b"data:") for one in PLAIN],
    "data in several lines": [*map(_multi_line, PLAIN)],
    "event: message": [b"event: message\n" + one for one in PLAIN[:-1]] + [DONE],
    "event: of another name": [b"event: thread.x\n" + one for one in PLAIN[:-1]] + [DONE],
    "empty delta": [ROLE, event(chat_chunk({})), *WORDS, FINISH, USAGE_EVENT, DONE],
    "U+2028 and U+0085 in text": _events(*chat_chunks("a\u2028b\u2029c\u0085d", usage=USAGE)),
    "escapes in text": _events(*chat_chunks('data: [DONE]\n\n"\\ \x00\ud83d'.replace("\ud83d", "?"), usage=USAGE)),
    "an event of 300 KB": _events(*chat_chunks("x" * 300_000, usage=USAGE)),
    "5 000 events": _events(*chat_chunks(["x"] * 5_000, usage=USAGE)),
    "heartbeat of empty data": _with(b"data:\n\n"),
    "heartbeat of an event without data": _with(b"event: ping\n\n"),
    "retry: on its own": _with(b"retry: 1000\n\n"),
    "retry: inside an event": [b"retry: 1000\n" + ROLE, *PLAIN[1:]],
    "id: on each event": [b"id: %d\n" % n + one for n, one in enumerate(PLAIN)],
    "id: once, then a comment": [b"id: 1\n" + ROLE, b": ping\n\n", *PLAIN[1:]],
    "BOM": [b"\xef\xbb\xbf" + ROLE, *PLAIN[1:]],
    "no [DONE]": NO_DONE,
    "no [DONE], no usage": [*BEGUN, FINISH],
    "last event without its blank line": [*BEGUN, FINISH[:-1]],
    "[DONE] without its blank line": [*NO_DONE, b"data: [DONE]"],
    "[DONE] with one line end": [*NO_DONE, b"data: [DONE]\n"],
    "[DONE] with a space behind": [*NO_DONE, b"data: [DONE] \n\n"],
    "[DONE] without a space": [*NO_DONE, b"data:[DONE]\n\n"],
    "comment behind [DONE]": [*PLAIN, b": bye\n\n"],
    "bytes behind [DONE]": [*PLAIN, b"junk"],
    "[DONE] twice": [*PLAIN, DONE],
    "error: null in a chunk": _events(*chat_chunks("Hi", usage=USAGE, error=None)),
    "error in mid-stream": [*BEGUN, ERROR],
    "error in mid-stream, then [DONE]": [*BEGUN, ERROR, DONE],
    "event: error in mid-stream": [*BEGUN, b"event: error\n" + ERROR],
    "error before any content": [ERROR],
    "error after the role": [ROLE, ERROR],
    "Azure's first chunk": [AZURE, *PLAIN],
    "reasoning_content": [ROLE, event(chat_chunk({"reasoning_content": "hm"})), *PLAIN[1:]],
    "reasoning": [ROLE, event(chat_chunk({"reasoning": "hm"})), *PLAIN[1:]],
    "refusal": [ROLE, event(chat_chunk({"refusal": "no"})), FINISH, USAGE_EVENT, DONE],
    "a tool call": _tools("weather"),
    "two tool calls": _tools("weather", "time"),
    "text and a tool call": [*BEGUN, *_tools("weather")[1:]],
    "finish: length": _chat(finish_reason="length"),
    "finish: content_filter": _chat(finish_reason="content_filter"),
    "finish: of another name": _chat(finish_reason="eos"),
    "nothing but a finish": [event(chat_chunk({"role": "assistant"}, finish_reason="stop")), USAGE_EVENT, DONE],
    "fields nobody knows": _chat(obfuscation="aB3", system_fingerprint="fp", x_groq={"id": "r"}, citations=[1]),
}  # fmt: skip
WHOLE = b"".join(PLAIN)
SPLIT = {
    "byte by byte": _each(WHOLE),
    "7 bytes at a time": _each(WHOLE, 7),
    "inside each character": [part for one in PLAIN for part in _each(one, 3)],
    "between CR and LF": WHOLE.replace(b"\n", b"\r\n").replace(b"\r\n", b"\r|\n").split(b"|"),
    "between the two line ends": WHOLE.replace(b"\n\n", b"\n|\n").split(b"|"),
}
HALF = len(WORDS[1]) // 2
CUT: dict[str, Sequence[Step]] = {}
for how, end in (("FIN", FIN), ("RST", RST)):
    CUT |= {
        f"cut by {how} before any event": _chunked([], end),
        f"cut by {how} behind the role": _chunked([ROLE], end, GAP),
        f"cut by {how} in mid-text": _chunked(BEGUN, end, GAP),
        f"cut by {how} in mid-event": _chunked([ROLE, WORDS[0], WORDS[1][:HALF]], end, GAP),
        f"cut by {how} in mid-character": _chunked([ROLE, WORDS[0][: WORDS[0].index("ü".encode()) + 1]], end, GAP),
        f"cut by {how} in mid-tool-call": _chunked(_tools("weather")[:-3], end, GAP),
        f"cut by {how} between line ends": _chunked([ROLE, WORDS[0][:-1]], end, GAP),
        f"cut by {how} in mid-finish": _chunked([*BEGUN, FINISH[:-20]], end, GAP),
    }
CUT |= {
    "ends in order without a finish": _chunked(BEGUN),
    "ends in order in mid-event": _chunked([*BEGUN, FINISH[:HALF]]),
    "ends in order, empty": _chunked([]),
    "ends in order, comments only": _chunked([b": x\n\n"] * 3),
    "ends with the connection, no finish": [_head(("connection", "close")), *BEGUN, FIN],
    "fewer bytes than its content-length": [_head(("content-length", str(len(WHOLE)))), WHOLE[:-40], FIN],
    "silent in mid-text": _chunked(BEGUN, STALL, GAP),
}

RESPONSE = response_events(("Grü", "ße 🦀", " there"))
*RESPONSE_BEGUN, COMPLETED = RESPONSE
FAILURE = {"code": "server_error", "message": "overloaded"}
RESPONSES: dict[str, Iterable[bytes]] = {
    "plain": RESPONSE,
    "in one piece": [b"".join(RESPONSE)],
    "with a [DONE]": [*RESPONSE, DONE],
    "comment block": _with(b": ping\n\n", RESPONSE),
    "our comment, everywhere": _with(b': headgate {"cost_usd":0.1}\n\n', RESPONSE),
    "comment behind the last event": [*RESPONSE, b": bye\n\n"],
    "CRLF": [one.replace(b"\n", b"\r\n") for one in RESPONSE],
    "without event:": [one.split(b"\n", 1)[1] for one in RESPONSE],
    "an event nobody knows": [*RESPONSE_BEGUN, typed_event("response.made_up.delta", delta=1), COMPLETED],
    "keepalive event": [*RESPONSE_BEGUN, typed_event("keepalive", sequence_number=5), COMPLETED],
    "last event without its blank line": [*RESPONSE_BEGUN, COMPLETED[:-1]],
    "incomplete": response_events(
        ("Hi",), end="response.incomplete", incomplete_details={"reason": "max_output_tokens"}
    ),
    "failed": response_events(("Hi",), end="response.failed", usage=None, error=FAILURE),
    "failed before any content": response_events((), end="response.failed", usage=None, error=FAILURE),
    "error event": [*RESPONSE_BEGUN, typed_event("error", sequence_number=9, param=None, **FAILURE)],
    "an event of 300 KB": response_events(("x" * 300_000,)),
}
RESPONSES_SPLIT = {
    "byte by byte": _each(b"".join(RESPONSE)),
    "between CR and LF": b"".join(RESPONSE).replace(b"\n", b"\r|\n").split(b"|"),
}
RESPONSES_CUT: dict[str, Sequence[Step]] = {}
for how, end in (("FIN", FIN), ("RST", RST), ("silence", STALL)):
    RESPONSES_CUT |= {
        f"cut by {how} before content": _chunked(RESPONSE[:2], end, GAP),
        f"cut by {how} in mid-text": _chunked(RESPONSE_BEGUN, end, GAP),
        f"cut by {how} in mid-event": _chunked([*RESPONSE_BEGUN, COMPLETED[:60]], end, GAP),
    }
RESPONSES_CUT |= {
    "ends in order without its last event": _chunked(RESPONSE_BEGUN),
    "ends in order in mid-event": _chunked([*RESPONSE_BEGUN, COMPLETED[:60]]),
    "ends in order with a [DONE] alone": _chunked([*RESPONSE_BEGUN, DONE]),
}


def _other() -> Iterable[tuple[str, Sequence[Step]]]:
    """Other framings, other encodings, and answers that are no stream."""
    yield "framed by content-length", [_head(("content-length", str(len(WHOLE)))), WHOLE]
    yield "framed by the connection", [_head(("connection", "close")), *PLAIN, FIN]
    packed = gzip.compress(WHOLE)
    yield "gzip", [_head(("content-encoding", "gzip"), ("content-length", str(len(packed)))), packed]
    kind = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
    yield "no charset", [kind, *map(chunk, PLAIN), LAST_CHUNK]
    for status in (400, 404, 409, 422, 429, 500, 503):
        yield f"HTTP {status}", [error_response(status, f"the provider's {status}")]
    yield "HTTP 500 in HTML", [response(500, b"<html>no</html>", [("content-type", "text/html")])]
    body = json.dumps({"error": {"message": "in a 200"}}).encode()
    yield "an error in JSON with 200", [response(200, body, [("content-type", "application/json")])]


def rows() -> list[Row]:
    """All of them; names are unique."""
    return [
        *(Row(f"chat: {name}", "chat", _chunked(stream)) for name, stream in CHUNKS.items()),
        *(Row(f"chat: split {name}", "chat", _chunked(stream)) for name, stream in SPLIT.items()),
        *(Row(f"chat: {name}", "chat", steps) for name, steps in _other()),
        *(Row(f"chat: {name}", "chat", steps, cut=True) for name, steps in CUT.items()),
        *(Row(f"responses: {name}", "responses", _chunked(stream)) for name, stream in RESPONSES.items()),
        *(Row(f"responses: split {name}", "responses", _chunked(stream)) for name, stream in RESPONSES_SPLIT.items()),
        *(Row(f"responses: {name}", "responses", steps, cut=True) for name, steps in RESPONSES_CUT.items()),
    ]  # fmt: skip
