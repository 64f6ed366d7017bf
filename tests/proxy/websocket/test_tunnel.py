"""tunnel: every byte passes unchanged, every end is told apart, and a cut is never passed off as a clean close."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from headgate.proxy.accounting.prices import own_price
from headgate.proxy.errors import ShuttingDownError
from headgate.proxy.upstream.cluster import Timeouts
from headgate.proxy.websocket.frames import BINARY, CLOSE, PING, PONG, TEXT, encode_close, encode_frame
from headgate.proxy.websocket.tunnel import CLOSE_SECONDS
from tests_support.downstream import FakeDownstream
from tests_support.relay import BACKOFF, Exchange, Relay
from tests_support.websocket import HANDSHAKE, KEY, MASK, Frame, frames_of, response_done, switching, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests_support.calls import FakeCall

HELLO = text("hello")
UP = text("up", MASK)
PRICE = own_price({"input": 4.0, "output": 16.0, "cached_input": 0.4, "audio_input": 32.0, "audio_output": 64.0})
DELTA = {"type": "response.output_text.delta", "response_id": "resp_9", "delta": "12345678"}


def client(
    query: bytes = b"model=m", *, fields: tuple[tuple[bytes, bytes], ...] = (), **options: Any
) -> FakeDownstream:
    """Who asks for a session."""
    headers = [(name.encode(), value.encode()) for name, value in HANDSHAKE]
    return FakeDownstream(
        method="GET",
        path="/v1/realtime",
        query=query,
        websocket=True,
        headers=[(b"host", b"localhost"), *headers, *fields],
        **options,
    )


class Session:
    """An exchange whose provider has answered 101."""

    def __init__(self, relay: Relay, downstream: FakeDownstream | None = None) -> None:
        self.relay = relay
        self.downstream = downstream or client()
        self.exchange: Exchange = relay.ask(b"", self.downstream)
        self.call: FakeCall = relay.providers[0].last
        self.call.sent()
        self.call.feed(switching(key_of(self.call)))

    @property
    def down(self) -> bytes:
        """What the client got."""
        return self.downstream.received

    def up(self, data: bytes) -> None:
        """The client sends."""
        self.downstream.feed(data)

    def closes(self) -> list[int]:
        """The codes of every Close the client got."""
        return [frame.code for frame in frames_of(self.down)[0] if frame.opcode == CLOSE]

    def closes_up(self) -> list[int]:
        """The same of the provider; fails where what it got are no frames."""
        return [frame.code for frame in frames_of(self.call.taken)[0] if frame.opcode == CLOSE]


def key_of(call: FakeCall) -> str:
    """The key in our own handshake."""
    return dict(call.request.headers)[b"sec-websocket-key"].decode()


def test_the_handshake_is_ours_on_both_sides() -> None:
    fields = (
        (b"sec-websocket-extensions", b"permessage-deflate"),
        (b"sec-websocket-protocol", b"realtime, openai-insecure-api-key.sk-1, openai-beta.realtime-v1"),
        (b"authorization", b"Bearer sk-1"),
        (b"openai-organization", b"org"),
    )
    relay = Relay()
    downstream = client(b"model=m&x=1%202", fields=fields)
    relay.ask(b"", downstream)
    call = relay.providers[0].last
    sent = call.request
    assert (sent.method, sent.target, sent.body, sent.upgrade) == (b"GET", b"/realtime?model=m&x=1%202", b"", True)
    names = dict(sent.headers)
    assert names[b"sec-websocket-protocol"] == b"realtime, openai-beta.realtime-v1"
    assert names[b"sec-websocket-key"] != KEY.encode()
    assert names[b"openai-organization"] == b"org"
    assert b"sec-websocket-extensions" not in names
    assert b"sk-1" not in b"".join(name + value for name, value in sent.headers)
    call.sent()
    call.feed(switching(key_of(call), ("sec-websocket-protocol", "realtime"), ("x-request-id", "req_up")))
    assert (downstream.status, downstream.switched) == (101, True)
    assert downstream.header(b"sec-websocket-accept") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, 1.3
    assert downstream.header(b"sec-websocket-protocol") == b"realtime"
    assert downstream.header(b"upgrade") == b"websocket"
    assert downstream.header(b"x-request-id") == b"req_up"
    assert downstream.header(b"x-headgate-provider") == b"up0"
    downstream.leave()


def test_frames_pass_unchanged_both_ways() -> None:
    session = Session(Relay())
    down = HELLO + encode_frame(BINARY, bytes(70_000)) + encode_frame(PING, b"1")
    up = UP + encode_frame(PONG, b"1", MASK) + encode_frame(BINARY, bytes(300), MASK)
    for at in range(0, len(down), 4096):
        session.call.feed(down[at : at + 4096])
    session.up(up[:100])
    session.up(up[100:])
    assert (session.down, session.call.taken) == (down, up)
    session.downstream.leave()
    row = session.exchange.row
    assert (row.bytes_in, row.bytes_out, row.status) == (len(up), len(down), 101)


def test_frames_that_come_with_the_101_pass() -> None:
    relay = Relay()
    downstream = client()
    relay.ask(b"", downstream)
    call = relay.providers[0].last
    call.feed(switching(key_of(call)) + HELLO)
    assert downstream.received == HELLO


def test_a_client_that_is_behind_holds_the_provider_back() -> None:
    session = Session(Relay(), client(room=4))
    session.call.feed(HELLO)
    assert session.call.paused
    session.downstream.resume()
    assert not session.call.paused


def test_a_provider_that_is_behind_holds_the_client_back_and_loses_nothing() -> None:
    session = Session(Relay())
    source = session.call.request.source
    assert source is not None
    source.pause()
    assert session.downstream.body_paused
    session.downstream.body_paused = False  # bytes that were already read
    session.up(UP)
    assert session.downstream.body_paused
    assert session.call.taken == b""
    source.resume()
    assert session.call.taken == UP
    assert not session.downstream.body_paused


@pytest.mark.parametrize(
    ("code", "outcome"), [(1000, "ok"), (1001, "ok"), (1005, "ok"), (1011, "upstream_error"), (4000, "upstream_error")]
)
def test_a_close_of_the_provider_passes_and_says_how_it_ended(code: int, outcome: str) -> None:
    relay = Relay()
    session = Session(relay)
    session.call.feed(HELLO + encode_close(code, "bye"))
    session.up(encode_close(code, "", MASK))
    session.call.fin()
    assert session.down == HELLO + encode_close(code, "bye")
    assert session.call.taken == encode_close(code, "", MASK)
    assert session.downstream.ended
    row = session.exchange.row
    assert (row.outcome, row.error_code) == (outcome, "upstream_error" if outcome != "ok" else "")
    assert relay.at_rest()


def test_a_close_of_the_client_passes_and_the_session_is_ok() -> None:
    relay = Relay()
    session = Session(relay)
    session.up(UP + encode_close(3999, "enough", MASK))
    session.call.feed(HELLO + encode_close(3999, ""))
    session.call.fin()
    assert session.call.taken == UP + encode_close(3999, "enough", MASK)
    assert session.down == HELLO + encode_close(3999, "")
    assert session.downstream.ended
    assert session.exchange.row.outcome == "ok"
    assert relay.at_rest()


@pytest.mark.parametrize("end", ["fin", "rst", "leave"])
def test_who_has_closed_need_not_wait_for_the_other(end: str) -> None:
    """A client that closed and left, a provider that drops the connection instead of answering."""
    relay = Relay()
    session = Session(relay)
    session.up(encode_close(1000, "", MASK))
    if end == "leave":
        session.downstream.leave()
        assert session.call.finished
    else:
        getattr(session.call, end)()
        assert session.downstream.ended
    assert session.closes() == []
    assert session.exchange.row.outcome == "ok"
    assert relay.at_rest()


def test_a_client_that_only_drops_the_connection_leaves_the_providers_close_standing() -> None:
    relay = Relay()
    session = Session(relay)
    session.call.feed(encode_close(1011, "oops"))
    session.downstream.leave()
    row = session.exchange.row
    assert (row.outcome, row.error_code) == ("upstream_error", "upstream_error")
    assert (relay.clusters[0].rq_error, session.call.finished) == (1, True)
    assert relay.at_rest()


@pytest.mark.parametrize("first", ["client", "provider"])
def test_a_close_that_is_not_answered_ends_the_session_all_the_same(first: str) -> None:
    relay = Relay()
    session = Session(relay, client(room=1 if first == "provider" else None))
    if first == "client":
        session.up(encode_close(1000, "", MASK))
    else:
        session.call.feed(encode_close(1000, ""))
        session.downstream.resume()
    relay.clock.advance(CLOSE_SECONDS - 0.2)
    assert not session.downstream.finished
    relay.clock.advance(0.4)
    assert session.downstream.ended
    assert session.call.finished
    assert session.exchange.row.outcome == "ok"
    assert relay.at_rest()
    assert session.call.cancelled


STREAM = HELLO + encode_frame(PING, b"xy") + encode_frame(BINARY, bytes(200)) + text(response_done())


@pytest.mark.parametrize("end", ["fin", "rst"])
def test_a_provider_that_breaks_off_at_any_byte_is_never_a_clean_close(end: str) -> None:
    relay = Relay(price=PRICE)
    for at in range(len(STREAM) + 1):
        session = Session(relay)
        session.call.feed(STREAM[:at])
        getattr(session.call, end)()
        frames, rest = frames_of(session.down)
        if session.downstream.ended:
            assert frames.pop().code == 1011
            assert rest == b""
        else:
            assert session.downstream.aborted
            assert rest
        assert STREAM.startswith(b"".join(encode_frame(opcode, payload) for opcode, payload, _ in frames) + rest)
        assert session.closes() in ([], [1011])
        row = session.exchange.row
        assert (row.outcome, row.error_code) == ("truncated", "upstream_error")
        assert row.completion_tokens == (121 if at == len(STREAM) else 0)
        assert relay.at_rest()


def test_a_client_that_leaves_at_any_byte_lets_the_provider_go_at_once() -> None:
    relay = Relay()
    data = UP + encode_frame(PING, b"", MASK) + encode_frame(BINARY, bytes(200), MASK)
    for at in range(len(data) + 1):
        session = Session(relay)
        if at:
            session.up(data[:at])
        session.downstream.leave()
        frames, rest = frames_of(session.call.taken)
        if session.call.finished:
            assert (frames.pop().code, rest) == (1001, b"")
        else:
            assert session.call.cancelled
            assert rest
        row = session.exchange.row
        assert (row.outcome, row.status, row.error_code) == ("cancelled", 101, "")
        assert relay.at_rest()


def test_a_client_that_leaves_while_the_provider_is_behind_takes_its_connection_along() -> None:
    session = Session(Relay())
    source = session.call.request.source
    assert source is not None
    source.pause()
    session.downstream.leave()
    assert session.call.cancelled


def idle_after(relay: Relay, session: Session, say: Callable[[], None], seconds: float) -> bool:
    """Whether the session has ended after `say` and then `seconds` of silence."""
    say()
    relay.clock.advance(seconds)
    return session.downstream.finished


def test_silence_ends_the_session_for_both_and_any_byte_breaks_it() -> None:
    relay = Relay(timeouts=Timeouts(idle=10))
    session = Session(relay)
    assert not idle_after(relay, session, lambda: session.call.feed(HELLO[:1]), 9)
    assert not idle_after(relay, session, lambda: session.up(UP), 9)
    assert not idle_after(relay, session, lambda: session.call.feed(HELLO[1:]), 9)
    relay.clock.advance(1.5)
    assert session.downstream.ended
    assert (session.closes(), session.closes_up()) == ([1001], [1001])
    assert session.call.finished
    row = session.exchange.row
    assert (row.outcome, row.error_code) == ("truncated", "idle_timeout")
    assert relay.at_rest()


def test_a_session_lasts_as_long_as_somebody_speaks() -> None:
    relay = Relay(timeouts=Timeouts(idle=10, total=20, first_token=5))
    session = Session(relay, client(fields=((b"x-headgate-timeout-ms", b"3000"),)))
    for _ in range(400):
        relay.clock.advance(9)
        session.call.feed(HELLO)
    assert not session.downstream.finished
    session.downstream.leave()
    assert session.exchange.row.duration_ms >= 3_600_000


def test_a_client_that_is_behind_is_no_silence_of_the_provider() -> None:
    relay = Relay(timeouts=Timeouts(idle=10))
    session = Session(relay, client(room=1))
    session.call.feed(HELLO)
    session.up(UP)
    relay.clock.advance(60)
    assert not session.downstream.finished
    session.downstream.resume()
    relay.clock.advance(11)
    assert session.closes() == [1001]


def test_a_provider_that_takes_nothing_is_its_own_fault() -> None:
    relay = Relay(timeouts=Timeouts(idle=10))
    session = Session(relay)
    source = session.call.request.source
    assert source is not None
    source.pause()
    relay.clock.advance(11)
    assert session.closes() == [1011]
    assert session.call.cancelled
    assert session.exchange.row.error_code == "upstream_timeout"
    assert relay.clusters[0].rq_error == 1


def test_a_gateway_that_stops_says_so_to_both() -> None:
    relay = Relay()
    session = Session(relay)
    session.call.feed(HELLO)
    relay.engine.cut()
    assert (session.closes(), session.closes_up()) == ([1001], [1001])
    assert session.downstream.ended
    row = session.exchange.row
    assert (row.outcome, row.error_code) == ("truncated", "shutting_down")
    assert relay.clusters[0].rq_error == 0
    assert relay.at_rest()


def test_a_gateway_that_stops_in_mid_frame_closes_no_frame_of_its_own_into_it() -> None:
    relay = Relay()
    session = Session(relay)
    session.call.feed(HELLO[:4])
    session.up(UP[:7])
    relay.engine.cut()
    assert session.downstream.aborted
    assert session.call.cancelled
    assert (session.down, session.call.taken) == (HELLO[:4], UP[:7])
    assert relay.at_rest()


def test_a_gateway_that_stops_while_they_close_lets_the_close_stand() -> None:
    relay = Relay()
    session = Session(relay)
    session.call.feed(encode_close(1000, ""))
    relay.engine.cut()
    assert session.closes() == [1000]
    assert session.exchange.row.outcome == "ok"


def test_what_is_no_frame_of_the_provider_reaches_nobody() -> None:
    relay = Relay()
    session = Session(relay)
    session.call.feed(HELLO + b"\xf1\x00garbage")
    assert frames_of(session.down)[0] == [Frame(TEXT, b"hello"), Frame(CLOSE, session.down[-_reason(session.down) :])]
    assert (session.closes(), session.closes_up()) == ([1011], [1002])
    row = session.exchange.row
    assert (row.outcome, row.error_code) == ("truncated", "upstream_error")
    assert relay.at_rest()


def _reason(data: bytes) -> int:
    """Length of the payload of the last frame, which is a Close after `HELLO`."""
    return len(data) - len(HELLO) - 2


def test_what_is_no_frame_of_the_client_reaches_nobody() -> None:
    relay = Relay()
    session = Session(relay)
    session.up(UP + HELLO)
    assert (session.closes(), session.closes_up()) == ([1002], [1001])
    assert session.call.taken.startswith(UP)
    row = session.exchange.row
    assert (row.outcome, row.error_code) == ("cancelled", "websocket_protocol_error")
    assert relay.clusters[0].rq_error == 0
    assert relay.at_rest()


def test_usage_is_added_up_over_the_session_each_response_at_its_own_price() -> None:
    relay = Relay(price=PRICE)
    session = Session(relay)
    for n in range(3):
        session.call.feed(text(response_done(response=f"resp_{n}")))
    session.up(encode_close(1000, "", MASK))
    session.call.fin()
    row = session.exchange.row
    assert (row.prompt_tokens, row.completion_tokens, row.cached_tokens) == (396, 363, 192)
    assert (row.audio_input_tokens, row.audio_output_tokens, row.usage_source) == (39, 273, "reported")
    once = (55 * 4.0 + 64 * 0.4 + 13 * 32.0 + 30 * 16.0 + 91 * 64.0) / 1e6
    assert row.cost_usd == pytest.approx(3 * once)


def test_what_was_said_and_not_reported_is_estimated() -> None:
    session = Session(Relay(price=PRICE))
    session.call.feed(text(response_done()) + text(DELTA))
    session.downstream.leave()
    row = session.exchange.row
    assert (row.completion_tokens, row.usage_source) == (123, "estimated")


def test_an_unknown_price_leaves_the_cost_out() -> None:
    session = Session(Relay())
    session.call.feed(text(response_done()) * 2)
    session.downstream.leave()
    assert session.exchange.row.cost_usd is None


REFUSED = b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\r\n" + b'{"error": "no"}'


def test_a_provider_that_refuses_is_heard_before_any_101() -> None:
    relay = Relay()
    downstream = client()
    exchange = relay.ask(b"", downstream)
    relay.providers[0].last.feed(REFUSED)
    assert (downstream.status, downstream.received, downstream.switched) == (403, b'{"error": "no"}', False)
    assert exchange.row.outcome == "upstream_error"
    assert relay.at_rest()


BAD_101: dict[str, Callable[[str], bytes]] = {
    "no accept": lambda key: b"HTTP/1.1 101 OK\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    "another key's accept": lambda key: switching(KEY),
    "no connection": lambda key: switching(key).replace(b"connection: Upgrade\r\n", b""),
    "another protocol": lambda key: switching(key).replace(b"websocket\r\n", b"h2c\r\n"),
    "an extension": lambda key: switching(key, ("sec-websocket-extensions", "permessage-deflate")),
    "a sub-protocol": lambda key: switching(key, ("sec-websocket-protocol", "realtime")),
    "200": lambda key: b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "500": lambda key: b"HTTP/1.1 500 Oops\r\ncontent-length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("bad", BAD_101)
def test_another_provider_takes_over_before_the_101(bad: str) -> None:
    relay = Relay(providers=2)
    downstream = client()
    exchange = relay.ask(b"", downstream)
    first = relay.providers[0].last
    first.feed(BAD_101[bad](key_of(first)))
    assert not downstream.finished
    relay.clock.advance(BACKOFF)
    second = relay.providers[1].last
    assert key_of(second) != key_of(first)
    second.feed(switching(key_of(second)))
    second.feed(HELLO)
    downstream.feed(UP)
    assert (downstream.status, downstream.received, second.taken) == (101, HELLO, UP)
    downstream.leave()
    assert exchange.row.attempts == 2
    assert relay.at_rest()


def test_a_provider_that_does_not_answer_the_handshake_has_the_connect_timeout() -> None:
    relay = Relay(timeouts=Timeouts(connect=3), retry=None)
    downstream = client()
    exchange = relay.ask(b"", downstream)
    relay.providers[0].last.sent()
    relay.clock.advance(2.8)
    assert downstream.status is None
    relay.clock.advance(0.4)
    assert downstream.status == 504
    assert exchange.error["message"] == "The provider did not open the WebSocket in time."
    assert relay.at_rest()


@pytest.mark.parametrize(
    ("query", "code"), [(b"", "missing_model"), (b"model=", "missing_model"), (b"model=a&model=b", "duplicate_field")]
)
def test_a_query_without_one_model_is_refused_in_json(query: bytes, code: str) -> None:
    relay = Relay()
    downstream = client(query)
    exchange = relay.ask(b"", downstream)
    assert downstream.status == 400
    assert exchange.error["code"] == code
    assert relay.providers[0].calls == []


def test_a_draining_gateway_opens_no_session() -> None:
    relay = Relay()
    relay.engine.draining = True
    downstream = client()
    assert relay.ask(b"", downstream).error["code"] == "shutting_down"


def test_a_bug_cuts_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    relay = Relay()
    session = Session(relay)
    monkeypatch.setattr(type(relay.engine.ledger), "add", None)
    session.call.feed(text(response_done()))
    assert session.downstream.aborted
    assert session.call.over or session.call.finished
    assert session.exchange.row.outcome == "failed"
    assert relay.engine.stats.internal_errors >= 1


def test_a_bug_on_the_clients_bytes_cuts_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    relay = Relay()
    session = Session(relay)
    source = session.call.request.source
    monkeypatch.setattr(type(source), "give", None)
    session.up(UP)
    assert session.downstream.aborted
    assert session.exchange.row.outcome == "failed"


def test_what_comes_after_the_end_is_nobodys() -> None:
    relay = Relay()
    session = Session(relay)
    relay.engine.cut()
    session.downstream.feed(UP)
    session.call.feed(HELLO)
    assert session.exchange.row.bytes_in == 0
    tunnel = session.downstream.body_to
    assert tunnel is not None
    with pytest.raises(NotImplementedError):
        tunnel.on_body_end()


def test_cutting_says_what_is_wrong_with_the_gateway_only_in_general() -> None:
    relay = Relay()
    session = Session(relay)
    for run in list(relay.engine.live):
        run.cut(ShuttingDownError("x" * 500))
    [frame] = frames_of(session.down)[0]
    assert frame.payload == (1001).to_bytes(2) + b"x" * 123
