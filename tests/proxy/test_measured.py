"""measured: what blows up is read a slice at a time; meanwhile its provider is not, and the answer does not end."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest

from headgate.proxy.meters import SLICE_BYTES
from tests_support.answers import LAST_CHUNK, chunk, response, response_head
from tests_support.downstream import FakeDownstream
from tests_support.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests_support.calls import FakeCall
    from tests_support.relay import Exchange

MIB = 1 << 20
BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
USAGE = {"prompt_tokens": 8, "completion_tokens": 3, "total_tokens": 11}
DOCUMENT = json.dumps({"choices": [], "pad": " " * 6 * MIB, "usage": USAGE}).encode()
GZIPPED = gzip.compress(DOCUMENT)
SLICES = len(DOCUMENT) // SLICE_BYTES
ENCODED = [("content-type", "application/json"), ("content-encoding", "gzip")]
WHOLE = response(200, GZIPPED, ENCODED)
LARGE = response_head(
    200, [("content-type", "application/json"), ("content-encoding", "gzip"), ("transfer-encoding", "chunked")]
)
PASSED = gzip.compress(b'{"data":"' + b"A" * 9 * MIB, 0)
"""More than is collected: from here on the answer is relayed."""


def turns(relay: Relay, until: Callable[[], object]) -> int:
    """How many turns of the loop it takes."""
    clock, taken = relay.clock, 0

    def turn() -> None:
        nonlocal taken
        taken += 1
        assert taken < 1000
        if not until():
            clock.call_at(clock.monotonic(), turn)

    turn()
    clock.advance(0)
    return taken


def caught_up(relay: Relay) -> None:
    """To the end of what is to be done at once."""
    relay.clock.advance(0)


async def test_a_collected_answer_is_inflated_over_turns_of_the_loop_and_metered_exactly() -> None:
    relay = Relay()
    exchange = relay.ask(BODY)
    relay.providers[0].last.feed(WHOLE)
    assert not exchange.downstream.ended
    assert turns(relay, lambda: exchange.rows) >= SLICES - 1
    assert exchange.downstream.received == GZIPPED
    row = exchange.row
    assert (row.outcome, row.prompt_tokens, row.completion_tokens, row.usage_source) == ("ok", 8, 3, "reported")
    assert relay.at_rest()


@pytest.mark.parametrize("end", ["leave", "cut"])
async def test_a_collected_answer_nobody_waits_for_is_not_read_on(end: str) -> None:
    relay = Relay()
    exchange = relay.ask(BODY)
    relay.providers[0].last.feed(WHOLE)
    if end == "leave":
        exchange.downstream.leave()
    else:
        relay.engine.cut()
    [row] = exchange.rows
    assert row.usage_source in ("none", "estimated")
    assert relay.at_rest()
    assert exchange.rows == [row]


def relayed(relay: Relay, rest: bytes, downstream: FakeDownstream | None = None) -> tuple[Exchange, FakeCall]:
    """An answer that is too large to be collected, and a chunk of it that blows up."""
    exchange = relay.ask(BODY, downstream)
    call = relay.providers[0].last
    call.feed(LARGE + chunk(PASSED))
    caught_up(relay)
    call.feed(rest)
    return exchange, call


TAIL = gzip.compress(b'","usage":' + json.dumps(USAGE).encode() + b"}")
BOMB = gzip.compress(b"A" * 5 * MIB)


async def test_a_relayed_answer_is_not_read_on_until_its_meter_has_caught_up() -> None:
    relay = Relay()
    exchange, call = relayed(relay, chunk(BOMB))
    assert call.paused
    assert turns(relay, lambda: not call.paused) >= 5 * MIB // SLICE_BYTES - 2
    call.feed(chunk(TAIL) + LAST_CHUNK)
    assert exchange.downstream.ended
    assert exchange.downstream.received == PASSED + BOMB + TAIL
    row = exchange.row
    assert (row.outcome, row.prompt_tokens, row.completion_tokens, row.usage_source) == ("ok", 8, 3, "reported")
    assert relay.at_rest()


@pytest.mark.parametrize("end", [LAST_CHUNK, None])
async def test_an_end_that_comes_meanwhile_is_believed_afterwards(end: bytes | None) -> None:
    relay = Relay()
    exchange, call = relayed(relay, chunk(BOMB) + (end or b""))
    if end is None:
        call.rst()
    assert exchange.downstream.received == PASSED + BOMB
    assert not exchange.rows
    assert turns(relay, lambda: exchange.rows) >= 5 * MIB // SLICE_BYTES - 2
    assert exchange.row.outcome == ("ok" if end is not None else "truncated")
    assert relay.at_rest()


async def test_a_client_that_is_behind_holds_up_the_provider_after_the_meter_has_caught_up() -> None:
    relay = Relay()
    downstream = FakeDownstream(BODY)
    exchange, call = relayed(relay, b"", downstream)
    downstream.room = 0
    call.feed(chunk(BOMB))
    caught_up(relay)
    assert call.paused
    downstream.resume()
    assert not call.paused
    call.feed(LAST_CHUNK)
    assert exchange.row.outcome == "ok"


async def test_a_client_that_reads_again_meanwhile_changes_nothing() -> None:
    relay = Relay()
    downstream = FakeDownstream(BODY)
    exchange, call = relayed(relay, b"", downstream)
    downstream.room = 0
    call.feed(chunk(BOMB))
    downstream.resume()
    assert call.paused
    caught_up(relay)
    assert not call.paused
    call.feed(LAST_CHUNK)
    assert exchange.row.outcome == "ok"


@pytest.mark.parametrize("end", ["leave", "cut"])
async def test_a_relayed_answer_may_end_before_its_meter_has_caught_up(end: str) -> None:
    relay = Relay()
    exchange, _ = relayed(relay, chunk(BOMB))
    if end == "leave":
        exchange.downstream.leave()
    else:
        relay.engine.cut()
    assert exchange.row.outcome == ("cancelled" if end == "leave" else "truncated")
    assert relay.clock.monotonic() not in relay.clock.pending
    assert relay.at_rest()
