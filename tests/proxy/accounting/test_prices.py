"""prices: each token is paid once, at the most special rate; what cannot be known costs None, never 0."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.accounting.prices import TOKEN_RATES, Price, Rates, Steps, format_usd, own_price
from headgate.proxy.accounting.usage import NO_USAGE, Usage


def flat(usd: float) -> Steps:
    return ((0, usd),)


PLAIN = Rates(input=flat(2), output=flat(8))
FULL = Rates(flat(2), flat(8), flat(0.5), flat(2.5), flat(40), flat(80), flat(4), flat(12))
TIERED = Rates(input=((0, 1.0), (200_000, 2.0), (500_000, 3.0)), output=((0, 10.0), (200_000, 15.0)))


def test_prompt_and_completion_cost_their_rates() -> None:
    assert PLAIN.cost(Usage(1_000_000, 500_000)) == 6.0
    assert PLAIN.cost(Usage(0, 0)) == 0.0


def test_cached_and_written_tokens_are_taken_out_of_the_prompt() -> None:
    assert FULL.cost(Usage(1000, 0, cached_tokens=600, cache_write_tokens=100)) == pytest.approx(
        (600 * 0.5 + 100 * 2.5 + 300 * 2) / 1e6
    )


def test_without_a_rate_of_its_own_a_part_costs_what_its_whole_costs() -> None:
    assert PLAIN.cost(Usage(1000, 100, 600, 100, 50, 20, 30)) == PLAIN.cost(Usage(1000, 100))


def test_audio_and_reasoning_have_their_rates() -> None:
    usage = Usage(1000, 500, reasoning_tokens=200, audio_input_tokens=300, audio_output_tokens=100)
    expected = (700 * 2 + 300 * 40 + 200 * 8 + 200 * 12 + 100 * 80) / 1e6
    assert FULL.cost(usage) == pytest.approx(expected)


def test_cached_audio_is_paid_once_and_only_where_the_sums_force_it() -> None:
    apart = Usage(1000, 0, cached_tokens=600, audio_input_tokens=300)
    assert FULL.cost(apart) == pytest.approx((600 * 0.5 + 300 * 40 + 100 * 2) / 1e6)
    forced = Usage(1000, 0, cached_tokens=900, audio_input_tokens=300)
    assert FULL.cost(forced) == pytest.approx((700 * 0.5 + 100 * 40 + 200 * 4) / 1e6)


def test_the_whole_prompt_chooses_the_step_for_every_token() -> None:
    assert TIERED.cost(Usage(200_000, 1000)) == pytest.approx((200_000 * 1 + 1000 * 10) / 1e6)
    assert TIERED.cost(Usage(200_001, 1000)) == pytest.approx((200_001 * 2 + 1000 * 15) / 1e6)
    assert TIERED.cost(Usage(600_000, 1000)) == pytest.approx((600_000 * 3 + 1000 * 15) / 1e6)


def test_a_price_by_the_call_is_added() -> None:
    assert Rates(flat(1), flat(1), request=0.005).cost(Usage(1000, 1000)) == pytest.approx(0.007)


def test_sound_and_speech_have_rates_of_their_own() -> None:
    whisper, tts = Rates(audio_hour=0.36), Rates(million_characters=15.0)
    assert whisper.cost(Usage(audio_seconds=90)) == pytest.approx(0.009)
    assert tts.cost(Usage(characters=2000)) == pytest.approx(0.03)
    both = Rates(flat(1), flat(1), audio_hour=3.6)
    assert both.cost(Usage(1000, 0, audio_seconds=10)) == pytest.approx(0.011)
    for rates, usage in ((PLAIN, Usage(audio_seconds=1)), (PLAIN, Usage(characters=1)), (whisper, Usage(1, 0)),
                         (whisper, Usage(characters=1)), (tts, Usage(audio_seconds=1))):  # fmt: skip
        assert rates.cost(usage) is None


def test_tokens_without_a_rate_have_no_known_cost() -> None:
    embeddings = Rates(input=flat(0.1))
    assert embeddings.cost(Usage(1000, 0)) == pytest.approx(0.0001)
    assert embeddings.cost(Usage(1000, 1)) is None
    assert Rates(output=flat(1)).cost(Usage(1, 1)) is None
    assert Rates(output=flat(1)).cost(Usage(0, 1_000_000)) == 1.0


def test_nothing_known_about_usage_is_nothing_known_about_cost() -> None:
    assert Price(PLAIN, "host", "m").cost(NO_USAGE) is None
    assert Price(PLAIN, "host", "m").cost(Usage(1, 1, source="estimated")) is not None


def test_the_tier_that_the_answer_names_is_charged() -> None:
    price = Price(PLAIN, "host", "m", {"flex": Rates(flat(1), flat(4))})
    assert price.cost(Usage(1_000_000, 0)) == 2.0
    assert price.cost(Usage(1_000_000, 0, service_tier="flex")) == 1.0
    assert price.cost(Usage(1_000_000, 0, service_tier="default")) == 2.0
    assert Price(PLAIN, "host", "m").cost(Usage(1_000_000, 0, service_tier="flex")) == 2.0


def test_an_operator_writes_a_price_in_usd_per_million_tokens() -> None:
    price = own_price({"input": 2.5, "output": 10, "cached_input": 1.25})
    assert price.source == "target"
    assert price.cost(Usage(1_000_000, 1_000_000, 400_000)) == pytest.approx(0.6 * 2.5 + 0.4 * 1.25 + 10)
    assert own_price({"input": 0, "output": 0}).cost(Usage(5, 5)) == 0.0


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"inputs": 1.0}, "unknown rate 'inputs', expected one of input, output, cached_input"),
        ({"input": -1.0}, "input: expected USD per million tokens, a number from 0 up, got -1.0"),
        ({"input": float("inf")}, "got inf"),
        ({"input": float("nan")}, "got nan"),
        ({"input": True}, "got True"),
        ({"input": "2"}, "got '2'"),
        ({"cached_input": 1.0}, "neither input nor output has a rate"),
        ({}, "neither input nor output has a rate"),
    ],
)
def test_a_price_that_makes_no_sense_is_refused_by_name(rates: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        own_price(rates)


def test_usd_are_written_without_an_exponent() -> None:
    assert format_usd(0.0) == "0"
    assert format_usd(1e-7) == "0.0000001"
    assert format_usd(0.00043500) == "0.000435"
    assert format_usd(12.5) == "12.5"
    assert format_usd(100.0) == "100"
    assert format_usd(1e-13) == "0"


@given(st.floats(0, 1e6))
def test_written_usd_are_the_number_to_twelve_decimals(cost: float) -> None:
    assert abs(Decimal(format_usd(cost)) - Decimal(cost)) <= Decimal("5e-13")


rates_of_any_kind = st.builds(
    Rates,
    *[
        st.lists(st.floats(0, 100), min_size=1, max_size=3).map(
            lambda usd: tuple(zip((0, 500, 2000), sorted(usd), strict=False))
        )
        if name in ("input", "output")
        else st.none() | st.floats(0, 100).map(flat)
        for name in TOKEN_RATES
    ],
    request=st.floats(0, 1),
)
counts = st.integers(0, 3000)
usages = st.builds(Usage, counts, counts, counts, counts, counts, counts, counts)


@given(rates_of_any_kind, usages)
def test_every_token_is_paid_exactly_once(rates: Rates, usage: Usage) -> None:
    """With one rate for all, only the two totals matter, however odd the parts are."""
    one = Rates.of({name: flat(3) for name in TOKEN_RATES if getattr(rates, name) is not None})
    assert one.cost(usage) == pytest.approx((usage.prompt_tokens + usage.completion_tokens) * 3 / 1e6)


@given(rates_of_any_kind, usages, st.integers(0, 5000), st.integers(0, 5000))
def test_more_tokens_never_cost_less(rates: Rates, usage: Usage, prompt: int, completion: int) -> None:
    """The parts stay as they are: what is added is plain text."""
    plain = Usage(usage.prompt_tokens, usage.completion_tokens)
    more = Usage(usage.prompt_tokens + prompt, usage.completion_tokens + completion)
    before, after = rates.cost(plain), rates.cost(more)
    assert before is not None
    assert after is not None
    assert after >= before - 1e-12


@given(rates_of_any_kind, usages)
def test_a_cost_is_never_negative(rates: Rates, usage: Usage) -> None:
    cost = rates.cost(usage)
    assert cost is not None
    assert cost >= 0


@given(
    rates_of_any_kind, usages | st.builds(Usage, counts, counts) | st.builds(Usage, counts, source=st.just("estimated"))
)
def test_the_short_way_to_a_cost_comes_to_the_same_last_bit(rates: Rates, usage: Usage) -> None:
    for one in (rates, Rates(rates.input, rates.output), Rates(rates.input, rates.output, rates.cached_input)):
        price = Price(one, "host", "m")
        cost, thorough = price.cost(usage), one.cost(usage)
        assert cost is not None
        assert thorough is not None
        assert cost.hex() == thorough.hex()


def test_a_price_is_flat_where_a_prompt_and_an_answer_have_one_rate_each() -> None:
    assert Price(FULL, "host", "m").flat == (2, 8)
    assert own_price({"input": 0, "output": 3}).flat == (0, 3)
    for rates in (TIERED, Rates(input=flat(1)), Rates(output=flat(1)), Rates(flat(1), flat(1), request=0.1),
                  Rates(flat(1), flat(1), audio_hour=0.0), Rates(flat(1), flat(1), million_characters=1)):  # fmt: skip
        assert Price(rates, "host", "m").flat is None
