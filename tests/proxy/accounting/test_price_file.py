"""price_file: the operator's own prices, in our shape or LiteLLM's; a file that is not understood is refused whole."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from headgate.proxy.accounting.price_file import PriceFileError, parse_price_file, read_price_file
from headgate.proxy.accounting.usage import Usage

if TYPE_CHECKING:
    from pathlib import Path

OURS = b"""
gpt-4o: {input: 2.5, output: 10, cached_input: 1.25, cache_write: 3}
"gpt-*": {input: 1, output: 2}
"gpt-4*": {input: 3, output: 4}
openai/gpt-4o: {input: 7, output: 7}
"""
LITELLM: dict[str, Any] = {
    "sample_spec": {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0, "mode": "chat"},
    "gemini-2.5-pro": {
        "input_cost_per_token": 1.25e-06,
        "input_cost_per_token_above_200k_tokens": 2.5e-06,
        "output_cost_per_token": 1e-05,
        "output_cost_per_token_above_200k_tokens": 1.5e-05,
        "cache_read_input_token_cost": 1.25e-07,
        "input_cost_per_token_batches": 6.25e-07,
        "input_cost_per_token_priority": 2e-06,
        "output_cost_per_reasoning_token": None,
        "max_input_tokens": 1048576,
        "litellm_provider": "vertex_ai",
        "mode": "chat",
        "supports_vision": True,
    },
    "dall-e-3": {"input_cost_per_pixel": 1e-08, "litellm_provider": "openai", "mode": "image_generation"},
}


def test_a_price_by_its_model() -> None:
    price = parse_price_file(OURS).lookup("", "gpt-4o")
    assert price is not None
    assert (price.source, price.model) == ("file", "gpt-4o")
    assert price.cost(Usage(1_000_000, 1_000_000, 500_000, 100_000)) == pytest.approx(0.4 * 2.5 + 0.625 + 0.3 + 10)


@pytest.mark.parametrize(
    ("vendor", "model", "expected"),
    [
        ("", "gpt-4o", "gpt-4o"),
        ("openai", "gpt-4o", "openai/gpt-4o"),
        ("", "gpt-4o-mini", "gpt-4*"),
        ("", "gpt-5", "gpt-*"),
        ("", "o3", None),
        ("", "GPT-4o", None),
    ],
)
def test_exact_beats_the_longest_prefix(vendor: str, model: str, expected: str | None) -> None:
    price = parse_price_file(OURS).lookup(vendor, model)
    assert (price.model if price is not None else None) == expected


def test_litellms_list_is_read_in_its_own_shape() -> None:
    prices = parse_price_file(json.dumps(LITELLM).encode())
    assert len(prices) == 2
    price = prices.lookup("", "gemini-2.5-pro")
    assert price is not None
    assert price.context_window == 1048576
    assert price.cost(Usage(100_000, 1000, 10_000)) == pytest.approx(90_000 * 1.25e-6 + 10_000 * 1.25e-7 + 0.01)
    assert price.cost(Usage(300_000, 1000)) == pytest.approx(300_000 * 2.5e-6 + 0.015)
    assert price.cost(Usage(100_000, 0, service_tier="batch")) == pytest.approx(100_000 * 6.25e-7)
    assert price.cost(Usage(100_000, 0, service_tier="priority")) == pytest.approx(0.2)
    assert prices.lookup("", "dall-e-3") is None


def test_sound_by_the_hour_and_speech_by_the_character() -> None:
    ours = parse_price_file(b"whisper-1: {audio_hour: 0.36}\ntts-1: {million_characters: 15}")
    litellm = {
        "whisper-1": {"input_cost_per_second": 0.0001, "output_cost_per_second": 0.0001, "mode": "audio_transcription"},
        "tts-1": {"input_cost_per_character": 1.5e-05, "mode": "audio_speech"},
    }
    for prices in (ours, parse_price_file(json.dumps(litellm).encode())):
        sound, speech = prices.lookup("", "whisper-1"), prices.lookup("", "tts-1")
        assert sound is not None
        assert speech is not None
        assert sound.cost(Usage(audio_seconds=3600)) == pytest.approx(0.36)
        assert speech.cost(Usage(characters=1_000_000)) == pytest.approx(15)
    litellm["tts-1"]["input_cost_per_character"] = "cheap"
    with pytest.raises(PriceFileError, match="tts-1: input_cost_per_character"):
        parse_price_file(json.dumps(litellm).encode())


def test_json_and_yaml_are_the_same_to_it() -> None:
    entries = {"m": {"input": 1, "output": 2.0}}
    assert parse_price_file(json.dumps(entries).encode()).lookup("", "m") == parse_price_file(
        b"{m: {input: 1, output: 2.0}}"
    ).lookup("", "m")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "expected a mapping of model names to prices"),
        (b"- a\n- b\n", "expected a mapping of model names to prices"),
        (b"{}", "holds no price"),
        (b"m: 3\n", "m: expected rates such as {input: 2.5, output: 10}, got 3"),
        (b"m: {input: 1, outptu: 2}\n", "m: unknown rate 'outptu', expected one of input, output"),
        (b"m: {input: -1}\n", "m: input: expected USD per million tokens, a number from 0 up, got -1"),
        (b"m: {input: .nan, output: 1}\n", "m: input: expected USD per million tokens, a number from 0 up, got nan"),
        (b"g*t: {input: 1, output: 1}\n", "g*t: '*' may only stand at the end of a name"),
        (b"1: {input: 1, output: 1}\n", "1: a model name must be text"),
        (b"m: {input: 1, output: 1}\nm: {input: 2, output: 2}\n", "'m' stands there twice"),
        (b'{"m": {"input": 1, "input": 2, "output": 2}}', "'input' stands there twice"),
        (b"a: &x {input: 1, output: 1}\nb: *x\n", "aliases are not allowed"),
        (b"m: !!python/object:os.system {}\n", "not YAML: could not determine a constructor"),
        (b"m: {input: 1\n", "not YAML: while parsing a flow mapping"),
        (b"? {a: 1}\n: {input: 1}\n", "not YAML: unhashable type"),
        (b"\xff\xfe\x00", "not YAML: "),
        (b'{"m": {"input_cost_per_token": 2.5}}', "m: input_cost_per_token: expected USD per token, got 2.5"),
        (b'{"m": {"input_cost_per_token": "1e-6"}}', "m: input_cost_per_token: expected USD per token, got '1e-6'"),
        (
            b'{"m": {"input_cost_per_token_above_200k_tokens": 1e-6, "output_cost_per_token": 1e-6}}',
            "m: input has a price above 200000 tokens and none below",
        ),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "nested too deeply"),
        (b"[" * 5000, "not YAML: "),
    ],
)
def test_what_is_not_understood_is_refused_by_name(text: bytes, problem: str) -> None:
    with pytest.raises(PriceFileError) as refused:
        parse_price_file(text, "prices.yaml")
    assert refused.value.problems[0].startswith(problem)
    assert str(refused.value).startswith("prices.yaml: ")


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(PriceFileError) as refused:
        parse_price_file(b"a: 1\nb: {input: 1, output: 1}\nc: {inptu: 1}\n", "p")
    assert [problem[0] for problem in refused.value.problems] == ["a", "c"]
    assert len(str(refused.value).splitlines()) == 2


def test_a_file_is_read_up_to_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "prices.yaml"
    place.write_bytes(OURS)
    assert len(read_price_file(place)) == 4
    monkeypatch.setattr("headgate.proxy.accounting.price_file.MOST_BYTES", 8)
    with pytest.raises(PriceFileError, match="larger than"):
        read_price_file(place)
    with pytest.raises(FileNotFoundError):
        read_price_file(tmp_path / "nowhere")


def test_a_large_list_with_a_mistake_is_refused_quickly() -> None:
    """Megabytes of broken JSON are not tried as YAML, which would take half a minute."""
    data = json.dumps({f"m{number}": LITELLM["gemini-2.5-pro"] for number in range(5000)}).encode()[:-1]
    before = time.thread_time()
    with pytest.raises(PriceFileError, match="Expecting"):
        parse_price_file(data)
    assert time.thread_time() - before < 1
