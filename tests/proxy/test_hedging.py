"""hedging: a second attempt at a stream that is late, one winner, and the price of the other on the row."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from headgate.config import HedgeConfig, RetryConfig
from headgate.proxy.accounting.prices import own_price
from tests_support.answers import (
    chat_chunk,
    chat_completion,
    chunk,
    error_response,
    event,
    json_response,
    response_head,
)
from tests_support.relay import BACKOFF, EVERY_FAILURE, Relay
from tests_support.traffic import has_done

if TYPE_CHECKING:
    from tests_support.relay import Exchange

STREAM = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}'
PLAIN = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
HEAD = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
TEXT = event(chat_chunk({"content": "Hi"}))
REST = event(chat_chunk({}, finish_reason="stop")) + b"data: [DONE]\n\n"
WHOLE = HEAD + chunk(TEXT + REST) + b"0\r\n\r\n"
USUAL = 0.1
"""Seconds to the first token of the calls that were before."""
PRICE = own_price({"input": 1_000_000.0, "output": 0.0})


def relay_with(*, providers: int = 1, attempts: int = 3, percent: float = 100, learned: bool = True) -> Relay:
    """Calls that came before have taught it, and saved up for a hedge."""
    hedge = HedgeConfig(percent=percent, spend_percent=100)
    retry = RetryConfig(attempts=attempts, on=EVERY_FAILURE.on, hedge=hedge)
    relay = Relay(providers=providers, retry=retry, price=PRICE)
    if learned:
        for _ in range(120):
            exchange = relay.ask(STREAM)
            relay.clock.advance(USUAL)
            relay.providers[0].last.feed(WHOLE)
            assert exchange.downstream.status == 200
            relay.lines.take()
    return relay


def finish(exchange: Exchange, relay: Relay, winner: int) -> None:
    relay.providers[0].calls[winner].feed(WHOLE)
    assert exchange.downstream.status == 200
    assert has_done(exchange.downstream.received) == 1


@pytest.mark.parametrize("winner", [0, 1])
async def test_whoever_is_first_is_the_answer_and_the_other_is_cancelled(winner: int) -> None:
    relay = relay_with()
    exchange = relay.ask(STREAM)
    first = relay.providers[0].last
    first.sent()
    assert len(relay.providers[0].calls) == 1
    relay.clock.advance(2 * USUAL)
    calls = relay.providers[0].calls
    assert len(calls) == 2
    finish(exchange, relay, winner)
    assert [call.cancelled for call in calls] == [winner == 1, winner == 0]
    row = exchange.row
    assert (row.outcome, row.attempts) == ("ok", 2)
    cluster = relay.clusters[0]
    assert (cluster.rq_hedged, cluster.rq_active) == (1, 0)
    # The provider reported nothing, so the text and the prompt are estimated; the prompt is paid for twice.
    assert row.cost_usd == 2 * row.prompt_tokens


async def test_before_it_is_late_nothing_happens() -> None:
    relay = relay_with()
    exchange = relay.ask(STREAM)
    relay.clock.advance(USUAL / 2)
    finish(exchange, relay, 0)
    relay.clock.advance(10)
    assert len(relay.providers[0].calls) == 1
    assert exchange.row.attempts == 1


async def test_a_stream_that_has_begun_is_not_hedged() -> None:
    relay = relay_with()
    exchange = relay.ask(STREAM)
    relay.clock.advance(USUAL / 2)
    relay.providers[0].last.feed(HEAD + chunk(TEXT))
    relay.clock.advance(10)
    assert len(relay.providers[0].calls) == 1
    relay.providers[0].last.feed(chunk(REST) + b"0\r\n\r\n")
    assert exchange.row.outcome == "ok"


async def test_a_plain_answer_is_not_hedged() -> None:
    relay = relay_with()
    exchange = relay.ask(PLAIN)
    relay.clock.advance(10)
    assert len(relay.providers[0].calls) == 1
    relay.providers[0].last.feed(json_response(chat_completion()))
    assert exchange.row.attempts == 1


async def test_nothing_is_hedged_before_anything_was_learned_or_when_the_budget_is_spent() -> None:
    for relay in (relay_with(learned=False), relay_with(percent=0.5)):
        exchange = relay.ask(STREAM)
        relay.clock.advance(10)
        assert len(relay.providers[0].calls) == 1
        finish(exchange, relay, 0)


async def test_the_bound_of_attempts_holds_for_hedges_too() -> None:
    relay = relay_with(attempts=1)
    exchange = relay.ask(STREAM)
    relay.clock.advance(10)
    assert len(relay.providers[0].calls) == 1
    finish(exchange, relay, 0)


async def test_nothing_is_learned_from_a_first_attempt_that_failed() -> None:
    """How long another took after it says nothing of when a first token is late."""
    relay = relay_with(providers=2, learned=False)
    for _ in range(120):
        exchange = relay.ask(STREAM)
        relay.providers[0].last.feed(error_response(500, "no"))
        relay.clock.advance(BACKOFF)
        relay.providers[1].last.feed(WHOLE)
        assert exchange.row.outcome == "ok"
    relay.ask(STREAM)
    relay.clock.advance(10)
    assert len(relay.providers[0].calls) == 1


async def test_nor_where_the_client_left_its_rival() -> None:
    relay = relay_with()
    for _ in range(10):
        exchange = relay.ask(STREAM)
        relay.clock.advance(2 * USUAL)
        relay.providers[0].calls[0].feed(error_response(500, "no"))
        relay.clock.advance(2)
        exchange.downstream.leave()
    relay.ask(STREAM)
    relay.clock.advance(2 * USUAL)
    assert len(relay.providers[0].calls) == 2, "late is what it was"


@pytest.mark.parametrize("loser", [0, 1])
async def test_when_one_fails_the_other_goes_on(loser: int) -> None:
    relay = relay_with()
    exchange = relay.ask(STREAM)
    relay.clock.advance(2 * USUAL)
    calls = relay.providers[0].calls
    calls[loser].feed(error_response(500, "no"))
    relay.clock.advance(BACKOFF)
    assert len(calls) == 2, "nothing follows while the other is under way"
    finish(exchange, relay, 1 - loser)
    assert exchange.row.outcome == "ok"
    assert relay.clusters[0].rq_active == 0


async def test_when_both_fail_the_next_is_tried() -> None:
    relay = relay_with(providers=2)
    exchange = relay.ask(STREAM)
    relay.clock.advance(2 * USUAL)
    for call in relay.providers[0].calls:
        call.feed(error_response(500, "no"))
    relay.clock.advance(BACKOFF)
    relay.providers[1].last.feed(WHOLE)
    assert (exchange.downstream.status, exchange.row.attempts) == (200, 3)
    assert relay.clusters[0].rq_active == 0


async def test_an_error_event_of_one_leaves_the_other() -> None:
    relay = relay_with()
    exchange = relay.ask(STREAM)
    relay.clock.advance(2 * USUAL)
    relay.providers[0].calls[0].feed(HEAD + chunk(b'data: {"error":{"message":"no"}}\n\n'))
    finish(exchange, relay, 1)
    assert exchange.row.outcome == "ok"


async def test_a_json_answer_to_a_stream_may_win_too() -> None:
    relay = relay_with()
    exchange = relay.ask(STREAM)
    relay.clock.advance(2 * USUAL)
    first, second = relay.providers[0].calls
    second.feed(json_response(chat_completion()))
    assert (exchange.downstream.status, first.cancelled) == (200, True)
    assert exchange.row.attempts == 2


async def test_a_client_that_leaves_ends_both() -> None:
    relay = relay_with()
    exchange = relay.ask(STREAM)
    relay.clock.advance(2 * USUAL)
    exchange.downstream.leave()
    assert all(call.cancelled for call in relay.providers[0].calls)
    assert exchange.row.outcome == "cancelled"
    assert relay.clusters[0].rq_active == 0
    relay.clock.advance(10)
    assert len(relay.providers[0].calls) == 2


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 10))])
async def test_a_slow_tail_of_two_percent_is_cut_for_three_percent_more_calls(seed: int) -> None:
    """First tokens take 100-120 ms, and 5 s for 2 % of the calls: p99 falls by 70 % at least."""
    rng = Random(seed)
    relay = relay_with(percent=3)
    waits, asked, calls = [], 0, 600
    for _ in range(calls):
        exchange = relay.ask(STREAM)
        started = relay.clock.monotonic()
        due: list[tuple[float, int]] = []
        while exchange.downstream.status is None:
            made = relay.providers[0].calls
            while len(due) < len(made):
                slow = rng.random() < 0.02
                due.append((relay.clock.monotonic() + (5.0 if slow else rng.uniform(0.1, 0.12)), len(due)))
            at, who = min(due)
            if at <= relay.clock.monotonic() + 0.005:
                made[who].feed(WHOLE)
            else:
                relay.clock.advance(0.005)
        waits.append(relay.clock.monotonic() - started)
        asked += len(relay.providers[0].calls)
        relay.lines.take()
    waits.sort()
    assert waits[int(0.99 * calls)] <= 0.3 * 5.0
    assert asked <= 1.03 * calls + 10, "3 % more calls, and what was saved up"
