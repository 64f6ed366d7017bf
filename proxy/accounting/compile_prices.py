"""Flattens genai-prices into one file: `python -m headgate.proxy.accounting.compile_prices OUT`.

The package costs 100 MB and half a second to import, so the gateway never does: this short-lived process does it once
per version of the package, and price_table.py reads what it wrote. The file is a SHA-256 of the rest, then msgpack.

What the flat form leaves out is what a usage cannot tell: tokens of images and videos, hours of sound in both
directions at once, pages, searches, cache writes by lifetime (`cache_write` is the 5-minute rate), and contexts other
than the service tier and batch.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from datetime import UTC, datetime, time
from decimal import Decimal
from pathlib import Path

import genai_prices
import msgspec
from genai_prices import types as genai
from genai_prices.data import providers

from .price_lookup import FlatTable, Match, Model, Tariff, Vendor, pack_models
from .price_table import FORMAT
from .prices import Rates, Steps

_RATES = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cached_input": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "audio_input": "input_audio_mtok",
    "audio_output": "output_audio_mtok",
    "cached_audio": "cache_audio_read_mtok",
    "reasoning": "output_reasoning_mtok",
}
_PLAIN_RATES = {"audio_hour": "input_audio_hours", "million_characters": "input_mchars"}
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


def main() -> None:
    """Compile into the file named by the one argument."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} OUT")
    write(Path(sys.argv[1]), compile_table())


def compile_table() -> FlatTable:
    """The whole package as a flat table."""
    return FlatTable(FORMAT, genai_prices.__version__, tuple(_vendor(provider) for provider in providers))


def write(path: Path, table: FlatTable) -> None:
    """Replace `path` atomically, readable by its owner alone."""
    payload = msgspec.msgpack.encode(table)
    fd, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(hashlib.sha256(payload).digest() + payload)
        Path(unfinished).replace(path)
    except OSError:
        Path(unfinished).unlink(missing_ok=True)
        raise


def _vendor(provider: genai.Provider) -> Vendor:
    return Vendor(
        id=provider.id,
        pattern=provider.api_pattern,
        models=pack_models(_model(model) for model in provider.models),
        match=_match(provider.provider_match) if provider.provider_match else None,
        model_match=_match(provider.model_match) if provider.model_match else None,
        sells_for=tuple(provider.fallback_model_providers or ()),
    )


def _model(model: genai.ModelInfo) -> Model:
    prices = model.prices if isinstance(model.prices, list) else [genai.ConditionalPrice(prices=model.prices)]
    tariffs = []
    for price in prices:
        rates = _rates(price.prices, free=model.id.endswith(":free"))
        if rates is not None:
            tariffs.append(Tariff(rates, "", _start(price.constraint), _hours(price.constraint)))
    return Model(model.id, _match(model.match), (*tariffs, *_tiers(model, prices)), model.context_window)


def _tiers(model: genai.ModelInfo, prices: list[genai.ConditionalPrice]) -> list[Tariff]:
    """Tariffs of the service tiers: the package's own answer at each date on which anything of the model changes."""
    constraints = [item.constraint for item in (*prices, *(model.price_variants or ()))]
    if any(isinstance(constraint, genai.TimeOfDateConstraint) for constraint in constraints):
        return []
    dates = sorted({start for constraint in constraints if (start := _start(constraint)) is not None})
    tariffs: list[Tariff] = []
    for key, tier in sorted({pair for variant in model.price_variants or () for pair in variant.when.items()}):
        if key != "service_tier" and (key, tier) != ("processing", "batch"):
            continue
        before = len(tariffs)
        for start in (None, *dates):
            at = _LONG_AGO if start is None else datetime.fromtimestamp(start, UTC)
            rates = _rates(model.get_prices(at, {key: tier}))
            if rates is not None and (len(tariffs) > before or rates != _rates(model.get_prices(at))):
                tariffs.append(Tariff(rates, tier, start))
    return tariffs


def _rates(price: genai.ModelPrice, *, free: bool = False) -> Rates | None:
    rates: dict[str, Steps | float] = {
        name: _steps(value) for name, key in _RATES.items() if (value := getattr(price, key)) is not None
    }
    for name, key in _PLAIN_RATES.items():
        if isinstance(value := getattr(price, key), Decimal):
            rates[name] = float(value)
    if not rates and free:
        # The package has no numbers for these; OpenRouter defines the suffix to mean that they cost nothing.
        return Rates(input=((0, 0.0),), output=((0, 0.0),))
    if not rates:
        return None
    if isinstance(price.requests_kcount, Decimal):
        rates["request"] = float(price.requests_kcount) / 1000
    return Rates.of(rates)


def _steps(value: Decimal | genai.TieredPrices) -> Steps:
    if isinstance(value, Decimal):
        return ((0, float(value)),)
    return ((0, float(value.base)), *((tier.start, float(tier.price)) for tier in value.tiers))


def _start(constraint: object) -> int | None:
    if not isinstance(constraint, genai.StartDateConstraint):
        return None
    return int(datetime.combine(constraint.start_date, time(), UTC).timestamp())


def _hours(constraint: object) -> tuple[int, int] | None:
    if not isinstance(constraint, genai.TimeOfDateConstraint):
        return None
    return _seconds(constraint.start_time), _seconds(constraint.end_time)


def _seconds(at: time) -> int:
    offset = at.utcoffset()
    return (at.hour * 3600 + at.minute * 60 + at.second - (int(offset.total_seconds()) if offset else 0)) % 86400


def _match(clause: object) -> Match:
    match clause:
        case genai.ClauseEquals(equals):
            return Match(equals=frozenset({equals.lower()}))
        case genai.ClauseStartsWith(starts_with):
            return Match(starts=(starts_with.lower(),))
        case genai.ClauseEndsWith(ends_with):
            return Match(ends=(ends_with.lower(),))
        case genai.ClauseContains(contains):
            return Match(contains=(contains.lower(),))
        case genai.ClauseRegex(regex):
            return Match(regex=(regex,))
        case genai.ClauseAnd(clauses):
            return Match(every=(tuple(_match(inner) for inner in clauses),))
        case genai.ClauseOr(clauses):
            parts = [_match(inner) for inner in clauses]
            return Match(
                frozenset().union(*(part.equals for part in parts)),
                *(
                    tuple(dict.fromkeys(item for part in parts for item in getattr(part, name)))
                    for name in Match.__struct_fields__[1:]
                ),
            )
    raise TypeError(f"genai-prices {genai_prices.__version__} matches models by {clause!r}, which this version cannot")


if __name__ == "__main__":
    main()
