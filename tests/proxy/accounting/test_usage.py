"""usage: every spelling of a usage object that was seen in the wild becomes the same numbers; nonsense becomes None."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.accounting.usage import MOST_TOKENS, Usage, parse_chat_usage

COUNTS = st.integers(-2, 30) | st.sampled_from([None, 2.5, "3", MOST_TOKENS, MOST_TOKENS + 1])


def parse(**fields: Any) -> Usage | None:
    return parse_chat_usage(msgspec.json.encode(fields))


def test_openai_reports_every_part() -> None:
    raw = b"""{"prompt_tokens": 1200, "completion_tokens": 300, "total_tokens": 1500, "service_tier": "flex",
        "prompt_tokens_details": {"cached_tokens": 1000, "audio_tokens": 7, "cache_write_tokens": 50},
        "completion_tokens_details": {"reasoning_tokens": 192, "audio_tokens": 3, "accepted_prediction_tokens": 0}}"""
    assert parse_chat_usage(raw) == Usage(1200, 300, 1000, 50, 192, 7, 3, "reported", "flex")


def test_a_raw_slice_of_an_answer_is_taken_as_it_is() -> None:
    assert parse_chat_usage(msgspec.Raw(b'{"prompt_tokens": 1, "completion_tokens": 2}')) == Usage(1, 2)


@pytest.mark.parametrize(
    ("fields", "part", "count"),
    [
        ({"prompt_cache_hit_tokens": 64, "prompt_cache_miss_tokens": 36}, "cached_tokens", 64),  # DeepSeek
        ({"prompt_tokens_details": {"cached_tokens": 0}, "prompt_cache_hit_tokens": 64}, "cached_tokens", 64),
        ({"cached_tokens": 9}, "cached_tokens", 9),  # Moonshot
        ({"cache_read_input_tokens": 9}, "cached_tokens", 9),  # Databricks
        ({"cache_creation_input_tokens": 8}, "cache_write_tokens", 8),
        ({"cache_write_tokens": 8}, "cache_write_tokens", 8),
        ({"prompt_tokens_details": {"cache_write_tokens": 8}}, "cache_write_tokens", 8),  # OpenRouter
        ({"reasoning_tokens": 7}, "reasoning_tokens", 7),  # Modal
    ],
)
def test_parts_are_found_under_every_name(fields: dict[str, Any], part: str, count: int) -> None:
    usage = parse(prompt_tokens=100, completion_tokens=10, **fields)
    assert getattr(usage, part) == count


def test_reasoning_that_only_the_total_holds_is_completion() -> None:
    """Gemini's compatible endpoint: 66 + 6 is not 100, and the other 28 are billed as output."""
    assert parse(prompt_tokens=66, completion_tokens=6, total_tokens=100) == Usage(66, 34, reasoning_tokens=28)


def test_reasoning_reported_beside_the_completion_is_added_to_it() -> None:
    """xAI: completion_tokens is without reasoning, total_tokens is with it."""
    details = {"reasoning_tokens": 300}
    usage = parse(prompt_tokens=10, completion_tokens=9, total_tokens=319, completion_tokens_details=details)
    assert usage == Usage(10, 309, reasoning_tokens=300)


def test_a_total_that_nothing_explains_changes_nothing() -> None:
    details = {"reasoning_tokens": 3}
    usage = parse(prompt_tokens=10, completion_tokens=9, total_tokens=319, completion_tokens_details=details)
    assert usage == Usage(10, 9, reasoning_tokens=3)


def test_parts_never_exceed_their_whole() -> None:
    usage = parse(
        prompt_tokens=10,
        completion_tokens=10,
        prompt_tokens_details={"cached_tokens": 8, "cache_write_tokens": 8, "audio_tokens": 11},
        completion_tokens_details={"reasoning_tokens": 11, "audio_tokens": 12},
    )
    assert usage == Usage(10, 10, 8, 2, 10, 10, 10)


def test_embeddings_report_the_prompt_alone() -> None:
    assert parse(prompt_tokens=7, total_tokens=7) == Usage(7, 0)
    assert parse(prompt_tokens=7) == Usage(7, 0)
    assert parse(completion_tokens=5, total_tokens=12) == Usage(7, 5)


def test_an_explicit_zero_stays_zero() -> None:
    assert parse(prompt_tokens=0, completion_tokens=0, total_tokens=0) == Usage(0, 0)


def test_nulls_are_as_good_as_absent_and_floats_are_rounded_up() -> None:
    usage = parse(
        prompt_tokens=12.0,
        completion_tokens=3.25,
        prompt_tokens_details=None,
        completion_tokens_details={"reasoning_tokens": None},
        service_tier=None,
    )
    assert usage == Usage(12, 4)


def test_an_odd_detail_costs_only_itself() -> None:
    usage = parse(
        prompt_tokens=12,
        completion_tokens=3,
        prompt_tokens_details={"cached_tokens": "many", "audio_tokens": -4},
        completion_tokens_details=[1, 2],
        service_tier=7,
        reasoning_tokens=True,
    )
    assert usage == Usage(12, 3)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"{}",
        b"[]",
        b"12",
        b'"\xff"',
        b'{"prompt_tokens": 1',
        b'{"prompt_tokens": null, "completion_tokens": null}',
        b'{"prompt_tokens": -1, "completion_tokens": 5}',
        b'{"prompt_tokens": 5, "completion_tokens": -0.5}',
        b'{"prompt_tokens": "5", "completion_tokens": 5}',
        b'{"prompt_tokens": 5, "completion_tokens": "5"}',
        b'{"prompt_tokens": true, "completion_tokens": 5}',
        b'{"prompt_tokens": 1e400, "completion_tokens": 5}',
        b'{"prompt_tokens": 1e300, "completion_tokens": 5}',
        b'{"prompt_tokens": 10000000000000, "completion_tokens": 5}',
        b'{"completion_tokens": 5}',
        b'{"completion_tokens": 5, "total_tokens": 3}',
        b'{"prompt_tokens": 5, "total_tokens": 3}',
        b'{"prompt_tokens": 1, "x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_what_is_no_count_is_no_usage(raw: bytes) -> None:
    assert parse_chat_usage(raw) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
details = st.dictionaries(
    st.sampled_from(["cached_tokens", "audio_tokens", "reasoning_tokens", "cache_write_tokens"]), json_values
)
names = [
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "prompt_cache_hit_tokens",
    "cached_tokens",
    "cache_read_input_tokens",
    "cache_write_tokens",
    "cache_creation_input_tokens",
    "reasoning_tokens",
    "service_tier",
]
counts = st.integers(0, 1000)


@given(
    st.dictionaries(st.sampled_from(names), counts | json_values),
    st.none() | details | st.dictionaries(st.sampled_from(["cached_tokens", "audio_tokens"]), counts),
    st.none() | details | st.dictionaries(st.sampled_from(["reasoning_tokens", "audio_tokens"]), counts),
)
def test_any_object_gives_consistent_counts_or_none(
    fields: dict[str, Any], ins: dict[str, Any] | None, outs: dict[str, Any] | None
) -> None:
    usage = parse(**fields, prompt_tokens_details=ins, completion_tokens_details=outs)
    if usage is None:
        return
    for name in Usage.__struct_fields__[:7]:
        assert 0 <= getattr(usage, name) <= 2 * MOST_TOKENS
    assert usage.cached_tokens + usage.cache_write_tokens <= usage.prompt_tokens
    assert usage.audio_input_tokens <= usage.prompt_tokens
    assert max(usage.reasoning_tokens, usage.audio_output_tokens) <= usage.completion_tokens


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(raw: bytes) -> None:
    parse_chat_usage(raw)


@pytest.mark.shared_data
def test_every_recorded_chat_usage_is_read() -> None:
    """Against what `json` reads: the prompt as reported, the completion with what only the total holds."""
    from tests_support.traffic import chat_rows, data_of, events

    read = 0
    for row in chat_rows():
        answers = map(data_of, events(row.body)) if row.stream else [msgspec.json.decode(row.body)]
        reports = [answer["usage"] for answer in answers if isinstance(answer, dict) and answer.get("usage")]
        for report in reports:
            usage = parse(**report)
            assert usage is not None, row
            assert usage.prompt_tokens == report["prompt_tokens"]
            assert usage.completion_tokens >= report.get("completion_tokens", 0)
            assert usage.prompt_tokens + usage.completion_tokens == report["total_tokens"]
            read += 1
    assert read > 20


@given(
    totals=st.fixed_dictionaries(dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), COUNTS)),
    ins=st.none() | st.dictionaries(st.sampled_from(["cached_tokens", "cache_write_tokens", "audio_tokens"]), COUNTS),
    outs=st.none() | st.dictionaries(st.sampled_from(["reasoning_tokens", "audio_tokens"]), COUNTS),
    sums=st.booleans(),
)
def test_a_plain_report_means_the_same_read_either_way(
    totals: dict[str, object], ins: dict[str, object] | None, outs: dict[str, object] | None, sums: bool
) -> None:
    prompt, completion = totals["prompt_tokens"], totals["completion_tokens"]
    if sums and isinstance(prompt, int) and isinstance(completion, int):
        totals["total_tokens"] = prompt + completion
    report = totals | {"prompt_tokens_details": ins, "completion_tokens_details": outs}
    assert parse(**report) == parse(**report, service_tier=None)  # no plain report has one
