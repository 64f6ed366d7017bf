"""ledger: two records for an exchange, and what it is charged: the report, else what was delivered, else nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.proxy.accounting.estimate import Estimator
from headgate.proxy.accounting.ledger import SHORT_BODY, Ledger
from headgate.proxy.accounting.prices import Price, own_price
from headgate.proxy.accounting.record import Done, Opened, Spent, decode
from headgate.proxy.accounting.usage import NO_USAGE, Usage
from headgate.proxy.dialect import AnswerFacts, RequestFacts
from headgate.proxy.edge.downstream import RequestHead
from headgate.proxy.errors import OverloadError
from headgate.proxy.exchange import Exchange, Principal
from headgate.proxy.faces import Face
from tests_support.relay import FullSpool, Lines

BODY = b'{"model":"m","messages":[{"role":"user","content":"' + b"word " * 40 + b'"}]}'
PRICE = own_price({"input": 1.0, "output": 2.0})


def exchange(price: Price | None = None, *, asked: bool = True) -> Exchange:
    """One under way at a provider."""
    graph = SimpleNamespace(version="v1", price=lambda _: price)
    face = Face("chat", "POST", "/v1/chat/completions", metered=True)
    ex = Exchange("hg_1", RequestHead("POST", face.path, []), face, cast("Any", graph), 100.0, 1700.0)
    target = SimpleNamespace(model="up-m", cluster=SimpleNamespace(name="up"))
    attempt = SimpleNamespace(target=target, started=100.2, ended_at=None, request_id="req_1")
    if asked:
        ex.attempts = [cast("Any", attempt)]
        ex.attempt = cast("Any", attempt)
        ex.facts = RequestFacts(BODY, "m", stream=True, wants_usage=False, max_tokens=50, n=2)
        ex.model = "m"
    return ex


def ledger(lines: Lines | None = None) -> Ledger:
    return Ledger(cast("Any", lines), Estimator(), "w1")


def test_an_exchange_leaves_an_opened_and_a_done_record() -> None:
    lines = Lines()
    book, ex = ledger(lines), exchange(PRICE)
    ex.principal = Principal("app", team="red", owner="ann")
    ex.client_request_id = b"client-1"
    book.admit(ex)
    assert ex.admitted
    book.settle(ex, AnswerFacts(Usage(9, 12)))
    ex.status, ex.outcome, ex.first_token_at, ex.bytes_in, ex.bytes_out = 200, "ok", 100.5, 10, 20
    book.close(ex, 101.0)
    opened, done = lines.take()
    assert opened == Opened(
        id="hg_1", at=1700.0, worker="w1", key="app", team="red", owner="ann", endpoint="chat",
        client_request_id="client-1",
    )  # fmt: skip
    assert done == Done(
        id="hg_1", at=1700.0, status=200, outcome="ok", key="app", team="red", owner="ann", endpoint="chat", model="m",
        provider="up", upstream_model="up-m", upstream_request_id="req_1", client_request_id="client-1", stream=True,
        attempts=1, prompt_tokens=9, completion_tokens=12, usage_source="reported", cost_usd=33e-6,
        cost_source="target", duration_ms=1000.0, ttft_ms=500.0, upstream_ms=800.0, overhead_ms=200.0, bytes_in=10,
        bytes_out=20, config="v1", worker="w1",
    )  # fmt: skip
    assert book.rows == 1


def test_one_that_reached_no_provider_says_so() -> None:
    lines = Lines()
    ex = exchange(asked=False)
    ledger(lines).close(ex, 101.0)
    [done] = lines.take()
    assert isinstance(done, Done)
    assert (done.provider, done.upstream_ms, done.overhead_ms, done.attempts, done.stream) == ("", None, None, 0, False)


def test_what_is_held_goes_out_with_the_record_or_without_it() -> None:
    lines = Lines()
    book, ex = ledger(lines), exchange(asked=False)
    spent = Spent("hg_1", 1.0, "budget", 5, ())
    book.hold(spent)
    assert lines.pieces == []
    book.close(ex, 101.0)
    book.flush()
    book.hold(spent)
    book.flush()
    assert [[type(decode(line)) for line in piece.splitlines()] for piece in lines.pieces] == [[Spent, Done], [Spent]]
    ledger().hold(spent)


def test_without_a_spool_nothing_is_written_and_all_is_counted() -> None:
    book, ex = ledger(), exchange()
    book.admit(ex)
    book.close(ex, 101.0)
    assert (ex.admitted, book.rows) == (True, 1)


def test_a_full_spool_may_refuse() -> None:
    ex = exchange()
    with pytest.raises(OverloadError, match="ledger is full") as raised:
        ledger(FullSpool()).admit(ex)
    assert not ex.admitted
    assert raised.value.retry_after == 5.0


# -- what is charged


def settled(said: AnswerFacts, price: Price | None = PRICE, **changes: Any) -> Exchange:
    ex = exchange(price)
    for name, value in changes.items():
        setattr(ex, name, value)
    ledger().settle(ex, said)
    return ex


def test_a_report_is_taken_as_it_is() -> None:
    ex = settled(AnswerFacts(Usage(9, 12), text_bytes=40_000, text_events=9000))
    assert ex.usage == Usage(9, 12)
    assert ex.cost_usd == pytest.approx(33e-6)


def test_without_a_report_what_was_delivered_is_charged() -> None:
    ex = settled(AnswerFacts(text_bytes=401, text_events=3))
    assert ex.usage is not None
    assert (ex.usage.source, ex.usage.completion_tokens) == ("estimated", 101)
    assert ex.usage.prompt_tokens >= 50
    assert ex.cost_usd == pytest.approx((ex.usage.prompt_tokens + 202) / 1e6)


def test_every_event_with_content_is_a_token_at_least() -> None:
    ex = settled(AnswerFacts(text_bytes=9, text_events=9))
    assert ex.usage is not None
    assert ex.usage.completion_tokens == 9


def test_audio_without_text_is_charged_by_its_events() -> None:
    ex = settled(AnswerFacts(text_bytes=0, text_events=7))
    assert ex.usage is not None
    assert ex.usage.completion_tokens == 7


@pytest.mark.parametrize(
    "facts", [None, RequestFacts(BODY, "m", stream=False, wants_usage=False, max_tokens=None, n=1)]
)
def test_where_nothing_is_known_nothing_is_charged(facts: RequestFacts | None) -> None:
    said = AnswerFacts() if facts is not None else AnswerFacts(text_bytes=100)
    ex = settled(said, facts=facts)
    assert (ex.usage, ex.cost_usd) == (NO_USAGE, None)


def test_an_unknown_price_is_no_cost() -> None:
    ex = settled(AnswerFacts(Usage(9, 12)), price=None)
    assert (ex.cost_usd, ex.cost_source) == (None, "")


def test_what_came_after_the_last_report_is_charged_too() -> None:
    ex = settled(AnswerFacts(Usage(9, 2, cached_tokens=4), text_bytes=400, text_events=5, usage_is_final=False))
    assert ex.usage == Usage(9, 100, cached_tokens=4, source="estimated")


def test_a_report_above_the_estimate_stands_but_is_not_the_last_word() -> None:
    ex = settled(AnswerFacts(Usage(9, 500), text_bytes=400, text_events=5, usage_is_final=False))
    assert ex.usage == Usage(9, 500, source="estimated")


def test_an_exchange_is_settled_once() -> None:
    book, ex = ledger(), exchange(PRICE)
    book.settle(ex, AnswerFacts(Usage(9, 12)))
    book.settle(ex, AnswerFacts(Usage(1000, 1000)))
    assert ex.usage == Usage(9, 12)
    book.unsettle(ex)
    assert ex.cost_usd is None
    book.settle(ex, AnswerFacts(Usage(1, 1)))
    assert ex.usage == Usage(1, 1)


def test_one_that_reached_no_provider_is_not_settled() -> None:
    book, ex = ledger(), exchange(asked=False)
    book.settle(ex, AnswerFacts(Usage(9, 12)))
    assert ex.usage is None
    assert book.estimate_cost(ex) is None


def test_a_stream_is_estimated_at_its_head_and_teaches_the_estimator() -> None:
    book, ex = ledger(), exchange(PRICE)
    cost = book.estimate_cost(ex)
    assert ex.rough_prompt is not None
    assert cost == pytest.approx((ex.rough_prompt.tokens + 2 * 100) / 1e6)  # 50 tokens, two choices
    book.settle(ex, AnswerFacts(Usage(ex.rough_prompt.raw * 2, 5)))
    assert book.estimator.ratio("up-m") > 1
    assert ledger().estimate_cost(exchange(None)) is None


def test_a_call_is_weighed_by_its_bytes_and_a_large_one_by_what_it_says() -> None:
    book, ex = ledger(), exchange(PRICE)
    assert ex.facts is not None
    assert book.weigh(ex) == len(ex.facts.body) // 4 + 2 * 50
    assert ex.rough_prompt is None
    image = b'"data:image/png;base64,' + b"A" * SHORT_BODY + b'"'
    part = b'{"type":"image_url","image_url":{"url":%b}}' % image
    ex.facts.body = b'{"messages":[{"role":"user","content":[%b]}]}' % part
    assert book.weigh(ex) == book.estimate_tokens(ex) < SHORT_BODY // 4
    ex.facts = None
    assert book.weigh(ex) == 0


@pytest.mark.parametrize(
    ("max_tokens", "n", "output"), [(100, 3, 300), (None, 1, 1024), (None, 2, 2048), (100_000, 1, 100_000)]
)
def test_output_is_reserved_as_allowed_for_each_choice(max_tokens: int | None, n: int, output: int) -> None:
    book, ex = ledger(), exchange(PRICE)
    ex.facts = RequestFacts(BODY, "m", stream=False, wants_usage=False, max_tokens=max_tokens, n=n)
    assert book.weigh(ex) == len(BODY) // 4 + output
    assert book.estimate_tokens(ex) == book.prompt_tokens(ex) + output == book.weigh(ex)
    assert book.estimate_cost(ex) == pytest.approx((book.prompt_tokens(ex) + 2 * output) / 1e6)
    assert Ledger(None, Estimator(assume_output_tokens=7)).estimate_tokens(ex) == book.prompt_tokens(ex) + (
        7 * n if max_tokens is None else output
    )


@given(
    rates=st.dictionaries(st.sampled_from(("input", "output", "cached_input", "reasoning")), st.floats(0, 100)).filter(
        lambda rates: bool(rates.keys() & {"input", "output"})
    ),
    max_tokens=st.none() | st.integers(1, 10**6),
    output=st.none() | st.integers(1, 10**6),
)
def test_what_is_foreseen_is_what_the_estimate_would_cost(
    rates: dict[str, float], max_tokens: int | None, output: int | None
) -> None:
    price = own_price(rates)
    book, ex = ledger(), exchange(price)
    assert ex.attempt is not None
    ex.facts = RequestFacts(BODY, "m", stream=False, wants_usage=False, max_tokens=max_tokens, n=2)
    completion = (max_tokens or output) * 2 if output is not None else 0
    usage = Usage(
        book.prompt_tokens(ex) if "input" in rates else 0, completion if "output" in rates else 0, source="estimated"
    )
    assert book.foresee(ex, ex.attempt.target, output) == price.rates.cost(usage)


@given(
    text=st.integers(0, 10_000),
    events=st.integers(0, 10_000),
    report=st.none() | st.integers(0, 5000),
    final=st.booleans(),
)
def test_nobody_is_charged_less_than_what_was_delivered(
    text: int, events: int, report: int | None, final: bool
) -> None:
    usage = Usage(9, report) if report is not None else None
    ex = settled(AnswerFacts(usage, text_bytes=text, text_events=events, usage_is_final=final))
    assert ex.usage is not None
    if report is not None and final:
        assert ex.usage.completion_tokens == report
    else:
        assert ex.usage.completion_tokens * 4 >= text
        assert ex.usage.completion_tokens >= events
