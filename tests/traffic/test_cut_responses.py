"""Streams of typed events, cut at every byte: a cut is never passed off as `response.completed`.

Each goes through the engine without sockets, one chunk per event, and ends after byte k by the provider's FIN, by its
RST, or by silence. What must come out follows from the events that were there whole. (Faults G12, G13; §3.3.)
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

import pytest

from headgate.proxy.upstream.cluster import Timeouts
from tests_support.answers import LAST_CHUNK, chunk, response_events, response_head, typed_event
from tests_support.downstream import FakeDownstream
from tests_support.relay import BACKOFF, Exchange, Relay
from tests_support.traffic import Row, data_of, error_events, events, other_rows, without_ours

if TYPE_CHECKING:
    from collections.abc import Sequence

RESPONSES, IMAGES = "/v1/responses", "/v1/images/generations"
BODY = b'{"model":"m","stream":true,"input":"hi"}'
HOW = ("fin", "rst", "stall")
QUICK = Timeouts(first_token=4, idle=3, total=8)
HEAD = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
OTHER = b"".join([HEAD, *map(chunk, response_events(["from the other"])), LAST_CHUNK])
SILENT = {"response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"}
TERMINAL = {"response.completed", "response.incomplete", "image_generation.completed"}
IMAGE = [
    typed_event("image_generation.partial_image", b64_json="QUJD", partial_image_index=0),
    typed_event("image_generation.completed", b64_json="QUJDREVG", usage={"input_tokens": 5, "output_tokens": 50}),
]
STREAMS = {
    "completed": (RESPONSES, response_events()),
    "incomplete": (RESPONSES, response_events(end="response.incomplete")),
    "image": (IMAGES, IMAGE),
}


def kind(event: bytes) -> str:
    """The type in its data, which need not be whole JSON: one recorded event has a brace too few."""
    found = re.search(rb'data: \{"type":"([^"]+)"', event)
    return found[1].decode() if found else ""


class Wire:
    """A stream on the wire, and what is known of it after k bytes."""

    def __init__(self, path: str, stream: Sequence[bytes]) -> None:
        self.path = path
        self.events = list(stream)
        parts = [HEAD, *map(chunk, stream), LAST_CHUNK]
        self.bytes = b"".join(parts)
        self.ends = [end - 2 for end in accumulate(map(len, parts))][1:-1]
        self.committed_by = next(n for n, one in enumerate(stream, 1) if kind(one) not in SILENT)
        self.whole_by = next(n for n, one in enumerate(stream, 1) if kind(one) in TERMINAL)

    def complete(self, k: int) -> int:
        """How many events are there after k bytes."""
        return bisect_right(self.ends, k)


def ask(relay: Relay, wire: Wire) -> Exchange:
    return relay.ask(BODY, FakeDownstream(BODY, path=wire.path))


def end_with(relay: Relay, how: str) -> None:
    call = relay.providers[0].last
    if how == "stall":
        for limit in (relay.timeouts.first_token, relay.timeouts.idle, relay.timeouts.total):
            if not call.over:
                relay.clock.advance(limit + 1)
    else:
        getattr(call, how)()


def check(wire: Wire, relay: Relay, k: int, how: str) -> None:
    """Cut after k bytes."""
    exchange = ask(relay, wire)
    relay.providers[0].last.sent()
    relay.providers[0].last.feed(wire.bytes[:k])
    end_with(relay, how)
    relay.clock.advance(BACKOFF)
    other = len(relay.providers) == 2 and bool(relay.providers[1].calls)
    if other:
        relay.providers[1].last.sent()
        relay.providers[1].last.feed(OTHER)
    n = wire.complete(k)
    downstream, row = exchange.downstream, exchange.row
    received = without_ours(downstream.received)
    relayed = b"".join(wire.events[:n])
    if n >= wire.whole_by:
        assert (downstream.status, received, row.outcome) == (200, relayed, "ok")
        assert row.usage_source == "reported"
    elif n >= wire.committed_by:
        assert received.startswith(relayed)
        [error] = events(received[len(relayed) :])
        assert kind(error) == "error"
        assert {"message", "type", "param", "code"} <= set(data_of(error)["error"])
        assert (row.outcome, row.status, row.attempts) == ("truncated", 200, 1)
    elif how == "stall" and k >= len(HEAD):
        # What is held goes down after two seconds: from then on only an error event can say what became of it.
        assert (downstream.status, row.outcome, len(error_events(received))) == (200, "truncated", 1)
    elif other:
        assert (downstream.status, kind(events(received)[-1]), row.outcome) == (200, "response.completed", "ok")
    else:
        assert downstream.status == (504 if how == "stall" else 502)
        assert json.loads(received)["error"]["code"] in ("upstream_error", "upstream_timeout")
        assert row.outcome == "failed"
    assert other is (row.attempts == 2)
    if n < wire.whole_by and not other:
        assert not TERMINAL & set(map(kind, events(received)))
    assert downstream.ended
    assert relay.at_rest()


@pytest.mark.parametrize("name", STREAMS)
def test_a_cut_stream_is_never_passed_off_as_a_whole_one(name: str) -> None:
    wire = Wire(*STREAMS[name])
    alone, two = Relay(timeouts=QUICK), Relay(providers=2, timeouts=QUICK)
    for k in range(len(wire.bytes) + 1):
        check(wire, alone, k, HOW[k % 3])
        if wire.path == RESPONSES and wire.complete(k) <= wire.committed_by:
            check(wire, two, k, HOW[(k + 1) % 3])


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", STREAMS)
def test_and_that_in_every_way(name: str, how: str) -> None:
    wire = Wire(*STREAMS[name])
    alone = Relay(timeouts=QUICK)
    for k in range(len(wire.bytes) + 1):
        check(wire, alone, k, how)


RECORDED = [row for row in other_rows() if row.stream]


@pytest.mark.shared_data
@pytest.mark.parametrize("row", RECORDED, ids=lambda row: row.id.split(".")[0])
def test_nor_is_a_recorded_one(row: Row) -> None:
    wire = Wire(row.path, events(row.body))
    alone = Relay(timeouts=QUICK)
    for k in range(len(wire.bytes) + 1):
        check(wire, alone, k, HOW[k % 3])


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("row", RECORDED, ids=lambda row: row.id.split(".")[0])
def test_nor_is_a_recorded_one_in_any_way(row: Row, how: str) -> None:
    wire = Wire(row.path, events(row.body))
    alone = Relay(timeouts=QUICK)
    for k in range(len(wire.bytes) + 1):
        check(wire, alone, k, how)


def test_a_done_before_the_terminal_event_is_not_passed_off_as_the_end() -> None:
    *begun, _ = response_events()
    relay = Relay()
    exchange = relay.ask(BODY, FakeDownstream(BODY, path=RESPONSES))
    relay.providers[0].last.feed(b"".join([HEAD, *map(chunk, [*begun, b"data: [DONE]\n\n"]), LAST_CHUNK]))
    received = exchange.downstream.received
    assert b"[DONE]" not in received
    assert [kind(one) for one in events(received)] == [*map(kind, begun), "error"]
    assert exchange.row.outcome == "truncated"


def test_a_response_that_fails_before_it_has_content_is_made_good_by_another() -> None:
    failed = response_events([], end="response.failed", error={"code": "server_error", "message": "m"}, usage=None)
    relay = Relay(providers=2)
    exchange = relay.ask(BODY, FakeDownstream(BODY, path=RESPONSES))
    relay.providers[0].last.feed(b"".join([HEAD, *map(chunk, failed), LAST_CHUNK]))
    relay.clock.advance(BACKOFF)
    relay.providers[1].last.feed(OTHER)
    received = without_ours(exchange.downstream.received)
    assert received == b"".join(response_events(["from the other"]))
    assert (exchange.row.attempts, exchange.downstream.status) == (2, 200)


@pytest.mark.parametrize("text", [(), ("some",)])
def test_a_failed_response_that_nobody_makes_good_goes_down_as_it_is(text: tuple[str, ...]) -> None:
    failed = response_events(text, end="response.failed", error={"code": "server_error", "message": "m"}, usage=None)
    relay = Relay()
    exchange = relay.ask(BODY, FakeDownstream(BODY, path=RESPONSES))
    relay.providers[0].last.feed(b"".join([HEAD, *map(chunk, failed), LAST_CHUNK]))
    assert without_ours(exchange.downstream.received) == b"".join(failed)
    assert exchange.row.outcome == "upstream_error"


def test_our_comment_follows_the_terminal_event() -> None:
    relay = Relay()
    exchange = relay.ask(BODY, FakeDownstream(BODY, path=RESPONSES))
    stream = response_events()
    relay.providers[0].last.feed(b"".join([HEAD, *map(chunk, stream), chunk(b"data: [DONE]\n\n"), LAST_CHUNK]))
    *before, comment, done = events(exchange.downstream.received)
    assert before == stream
    said = json.loads(comment.removeprefix(b": headgate "))
    assert (said["tokens_prompt"], said["tokens_completion"], said["usage"]) == (36, 11, "reported")
    assert done == b"data: [DONE]\n\n"


def test_a_large_last_event_ends_its_stream() -> None:
    """The image of a streamed generation is in its last event, megabytes of it."""
    image = [IMAGE[0], typed_event("image_generation.completed", b64_json="A" * 3_000_000, usage={"input_tokens": 5})]
    relay = Relay()
    exchange = relay.ask(BODY, FakeDownstream(BODY, path=IMAGES))
    wire = b"".join([HEAD, *map(chunk, image), LAST_CHUNK])
    for at in range(0, len(wire), 65_536):
        relay.providers[0].last.feed(wire[at : at + 65_536])
    row = exchange.row
    assert without_ours(exchange.downstream.received) == b"".join(image)
    assert (row.outcome, row.prompt_tokens, row.usage_source) == ("ok", 5, "reported")


def test_a_large_last_event_that_is_cut_closes_the_connection() -> None:
    """Half of it has gone down: nothing may be added, so only the connection can say that it is not whole."""
    image = [IMAGE[0], typed_event("image_generation.completed", b64_json="A" * 3_000_000)]
    relay = Relay()
    exchange = relay.ask(BODY, FakeDownstream(BODY, path=IMAGES))
    wire = b"".join([HEAD, *map(chunk, image)])
    for at in range(0, 2_000_000, 65_536):
        relay.providers[0].last.feed(wire[at : at + 65_536])
    relay.providers[0].last.fin()
    assert exchange.downstream.aborted
    assert exchange.row.outcome == "truncated"
