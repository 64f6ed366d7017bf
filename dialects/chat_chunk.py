"""An answer of a chat, whole or a chunk of a stream: the few fields that matter, decoded in 0.3 µs.

Exact, where searching for substrings would be right only most of the time. Fields are of any type, because one odd
value must not hide the others.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..proxy.accounting.usage import Usage, parse_chat_usage

ABSENT = msgspec.Raw(b"null")
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What `decode_chunk` raises."""


class Delta(msgspec.Struct):
    content: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None
    audio: Any = None


class Choice(msgspec.Struct):
    index: Any = 0
    delta: Delta | None = None
    message: Delta | None = None
    text: Any = None
    finish_reason: Any = None


class Chunk(msgspec.Struct):
    choices: list[Choice] | None = None
    usage: msgspec.Raw = ABSENT
    error: Any = None
    x_groq: Any = None
    service_tier: Any = None


decode_chunk = msgspec.json.Decoder(Chunk).decode
_encode = msgspec.json.encode


def usage_of(chunk: Chunk) -> Usage | None:
    """What it reports, wherever its provider puts that."""
    raw, tier = chunk.usage, chunk.service_tier
    if raw != ABSENT:
        usage = parse_chat_usage(raw)
    elif isinstance(chunk.x_groq, dict) and "usage" in chunk.x_groq:
        usage = parse_chat_usage(_encode(chunk.x_groq["usage"]))
    else:
        return None
    if tier is not None and usage is not None and usage.service_tier is None and isinstance(tier, str):
        return msgspec.structs.replace(usage, service_tier=tier)
    return usage


def choice_bytes(choice: Choice) -> int:
    """Bytes of the text of a choice that is no delta."""
    if choice.message is not None:
        return text_bytes(choice.message)
    return len(choice.text.encode()) if isinstance(choice.text, str) else 0


def text_bytes(delta: Delta) -> int:
    """Bytes of generated text, rounded up where it is not plain text: the base of an estimate that never
    undercharges."""
    content = delta.content
    if (
        isinstance(content, str)
        and delta.tool_calls is None
        and delta.reasoning is None
        and delta.reasoning_content is None
        and delta.refusal is None
        and delta.function_call is None
    ):
        return len(content) if content.isascii() else len(content.encode())
    total = 0
    for part in (delta.content, delta.reasoning or delta.reasoning_content, delta.refusal):
        if part:
            total += (
                (len(part) if part.isascii() else len(part.encode())) if isinstance(part, str) else len(_encode(part))
            )
    for part in (delta.tool_calls, delta.function_call):
        if part:
            total += len(_encode(part))
    return total
