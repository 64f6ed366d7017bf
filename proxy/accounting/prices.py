"""What an answer costs, in USD.

A price is a set of rates, each in USD per million tokens, each with steps: the step is chosen by the whole prompt and
then holds for every token of the answer (the "cliff" that OpenAI, Anthropic and Google bill by). Usage is taken apart
so that each token is paid once, at the most special rate there is: a cached token at `cached_input` where that
exists, else as a plain prompt token.

Unknown is `None`, never 0: a model nobody priced, a usage nobody reported, tokens of a kind the price has no rate
for. Costs are doubles and never rounded: sums of a ledger stay exact to 1e-9, and `format_usd` writes them without an
exponent.

Not here: which price belongs to a model (price_lookup.py).
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import msgspec

from .usage import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

# Ascending (prompt tokens above which it holds, USD per million tokens); the first one starts at 0.
Steps = tuple[tuple[int, float], ...]


class Rates(msgspec.Struct, array_like=True, frozen=True, gc=False, omit_defaults=True):
    """One complete tariff. A missing rate falls back to the plain one of its direction; `request` is USD per call,
    `audio_hour` per hour of sound that is sent, `million_characters` per million characters that are spoken."""

    input: Steps | None = None
    output: Steps | None = None
    cached_input: Steps | None = None
    cache_write: Steps | None = None
    audio_input: Steps | None = None
    audio_output: Steps | None = None
    cached_audio: Steps | None = None
    reasoning: Steps | None = None
    request: float = 0.0
    audio_hour: float | None = None
    million_characters: float | None = None

    @classmethod
    def of(cls, rates: Mapping[str, Steps | float]) -> Rates:
        """From rates by name."""
        return msgspec.structs.replace(cls(), **rates)

    def cost(self, usage: Usage) -> float | None:
        """USD for this usage; None when it holds tokens that no rate covers."""
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        if (self.input is None and prompt) or (self.output is None and completion):
            return None
        total = 0.0
        if usage.audio_seconds:
            if self.audio_hour is None:
                return None
            total += self.audio_hour * usage.audio_seconds / 3600 * 1_000_000
        if usage.characters:
            if self.million_characters is None:
                return None
            total += self.million_characters * usage.characters
        if self.input is not None:
            plain = prompt
            cached = written = audio = 0
            if self.cached_input is not None and usage.cached_tokens:
                cached = min(usage.cached_tokens, plain)
                plain -= cached
            if self.cache_write is not None and usage.cache_write_tokens:
                written = min(usage.cache_write_tokens, plain)
                plain -= written
                total += _at(self.cache_write, prompt) * written
            if self.audio_input is not None and usage.audio_input_tokens:
                audio = min(usage.audio_input_tokens, prompt - written)
                # Nobody reports how many of the cached tokens were audio: as few as the sums allow.
                both = max(0, audio - plain)
                plain -= audio - both
                if both:
                    cached -= both
                    total += _at(self.cached_audio or self.cached_input or self.audio_input, prompt) * both
                total += _at(self.audio_input, prompt) * (audio - both)
            if cached and self.cached_input is not None:
                total += _at(self.cached_input, prompt) * cached
            total += _at(self.input, prompt) * plain
        if self.output is not None:
            plain = completion
            if self.audio_output is not None and usage.audio_output_tokens:
                audio = min(usage.audio_output_tokens, plain)
                plain -= audio
                total += _at(self.audio_output, prompt) * audio
            if self.reasoning is not None and usage.reasoning_tokens:
                reasoned = min(usage.reasoning_tokens, plain)
                plain -= reasoned
                total += _at(self.reasoning, prompt) * reasoned
            total += _at(self.output, prompt) * plain
        return total / 1_000_000 + self.request


TOKEN_RATES = Rates.__struct_fields__[:8]
"""USD per million tokens, by steps."""
OTHER_RATES = ("audio_hour", "million_characters")
RATE_NAMES = TOKEN_RATES + OTHER_RATES


class Price(msgspec.Struct, frozen=True, gc=False):
    """The price of one target at one time.

    `source` is the step of the price order that found it: `target`, `file`, `price_as`, `host` or `vendor`; `model`
    is the entry's name there. `tiers` are the tariffs of service tiers, chosen by the tier that the *answer* names:
    `priority` may have fallen back to `default`.

    Most prices have one rate for the prompt and one for the answer, whatever else they have, and most usage is a
    prompt and an answer, and nothing of it is special. Such a cost is two products; it is the same to the last bit.
    """

    rates: Rates
    source: str
    model: str
    tiers: dict[str, Rates] = {}
    context_window: int | None = None
    until: float = inf
    """Unix time from which another one may hold."""
    flat: tuple[float, float] | None = None
    """Those two, in USD per million tokens; None where there is more to a plain prompt and its answer. It goes by the
    rates and is not given."""

    def __post_init__(self) -> None:
        """Find `flat`."""
        rates, flat = self.rates, None
        if rates.input and rates.output and len(rates.input) == len(rates.output) == 1:
            special = rates.request or rates.audio_hour is not None or rates.million_characters is not None
            flat = None if special else (rates.input[0][1], rates.output[0][1])
        msgspec.structs.force_setattr(self, "flat", flat)

    def cost(self, usage: Usage) -> float | None:
        """USD of an answer, unrounded; None when it cannot be known."""
        flat, prompt, completion = self.flat, usage.prompt_tokens, usage.completion_tokens
        if flat is not None and usage == Usage(prompt, completion):
            of_input, of_output = flat
            return (of_input * prompt + of_output * completion) / 1_000_000
        if usage.source == "none":
            return None
        if usage.service_tier is not None and self.tiers:
            return self.tiers.get(usage.service_tier, self.rates).cost(usage)
        return self.rates.cost(usage)


def own_price(rates: Mapping[str, float], source: str = "target", model: str = "") -> Price:
    """The price an operator wrote: `{input, output, cached_input, cache_write, …}` in USD per million tokens, or
    `audio_hour` and `million_characters`.

    Raises ValueError that names the key and what is wrong with it.
    """
    found: dict[str, Steps | float] = {}
    for name, value in rates.items():
        if name not in RATE_NAMES:
            raise ValueError(f"unknown rate {name!r}, expected one of {', '.join(RATE_NAMES)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ValueError(f"{name}: expected USD per million tokens, a number from 0 up, got {value!r}")
        found[name] = ((0, float(value)),) if name in TOKEN_RATES else float(value)
    if found.keys().isdisjoint(("input", "output", *OTHER_RATES)):
        raise ValueError("neither input nor output has a rate")
    return Price(Rates.of(found), source, model)


def format_usd(cost: float) -> str:
    """USD as plain decimals for a header: no exponent, at most 12 decimals, no trailing zeros."""
    text = f"{cost:.12f}".rstrip("0").rstrip(".")
    return text or "0"


def _at(steps: Steps, prompt: int) -> float:
    if len(steps) == 1:
        return steps[0][1]
    rate = steps[0][1]
    for start, usd in steps[1:]:
        if prompt <= start:
            break
        rate = usd
    return rate
