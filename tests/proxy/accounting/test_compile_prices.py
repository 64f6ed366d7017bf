"""compile_prices: the flat table says what genai-prices says, for every model of it, at every time and for every usage.

Where the two differ, the difference is one of four that are meant, and each is named here.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import genai_prices
import msgspec
import pytest
from genai_prices import types as genai
from genai_prices.data import providers

from headgate.proxy.accounting.compile_prices import _hours, _match, compile_table, main
from headgate.proxy.accounting.price_lookup import FlatTable, PriceTable
from headgate.proxy.accounting.usage import Usage

if TYPE_CHECKING:
    from pathlib import Path

TIMES = [
    datetime(2024, 1, 1, 12, tzinfo=UTC),
    datetime(2026, 2, 1, 17, tzinfo=UTC),  # inside DeepSeek's cheap hours, when there were any
    datetime(2026, 11, 20, 9, tzinfo=UTC),
]
USAGES = [
    Usage(1000, 0),
    Usage(0, 77),
    Usage(5000, 900, 1000, 500, 300),
    Usage(5000, 900, 0, 0, 300, 700, 40),
    Usage(5000, 900, 100, 0, 0, 700, 40),
    Usage(200_000, 10, 7),
    Usage(200_001, 10, 7),
    Usage(999_999, 10, 100_000, 100_000),
    Usage(5000, 900, 1000, service_tier="priority"),
    Usage(5000, 900, 1000, 500, service_tier="flex"),
    Usage(272_001, 900, 1000, 500, service_tier="batch"),
]
KEYS = {
    "prompt_tokens": "input_tokens",
    "completion_tokens": "output_tokens",
    "cached_tokens": "cache_read_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "reasoning_tokens": "output_reasoning_tokens",
    "audio_input_tokens": "input_audio_tokens",
    "audio_output_tokens": "output_audio_tokens",
}


@pytest.fixture(scope="module")
def flat() -> FlatTable:
    return compile_table()


def theirs(provider: genai.Provider, model: genai.ModelInfo, usage: Usage, at: datetime) -> float | str:
    reported = genai.Usage(**{key: count for name, key in KEYS.items() if (count := getattr(usage, name))})
    try:
        price = model.calc_price(reported, provider, genai_request_timestamp=at, price_context=context(usage))
    except ValueError as error:
        return str(error)
    return float(price.total_price)


def context(usage: Usage) -> dict[str, str] | None:
    if usage.service_tier == "batch":
        return {"processing": "batch"}
    return {"service_tier": usage.service_tier} if usage.service_tier else None


def reason(model: genai.ModelInfo, usage: Usage, at: datetime, want: float | str) -> str:
    """Why the two may differ here."""
    prices = model.get_prices(at, context(usage))
    if not prices.__dict__:
        return "no price at all is 0 there and unknown here"
    if prices.input_mtok is None:
        return "tokens of a model that is sold by the hour, page or character are free there and unknown here"
    if prices.output_mtok is None and usage.completion_tokens:
        return "completions of a model without a price for them are free there and unknown here"
    if isinstance(want, str) and "cache_audio_read_tokens" in want:
        return "the share of audio in the cached tokens must be known there and is taken to be the least here"
    return f"unexplained: {want}"


def test_every_model_costs_the_same_at_every_time(flat: FlatTable) -> None:
    at = TIMES[0]
    table = PriceTable(flat, wall=lambda: at.timestamp())
    compared, differences = 0, Counter[str]()
    for at, (vendor, provider) in itertools.product(TIMES, zip(flat.vendors, providers, strict=True)):
        for entry, model in zip(table._models_of(vendor), provider.models, strict=True):
            price, _ = table._price(vendor, entry, "host")
            for usage in USAGES:
                want = theirs(provider, model, usage, at)
                got = price.cost(usage) if price is not None else None
                compared += 1
                if not isinstance(want, str) and got is not None:
                    assert got == pytest.approx(want, rel=1e-9, abs=0), (provider.id, model.id, usage, at)
                else:
                    differences[reason(model, usage, at, want)] += 1
    assert compared == len(TIMES) * len(USAGES) * sum(len(provider.models) for provider in providers)
    assert not [why for why in differences if why.startswith("unexplained")], differences
    assert differences.total() < compared * 0.07


def test_every_name_finds_the_same_entry(flat: FlatTable) -> None:
    table = PriceTable(flat, wall=lambda: 0.0)
    for vendor, provider in zip(flat.vendors, providers, strict=True):
        for name in (model.id for model in provider.models):
            theirs_, ours = provider.find_model(name, all_providers=providers), table._model(vendor, name)
            assert (theirs_.id if theirs_ else None) == (ours.id if ours else None), (vendor.id, name)


def test_what_costs_nothing_by_name_costs_nothing(flat: FlatTable) -> None:
    table = PriceTable(flat, wall=lambda: 0.0)
    price = table.lookup("", "", price_as="openrouter/openai/gpt-oss-120b:free")
    assert price is not None
    assert price.cost(Usage(5, 5)) == 0.0


def test_hosts_and_names_find_what_they_find_there(flat: FlatTable) -> None:
    table = PriceTable(flat, wall=lambda: TIMES[-1].timestamp())
    for url, model in [
        ("https://api.openai.com/v1", "gpt-4o-2024-08-06"),
        ("https://api.openai.com/v1", "GPT-4o"),
        ("https://api.groq.com/openai/v1", "llama-3.3-70b-versatile"),
        ("https://openrouter.ai/api/v1", "anthropic/claude-sonnet-4.5"),
        ("https://router.huggingface.co/groq/openai/v1", "openai/gpt-oss-120b"),
        ("https://mine.openai.azure.com/openai/v1", "gpt-4o"),
        ("https://api.deepseek.com", "deepseek-chat"),
        ("https://api.openai.com/v1", "gpt-5.2-20251211"),
    ]:
        want = genai_prices.calc_price(
            genai.Usage(input_tokens=1000, output_tokens=100),
            model,
            provider_api_url=url,
            genai_request_timestamp=TIMES[-1],
        )
        price = table.lookup(url, model)
        assert price is not None
        assert price.source == "host"
        assert price.cost(Usage(1000, 100)) == pytest.approx(float(want.total_price), rel=1e-9, abs=0)


def test_the_flat_table_survives_its_file_format(flat: FlatTable) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(flat), type=FlatTable) == flat


@pytest.mark.parametrize(
    ("clause", "yes", "no"),
    [
        (genai.ClauseEquals("GPT-4"), "gpt-4", "gpt-4o"),
        (genai.ClauseStartsWith("GPT-"), "gpt-4", "xgpt-4"),
        (genai.ClauseEndsWith("-Mini"), "gpt-mini", "gpt-mini-2"),
        (genai.ClauseContains("Turbo"), "gpt-turbo-2", "gpt-tubro"),
        (genai.ClauseRegex(r"^o\d$"), "o3", "o3-mini"),
        (genai.ClauseAnd([genai.ClauseStartsWith("a"), genai.ClauseEndsWith("z")]), "a-z", "a-y"),
        (genai.ClauseOr([genai.ClauseEquals("a"), genai.ClauseContains("bb")]), "xbbx", "ab"),
        (
            genai.ClauseOr(
                [genai.ClauseOr([genai.ClauseEquals("a"), genai.ClauseRegex("^b")]), genai.ClauseEquals("c")]
            ),
            "c",
            "d",
        ),
    ],
)
def test_every_kind_of_matcher_is_understood(clause: Any, yes: str, no: str) -> None:
    match = _match(clause)
    assert match(yes) is clause.is_match(yes) is True
    assert match(no) is clause.is_match(no) is False


def test_a_matcher_of_a_later_version_is_named() -> None:
    with pytest.raises(TypeError, match=r"genai-prices [\d.]+ matches models by 'glob', which this version cannot"):
        _match("glob")


def test_hours_are_seconds_of_the_utc_day() -> None:
    from datetime import time, timedelta, timezone

    utc = genai.TimeOfDateConstraint(time(16, 30, tzinfo=UTC), time(0, 30, tzinfo=UTC))
    assert _hours(utc) == (16 * 3600 + 1800, 1800)
    abroad = timezone(timedelta(hours=8))
    assert _hours(genai.TimeOfDateConstraint(time(2, tzinfo=abroad), time(9))) == (18 * 3600, 9 * 3600)


def test_the_command_writes_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "prices.msgpack"
    monkeypatch.setattr(sys, "argv", ["compile_prices", str(out)])
    main()
    assert out.stat().st_size > 100_000
    assert list(tmp_path.iterdir()) == [out]
    monkeypatch.setattr(sys, "argv", ["compile_prices"])
    with pytest.raises(SystemExit, match="usage: compile_prices OUT"):
        main()
