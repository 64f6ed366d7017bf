"""usage of the responses endpoint: the same numbers under other names; nonsense becomes None."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.accounting.usage import MOST_TOKENS, Usage, parse_responses_usage


def parse(**fields: Any) -> Usage | None:
    return parse_responses_usage(msgspec.json.encode(fields))


def test_openai_reports_every_part() -> None:
    raw = b"""{"input_tokens": 1200, "output_tokens": 300, "total_tokens": 1500,
        "input_tokens_details": {"cached_tokens": 1000, "cache_write_tokens": 50, "audio_tokens": 7},
        "output_tokens_details": {"reasoning_tokens": 192, "audio_tokens": 3}}"""
    assert parse_responses_usage(raw, "flex") == Usage(1200, 300, 1000, 50, 192, 7, 3, "reported", "flex")


def test_the_tier_is_text_or_nothing() -> None:
    assert parse_responses_usage(b'{"input_tokens": 1, "output_tokens": 2}', 5) == Usage(1, 2)


def test_images_tell_text_from_pixels_and_their_sum_is_what_counts() -> None:
    details = {"text_tokens": 10, "image_tokens": 40}
    assert parse(input_tokens=50, output_tokens=4160, total_tokens=4210, input_tokens_details=details) == Usage(
        50, 4160
    )


def test_an_input_alone_is_a_report() -> None:
    assert parse(input_tokens=5) == Usage(5)


def test_an_explicit_zero_is_a_report() -> None:
    assert parse(input_tokens=0, output_tokens=0) == Usage(0, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"output_tokens": 5},
        {"input_tokens": -1, "output_tokens": 1},
        {"input_tokens": "5", "output_tokens": 1},
        {"input_tokens": 5, "output_tokens": "1"},
        {"input_tokens": MOST_TOKENS + 1, "output_tokens": 1},
        {"prompt_tokens": 5, "completion_tokens": 1},
        {"type": "duration", "seconds": 3},
    ],
)
def test_totals_that_make_no_sense_are_no_usage(fields: dict[str, Any]) -> None:
    assert parse(**fields) is None


@pytest.mark.parametrize("raw", [b"null", b"5", b"[]", b'"x"', b"{", b"[" * 100_000])
def test_what_is_no_object_is_no_usage(raw: bytes) -> None:
    assert parse_responses_usage(raw) is None


@pytest.mark.parametrize("details", [None, 5, [], "x", {"cached_tokens": "many"}])
def test_odd_details_do_not_cost_the_report(details: object) -> None:
    assert parse(input_tokens=5, output_tokens=2, input_tokens_details=details, output_tokens_details=details) == Usage(
        5, 2
    )


counts = st.integers(0, 2000) | st.floats(0, 2000) | st.integers(-5, -1) | st.text(max_size=2) | st.none()


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("input_tokens", "output_tokens"), counts)), counts, counts)
def test_a_part_is_never_more_than_its_whole(totals: dict[str, Any], part: Any, other: Any) -> None:
    ins = {"cached_tokens": part, "cache_write_tokens": other, "audio_tokens": part}
    outs = {"reasoning_tokens": part, "audio_tokens": other}
    usage = parse(**totals, input_tokens_details=ins, output_tokens_details=outs)
    if usage is not None:
        assert usage.cached_tokens + usage.cache_write_tokens <= usage.prompt_tokens
        assert usage.audio_input_tokens <= usage.prompt_tokens
        assert max(usage.reasoning_tokens, usage.audio_output_tokens) <= usage.completion_tokens
