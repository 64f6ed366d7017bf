"""attempt: what commits, what is still held, how long each wait may be, and what becomes of the rest of a message."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from headgate.proxy.attempt import COLLECTED_BYTES, COLLECTED_PIECES, HELD_BYTES
from headgate.proxy.errors import ConnectError
from headgate.proxy.filter import Filter
from headgate.proxy.patience import HELD_SECONDS, LINGER_SECONDS
from headgate.proxy.upstream.cluster import Timeouts
from tests_support.answers import (
    DONE,
    LAST_CHUNK,
    USAGE,
    chat_chunk,
    chat_chunks,
    chat_completion,
    chunk,
    event,
    json_response,
    response,
    response_head,
    sse,
)
from tests_support.downstream import FakeDownstream
from tests_support.relay import BACKOFF, Relay
from tests_support.traffic import error_events, events, has_done, without_ours

if TYPE_CHECKING:
    from tests_support.calls import FakeCall

BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
STREAM = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}'
FRAMED = [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")]
HEAD = response_head(200, FRAMED)
ROLE = event(chat_chunk({"role": "assistant", "content": ""}))
TEXT = event(chat_chunk({"content": "Hi"}))
FINISH = event(chat_chunk({}, finish_reason="stop"))
PING = b": ping\n\n"
CHUNKED = [("transfer-encoding", "chunked")]
ERROR = b'data: {"error":{"message":"overloaded","type":"server_error","param":null,"code":null}}\n\n'
GOOD = json_response(chat_completion())
GOOD_STREAM = b"".join(sse(chat_chunks()))
SWEEP = 0.11
"""A deadline fires at most one sweep of the coarse timer late."""


def ask(relay: Relay, body: bytes = STREAM) -> tuple[Any, FakeCall]:
    """An exchange whose request has been sent to the first provider."""
    exchange = relay.ask(body)
    call = relay.providers[0].last
    call.sent()
    return exchange, call


def stream(call: FakeCall, *pieces: bytes) -> None:
    """The head of a stream and these events."""
    call.feed(HEAD)
    for piece in pieces:
        call.feed(chunk(piece))


# -- the commit gate


async def test_nothing_goes_down_before_content_and_then_all_of_it_in_order() -> None:
    relay = Relay()
    exchange, call = ask(relay)
    stream(call, PING, ROLE, PING)
    assert exchange.downstream.status is None
    call.feed(chunk(TEXT))
    assert exchange.downstream.writes == [PING + ROLE + PING + TEXT]
    call.feed(chunk(FINISH))
    assert exchange.downstream.writes[1:] == [FINISH]


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "x"},
        {"reasoning": "x"},
        {"reasoning_content": "x"},
        {"refusal": "x"},
        {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"function_call": {"name": "f", "arguments": ""}},
        {"audio": {"id": "a"}},
        {"content": [{"type": "thinking", "thinking": "x"}]},
    ],
)
async def test_everything_that_is_content_commits(delta: dict[str, Any]) -> None:
    exchange, call = ask(Relay())
    stream(call, ROLE)
    assert exchange.downstream.status is None
    call.feed(chunk(event(chat_chunk(delta))))
    assert exchange.downstream.status == 200


async def test_a_finish_commits() -> None:
    exchange, call = ask(Relay())
    stream(call, ROLE, FINISH)
    assert exchange.downstream.status == 200


@pytest.mark.parametrize("delta", [{}, {"content": ""}, {"content": None, "refusal": None}, {"tool_calls": []}])
async def test_an_empty_delta_does_not_commit(delta: dict[str, Any]) -> None:
    exchange, call = ask(Relay())
    stream(call, event(chat_chunk(delta)))
    assert exchange.downstream.status is None


async def test_more_than_64_kib_are_not_held() -> None:
    exchange, call = ask(Relay())
    comment = b": " + b"x" * 1020 + b"\n\n"
    stream(call, *[comment] * (HELD_BYTES // len(comment)))
    assert exchange.downstream.status is None
    call.feed(chunk(comment))
    assert len(exchange.downstream.received) > HELD_BYTES


async def test_what_is_held_goes_down_two_seconds_after_the_head() -> None:
    relay = Relay()
    exchange, call = ask(relay)
    stream(call, ROLE)
    relay.clock.advance(HELD_SECONDS - 0.2)
    assert exchange.downstream.status is None
    relay.clock.advance(0.2 + SWEEP)
    assert exchange.downstream.writes == [ROLE]
    assert exchange.rows == []


async def test_a_head_alone_goes_down_after_two_seconds() -> None:
    relay = Relay(providers=2)
    exchange, call = ask(relay)
    stream(call)
    relay.clock.advance(HELD_SECONDS + SWEEP)
    assert exchange.downstream.status == 200
    assert exchange.downstream.writes == []
    call.rst()
    relay.clock.advance(BACKOFF)
    assert relay.providers[1].calls == []
    assert exchange.row.outcome == "truncated"


async def test_before_commit_another_takes_over_and_after_it_nobody() -> None:
    for pieces, taken_over in (((PING, ROLE), True), ((ROLE, TEXT), False)):
        relay = Relay(providers=2)
        exchange, call = ask(relay)
        stream(call, *pieces)
        call.rst()
        relay.clock.advance(BACKOFF)
        assert bool(relay.providers[1].calls) is taken_over
        if taken_over:
            relay.providers[1].last.feed(GOOD_STREAM)
            assert without_ours(exchange.downstream.received) == b"".join(map(event, chat_chunks()))
        assert exchange.row.outcome == ("ok" if taken_over else "truncated")
        assert relay.at_rest()


@pytest.mark.parametrize("end", ["clean", "rst", "close"])
async def test_a_stream_that_ends_before_it_began_is_a_failure(end: str) -> None:
    for pieces in ((), (PING,), (ROLE,)):
        exchange, call = ask(Relay())
        if end == "close":
            call.feed(response_head(200, [("content-type", "text/event-stream")]) + b"".join(pieces))
            call.fin()
        else:
            stream(call, *pieces)
            call.feed(LAST_CHUNK) if end == "clean" else call.rst()
        assert exchange.downstream.status == 502
        assert exchange.row.outcome == "failed"


async def test_a_clean_end_with_a_finish_completes_what_is_held() -> None:
    """All of it in one read: role, finish without content, and the end of the message."""
    relay = Relay()
    exchange, call = ask(relay)
    call.feed(HEAD + chunk(ROLE + FINISH) + LAST_CHUNK)
    assert exchange.downstream.received == ROLE + FINISH
    assert exchange.downstream.ended
    assert exchange.row.outcome == "ok"
    assert relay.at_rest()


@pytest.mark.parametrize("last", [FINISH, DONE])
async def test_a_last_event_without_its_blank_line_commits_at_a_clean_end(last: bytes) -> None:
    relay = Relay()
    exchange, call = ask(relay)
    call.feed(HEAD + chunk(ROLE) + chunk(last.rstrip(b"\n")) + LAST_CHUNK)
    assert without_ours(exchange.downstream.received) == ROLE + last.rstrip(b"\n")
    assert exchange.downstream.ended
    assert exchange.row.outcome == "ok"
    assert relay.at_rest()


# -- streams that begin with an error


@pytest.mark.parametrize(
    "pieces",
    [
        (ERROR,),
        (PING, ROLE, ERROR),
        (ERROR + DONE,),
        (ERROR, DONE),
        (b"event: error\ndata: no JSON\n\n",),
        (ERROR.rstrip(b"\n"), b""),
    ],
)
async def test_a_stream_that_begins_with_an_error_is_made_good(pieces: tuple[bytes, ...]) -> None:
    """However the network cuts it."""
    relay = Relay(providers=2)
    exchange, call = ask(relay)
    call.feed(HEAD + b"".join(chunk(piece) for piece in pieces if piece) + (LAST_CHUNK if b"" in pieces else b""))
    relay.clock.advance(BACKOFF)
    relay.providers[1].last.feed(GOOD_STREAM)
    assert without_ours(exchange.downstream.received) == b"".join(map(event, chat_chunks()))
    row = exchange.row
    assert (row.outcome, row.attempts, row.provider) == ("ok", 2, "up1")
    assert call.over
    assert relay.at_rest()


@pytest.mark.parametrize("end", [LAST_CHUNK, None])
async def test_it_goes_down_as_it_is_when_nobody_else_is_left(end: bytes | None) -> None:
    relay = Relay()
    exchange, call = ask(relay)
    stream(call, PING, ERROR, PING)
    call.feed(end) if end else call.rst()
    assert exchange.downstream.received == PING + ERROR + PING
    assert exchange.downstream.ended
    row = exchange.row
    assert (row.outcome, row.status, row.attempts) == ("upstream_error", 200, 1)
    assert relay.clusters[0].rq_error == 1
    assert relay.at_rest()


async def test_an_unterminated_error_goes_down_as_it_is_when_nobody_else_is_left() -> None:
    relay = Relay()
    exchange, call = ask(relay)
    call.feed(HEAD + chunk(ERROR.rstrip(b"\n")) + LAST_CHUNK)
    assert exchange.downstream.received == ERROR.rstrip(b"\n")
    assert exchange.row.outcome == "upstream_error"
    assert relay.at_rest()


async def test_its_words_go_down_when_the_other_has_none() -> None:
    relay = Relay(providers=2)
    exchange, call = ask(relay)
    stream(call, ROLE, ERROR)
    assert call.cancelled
    relay.clock.advance(BACKOFF)
    relay.providers[1].last.fail(ConnectError("refused"))
    relay.clock.advance(BACKOFF)
    relay.providers[1].last.fail(ConnectError("refused"))
    assert (exchange.downstream.status, exchange.downstream.received) == (200, ROLE + ERROR)
    assert exchange.downstream.header(b"x-should-retry") == b"false"
    assert exchange.downstream.header(b"x-headgate-provider") == b"up0"
    row = exchange.row
    assert (row.outcome, row.provider, row.attempts) == ("upstream_error", "up0", 3)


async def test_what_a_failed_stream_reported_is_not_charged_for_the_next_one() -> None:
    """A whole stream of typed events that says it failed has settled its usage before another took over."""
    created = b'event: response.created\ndata: {"type":"response.created","response":{}}\n\n'
    failed = (
        b'event: response.failed\ndata: {"type":"response.failed","response":{"error":{"message":"no"},'
        b'"usage":{"input_tokens":900,"output_tokens":900,"total_tokens":1800}}}\n\n'
    )
    done = (
        b'event: response.completed\ndata: {"type":"response.completed","response":'
        b'{"usage":{"input_tokens":3,"output_tokens":4,"total_tokens":7}}}\n\n'
    )
    relay = Relay(providers=2)
    exchange = relay.ask(b'{"model":"m","stream":true,"input":"hi"}', FakeDownstream(path="/v1/responses"))
    relay.providers[0].last.feed(HEAD + chunk(created + failed) + LAST_CHUNK)
    relay.clock.advance(BACKOFF)
    relay.providers[1].last.feed(HEAD + chunk(created + done) + LAST_CHUNK)
    row = exchange.row
    assert (row.outcome, row.attempts) == ("ok", 2)
    assert (row.prompt_tokens, row.completion_tokens) == (3, 4)


async def test_an_error_in_mid_stream_has_two_seconds_to_end() -> None:
    relay = Relay()
    exchange, call = ask(relay)
    stream(call, TEXT, ERROR)
    relay.clock.advance(LINGER_SECONDS - 0.2)
    call.feed(chunk(PING))
    assert not exchange.downstream.ended
    relay.clock.advance(0.2 + SWEEP)
    assert exchange.downstream.received == TEXT + ERROR + PING
    assert exchange.downstream.ended
    assert exchange.row.outcome == "upstream_error"
    assert relay.at_rest()


# -- plain answers


@pytest.mark.parametrize("where", [0, 1, 100, -1])
async def test_a_collected_answer_may_fail_at_any_byte(where: int) -> None:
    body = b'{"text":"' + b"x" * (COLLECTED_BYTES - 11) + b'"}'
    assert len(body) == COLLECTED_BYTES
    wire = json_response(body)
    relay = Relay(providers=2)
    exchange, call = ask(relay, BODY)
    call.feed(wire[:where])
    call.rst()
    relay.clock.advance(BACKOFF)
    relay.providers[1].last.feed(wire)
    assert exchange.downstream.received == body
    assert exchange.row.attempts == 2


async def test_a_larger_answer_is_relayed_and_its_cut_closes_the_connection() -> None:
    body = b'{"text":"' + b"x" * (COLLECTED_BYTES + 1000)
    relay = Relay(providers=2)
    exchange, call = ask(relay, BODY)
    call.feed(response_head(200, [("content-type", "application/json"), ("content-length", str(len(body) + 10))]))
    call.feed(body[:COLLECTED_BYTES])
    assert exchange.downstream.writes == []
    call.feed(body[COLLECTED_BYTES:])
    assert (exchange.downstream.status, exchange.downstream.length) == (200, len(body) + 10)
    assert exchange.downstream.received == body
    call.rst()
    assert exchange.downstream.aborted
    relay.clock.advance(BACKOFF)
    assert relay.providers[1].calls == []
    assert exchange.row.outcome == "truncated"


async def test_a_larger_answer_passes_whole() -> None:
    body = b'{"text":"' + b"x" * COLLECTED_BYTES + b'"}'
    relay = Relay()
    exchange, call = ask(relay, BODY)
    call.feed(json_response(body))
    assert exchange.downstream.received == body
    assert exchange.downstream.ended
    assert exchange.row.outcome == "ok"
    assert relay.at_rest()


@pytest.mark.parametrize(
    ("kind", "relayed"),
    [
        ("application/json", False),
        ("Application/Problem+JSON; charset=utf-8", False),
        ("text/plain", False),
        ("text/vtt", False),
        ("application/x-ndjson", True),
        ("application/jsonl", True),
        ("application/json-seq", True),
        ("application/stream+json", True),
        ("application/octet-stream", True),
        ("text/event-stream; charset=utf-8", True),
    ],
)
async def test_what_is_one_thing_is_collected_and_what_is_a_sequence_is_not(kind: str, relayed: bool) -> None:
    relay = Relay()
    exchange, call = ask(relay, BODY)
    call.feed(response_head(200, [("content-type", kind), *CHUNKED]) + chunk(TEXT))
    assert bool(exchange.downstream.writes) is relayed


async def test_an_answer_in_any_number_of_pieces_is_collected_in_few() -> None:
    relay = Relay()
    exchange, call = ask(relay, BODY)
    body = json.dumps(chat_completion("x" * 20_000)).encode()
    call.feed(response_head(200, [("content-type", "application/json"), ("content-length", str(len(body)))]))
    [run] = relay.engine.live
    for at in range(len(body) - 1):
        call.feed(body[at : at + 1])
        assert len(run.ex.attempt._taken) <= COLLECTED_PIECES + 1  # type: ignore[union-attr]
    call.feed(body[-1:])
    assert exchange.downstream.received == body


@pytest.mark.parametrize("status", [200, 404])
async def test_bytes_of_another_kind_are_relayed_as_they_come(status: int) -> None:
    """Speech, say; but an error is collected, whatever it says it is."""
    relay = Relay()
    exchange, call = ask(relay, BODY)
    call.feed(response_head(status, [("content-type", "audio/mpeg"), ("content-length", "4")]) + b"ab")
    assert exchange.downstream.received == (b"ab" if status == 200 else b"")
    call.feed(b"cd")
    assert exchange.downstream.received == b"abcd"
    assert exchange.row.outcome == ("ok" if status == 200 else "upstream_error")
    assert relay.at_rest()


async def test_an_error_that_calls_itself_a_stream_is_collected_like_any_other() -> None:
    relay = Relay(providers=2)
    exchange, call = ask(relay)
    call.feed(response_head(500, FRAMED) + chunk(ERROR) + LAST_CHUNK)
    relay.clock.advance(BACKOFF)
    relay.providers[1].last.fail(ConnectError("refused"))
    relay.clock.advance(BACKOFF)
    relay.providers[1].last.fail(ConnectError("refused"))
    assert (exchange.downstream.status, exchange.downstream.received) == (500, ERROR)
    assert exchange.row.attempts == 3


async def test_an_encoded_stream_passes_unread() -> None:
    head = response_head(200, [("content-type", "text/event-stream"), ("content-encoding", "gzip"), *CHUNKED])
    exchange, call = ask(Relay())
    call.feed(head + chunk(b"\x1f\x8b") + LAST_CHUNK)
    assert exchange.downstream.received == b"\x1f\x8b"
    assert exchange.row.usage_source == "none"


@pytest.mark.parametrize(("body", "status"), [(b'{"a":1}', 200), (b'{"a":1', 502), (b"[1]", 502), (b"", 502)])
async def test_an_answer_that_ends_with_its_connection_counts_if_it_is_one_object(body: bytes, status: int) -> None:
    exchange, call = ask(Relay(), BODY)
    call.feed(response_head(200, [("content-type", "application/json")]) + body)
    call.fin()
    assert exchange.downstream.status == status
    assert exchange.row.outcome == ("ok" if status == 200 else "failed")


async def test_an_answer_that_does_not_say_what_it_is_is_collected_and_read() -> None:
    exchange, call = ask(Relay(), BODY)
    body = json.dumps(chat_completion()).encode()
    call.feed(response_head(200, [("content-length", str(len(body)))]) + body)
    assert exchange.downstream.header(b"x-headgate-tokens-completion") == b"12"
    assert exchange.row.usage_source == "reported"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/embeddings"])
@pytest.mark.parametrize("body", [b'{"choices":[{"mess', b"", b"<html>", b'{"a":1}{"b":2}'])
async def test_json_that_is_none_is_made_good_whatever_its_length_said(path: str, body: bytes) -> None:
    relay = Relay(providers=2)
    exchange = relay.ask(BODY, FakeDownstream(BODY, path=path))
    relay.providers[0].last.feed(json_response(body))
    relay.clock.advance(BACKOFF)
    relay.providers[1].last.feed(GOOD)
    assert (exchange.downstream.status, exchange.row.attempts) == (200, 2)
    assert exchange.downstream.received == GOOD.partition(b"\r\n\r\n")[2]


async def test_json_that_is_none_is_an_error_where_nobody_else_is_left() -> None:
    relay = Relay(retry=None)
    exchange, call = ask(relay, BODY)
    call.feed(json_response(b'{"choices":['))
    assert (exchange.downstream.status, exchange.error["code"]) == (502, "upstream_error")
    assert exchange.row.outcome == "failed"


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b'{"choices":[NaN]}', [("content-type", "application/json")]),
        (b'{"choices":' + b"[" * 5000 + b"]" * 5000 + b"}", [("content-type", "application/json")]),
        (b'{"choices":["\xff"]}', [("content-type", "application/json")]),
        (b"[1]", [("content-type", "application/json")]),
        (b"<html>", [("content-type", "text/html")]),
        (b"\x1f\x8b not read", [("content-type", "application/json"), ("content-encoding", "gzip")]),
        (b"", []),
    ],
)
async def test_what_cannot_be_read_but_may_be_whole_passes(body: bytes, headers: list[tuple[str, str]]) -> None:
    relay = Relay()
    exchange, call = ask(relay, BODY)
    call.feed(response(200, body, headers))
    assert (exchange.downstream.status, exchange.downstream.received) == (200, body)
    assert exchange.row.outcome == "ok"


async def test_an_answer_without_content_passes() -> None:
    exchange, call = ask(Relay(), BODY)
    call.feed(response_head(204, []))
    assert exchange.downstream.status == 204
    assert exchange.downstream.received == b""
    assert exchange.row.usage_source == "none"


async def test_a_connection_that_ends_without_an_answer_is_a_failure() -> None:
    relay = Relay()
    exchange, call = ask(relay, BODY)
    call.receiver.on_end(call, clean=True)
    call.ended = True
    assert exchange.downstream.status == 502
    assert relay.at_rest()


async def test_an_answer_may_come_before_the_request_has_gone() -> None:
    relay = Relay(timeouts=Timeouts(total=10))
    exchange = relay.ask(BODY)
    relay.providers[0].last.feed(GOOD[:-5])
    relay.clock.advance(10 + SWEEP)
    assert exchange.error["message"] == "The provider did not finish in time."


# -- time

TIMES = Timeouts(first_token=5, idle=3, total=20)


async def test_a_request_that_is_never_taken_is_given_up() -> None:
    relay = Relay(timeouts=TIMES)
    exchange = relay.ask(BODY)
    relay.clock.advance(20 + SWEEP)
    assert exchange.error["message"] == "The provider did not take the request in time."
    assert exchange.downstream.status == 504
    assert relay.at_rest()


async def test_the_total_starts_when_the_request_has_been_sent() -> None:
    relay = Relay(timeouts=TIMES)
    exchange = relay.ask(BODY)
    relay.clock.advance(15)
    relay.providers[0].last.sent()
    relay.clock.advance(19)
    assert exchange.rows == []
    relay.clock.advance(1 + SWEEP)
    assert exchange.row.status == 504


async def test_a_first_token_is_waited_for_in_streams_alone() -> None:
    for body, gone in ((STREAM, True), (BODY, False)):
        relay = Relay(timeouts=TIMES)
        exchange, call = ask(relay, body)
        relay.clock.advance(5 + SWEEP)
        assert call.cancelled is gone
        if gone:
            assert exchange.error["message"] == "The provider did not send a first token in time."
            assert exchange.row.error_code == "upstream_timeout"


async def test_a_stream_that_turns_out_to_be_a_plain_answer_has_the_time_of_one() -> None:
    relay = Relay(timeouts=TIMES)
    exchange, call = ask(relay)
    relay.clock.advance(4)
    call.feed(GOOD[:-1])
    relay.clock.advance(10)
    call.feed(GOOD[-1:])
    assert exchange.row.outcome == "ok"


async def test_a_first_token_that_is_due_before_the_hold_is_over_leaves_the_way_to_another_open() -> None:
    relay = Relay(providers=2, timeouts=Timeouts(first_token=1, idle=3, total=20))
    exchange, call = ask(relay)
    stream(call, ROLE)
    relay.clock.advance(1 + SWEEP + BACKOFF)
    relay.providers[1].last.feed(GOOD_STREAM)
    assert exchange.row.outcome == "ok"


async def test_a_first_token_that_never_comes_cuts_what_has_gone_down() -> None:
    """Comments are no progress, and neither is the head that went down after two seconds."""
    relay = Relay(timeouts=TIMES)
    exchange, call = ask(relay)
    stream(call, ROLE)
    for _ in range(5):
        relay.clock.advance(1)
        if not call.over:
            call.feed(chunk(PING))
    relay.clock.advance(SWEEP)
    assert call.cancelled
    [error] = error_events(exchange.downstream.received)
    assert error["message"] == "The provider did not send a first token in time."
    assert exchange.row.outcome == "truncated"


async def test_silence_is_counted_from_the_last_bytes() -> None:
    relay = Relay(timeouts=TIMES)
    exchange, call = ask(relay)
    stream(call, TEXT)
    for _ in range(4):
        relay.clock.advance(2.8)
        call.feed(chunk(TEXT))
    assert exchange.rows == []
    relay.clock.advance(3 + 2 * SWEEP)
    [error] = error_events(exchange.downstream.received)
    assert error["message"] == "The provider did not go on in time."
    assert call.cancelled
    assert relay.at_rest()


@pytest.mark.parametrize("body", [BODY, STREAM])
async def test_the_total_is_the_end_of_an_answer_that_moves(body: bytes) -> None:
    relay = Relay(timeouts=TIMES)
    exchange, call = ask(relay, body)
    if body is STREAM:
        stream(call, TEXT)
    else:
        call.feed(response_head(200, [("content-type", "application/json"), *CHUNKED]))
    for _ in range(19):
        relay.clock.advance(1)
        call.feed(chunk(TEXT))
    assert not call.over
    relay.clock.advance(1 + SWEEP)
    assert call.cancelled
    assert "did not finish in time" in exchange.downstream.received.decode()
    assert exchange.row.outcome == ("truncated" if body is STREAM else "failed")


async def test_the_total_of_relayed_bytes_closes_the_connection() -> None:
    relay = Relay(timeouts=TIMES)
    exchange, call = ask(relay, BODY)
    call.feed(response_head(200, [("content-type", "audio/mpeg"), *CHUNKED]) + chunk(b"ab"))
    relay.clock.advance(20 + SWEEP)
    assert exchange.downstream.aborted
    assert exchange.row.outcome == "truncated"


@pytest.mark.parametrize("how_far", ["unsent", "sent", "held", "relayed"])
async def test_the_callers_own_deadline_ends_every_wait(how_far: str) -> None:
    relay = Relay()
    exchange = relay.ask(STREAM, FakeDownstream(headers=[(b"x-headgate-timeout-ms", b"1500")]))
    call = relay.providers[0].last
    if how_far != "unsent":
        call.sent()
    if how_far in ("held", "relayed"):
        stream(call, ROLE)
    if how_far == "relayed":
        call.feed(chunk(TEXT))
    relay.clock.advance(1.4)
    assert exchange.rows == []
    relay.clock.advance(0.1 + SWEEP)
    assert call.cancelled
    assert exchange.row.outcome == ("truncated" if how_far == "relayed" else "failed")
    assert relay.at_rest()


# -- bugs


def breaks(*_: object) -> None:
    raise ZeroDivisionError


class BreaksAtTheHead(Filter):
    """A filter with a bug."""

    def on_response(self, ex: object, head: object) -> None:
        breaks()


@pytest.mark.parametrize("where", ["head", "held", "deadline", "end", "cut"])
async def test_a_bug_wherever_it_shows_ends_the_exchange(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider's callback that raised would be a connection that never ends."""
    relay = Relay(filters=[BreaksAtTheHead()] if where in ("held", "deadline") else [])
    chat = type(relay.engine.operations["chat"])
    exchange, call = ask(relay, BODY if where == "end" else STREAM)
    with capture_logs() as logs:
        match where:
            case "head":
                monkeypatch.setattr(chat, "open_stream", breaks)
                stream(call)
            case "held":
                stream(call, TEXT)
            case "deadline":
                stream(call, ROLE)
                relay.clock.advance(HELD_SECONDS + SWEEP)
            case "end":
                monkeypatch.setattr(chat, "read_answer", breaks)
                call.feed(GOOD)
            case "cut":
                monkeypatch.setattr(chat, "error_event", breaks)
                stream(call, TEXT)
                call.rst()
    assert [log["event"] for log in logs] == ["internal_error"]
    if where == "cut":
        assert exchange.downstream.aborted
    else:
        assert (exchange.downstream.status, exchange.downstream.ended) == (500, True)
    assert exchange.row.outcome == "failed"
    assert relay.at_rest()


# -- back-pressure


def slow(relay: Relay, *pieces: bytes, room: int = 1) -> tuple[Any, FakeCall]:
    """A stream whose client is behind after its first bytes."""
    exchange = relay.ask(STREAM, FakeDownstream(room=room))
    call = relay.providers[0].last
    call.sent()
    stream(call, *pieces)
    return exchange, call


async def test_a_client_that_is_behind_pauses_the_provider_and_resumes_it() -> None:
    exchange, call = slow(Relay(), TEXT)
    assert call.paused
    call.feed(chunk(TEXT))  # what was already read
    assert exchange.downstream.received == TEXT + TEXT
    assert call.paused
    exchange.downstream.resume(room=10_000)
    assert not call.paused
    call.feed(chunk(FINISH + DONE) + LAST_CHUNK)
    assert exchange.row.outcome == "ok"


async def test_the_providers_silence_is_not_counted_while_the_client_is_behind() -> None:
    relay = Relay(timeouts=TIMES)
    exchange, call = slow(relay, TEXT)
    relay.clock.advance(10)
    call.feed(chunk(TEXT))  # already read; it does not start the provider's time again
    relay.clock.advance(5)
    assert exchange.rows == []
    exchange.downstream.resume()
    relay.clock.advance(2.9)
    assert exchange.rows == []
    relay.clock.advance(0.1 + SWEEP)
    assert exchange.row.outcome == "truncated"


async def test_nor_does_it_start_again_with_what_is_not_passed_on() -> None:
    relay = Relay(timeouts=TIMES)
    exchange, call = slow(relay, TEXT)
    call.feed(chunk(event(chat_chunk(None, usage=USAGE))))
    relay.clock.advance(10)
    assert not exchange.downstream.finished


async def test_nor_is_the_wait_for_its_first_token() -> None:
    relay = Relay(timeouts=Timeouts(first_token=5, idle=3, total=100))
    exchange, call = slow(relay, ROLE)
    relay.clock.advance(HELD_SECONDS + SWEEP)
    assert call.paused
    relay.clock.advance(10)
    call.feed(chunk(PING))
    relay.clock.advance(10)
    exchange.downstream.resume()
    relay.clock.advance(2.5)
    assert exchange.rows == []
    call.feed(chunk(TEXT + FINISH + DONE) + LAST_CHUNK)
    assert exchange.row.outcome == "ok"


async def test_the_total_is_counted_all_the_same() -> None:
    relay = Relay(timeouts=TIMES)
    exchange, call = slow(relay, TEXT)
    relay.clock.advance(20 + SWEEP)
    assert call.cancelled
    assert exchange.row.outcome == "truncated"


async def test_a_client_that_is_behind_at_the_end_is_owed_nothing_more() -> None:
    relay = Relay()
    exchange, call = slow(relay, TEXT)
    call.feed(chunk(FINISH + DONE) + LAST_CHUNK)
    assert exchange.row.outcome == "ok"
    assert exchange.downstream.ended
    exchange.downstream.resume()
    assert relay.at_rest()


async def test_an_answer_that_ends_while_its_client_is_behind_is_not_paused_any_more() -> None:
    """The message is over before its bytes are written: there is nothing left to pause."""
    relay = Relay()
    exchange = relay.ask(STREAM, FakeDownstream(room=1))
    relay.providers[0].last.feed(HEAD + chunk(ROLE) + chunk(FINISH.rstrip(b"\n")) + LAST_CHUNK)
    assert exchange.downstream.ended
    assert relay.at_rest()


# -- the rest of the message


async def test_a_message_that_ends_soon_after_its_terminal_keeps_its_connection() -> None:
    relay = Relay()
    exchange, call = ask(relay)
    stream(call, TEXT, FINISH, DONE)
    assert exchange.downstream.ended
    assert exchange.row.outcome == "ok"
    assert len(relay.engine.lingering) == 1
    relay.clock.advance(LINGER_SECONDS - 0.2)
    call.feed(chunk(b": more\n\n"))
    call.feed(LAST_CHUNK)
    assert not call.cancelled
    assert relay.at_rest()


@pytest.mark.parametrize("how", ["rst", "fin"])
async def test_how_it_ends_does_not_matter(how: str) -> None:
    relay = Relay()
    exchange, call = ask(relay)
    stream(call, TEXT, FINISH, DONE)
    getattr(call, how)()
    assert exchange.row.outcome == "ok"
    assert relay.at_rest()


async def test_one_that_does_not_end_is_cancelled_after_two_seconds() -> None:
    relay = Relay()
    exchange, call = ask(relay)
    stream(call, TEXT, FINISH, DONE)
    relay.clock.advance(LINGER_SECONDS + SWEEP)
    assert call.cancelled
    assert exchange.row.outcome == "ok"
    assert relay.at_rest()


async def test_a_paused_call_is_read_on_to_its_end() -> None:
    relay = Relay()
    _, call = slow(relay, TEXT)
    assert call.paused
    call.feed(chunk(FINISH + DONE))
    assert not call.paused
    call.feed(LAST_CHUNK)
    assert relay.at_rest()


async def test_nothing_lingers_when_the_engine_closes() -> None:
    relay = Relay()
    _, call = ask(relay)
    stream(call, TEXT, FINISH, DONE)
    await relay.engine.aclose()
    assert call.cancelled
    assert not relay.engine.lingering
    assert len(relay.engine.deadlines) == 0


def test_an_attempt_says_what_it_is() -> None:
    relay = Relay()
    relay.ask(BODY)
    [run] = relay.engine.live
    assert repr(run.ex.attempt) == "<Attempt 1 at <Target up0/m> waiting>"


async def test_its_times_and_its_status_are_for_filters_to_read() -> None:
    relay = Relay()
    exchange = relay.ask(STREAM)
    [run] = relay.engine.live
    attempt = run.ex.attempt
    assert attempt is not None
    start = relay.clock.monotonic()
    relay.clock.advance(0.25)
    relay.providers[0].last.sent()
    relay.clock.advance(0.25)
    relay.providers[0].last.feed(HEAD.replace(b"\r\n\r\n", b"\r\nx-request-id: req\xff\r\n\r\n"))
    relay.clock.advance(0.25)
    relay.providers[0].last.feed(chunk(TEXT + FINISH + DONE) + LAST_CHUNK)
    assert (attempt.started, attempt.sent_at, attempt.head_at, attempt.ended_at) == (
        start, start + 0.25, start + 0.5, start + 0.75,
    )  # fmt: skip
    assert attempt.host is not None
    assert (attempt.status, attempt.host.name, attempt.error, attempt.cancelled) == (200, "http://up0", None, False)
    assert attempt.request_id == "req\N{REPLACEMENT CHARACTER}"
    row = exchange.row
    assert (row.duration_ms, row.upstream_ms, row.overhead_ms, row.ttft_ms) == (750, 750, 0, 750)


def test_events_helper_sees_the_end() -> None:
    assert has_done(DONE)
    assert len(events(TEXT + DONE)) == 2
    assert json.loads(TEXT[6:])["choices"][0]["delta"] == {"content": "Hi"}
