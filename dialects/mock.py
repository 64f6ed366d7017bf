"""The mock provider: an endpoint inside the process that speaks the OpenAI dialect.

Its answers go through the same relay, metering and commit gate as a real provider's, so that a fresh checkout shows
everything but a model. It is deterministic: the same request gets the same bytes. It streams word by word, calls the
first tool it is given, and reports usage.

`answer` is pure and is also what `headgate mock` serves over a socket.
"""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import msgspec

from ..proxy.errors import InvalidRequestError, UnknownPathError
from ..proxy.replies import error_body
from ..proxy.upstream.call import Call, CallReceiver, Endpoint, ResponseHead, UpstreamRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

CREATED = 1_700_000_000
"""A fixed `created`, so that answers are equal byte for byte."""
MAX_CHOICES = 8
MAX_ECHO = 2000
_encode = msgspec.json.encode
_JSON = (b"content-type", b"application/json")
_SSE = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class MockAnswer:
    """Status, fields, and the body in the pieces a provider would send one after the other."""

    __slots__ = ("headers", "pieces", "status")

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], pieces: list[bytes]) -> None:
        self.status = status
        self.headers = headers
        self.pieces = pieces


NOT_SPOKEN = MockAnswer(
    404,
    [_JSON],
    [error_body(UnknownPathError("The mock provider speaks chat completions only; configure a real one."))],
)


def answer(body: bytes) -> MockAnswer:
    """The answer to the body of a chat completion request."""
    try:
        request = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _refusal("The body is not a JSON object.")
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        return _refusal("'messages' must be a non-empty list of objects.", "messages")
    model = str(request.get("model", "mock"))
    id_ = "chatcmpl-mock" + sha256(body).hexdigest()[:16]
    n = request.get("n")
    choices = min(n, MAX_CHOICES) if isinstance(n, int) and n > 0 else 1
    call = _tool_call(request, messages, id_)
    text = "" if call else _text(messages)
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    words = text.split(" ")
    cut = isinstance(limit, int) and 0 < limit < len(words)
    if cut:
        words = words[:limit]
    finish = "tool_calls" if call else "length" if cut else "stop"
    completion = choices * max(1, len(words) if not call else len(_encode(call)) // 4)
    prompt = max(1, len(_encode(messages)) // 4)
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    base = {"id": id_, "created": CREATED, "model": model, "system_fingerprint": "fp_mock"}
    if request.get("stream") is True:
        options = request.get("stream_options")
        wants_usage = isinstance(options, dict) and options.get("include_usage") is True
        return _stream(base, words, call, finish, choices, usage if wants_usage else None)
    message: dict[str, Any] = {"role": "assistant", "content": None if call else " ".join(words), "refusal": None}
    if call:
        message["tool_calls"] = [call]
    whole = {
        **base,
        "object": "chat.completion",
        "choices": [
            {"index": index, "message": message, "logprobs": None, "finish_reason": finish} for index in range(choices)
        ],
        "usage": usage,
    }
    return MockAnswer(200, [_JSON], [_encode(whole)])


def _refusal(message: str, param: str | None = None) -> MockAnswer:
    return MockAnswer(400, [_JSON], [error_body(InvalidRequestError(message, param=param))])


def _stream(
    base: dict[str, Any],
    words: list[str],
    call: dict[str, Any] | None,
    finish: str,
    choices: int,
    usage: dict[str, int] | None,
) -> MockAnswer:
    def chunk(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _event(
            {**base, "object": "chat.completion.chunk", "choices": [choice]} | ({"usage": None} if usage else {})
        )

    every = range(choices)
    pieces = [chunk(index, {"role": "assistant", "content": None if call else "", "refusal": None}) for index in every]
    if call:
        opening = {"index": 0, **call, "function": {"name": call["function"]["name"], "arguments": ""}}
        pieces += [chunk(index, {"tool_calls": [opening]}) for index in every]
        arguments = {"index": 0, "function": {"arguments": call["function"]["arguments"]}}
        pieces += [chunk(index, {"tool_calls": [arguments]}) for index in every]
    else:
        for at, word in enumerate(words):
            pieces += [chunk(index, {"content": word if at == 0 else " " + word}) for index in every]
    pieces += [chunk(index, {}, finish) for index in every]
    if usage:
        pieces.append(_event({**base, "object": "chat.completion.chunk", "choices": [], "usage": usage}))
    pieces.append(b"data: [DONE]\n\n")
    return MockAnswer(200, _SSE, pieces)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % _encode(value)


def _text(messages: list[dict[str, Any]]) -> str:
    """What the mock says: which message it answers, so that a reader sees their own words come back."""
    for message in reversed(messages):
        said = "".join(_texts(message.get("content")))
        if message.get("role") == "tool":
            return f"The tool said: {said[:MAX_ECHO]}"
        if message.get("role") == "user":
            return f"This is Headgate's mock model. You said: {said[:MAX_ECHO]}"
    return "This is Headgate's mock model."


def _texts(content: object) -> Iterable[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield part["text"]


def _tool_call(request: dict[str, Any], messages: list[dict[str, Any]], id_: str) -> dict[str, Any] | None:
    """The call of the named or first tool, unless tools are off or their result is already there."""
    tools = request.get("tools")
    wish = request.get("tool_choice")
    if not isinstance(tools, list) or wish == "none" or messages[-1].get("role") == "tool":
        return None
    functions = [
        tool["function"] for tool in tools if isinstance(tool, dict) and isinstance(tool.get("function"), dict)
    ]
    if isinstance(wish, dict) and isinstance(wish.get("function"), dict):
        functions = [function for function in functions if function.get("name") == wish["function"].get("name")]
    if not functions:
        return None
    arguments = _sample(functions[0].get("parameters"))
    return {
        "id": "call_" + id_[-16:],
        "type": "function",
        "function": {"name": str(functions[0].get("name")), "arguments": _encode(arguments).decode()},
    }


def _sample(schema: object, depth: int = 0) -> Any:
    """The smallest value that fits a JSON schema of the common kind."""
    if not isinstance(schema, dict) or depth > 8:
        return {}
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][0]
    match schema.get("type"):
        case "string":
            return "mock"
        case "integer" | "number":
            return 1
        case "boolean":
            return True
        case "array":
            return []
    properties = schema.get("properties")
    required = schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list):
        return {}
    return {name: _sample(properties.get(name), depth + 1) for name in required if isinstance(name, str)}


class MockEndpoint(Endpoint):
    """Plays `answer` piece by piece, one turn of the loop each, through the same callbacks as a socket."""

    __slots__ = ("_delay", "_loop")

    def __init__(self, *, delay: float = 0.0) -> None:
        self.name = "mock:"
        self._delay = delay
        self._loop = asyncio.get_running_loop()

    def start(self, request: UpstreamRequest, receiver: CallReceiver) -> Call:
        """Begin on the next turn of the loop."""
        return _MockCall(self._loop, self._delay, request, receiver)

    async def aclose(self) -> None:
        """Nothing to close."""


class _MockCall(Call):
    """A streamed body is taken to its end and forgotten: none of the endpoints that take one is spoken here, nor any
    WebSocket."""

    __slots__ = ("_body", "_delay", "_handle", "_loop", "_paused", "_pieces", "_receiver", "_source", "_target")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, delay: float, request: UpstreamRequest, receiver: CallReceiver
    ) -> None:
        self._loop = loop
        self._delay = delay
        self._body = request.body
        self._source = request.source if not request.upgrade else None
        self._target = request.target
        self._receiver: CallReceiver | None = receiver
        self._pieces: list[bytes] = []
        self._paused = False
        self._handle: asyncio.Handle | None = loop.call_soon(self._begin)

    def _begin(self) -> None:
        if self._source is not None:
            self._source.start(self)
        elif self._receiver is not None:
            self._answer(self._receiver)

    def put(self, data: bytes) -> None:
        pass

    def finish(self) -> None:
        self._source = None
        if self._receiver is not None:
            self._answer(self._receiver)

    def _answer(self, receiver: CallReceiver) -> None:
        receiver.on_sent(self)
        if self._receiver is None:
            return
        made = answer(self._body) if self._target.startswith(b"/chat/completions") else NOT_SPOKEN
        self._pieces = made.pieces[::-1]
        receiver.on_head(self, ResponseHead(made.status, list(made.headers)))
        self._schedule()

    def _schedule(self) -> None:
        self._handle = None
        if self._receiver is not None and not self._paused:
            self._handle = (
                self._loop.call_later(self._delay, self._next) if self._delay else self._loop.call_soon(self._next)
            )

    def _next(self) -> None:
        self._handle = None
        receiver = self._receiver
        if receiver is None:
            return
        if not self._pieces:
            self._receiver = None
            receiver.on_end(self, clean=True)
            return
        receiver.on_data(self, self._pieces.pop())
        self._schedule()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            if self._handle is None:
                self._schedule()

    def cancel(self) -> None:
        self._receiver = None
        if self._source is not None:
            self._source.cancel()
            self._source = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
