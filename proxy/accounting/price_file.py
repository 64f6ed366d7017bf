"""`prices.file`: what the operator pays, which comes before what everybody else pays.

Two shapes are read, YAML or JSON alike. Ours, in USD per million tokens:

    gpt-4o: {input: 2.5, output: 10, cached_input: 1.25}
    "llama-*": {input: 0.1, output: 0.1}
    whisper-1: {audio_hour: 0.36}                  # per hour of sound that is sent
    tts-1: {million_characters: 15}                # per million characters that are spoken

and LiteLLM's `model_prices_and_context_window.json`, in USD per token (`input_cost_per_token`, …), of which the chat
rates with their `_above_200k_tokens` steps and `_priority`, `_flex`, `_batches` tiers are taken. An entry of that
shape without a token price (images, hours) is passed over; everything else that is not understood refuses the file,
with all its problems named at once: half a price list is worse than none.

A name is a model id, exact or with `*` at its end; exact beats the longest prefix. Where the vendor of a host is
known, an entry `vendor/model` is preferred.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .prices import Price, Rates, Steps, own_price

if TYPE_CHECKING:
    import os

MOST_BYTES: Final = 32 * 1024 * 1024
_LITELLM_RATES: Final = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cached_input",
    "cache_creation_input_token_cost": "cache_write",
    "input_cost_per_audio_token": "audio_input",
    "output_cost_per_audio_token": "audio_output",
    "output_cost_per_reasoning_token": "reasoning",
}
_LITELLM_OTHERS: Final = {
    "input_cost_per_second": ("audio_hour", 3600),
    "input_cost_per_character": ("million_characters", 1_000_000),
}
_LITELLM_TIERS: Final = {"": "", "_priority": "priority", "_flex": "flex", "_batches": "batch"}
_LITELLM_KEY: Final = re.compile(
    rf"({'|'.join(_LITELLM_RATES)})(?:_above_(\d+)k_tokens)?({'|'.join(filter(None, _LITELLM_TIERS))})?"
)


class PriceFileError(ValueError):
    """The price file is refused. `problems` has one line for each thing that is wrong."""

    def __init__(self, path: str, problems: list[str]) -> None:
        super().__init__("\n".join(f"{path}: {problem}" for problem in problems))
        self.problems = problems


class PriceFile:
    """The operator's prices by model name."""

    __slots__ = ("_exact", "_prefixes")

    def __init__(self, prices: dict[str, Price]) -> None:
        self._exact = {name: price for name, price in prices.items() if not name.endswith("*")}
        prefixes = [(name[:-1], price) for name, price in prices.items() if name.endswith("*")]
        self._prefixes = sorted(prefixes, key=lambda pair: len(pair[0]), reverse=True)

    def __len__(self) -> int:
        return len(self._exact) + len(self._prefixes)

    def lookup(self, vendor: str, model: str) -> Price | None:
        """The price of `model`; `vendor` is the one its host belongs to, or empty."""
        price = self._exact.get(f"{vendor}/{model}") or self._exact.get(model)
        if price is None:
            price = next((price for prefix, price in self._prefixes if model.startswith(prefix)), None)
        return price


def read_price_file(path: str | os.PathLike[str]) -> PriceFile:
    """Read `prices.file`. Raises PriceFileError, OSError when it cannot be read."""
    place = Path(path)
    with place.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise PriceFileError(str(place), [f"larger than {MOST_BYTES // 1024 // 1024} MiB"])
    return parse_price_file(data, str(place))


def parse_price_file(data: bytes, name: str = "prices.file") -> PriceFile:
    """The same from bytes; `name` stands in front of each problem."""
    try:
        entries = _load(data)
    except ValueError as error:
        raise PriceFileError(name, [str(error)]) from error
    if not isinstance(entries, dict):
        raise PriceFileError(name, ["expected a mapping of model names to prices"])
    prices: dict[str, Price] = {}
    problems: list[str] = []
    for model, entry in entries.items():
        try:
            price = _entry(model, entry)
        except ValueError as error:
            problems.append(f"{model}: {error}")
            continue
        if price is not None:
            prices[model] = price
    if not prices and not problems:
        problems.append("holds no price")
    if problems:
        raise PriceFileError(name, problems)
    return PriceFile(prices)


def _load(data: bytes) -> Any:
    """JSON by its first character, else YAML: reading megabytes of JSON as YAML takes half a minute."""
    if data.lstrip()[:1] == b"{":
        try:
            return json.loads(data, object_pairs_hook=_unique)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        except json.JSONDecodeError:
            if len(data) > 1024 * 1024:
                raise
    return _load_yaml(data)


def _load_yaml(data: bytes) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain values only: an alias can stand for more than the memory holds, and of two equal keys one would win."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("aliases are not allowed")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            return _unique(
                [
                    (self.construct_object(key, deep=True), self.construct_object(value, deep=True))
                    for key, value in node.value
                ]
            )

    try:
        return yaml.load(data, Loader=Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from error


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} stands there twice")
        found[key] = value
    return found


def _entry(model: Any, entry: Any) -> Price | None:
    if not isinstance(model, str) or not model:
        raise ValueError("a model name must be text")
    if "*" in model[:-1]:
        raise ValueError("'*' may only stand at the end of a name")
    if not isinstance(entry, dict):
        raise ValueError(f"expected rates such as {{input: 2.5, output: 10}}, got {entry!r}")
    if any(isinstance(key, str) and ("_cost_" in key or key in {"mode", "litellm_provider"}) for key in entry):
        return _litellm(model, entry)
    return own_price(entry, "file", model)


def _litellm(model: str, entry: dict[Any, Any]) -> Price | None:
    found: dict[str, dict[str, dict[int, float]]] = {}
    for key, value in entry.items():
        parts = _LITELLM_KEY.fullmatch(str(key))
        if parts is None or value is None:
            continue
        _usd(key, value)
        rate, above, tier = _LITELLM_RATES[parts[1]], int(parts[2] or 0) * 1000, _LITELLM_TIERS[parts[3] or ""]
        found.setdefault(tier, {}).setdefault(rate, {})[above] = float(value) * 1_000_000
    standard = found.pop("", {})
    others: dict[str, Steps | float] = {}
    for key, (rate, many) in _LITELLM_OTHERS.items():
        if (value := entry.get(key)) is not None:
            others[rate] = _usd(key, value) * many
    if "input" not in standard and "output" not in standard and not others:
        return None
    window = entry.get("max_input_tokens")
    return Price(
        _rates(standard, others),
        "file",
        model,
        {tier: _rates(standard | rates) for tier, rates in found.items()},
        window if isinstance(window, int) else None,
    )


def _usd(key: Any, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{key}: expected USD per token, got {value!r}")
    return float(value)


def _rates(rates: dict[str, dict[int, float]], others: dict[str, Steps | float] | None = None) -> Rates:
    steps: dict[str, Steps | float] = dict(others or {})
    for name, by_start in rates.items():
        if 0 not in by_start:
            raise ValueError(f"{name} has a price above {min(by_start)} tokens and none below")
        steps[name] = tuple(sorted(by_start.items()))
    return Rates.of(steps)
