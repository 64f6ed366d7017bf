"""answer: what went down is the provider's own, its end is the provider's own, and what it used is settled once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from headgate.proxy.accounting.prices import own_price
from headgate.proxy.attempt import COLLECTED_BYTES
from headgate.proxy.dialect import RequestFacts
from headgate.proxy.filter import Event, Filter
from tests_support.answers import (
    DONE,
    LAST_CHUNK,
    USAGE,
    chat_chunk,
    chat_completion,
    chunk,
    event,
    json_response,
    response_head,
)
from tests_support.downstream import FakeDownstream
from tests_support.relay import Relay
from tests_support.traffic import error_events, events, finish_reasons, has_done, without_ours

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headgate.proxy.exchange import Exchange as Ex
    from headgate.proxy.upstream.call import ResponseHead
    from tests_support.calls import FakeCall
    from tests_support.relay import Exchange

BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
STREAM = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}'
ASKS = (
    b'{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"hi"}]}'
)
FRAMED = [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")]
HEAD = response_head(200, FRAMED)
TEXT = event(chat_chunk({"content": "Hello there"}))
FINISH = event(chat_chunk({}, finish_reason="stop"))
USED = event(chat_chunk(None, usage=USAGE))
ERROR = b'data: {"error":{"message":"no","type":"server_error","param":null,"code":null}}\n\n'
PRICE = own_price({"input": 1.0, "output": 2.0})


def begin(relay: Relay, *pieces: bytes, body: bytes = STREAM, headers: Sequence[tuple[bytes, bytes]] = ()) -> Exchange:
    """A stream that has begun with these events."""
    exchange = relay.ask(body, FakeDownstream(headers=[*headers]))
    feed(relay, HEAD, *map(chunk, pieces))
    return exchange


def feed(relay: Relay, *pieces: bytes) -> FakeCall:
    """More bytes of the first provider's answer."""
    call = relay.providers[0].last
    for piece in pieces:
        call.feed(piece)
    return call


def comments(stream: bytes) -> list[dict[str, Any]]:
    """What our comments say."""
    found = [one for one in events(stream) if one.startswith(b": headgate ")]
    return [json.loads(one.removeprefix(b": headgate ")) for one in found]


# -- the head


async def test_a_whole_answer_says_all_that_is_known() -> None:
    relay = Relay(price=PRICE)
    exchange = relay.ask(BODY)
    relay.clock.advance(0.25)
    feed(relay, json_response(chat_completion(), headers=[("x-request-id", "req_1"), ("server", "x"), ("x-any", "y")]))
    got = dict(exchange.downstream.headers)
    row = exchange.row
    expected = {
        b"x-request-id": b"req_1",
        b"x-any": b"y",
        b"x-headgate-request-id": row.id.encode(),
        b"x-headgate-config": b"test",
        b"x-headgate-route": b"default",
        b"x-headgate-attempts": b"1",
        b"x-headgate-provider": b"up0",
        b"x-headgate-model": b"m",
        b"x-headgate-strategy": b"config-order",
        b"x-headgate-tokens-prompt": b"9",
        b"x-headgate-tokens-completion": b"12",
        b"x-headgate-cost-usd": b"0.000033",
        b"x-headgate-latency-ms": b"250.0",
        b"x-headgate-upstream-ms": b"250.0",
        b"x-headgate-overhead-ms": b"0.0",
        b"server-timing": b"upstream;dur=250.0, gateway;dur=0.0",
    }
    assert got | expected == got
    assert b"server" not in got
    assert row.cost_usd == pytest.approx(33e-6)
    assert row.upstream_request_id == "req_1"


async def test_an_unknown_price_is_absent() -> None:
    relay = Relay()
    exchange = relay.ask(BODY)
    feed(relay, json_response(chat_completion()))
    assert exchange.downstream.header(b"x-headgate-cost-usd") is None
    assert exchange.row.cost_usd is None


async def test_an_answer_without_usage_costs_nobody_knows_what() -> None:
    relay = Relay(price=PRICE)
    exchange = relay.ask(BODY)
    feed(relay, json_response(b"[1, 2, 3]"))
    assert exchange.downstream.header(b"x-headgate-tokens-prompt") is None
    assert exchange.downstream.header(b"x-headgate-cost-usd") is None
    row = exchange.row
    assert (row.usage_source, row.cost_usd) == ("none", None)


async def test_a_scorer_gives_the_strategy_its_name() -> None:
    class ByName(Filter):
        def on_request(self, ex: Ex) -> None:
            ex.scorer = Backwards()

    class Backwards:
        name = "backwards"

        def score(self, target: Any) -> float:
            return -int(target.cluster.name[2:])

    relay = Relay(providers=2, filters=[ByName()])
    exchange = relay.ask(BODY)
    relay.providers[1].last.feed(json_response(chat_completion()))
    assert exchange.downstream.header(b"x-headgate-strategy") == b"backwards"


@pytest.mark.parametrize("said", [None, "no-store"])
async def test_a_stream_is_not_to_be_cached(said: str | None) -> None:
    relay = Relay()
    exchange = relay.ask(STREAM)
    feed(relay, response_head(200, [*FRAMED, *([("cache-control", said)] if said else [])]), chunk(TEXT))
    sent = [value for name, value in exchange.downstream.headers if name == b"cache-control"]
    assert sent == [(said or "no-cache").encode()]
    assert exchange.downstream.length is None


async def test_a_stream_says_at_its_head_what_it_may_cost() -> None:
    exchange = begin(Relay(price=PRICE), TEXT)
    estimate = exchange.downstream.header(b"x-headgate-cost-estimate-usd")
    assert estimate is not None
    assert float(estimate) > 1024 * 2e-6
    assert begin(Relay(), TEXT).downstream.header(b"x-headgate-cost-estimate-usd") is None


async def test_times_of_a_stream_count_up_to_its_first_content() -> None:
    """Waiting for the provider's first content is the provider's time, though its head came long before."""
    relay = Relay()
    exchange = relay.ask(STREAM)
    relay.clock.advance(0.25)
    feed(relay, HEAD)
    relay.clock.advance(0.5)
    feed(relay, chunk(TEXT))
    assert exchange.downstream.header(b"x-headgate-upstream-ms") == b"750.0"
    assert exchange.downstream.header(b"x-headgate-overhead-ms") == b"0.0"


# -- the end


@pytest.mark.parametrize(
    ("pieces", "how", "outcome"),
    [
        ([TEXT, FINISH, DONE], "clean", "ok"),
        ([TEXT, FINISH, DONE], "rst", "ok"),
        ([TEXT, DONE], "clean", "ok"),
        ([TEXT, FINISH], "clean", "ok"),
        ([TEXT, FINISH], "rst", "truncated"),
        ([TEXT, FINISH], "stall", "truncated"),
        ([TEXT, FINISH], "close", "truncated"),
        ([TEXT, FINISH.rstrip(b"\n")], "close", "truncated"),
        ([TEXT, FINISH, DONE], "close", "ok"),
        ([TEXT, ERROR], "close", "upstream_error"),
        ([TEXT], "clean", "truncated"),
        ([TEXT], "rst", "truncated"),
        ([TEXT], "stall", "truncated"),
        ([TEXT, ERROR], "clean", "upstream_error"),
        ([TEXT, ERROR], "rst", "upstream_error"),
        ([TEXT, ERROR], "stall", "upstream_error"),
        ([TEXT, FINISH[:40]], "clean", "truncated"),
        ([TEXT, FINISH.rstrip(b"\n")], "clean", "ok"),
        ([TEXT, DONE.rstrip(b"\n")], "clean", "ok"),
        ([TEXT, FINISH.rstrip(b"\n")], "rst", "truncated"),
        ([TEXT, TEXT.rstrip(b"\n")], "clean", "truncated"),
        ([TEXT, b"data: nonsense"], "clean", "truncated"),
    ],
)
async def test_only_the_provider_ends_a_stream(pieces: list[bytes], how: str, outcome: str) -> None:
    relay = Relay()
    if how == "close":
        exchange = relay.ask(STREAM)
        call = feed(relay, response_head(200, FRAMED[:1]), *pieces)
    else:
        exchange = begin(relay, *pieces)
        call = relay.providers[0].last
    if how == "clean":
        call.feed(LAST_CHUNK)
    elif how == "rst":
        call.rst()
    elif how == "close":
        call.fin()
    else:
        relay.clock.advance(relay.timeouts.idle + 1)
    received, row = exchange.downstream.received, exchange.row
    assert row.outcome == outcome
    assert exchange.downstream.ended
    said = b"".join(pieces)
    assert has_done(received) == has_done(said)
    assert set(finish_reasons(received)) <= set(finish_reasons(said))
    assert len(error_events(received)) == len(error_events(said)) + (1 if outcome == "truncated" else 0)
    if outcome != "truncated":
        assert without_ours(received) == said
    assert row.bytes_out == len(received)
    assert relay.at_rest()


async def test_half_an_event_that_went_down_leaves_only_the_close() -> None:
    """An event of more than 256 KiB passes raw: nothing may be added to it."""
    relay = Relay()
    exchange = begin(relay, TEXT, b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 300_000)
    feed(relay).rst()
    assert exchange.downstream.aborted
    assert error_events(exchange.downstream.received) == []
    assert exchange.row.outcome == "truncated"
    assert relay.engine.stats.internal_errors == 0


async def test_nothing_after_done_goes_down() -> None:
    relay = Relay()
    exchange = begin(relay, TEXT, DONE + TEXT, TEXT)
    assert without_ours(exchange.downstream.received) == TEXT + DONE


async def test_a_shutdown_is_no_fault_of_the_provider() -> None:
    relay = Relay()
    exchange = begin(relay, TEXT)
    relay.engine.cut()
    [error] = error_events(exchange.downstream.received)
    assert error["code"] == "shutting_down"
    row = exchange.row
    assert (row.outcome, row.error_code, row.usage_source) == ("truncated", "shutting_down", "estimated")
    assert (relay.clusters[0].rq_error, relay.clusters[0].rq_success) == (0, 0)
    assert relay.at_rest()


@pytest.mark.parametrize(
    ("pieces", "outcome"), [([TEXT], "cancelled"), ([TEXT, ERROR], "upstream_error"), ([TEXT, FINISH], "cancelled")]
)
async def test_a_client_that_leaves_says_why(pieces: list[bytes], outcome: str) -> None:
    """SDKs close the connection when they read an error: that is the provider's, not the client's doing."""
    relay = Relay()
    exchange = begin(relay, *pieces)
    exchange.downstream.leave()
    assert exchange.row.outcome == outcome
    assert relay.at_rest()


TYPED = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"Hello there"}\n\n'
COMPLETED = b'event: response.completed\ndata: {"type":"response.completed","response":{}}\n\n'


@pytest.mark.parametrize("how", ["clean", "rst", "stall", "leave"])
async def test_a_stream_without_done_is_whole_from_its_terminal_event_on(how: str) -> None:
    relay = Relay()
    exchange = relay.ask(b'{"model":"m","stream":true,"input":"hi"}', FakeDownstream(path="/v1/responses"))
    call = feed(relay, HEAD, chunk(TYPED), chunk(COMPLETED))
    assert not exchange.downstream.finished
    match how:
        case "clean":
            call.feed(LAST_CHUNK)
        case "rst":
            call.rst()
        case "stall":
            relay.clock.advance(2.2)
        case "leave":
            exchange.downstream.leave()
    assert without_ours(exchange.downstream.received) == TYPED + COMPLETED
    assert exchange.row.outcome == "ok"
    assert relay.at_rest()


async def test_bytes_that_are_not_events_are_whole_when_their_message_is() -> None:
    relay = Relay()
    exchange = relay.ask(BODY)
    call = feed(relay, response_head(200, [("content-type", "audio/mpeg"), ("transfer-encoding", "chunked")]))
    assert exchange.downstream.status == 200
    call.feed(chunk(b"abc"))
    call.feed(LAST_CHUNK)
    assert (exchange.downstream.received, exchange.row.outcome) == (b"abc", "ok")


async def test_a_large_error_is_relayed_and_still_an_error() -> None:
    relay = Relay()
    exchange = relay.ask(BODY)
    feed(relay, json_response(b" " * (COLLECTED_BYTES + 1), 400))
    assert exchange.downstream.status == 400
    assert exchange.row.outcome == "upstream_error"


async def test_the_first_token_is_timed_when_it_comes() -> None:
    """Not when the head goes down after two seconds without one, and not again with the next."""
    relay = Relay()
    exchange = begin(relay, event(chat_chunk({"role": "assistant"})))
    relay.clock.advance(3)
    assert exchange.downstream.status == 200
    for _ in range(2):
        feed(relay, chunk(TEXT))
        relay.clock.advance(1)
    feed(relay, chunk(FINISH + DONE))
    assert exchange.row.ttft_ms == 3000


async def test_a_stream_without_a_token_has_no_first_one() -> None:
    relay = Relay()
    exchange = begin(relay, event(chat_chunk({"role": "assistant"})))
    relay.clock.advance(3)
    exchange.downstream.leave()
    assert exchange.row.ttft_ms is None


async def test_the_record_is_written_before_the_last_byte_leaves() -> None:
    """A client that holds a whole answer has its row, whenever this process dies."""
    seen: list[int] = []

    class Notes(FakeDownstream):
        __slots__ = ("relay",)
        relay: Relay

        def write(self, data: bytes) -> bool:
            seen.append(len(self.relay.lines.written))
            return super().write(data)

        def end(self) -> None:
            seen.append(len(self.relay.lines.written))
            super().end()

    for body, pieces, counts in (
        (BODY, [json_response(chat_completion())], [2, 2]),
        (STREAM, [HEAD, chunk(TEXT), chunk(FINISH), chunk(DONE)], [1, 1, 2, 2]),
        (STREAM, [HEAD, chunk(TEXT), chunk(FINISH), LAST_CHUNK], [1, 1, 2]),
        (b"not json", [], [2, 2]),
    ):
        seen.clear()
        relay = Relay()
        downstream = Notes()
        downstream.relay = relay
        relay.ask(body, downstream)
        if pieces:
            feed(relay, *pieces)
        assert seen == counts


# -- observers and rewriters


class Keeps(Filter):
    """Remembers the bytes that went down."""

    def __init__(self) -> None:
        self.data = b""

    def on_bytes(self, ex: Ex, data: bytes) -> None:
        self.data += data


async def test_observers_see_every_byte_that_goes_down() -> None:
    for body, wire in (
        (BODY, [json_response(chat_completion())]),
        (STREAM, [HEAD, chunk(TEXT), chunk(FINISH), chunk(DONE)]),
        (STREAM, [HEAD, chunk(TEXT + FINISH + DONE)]),
        (STREAM, [HEAD, chunk(TEXT), chunk(FINISH.rstrip(b"\n")), LAST_CHUNK]),
    ):
        keeps = Keeps()
        relay = Relay(filters=[keeps])
        exchange = relay.ask(body)
        feed(relay, *wire)
        assert keeps.data == exchange.downstream.received
        assert exchange.row.bytes_out == len(keeps.data)


class Rewrites(Filter):
    """Marks text, doubles finishes, drops pings."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def on_event(self, ex: Ex, event: Event) -> Event | list[Event] | None:
        self.seen.append(event.raw)
        if event.raw.startswith(b":"):
            return None
        if b'"stop"' in event.raw:
            return [event, event]
        return Event(event.raw.replace(b"Hello", b"HELLO"))


async def test_filters_may_rewrite_split_and_drop_events_one_by_one() -> None:
    rewrites = Rewrites()
    relay = Relay(filters=[rewrites])
    exchange = begin(relay, b": ping\n\n" + TEXT + FINISH + USED, DONE)
    assert without_ours(exchange.downstream.received) == TEXT.replace(b"Hello", b"HELLO") + FINISH + FINISH + DONE
    assert rewrites.seen == [b": ping\n\n", TEXT, FINISH, DONE]
    assert len(comments(exchange.downstream.received)) == 1
    assert not relay.engine.graph.default.chain.byte_path


async def test_a_last_event_without_its_blank_line_is_rewritten_too() -> None:
    relay = Relay(filters=[Rewrites()])
    exchange = begin(relay, TEXT, FINISH, TEXT.rstrip(b"\n"))
    feed(relay, LAST_CHUNK)
    assert exchange.downstream.received.count(b"HELLO") == 2


async def test_events_pass_the_filters_bottom_to_top() -> None:
    class Appends(Filter):
        def __init__(self, letter: bytes) -> None:
            self.letter = letter

        def on_event(self, ex: Ex, event: Event) -> Event:
            return Event(b":" + self.letter + b"\n" + event.raw)

    exchange = begin(Relay(filters=[Appends(b"top"), Appends(b"bottom")]), TEXT)
    assert exchange.downstream.received == b":top\n:bottom\n" + TEXT


# -- our comment


async def test_the_comment_stands_once_before_done_and_tells_the_truth() -> None:
    relay = Relay(price=PRICE)
    exchange = begin(relay, TEXT, body=ASKS)
    relay.clock.advance(1)
    feed(relay, chunk(FINISH + USED + DONE))
    received = exchange.downstream.received
    [comment] = comments(received)
    row = exchange.row
    assert comment == {
        "request_id": row.id,
        "latency_ms": 1000.0,
        "ttft_ms": 0.0,
        "tokens_prompt": 9,
        "tokens_completion": 12,
        "usage": "reported",
        "cost_usd": pytest.approx(33e-6),
    }
    assert events(received)[-2].startswith(b": headgate ")
    assert events(received)[-1] == DONE
    assert (row.prompt_tokens, row.completion_tokens) == (9, 12)
    assert row.cost_usd == pytest.approx(33e-6)


async def test_a_comment_leaves_out_what_nobody_knows() -> None:
    exchange = begin(Relay(), FINISH, DONE)
    [comment] = comments(exchange.downstream.received)
    assert set(comment) == {"request_id", "latency_ms", "ttft_ms"}
    relay = Relay()
    exchange = begin(relay, DONE)
    [comment] = comments(exchange.downstream.received)
    assert "ttft_ms" not in comment


@pytest.mark.parametrize(
    ("pieces", "end", "count"),
    [
        ([TEXT, FINISH, DONE], None, 1),
        ([TEXT + FINISH + DONE], None, 1),
        ([TEXT, FINISH, DONE.rstrip(b"\n")], LAST_CHUNK, 1),
        ([TEXT, FINISH], LAST_CHUNK, 0),
        ([TEXT], LAST_CHUNK, 0),
        ([b"id: 1\n" + TEXT, FINISH, DONE], None, 0),
        ([TEXT, FINISH, b"id: 9\n" + DONE], None, 0),
        ([b"\xef\xbb\xbfid: 1\n" + TEXT, FINISH, DONE], None, 0),
        ([b"data: x\rid: 7\r\r" + TEXT, FINISH, DONE], None, 0),
        ([TEXT, ERROR, DONE], None, 1),
    ],
)
async def test_where_the_comment_stands(pieces: list[bytes], end: bytes | None, count: int) -> None:
    relay = Relay()
    exchange = begin(relay, *pieces)
    if end is not None:
        feed(relay, end)
    assert len(comments(exchange.downstream.received)) == count
    assert without_ours(exchange.downstream.received).startswith(b"".join(pieces))


@pytest.mark.parametrize(("wish", "count"), [(b"off", 0), (b"Off", 0), (b"on", 1)])
async def test_the_caller_may_switch_it_off(wish: bytes, count: int) -> None:
    exchange = begin(Relay(), TEXT, FINISH, DONE, headers=[(b"x-headgate-stream-metadata", wish)])
    assert len(comments(exchange.downstream.received)) == count


# -- usage


async def test_usage_is_hidden_from_who_did_not_ask_and_charged_all_the_same() -> None:
    for body, shown in ((STREAM, False), (ASKS, True)):
        relay = Relay()
        exchange = begin(relay, TEXT, FINISH, USED, DONE, body=body)
        assert (USED in exchange.downstream.received) is shown
        row = exchange.row
        assert (row.usage_source, row.prompt_tokens, row.completion_tokens) == ("reported", 9, 12)


async def test_usage_is_settled_without_a_done_too() -> None:
    relay = Relay()
    exchange = begin(relay, TEXT, FINISH, USED)
    feed(relay, LAST_CHUNK)
    row = exchange.row
    assert (row.outcome, row.usage_source, row.completion_tokens) == ("ok", "reported", 12)


async def test_who_left_pays_for_what_was_delivered() -> None:
    relay = Relay(price=PRICE)
    exchange = begin(relay, *[event(chat_chunk({"content": "x"}))] * 10)
    exchange.downstream.leave()
    row = exchange.row
    assert (row.outcome, row.usage_source) == ("cancelled", "estimated")
    assert row.completion_tokens == 10  # one each, though ten letters would be three
    assert row.prompt_tokens > 0
    assert row.cost_usd == pytest.approx((row.prompt_tokens + 2 * 10) / 1e6)


async def test_an_early_report_does_not_hide_what_came_after_it() -> None:
    """Some report the prompt in their first chunk; cut after that, the text was delivered all the same."""
    early = event(chat_chunk({"role": "assistant"}, usage={"prompt_tokens": 9, "completion_tokens": 0}))
    relay = Relay()
    exchange = begin(relay, early, *[TEXT] * 8)
    feed(relay).rst()
    row = exchange.row
    assert (row.usage_source, row.prompt_tokens) == ("estimated", 9)
    assert row.completion_tokens == 8 * len("Hello there") // 4


async def test_a_report_with_every_chunk_is_the_latest() -> None:
    relay = Relay()
    pieces = [
        event(chat_chunk({"content": "word"}, usage={"prompt_tokens": 9, "completion_tokens": n})) for n in (1, 2, 3)
    ]
    exchange = begin(relay, *pieces)
    exchange.downstream.leave()
    row = exchange.row
    assert (row.usage_source, row.completion_tokens) == ("reported", 3)


async def test_a_client_gone_before_anything_came_pays_nothing() -> None:
    relay = Relay(price=PRICE)
    exchange = relay.ask(STREAM)
    exchange.downstream.leave()
    row = exchange.row
    assert (row.usage_source, row.cost_usd, row.completion_tokens) == ("none", None, 0)


async def test_an_answer_to_a_request_without_facts_is_charged_nothing() -> None:
    """A face that reads no body has nothing to estimate from."""

    class Forgets(Filter):
        def on_response(self, ex: Ex, head: ResponseHead) -> None:
            assert isinstance(ex.facts, RequestFacts)
            ex.facts = None

    relay = Relay(filters=[Forgets()])
    exchange = begin(relay, TEXT)
    feed(relay).rst()
    assert exchange.row.usage_source == "none"
