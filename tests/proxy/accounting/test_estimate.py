"""estimate: text counts by its bytes, images and files by the piece, and a model's ratio is learned from its
reports."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.accounting.estimate import (
    AUDIO_TOKENS,
    FILE_TOKENS,
    IMAGE_TOKENS,
    MESSAGE_TOKENS,
    MOST_MODELS,
    Estimator,
    PromptEstimate,
    delivered_tokens,
    measure_prompt,
)


def chat(*contents: Any, **fields: Any) -> bytes:
    messages = [{"role": "user", "content": content} for content in contents]
    return msgspec.json.encode({"model": "m", "messages": messages, **fields})


def test_text_is_a_quarter_of_its_bytes_and_a_little_for_each_message() -> None:
    assert measure_prompt(chat("x" * 400, "y" * 40)) == 110 + 2 * MESSAGE_TOKENS
    assert measure_prompt(chat("ü" * 400)) == 200 + MESSAGE_TOKENS
    assert measure_prompt(chat("a")) == 1 + MESSAGE_TOKENS


def test_parts_count_text_by_bytes_and_the_rest_flat() -> None:
    content = [
        {"type": "text", "text": "x" * 40},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "file", "file": {"file_id": "f"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "hologram", "data": "…"},
    ]
    assert measure_prompt(chat(content)) == 10 + IMAGE_TOKENS + FILE_TOKENS + AUDIO_TOKENS + MESSAGE_TOKENS


def test_a_data_url_never_counts_by_its_bytes() -> None:
    url = "data:image/png;base64," + "A" * 1_000_000
    content = [{"type": "image_url", "image_url": {"url": url}}]
    assert measure_prompt(chat(content)) == IMAGE_TOKENS + MESSAGE_TOKENS
    assert measure_prompt(msgspec.json.encode({"input": [url, "x" * 40]})) == FILE_TOKENS + 10


def test_tools_and_tool_calls_count_as_the_text_they_are() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "{}"}}]}
    extra = len(msgspec.json.encode(tools)) + len(msgspec.json.encode(call["tool_calls"]))
    body = msgspec.json.encode({"messages": [call], "tools": tools})
    assert measure_prompt(body) == -(-extra // 4) + MESSAGE_TOKENS


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b"", 0),
        (b"[]", 0),
        (b"\xff" * 40, 10),
        (b'{"messages": [{"content": {"text": "12345678"}}]}', 2),
        (b'{"messages": "12345678"}', 2),
        (b'{"prompt": ["1234", "5678"], "n": 3}', 2),
        (b"[" * 4000, 1000),
    ],
)
def test_what_is_no_chat_is_counted_by_its_strings(body: bytes, tokens: int) -> None:
    assert measure_prompt(body) == tokens


@given(st.binary(max_size=300) | st.text().map(chat))
def test_any_body_has_an_estimate_no_larger_than_its_bytes_allow(body: bytes) -> None:
    assert 0 <= measure_prompt(body) <= len(body) + MESSAGE_TOKENS


def test_a_model_nobody_reported_about_has_ratio_one() -> None:
    assert Estimator().estimate_prompt("m", chat("x" * 400)) == PromptEstimate(104, 104)


def test_the_ratio_of_a_model_is_learned_and_no_other_model_learns_it() -> None:
    estimator = Estimator()
    body = chat("x" * 4000)
    for _ in range(200):
        estimate = estimator.estimate_prompt("dense", body)
        estimator.observe("dense", estimate, 2 * estimate.raw)
    assert estimator.ratio("dense") == pytest.approx(2, rel=0.01)
    assert estimator.estimate_prompt("dense", body).tokens == pytest.approx(2 * measure_prompt(body), rel=0.01)
    assert estimator.estimate_prompt("other", body).tokens == measure_prompt(body)


def test_many_calls_under_way_do_not_make_the_ratio_swing() -> None:
    """All of them were estimated at the old ratio when the first report comes."""
    estimator = Estimator()
    estimates = [estimator.estimate_prompt("m", chat("x" * 4000)) for _ in range(500)]
    for estimate in estimates:
        estimator.observe("m", estimate, 2 * estimate.raw)
        assert estimator.ratio("m") <= 2
    assert estimator.ratio("m") == pytest.approx(2, rel=0.01)


def test_one_absurd_report_moves_little() -> None:
    estimator = Estimator()
    estimate = estimator.estimate_prompt("m", chat("x" * 400))
    estimator.observe("m", estimate, 10**9)
    assert estimator.ratio("m") < 1.4
    estimator.observe("m", estimate, 0)
    estimator.observe("m", PromptEstimate(0, 0), 100)
    assert estimator.ratio("m") < 1.4


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**12)), max_size=60))
def test_the_ratio_stays_within_its_bounds(reports: list[tuple[int, int]]) -> None:
    estimator = Estimator()
    for raw, reported in reports:
        estimator.observe("m", PromptEstimate(raw, raw), reported)
        assert 0.25 <= estimator.ratio("m") <= 4


def test_the_models_it_remembers_are_bounded() -> None:
    estimator = Estimator()
    for number in range(MOST_MODELS + 10):
        estimator.observe(f"m{number}", PromptEstimate(1000, 1000), 4000)
    assert estimator.ratio("m0") == 1
    assert estimator.ratio(f"m{MOST_MODELS + 9}") > 1


def test_the_model_that_nobody_has_reported_about_for_longest_is_forgotten_first() -> None:
    estimator = Estimator()
    for number in range(MOST_MODELS):
        estimator.observe(f"m{number}", PromptEstimate(1000, 1000), 4000)
    estimator.observe("m0", PromptEstimate(1000, 1000), 4000)
    estimator.observe("one more", PromptEstimate(1000, 1000), 4000)
    assert estimator.ratio("m1") == 1
    assert estimator.ratio("m0") > estimator.ratio("m2") > 1


@given(st.lists(st.tuples(st.integers(-1, 10**7), st.integers(-1, 10**12)), max_size=60))
def test_the_ratio_is_the_quotient_of_two_sums_that_fade(reports: list[tuple[int, int]]) -> None:
    estimator = Estimator()
    raw = seen = 1000.0
    for estimated, reported in reports:
        estimator.observe("m", PromptEstimate(estimated, estimated), reported)
        if estimated > 0 and reported > 0:
            raw = raw * 0.966 + estimated
            seen = seen * 0.966 + min(4.0 * estimated, max(0.25 * estimated, reported))
        assert estimator.ratio("m") == min(4.0, max(0.25, seen / raw))


@given(st.integers(0, 10**7), st.integers(0, 10**5))
def test_nobody_is_charged_less_than_what_was_delivered(text_bytes: int, events: int) -> None:
    tokens = delivered_tokens(text_bytes, events)
    assert tokens * 4 >= text_bytes
    assert tokens >= events
    assert delivered_tokens(text_bytes + 1, events) >= tokens
