"""Token usage, as providers report it in OpenAI's chat shape.

Providers agree on `prompt_tokens` and `completion_tokens` and on little else. The totals always hold their parts
here: `prompt_tokens` includes cached, written and audio tokens, `completion_tokens` includes reasoning and audio, so
a price can subtract a part without asking whose usage it is. A part that claims more than its whole is cut to it
(OpenRouter was recorded with 11 reasoning tokens in 10).

A usage object whose totals make no sense (negative, text, absent) is no usage at all: the answer is `None`, and the
caller estimates. An explicit zero is a report, and stays zero.

Not here: what nobody reported (estimate.py), money (prices.py).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

Source = Literal["reported", "estimated", "none"]

# More tokens than this in one answer is a broken report; it also keeps every sum inside 64 bits.
MOST_TOKENS = 10**12
MOST_SECONDS = 10**7


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one answer. `source` tells a provider's report from our estimate; `none`: nothing is known."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0
    source: Source = "reported"
    service_tier: str | None = None
    audio_seconds: float = 0.0
    """Of sound that was sent, where that is what counts instead of tokens."""
    characters: int = 0
    """Of text that was spoken, where that is what counts."""


NO_USAGE = Usage(source="none")


class _Wire(msgspec.Struct, gc=False):
    """Every spelling seen in recorded traffic. `Any`: one odd value must not cost the whole report."""

    prompt_tokens: Any = None
    completion_tokens: Any = None
    total_tokens: Any = None
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None
    service_tier: Any = None
    prompt_cache_hit_tokens: Any = None  # DeepSeek
    cached_tokens: Any = None  # Moonshot, and Anthropic's chat endpoint
    cache_read_input_tokens: Any = None  # Databricks, and proxies in front of Anthropic
    cache_write_tokens: Any = None
    cache_creation_input_tokens: Any = None
    reasoning_tokens: Any = None  # Databricks, Modal


class _PlainDetails(msgspec.Struct, gc=False):
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    audio_tokens: int = 0


_NO_DETAILS = _PlainDetails()


_Count = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]


class _PlainWire(msgspec.Struct, gc=False):
    """OpenAI's own spelling, complete; any other is for `_Wire`."""

    prompt_tokens: _Count
    completion_tokens: _Count
    total_tokens: _Count
    prompt_tokens_details: _PlainDetails | None = None
    completion_tokens_details: _PlainDetails | None = None
    service_tier: msgspec.UnsetType = msgspec.UNSET
    prompt_cache_hit_tokens: msgspec.UnsetType = msgspec.UNSET
    cached_tokens: msgspec.UnsetType = msgspec.UNSET
    cache_read_input_tokens: msgspec.UnsetType = msgspec.UNSET
    cache_write_tokens: msgspec.UnsetType = msgspec.UNSET
    cache_creation_input_tokens: msgspec.UnsetType = msgspec.UNSET
    reasoning_tokens: msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Wire).decode
_decode_plain = msgspec.json.Decoder(_PlainWire).decode


def parse_chat_usage(raw: bytes | msgspec.Raw) -> Usage | None:
    """The usage object of a chat answer (the value of its `usage` key); None when it holds no usable count."""
    return _read_plain(raw) or _read_any(raw)


def _read_plain(raw: bytes | msgspec.Raw) -> Usage | None:
    """A report in OpenAI's own spelling whose parts fit their totals: nothing of it has to be weighed."""
    try:
        wire = _decode_plain(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    prompt, completion = wire.prompt_tokens, wire.completion_tokens
    if wire.total_tokens != prompt + completion:
        return None
    ins, outs = wire.prompt_tokens_details, wire.completion_tokens_details
    if (ins is None or ins == _NO_DETAILS) and (outs is None or outs == _NO_DETAILS):
        return Usage(prompt, completion)
    return _with_details(prompt, completion, ins or _NO_DETAILS, outs or _NO_DETAILS)


def _with_details(prompt: int, completion: int, ins: _PlainDetails, outs: _PlainDetails) -> Usage | None:
    """None where a part does not fit its total."""
    cached, written, reasoning = ins.cached_tokens, ins.cache_write_tokens, outs.reasoning_tokens
    if (
        0 <= cached <= cached + written <= prompt
        and 0 <= reasoning <= completion
        and 0 <= ins.audio_tokens <= prompt
        and 0 <= outs.audio_tokens <= completion
    ):
        return Usage(prompt, completion, cached, written, reasoning, ins.audio_tokens, outs.audio_tokens)
    return None


def _read_any(raw: bytes | msgspec.Raw) -> Usage | None:
    try:
        wire = _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    prompt, completion, total = _count(wire.prompt_tokens), _count(wire.completion_tokens), _count(wire.total_tokens)
    if prompt is None:
        if wire.prompt_tokens is not None or completion is None or total is None or total < completion:
            return None
        prompt = total - completion
    if completion is None:
        if wire.completion_tokens is not None or (total is not None and total < prompt):
            return None
        completion = 0 if total is None else total - prompt  # embeddings report the prompt alone
    ins = wire.prompt_tokens_details if isinstance(wire.prompt_tokens_details, dict) else {}
    outs = wire.completion_tokens_details if isinstance(wire.completion_tokens_details, dict) else {}
    reasoning = _first(outs.get("reasoning_tokens"), wire.reasoning_tokens)
    if total is not None:
        # xAI and Gemini bill reasoning beside completion_tokens: only total_tokens has it (rec). A surplus that is
        # neither all of the reported reasoning nor unexplained by any is somebody's own arithmetic, and left alone.
        hidden = total - prompt - completion
        if hidden > 0 and reasoning in (0, hidden):
            completion += hidden
            reasoning = hidden
    cached = min(
        prompt,
        _first(
            ins.get("cached_tokens"), wire.prompt_cache_hit_tokens, wire.cached_tokens, wire.cache_read_input_tokens
        ),
    )
    written = _first(ins.get("cache_write_tokens"), wire.cache_write_tokens, wire.cache_creation_input_tokens)
    tier = wire.service_tier
    return Usage(
        prompt,
        completion,
        cached,
        min(prompt - cached, written),
        min(completion, reasoning),
        min(prompt, _first(ins.get("audio_tokens"))),
        min(completion, _first(outs.get("audio_tokens"))),
        "reported",
        tier if isinstance(tier, str) else None,
    )


class _ResponsesWire(msgspec.Struct):
    """The names of the responses endpoint, which images, transcriptions and realtime sessions share."""

    input_tokens: Any = None
    output_tokens: Any = None
    input_tokens_details: Any = None
    output_tokens_details: Any = None
    input_token_details: Any = None  # transcriptions, realtime
    output_token_details: Any = None


_decode_responses = msgspec.json.Decoder(_ResponsesWire).decode


def parse_responses_usage(raw: bytes | msgspec.Raw, service_tier: object = None) -> Usage | None:
    """The usage object of OpenAI's responses endpoint and its kin; None when it holds no usable count."""
    try:
        wire = _decode_responses(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    prompt, completion = _count(wire.input_tokens), _count(wire.output_tokens)
    if prompt is None or (completion is None and wire.output_tokens is not None):
        return None
    completion = completion or 0
    ins = _details(wire.input_tokens_details, wire.input_token_details)
    outs = _details(wire.output_tokens_details, wire.output_token_details)
    cached = min(prompt, _first(ins.get("cached_tokens")))
    return Usage(
        prompt,
        completion,
        cached,
        min(prompt - cached, _first(ins.get("cache_write_tokens"))),
        min(completion, _first(outs.get("reasoning_tokens"))),
        min(prompt, _first(ins.get("audio_tokens"))),
        min(completion, _first(outs.get("audio_tokens"))),
        "reported",
        service_tier if isinstance(service_tier, str) else None,
    )


def _details(*spellings: Any) -> dict[str, Any]:
    return next((one for one in spellings if isinstance(one, dict)), {})


def add_usage(one: Usage, other: Usage) -> Usage:
    """The sum over two answers. It is an estimate where either is; the tier is the latest."""
    return Usage(
        one.prompt_tokens + other.prompt_tokens,
        one.completion_tokens + other.completion_tokens,
        one.cached_tokens + other.cached_tokens,
        one.cache_write_tokens + other.cache_write_tokens,
        one.reasoning_tokens + other.reasoning_tokens,
        one.audio_input_tokens + other.audio_input_tokens,
        one.audio_output_tokens + other.audio_output_tokens,
        "estimated" if "estimated" in (one.source, other.source) else other.source,
        other.service_tier or one.service_tier,
        one.audio_seconds + other.audio_seconds,
        one.characters + other.characters,
    )


class _DurationWire(msgspec.Struct):
    seconds: float


_decode_duration = msgspec.json.Decoder(_DurationWire).decode


def parse_duration_usage(raw: bytes | msgspec.Raw) -> Usage | None:
    """The usage object of a transcription that is charged by its sound (`{"type": "duration", "seconds": 9}`)."""
    try:
        seconds = _decode_duration(raw).seconds
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return usage_of_sound(seconds)


def usage_of_sound(seconds: float) -> Usage | None:
    """So many seconds of sound and no tokens; None for what is no duration."""
    return Usage(audio_seconds=seconds) if 0 <= seconds <= MOST_SECONDS else None


def _count(value: Any) -> int | None:
    """A token count, a float rounded up; None for what is not one."""
    if type(value) is int:
        return value if 0 <= value <= MOST_TOKENS else None
    if type(value) is float and 0 <= value <= MOST_TOKENS:
        return -int(-value // 1)
    return None


def _first(*values: Any) -> int:
    """The first usable count that is not 0: several spellings stand side by side, and some of them are always 0."""
    for value in values:
        if value and (count := _count(value)):
            return count
    return 0
