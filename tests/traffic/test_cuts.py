"""Recorded answers, cut at every byte: a cut is never passed off as a whole answer.

Each recorded chat row goes through the engine without sockets, framed as HTTP/1.1, and is cut after byte k of what is
on the wire, for every k, by the provider's FIN, by its RST, and by silence. What must come out is worked out here and
apart from the product, from the events that were complete at the cut. (Faults G12, G13; §3.3 invariants 2-4.)

By default the long rows are cut at every byte of their first and last events and at a seeded sample of the others; the
slow suite cuts them at every byte.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING

import pytest

from headgate.proxy.upstream.cluster import Timeouts
from tests_support.answers import (
    LAST_CHUNK,
    chat_chunks,
    chat_completion,
    chunk,
    event,
    json_response,
    response_head,
    sse,
)
from tests_support.relay import BACKOFF, Relay
from tests_support.traffic import (
    Row,
    chat_rows,
    data_of,
    error_events,
    events,
    finish_reasons,
    has_done,
    ids,
    is_usage_event,
    without_ours,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headgate.proxy.accounting.record import Done

pytestmark = pytest.mark.shared_data

STREAMS = [row for row in chat_rows() if row.stream]
WHOLES = [row for row in chat_rows() if not row.stream]
HOW = ("fin", "rst", "stall")
OTHER_EVENTS = b"".join(event(one) for one in chat_chunks("from the other provider"))
OTHER_STREAM = b"".join(sse([OTHER_EVENTS]))
OTHER_BODY = json.dumps(chat_completion("from the other provider")).encode()
OTHER_WHOLE = json_response(OTHER_BODY)
QUICK = Timeouts(first_token=4, idle=3, total=8)
"""Every sweep of the clock costs a test time."""
FIRST_BYTES, LAST_BYTES, SAMPLED = 900, 250, 60


def _says_something(one: bytes) -> bool:
    """An event that commits: content, reasoning, refusal, audio, a tool call or a finish."""
    data = data_of(one)
    if not isinstance(data, dict):
        return False
    spoken = ("content", "reasoning", "reasoning_content", "refusal", "tool_calls", "function_call", "audio")
    return any(
        choice.get("finish_reason") or any((choice.get("delta") or {}).get(field) for field in spoken)
        for choice in data.get("choices") or ()
    )


def _is_error(one: bytes) -> bool:
    data = data_of(one)
    return isinstance(data, dict) and bool(data.get("error"))


class Wire:
    """A recorded stream as it goes over the wire, one chunk per event, and what is known of it after k bytes."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.events = events(row.body)
        parts = [
            response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")]),
            *(chunk(one) for one in self.events),
            LAST_CHUNK,
        ]
        self.bytes = b"".join(parts)
        self.head_end = len(parts[0])
        # An event is there when its data are; the CRLF that ends its chunk comes after.
        self.ends = [end - 2 for end in accumulate(map(len, parts))][1:-1]
        self.committed_by = next(n for n, one in enumerate(self.events, 1) if _says_something(one) or _is_error(one))
        self.error_by = next((n for n, one in enumerate(self.events, 1) if _is_error(one)), None)
        self.done_by = next((n for n, one in enumerate(self.events, 1) if one.strip() == b"data: [DONE]"), None)
        self.text = [b"" if is_usage_event(one) and not row.asked_for_usage else one for one in self.events]

    def complete(self, k: int) -> int:
        """How many events are there after k bytes."""
        return bisect_right(self.ends, k)

    def relayed(self, n: int) -> bytes:
        """What of the first n events the client gets."""
        return b"".join(self.text[:n])

    def cuts(self, every: bool) -> Iterable[int]:
        """Where to cut: everywhere, or everywhere near both ends and here and there between."""
        size = len(self.bytes)
        if every or size <= FIRST_BYTES + LAST_BYTES:
            return range(size + 1)
        near = {*range(FIRST_BYTES), *range(size - LAST_BYTES, size + 1)}
        between = Random(self.row.id).sample(range(size), SAMPLED)
        return sorted(near | set(between))


def cut(relay: Relay, how: str) -> None:
    """End the first provider's call the given way."""
    call = relay.providers[0].last
    if how == "stall":
        for limit in (relay.timeouts.first_token, relay.timeouts.idle, relay.timeouts.total):
            if not call.over:
                relay.clock.advance(limit + 1)
    else:
        getattr(call, how)()


def other_answers(relay: Relay, raw: bytes) -> bool:
    """Let the second provider answer whole, if it is asked."""
    relay.clock.advance(BACKOFF)
    if len(relay.providers) < 2 or not relay.providers[1].calls:
        return False
    relay.providers[1].last.sent()
    relay.providers[1].last.feed(raw)
    return True


def assert_truncated(wire: Wire, n: int, received: bytes, row: Done) -> None:
    """The complete events and one error event, nothing made up."""
    relayed = wire.relayed(n)
    assert received.startswith(relayed)
    added = received[len(relayed) :]
    [error] = events(added)
    assert {"message", "type", "param", "code"} <= set(data_of(error)["error"])
    assert not has_done(added)
    assert not finish_reasons(added)
    assert (row.outcome, row.status, row.attempts) == ("truncated", 200, 1)


def assert_as_sent(wire: Wire, n: int, received: bytes, row: Done, outcome: str) -> None:
    """Every byte the provider sent and nothing but our comment beside it."""
    assert without_ours(received) == wire.relayed(n)
    assert (row.outcome, row.status, row.attempts) == (outcome, 200, 1)


def check_stream(wire: Wire, relay: Relay, k: int, how: str) -> None:
    """One cut. `n` events had come in whole."""
    exchange = relay.ask(wire.row.sent)
    call = relay.providers[0].last
    call.sent()
    call.feed(wire.bytes[:k])
    cut(relay, how)
    other = other_answers(relay, OTHER_STREAM)
    n, downstream = wire.complete(k), exchange.downstream
    row = exchange.row
    received = downstream.received
    # Held for two seconds after its head, a silent stream commits as it is (design §3).
    committed = n >= wire.committed_by or (how == "stall" and k >= wire.head_end)
    if wire.done_by is not None and n >= wire.done_by:
        outcome = "upstream_error" if wire.error_by is not None else "ok"
        assert_as_sent(wire, wire.done_by, received, row, outcome)
    elif wire.error_by is not None and n >= wire.error_by:
        assert_as_sent(wire, n, received, row, "upstream_error")
    elif committed:
        assert_truncated(wire, n, received, row)
    elif len(relay.providers) > 1:
        assert without_ours(received) == OTHER_EVENTS
        assert (row.outcome, row.status, row.attempts) == ("ok", 200, 2)
    else:
        assert downstream.status == (504 if how == "stall" else 502)
        assert set(json.loads(received)["error"]) >= {"message", "type", "param", "code"}
        assert (row.outcome, row.attempts) == ("failed", 1)
    assert other is (not committed and len(relay.providers) > 1)
    assert downstream.ended
    assert relay.at_rest()


def check_whole(row: Row, wire: bytes, relay: Relay, k: int, how: str) -> None:
    """One cut of an answer that is no stream."""
    exchange = relay.ask(row.sent)
    relay.providers[0].last.sent()
    relay.providers[0].last.feed(wire[:k])
    cut(relay, how)
    other = other_answers(relay, OTHER_WHOLE)
    record, downstream = exchange.row, exchange.downstream
    whole = k >= len(wire)
    error_in_200 = row.status < 400 and "error" in json.loads(row.body)
    if whole and row.status < 400 and not error_in_200:
        assert (downstream.status, downstream.received) == (row.status, row.body)
        assert (record.outcome, record.attempts) == ("ok", 1)
    elif whole and (len(relay.providers) == 1 or not (error_in_200 or row.status == 429)):
        assert (downstream.status, downstream.received) == (row.status, row.body)
        assert (record.outcome, record.attempts) == ("upstream_error", 1)
    elif len(relay.providers) > 1:
        assert (downstream.status, downstream.received) == (200, OTHER_BODY)
        assert (record.outcome, record.attempts) == ("ok", 2)
    else:
        assert downstream.status == (504 if how == "stall" else 502)
        assert set(json.loads(downstream.received)["error"]) >= {"message", "type", "param", "code"}
        assert (record.outcome, record.attempts) == ("failed", 1)
    assert other is (record.attempts == 2)
    assert downstream.ended
    assert relay.at_rest()


def check_stream_everywhere(row: Row, how: str, *, every: bool) -> None:
    """Two providers at every cut; one alone where the first may still fail unseen, and a little beyond."""
    wire = Wire(row)
    two, alone = Relay(providers=2, timeouts=QUICK), Relay(timeouts=QUICK)
    for k in wire.cuts(every):
        check_stream(wire, two, k, how)
        if wire.complete(k) <= wire.committed_by + 1:
            check_stream(wire, alone, k, how)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("row", STREAMS, ids=ids(STREAMS))
def test_a_cut_stream_is_said_to_be_cut_or_made_good_by_another(row: Row, how: str) -> None:
    check_stream_everywhere(row, how, every=False)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("row", STREAMS, ids=ids(STREAMS))
def test_and_that_at_every_single_byte(row: Row, how: str) -> None:
    check_stream_everywhere(row, how, every=True)


@pytest.mark.parametrize("row", WHOLES, ids=ids(WHOLES))
def test_a_cut_answer_is_never_passed_on_and_made_good_by_another(row: Row) -> None:
    kind = ("content-type", "application/json")
    framed = response_head(row.status, [kind, ("content-length", str(len(row.body)))]) + row.body
    chunks = response_head(row.status, [kind, ("transfer-encoding", "chunked")]) + chunk(row.body) + LAST_CHUNK
    two, alone = Relay(providers=2, timeouts=QUICK), Relay(timeouts=QUICK)
    for wire in (framed, chunks):
        for k in range(len(wire) + 1):
            check_whole(row, wire, two, k, HOW[k % 3])
            check_whole(row, wire, alone, k, HOW[(k + 1) % 3])


@pytest.mark.slow
@pytest.mark.parametrize("row", WHOLES, ids=ids(WHOLES))
def test_and_that_in_every_way_at_every_single_byte(row: Row) -> None:
    kind = ("content-type", "application/json")
    framed = response_head(row.status, [kind, ("content-length", str(len(row.body)))]) + row.body
    two, alone = Relay(providers=2, timeouts=QUICK), Relay(timeouts=QUICK)
    for k in range(len(framed) + 1):
        for how in HOW:
            check_whole(row, framed, two, k, how)
            check_whole(row, framed, alone, k, how)


@pytest.mark.parametrize("row", STREAMS, ids=ids(STREAMS))
def test_the_end_of_the_connection_is_the_end_of_an_answer_only_after_its_terminal(row: Row) -> None:
    """A stream without framing: every cut is a FIN, and only the terminal tells a whole answer from a cut one."""
    head = response_head(200, [("content-type", "text/event-stream"), ("connection", "close")])
    wire = Wire(row)
    relay = Relay(timeouts=QUICK)
    for n in range(wire.committed_by, len(wire.events) + 1):
        exchange = relay.ask(row.sent)
        relay.providers[0].last.feed(head + b"".join(wire.events[:n]))
        relay.providers[0].last.fin()
        received, record = exchange.downstream.received, exchange.row
        whole = wire.done_by is not None and n >= wire.done_by
        failed = wire.error_by is not None and n >= wire.error_by
        assert record.outcome == ("upstream_error" if failed else "ok" if whole else "truncated")
        assert len(error_events(received)) == (0 if whole and not failed else 1)
        assert has_done(received) == whole


@pytest.mark.parametrize("row", STREAMS, ids=ids(STREAMS))
def test_how_the_network_cuts_a_stream_changes_nothing(row: Row) -> None:
    """Wire 30: two segments, cut at every byte; then three bytes at a time, then one."""
    wire = Wire(row)
    relay = Relay(timeouts=QUICK)

    def replay(pieces: Iterable[bytes]) -> bytes:
        exchange = relay.ask(row.sent)
        for piece in pieces:
            relay.providers[0].last.feed(piece)
        assert exchange.row.outcome == ("upstream_error" if wire.error_by else "ok")
        return without_ours(exchange.downstream.received)

    for k in wire.cuts(every=False):
        assert replay([wire.bytes[:k], wire.bytes[k:]]) == row.expected
    for step in (1, 3):
        assert replay(wire.bytes[at : at + step] for at in range(0, len(wire.bytes), step)) == row.expected
