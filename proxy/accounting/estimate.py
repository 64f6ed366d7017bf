"""What a call will use, before anybody knows: for admission, and for an answer whose client left.

Prompt tokens are the bytes of its text over four, times a ratio learned per model from what providers reported. The
ratio is the quotient of two decaying sums, so a long prompt weighs more than a greeting and one odd answer moves
little; it is learned from the *raw* estimate, which the answer carries along, because a ratio that corrects itself
would swing when many calls are under way. Images and files count flat per part, and a data URL is never looked at.

No tokeniser: it would cost more than the rest of the request, and the report of the provider settles the account
anyway. An estimate is marked as one on the record.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

BYTES_PER_TOKEN: Final = 4
# Role and separators of a message, as OpenAI counts them.
MESSAGE_TOKENS: Final = 4
# A 1024 x 1024 image in high detail is 765 tokens at OpenAI, 1 400 at Anthropic; a page of a PDF is about as much.
IMAGE_TOKENS: Final = 1000
FILE_TOKENS: Final = 2000
AUDIO_TOKENS: Final = 500
ASSUME_OUTPUT_TOKENS: Final = 1024
# Models whose ratio is kept, the longest unused forgotten first; names may come from clients.
MOST_MODELS: Final = 1024
# The sums fade to half in about 20 answers; the prior is one prompt of 1 000 tokens at ratio 1.
_KEEP: Final = 0.966
_PRIOR: Final = (1000.0, 1000.0)
# Bounds of the ratio, held by every report. Powers of two, so that no rounding of the sums leads out of them.
_LOWEST: Final = 0.25
_HIGHEST: Final = 4.0
_MESSAGE_BYTES: Final = MESSAGE_TOKENS * BYTES_PER_TOKEN

_PART_TOKENS: Final = {
    "image_url": IMAGE_TOKENS,
    "input_image": IMAGE_TOKENS,
    "image": IMAGE_TOKENS,
    "file": FILE_TOKENS,
    "input_file": FILE_TOKENS,
    "document": FILE_TOKENS,
    "input_audio": AUDIO_TOKENS,
}


class PromptEstimate(msgspec.Struct, frozen=True, gc=False):
    """`tokens` is the estimate; `raw` is the same before the model's ratio, which `observe` wants back."""

    tokens: int
    raw: int


_ABSENT: Final = msgspec.Raw()


class _Part(msgspec.Struct, gc=False):
    type: str = "text"
    text: str | None = None


class _Message(msgspec.Struct, gc=False):
    content: str | list[_Part] | None = None
    tool_calls: msgspec.Raw = _ABSENT


class _Chat(msgspec.Struct, gc=False):
    messages: list[_Message]
    tools: msgspec.Raw = _ABSENT
    functions: msgspec.Raw = _ABSENT
    response_format: msgspec.Raw = _ABSENT


_decode_chat = msgspec.json.Decoder(_Chat).decode
_decode_any = msgspec.json.Decoder().decode


class Estimator:
    """Estimates prompts and learns from reports. One for a process; it holds at most MOST_MODELS pairs of numbers.

    `assume_output_tokens` are set aside for each answer that has no limit."""

    __slots__ = ("_sums", "assume_output_tokens")

    def __init__(self, assume_output_tokens: int = ASSUME_OUTPUT_TOKENS) -> None:
        self.assume_output_tokens = assume_output_tokens
        self._sums: dict[str, tuple[float, float]] = {}  # raw, reported; in the order of their last reports

    def estimate_prompt(self, model: str, body: bytes) -> PromptEstimate:
        """Prompt tokens of a chat body. Never raises: a body that is no chat is counted by its strings."""
        raw = measure_prompt(body)
        measured, reported = self._sums.get(model, _PRIOR)
        return PromptEstimate(ceil(raw * (reported / measured)), raw)

    def ratio(self, model: str) -> float:
        """Reported over raw tokens, as learned for the model; 1 for an unknown one."""
        measured, reported = self._sums.get(model, _PRIOR)
        return reported / measured

    def observe(self, model: str, estimated: PromptEstimate, reported: float) -> None:
        """Learn from one provider's report of a prompt."""
        raw = estimated.raw
        if not _LOWEST * raw < reported < _HIGHEST * raw:
            if raw <= 0 or reported <= 0:
                return
            # One report may move the sums by no more than the bounds of the ratio allow.
            reported = min(_HIGHEST * raw, max(_LOWEST * raw, reported))
        sums = self._sums
        known = sums.pop(model, None)
        before, seen = known or self._begin()
        sums[model] = (before * _KEEP + raw, seen * _KEEP + reported)

    def _begin(self) -> tuple[float, float]:
        """For one more model: with room for it."""
        if len(self._sums) >= MOST_MODELS:
            del self._sums[next(iter(self._sums))]
        return _PRIOR


def delivered_tokens(text_bytes: int, events: int = 0) -> int:
    """Tokens of an answer that was cut short, rounded up: nobody may be charged for less than what was delivered.

    `events` are the streamed events with content; a provider sends at least one token in each.
    """
    return max(-(-text_bytes // BYTES_PER_TOKEN), events)


def measure_prompt(body: bytes) -> int:
    """Raw prompt tokens of a chat body, rounded up."""
    try:
        chat = _decode_chat(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _measure_any(body)
    text = 0  # and what counts flat, in bytes like it
    for message in chat.messages:
        content = message.content
        if isinstance(content, str):
            text += _MESSAGE_BYTES + (len(content) if content.isascii() else len(content.encode()))
        else:
            text += _MESSAGE_BYTES + _measure_parts(content or ())
        if message.tool_calls:
            text += len(message.tool_calls)
    if chat.tools or chat.functions or chat.response_format:
        text += len(chat.tools) + len(chat.functions) + len(chat.response_format)
    return -(-text // BYTES_PER_TOKEN)


def _measure_parts(parts: Iterable[_Part]) -> int:
    """In bytes, what counts flat included."""
    text = flat = 0
    for part in parts:
        if part.text is not None:
            text += len(part.text.encode())
        else:
            flat += _PART_TOKENS.get(part.type, 0)
    return text + flat * BYTES_PER_TOKEN


def _measure_any(body: bytes) -> int:
    """For a body that is not shaped like a chat: the text of all its strings, whatever they are called."""
    try:
        found: list[Any] = [_decode_any(body)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return -(-len(body) // BYTES_PER_TOKEN)
    text = flat = 0
    while found:
        value = found.pop()
        if isinstance(value, str):
            if value[:5].lower() == "data:":
                flat += FILE_TOKENS
            else:
                text += len(value.encode())
        elif isinstance(value, list):
            found.extend(value)
        elif isinstance(value, dict):
            found.extend(value.values())
    return flat - (-text // BYTES_PER_TOKEN)
