"""Any number of exchanges, and whatever clients, providers and time do to them, in any order.

Each ends once and leaves one record; what went down was said by one provider, and no end was made up; and when all is
over nothing is left: no call, no deadline, no waiting retry, no attempt that did not end. (Faults §3.3, invariants.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from structlog.testing import capture_logs

from headgate.proxy.accounting.prices import own_price
from headgate.proxy.accounting.record import Done, Opened
from headgate.proxy.errors import BodyTimeoutError, ConnectError
from headgate.proxy.filter import Filter, SkipTarget
from headgate.proxy.upstream.cluster import Timeouts
from tests_support.answers import (
    DONE,
    LAST_CHUNK,
    USAGE,
    chat_chunk,
    chat_chunks,
    chat_completion,
    chunk,
    error_response,
    event,
    json_response,
    response_head,
)
from tests_support.downstream import FakeDownstream
from tests_support.relay import Relay
from tests_support.traffic import events, finish_reasons, has_done, without_ours

if TYPE_CHECKING:
    from headgate.proxy.attempt import Attempt
    from headgate.proxy.exchange import Exchange as Ex
    from headgate.proxy.plan import Target
    from tests_support.calls import FakeCall

PLAIN = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
STREAM = (
    b'{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"hi"}]}'
)
TYPED = b'{"model":"m","stream":true,"input":"hi"}'
FRAMED = [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")]
HEAD = response_head(200, FRAMED)
ERROR = b'data: {"error":{"message":"no","type":"server_error","param":null,"code":null}}\n\n'
ROLE, TEXT = event(chat_chunk({"role": "assistant"})), event(chat_chunk({"content": "word"}))
FINISH = event(chat_chunk({}, finish_reason="stop"))


def framed(*pieces: bytes) -> list[bytes]:
    return [HEAD, *map(chunk, pieces), LAST_CHUNK]


SCRIPTS = {
    "stream": framed(*map(event, chat_chunks(usage=USAGE))),
    "late": framed(b": ping\n\n", ROLE, b": ping\n\n", TEXT, FINISH, DONE),
    "no done": framed(ROLE, TEXT, FINISH),
    "no finish": framed(ROLE, TEXT),
    "unterminated": framed(ROLE, TEXT, FINISH.rstrip(b"\n")),
    "nothing": framed(),
    "error first": framed(ROLE, ERROR),
    "error later": framed(ROLE, TEXT, ERROR, DONE),
    "huge": framed(b'data: {"choices":[{"delta":{"content":"' + b"x" * 300_000, b'"}}]}\n\n', FINISH, DONE),
    "after done": framed(TEXT, FINISH, DONE, TEXT),
    "runes": framed(ROLE, event(chat_chunk({"content": "\u6f22\u5b57 \U0001f680"})), FINISH, DONE),
    "typed": framed(
        b'event: response.created\ndata: {"type":"response.created"}\n\n',
        b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"hm"}\n\n',
        b'event: response.completed\ndata: {"type":"response.completed","response":{}}\n\n',
    ),
    "json": [json_response(chat_completion())],
    "json by chunks": [
        response_head(200, [("content-type", "application/json"), ("transfer-encoding", "chunked")]),
        chunk(b'{"choices":'), chunk(b"[]}"), LAST_CHUNK,
    ],
    "json by close": [response_head(200, [("content-type", "application/json")]), b'{"choices":', b"[]}"],
    "error in 200": [json_response({"error": {"message": "no"}})],
    "bytes": [response_head(200, [("content-type", "audio/mpeg"), ("content-length", "6")]), b"abc", b"def"],
    "500": [error_response(500, "broken")],
    "429": [error_response(429, "slow down", headers=[("retry-after", "2")])],
    "404": [error_response(404, "no such model")],
    "not http": [b"SMTP ready\r\n\r\n"],
}  # fmt: skip


def body_of(wire: bytes) -> bytes:
    """The body in what was sent of an answer, unframed, apart from the product."""
    head, found, rest = wire.partition(b"\r\n\r\n")
    if not found or b"chunked" not in head:
        return rest
    body = b""
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        if not size or not int(size, 16):
            break
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return body


def as_typed(body: bytes) -> bytes:
    """What a stream of typed events is of it: a `[DONE]` before any end of such a stream is held back, whatever follows
    it."""
    before, _, rest = body.partition(DONE)
    return body if b"response.completed" in before or b'"error"' in before else before + rest


class Client:
    """One exchange: its client's side, and what was sent to it."""

    def __init__(self, number: int, body: bytes, downstream: FakeDownstream) -> None:
        self.id = f"client-{number}"
        self.body = body
        self.downstream = downstream
        self.delivered = False


class Provider:
    """One call as the provider plays it."""

    def __init__(self, call: FakeCall, client: str) -> None:
        self.call = call
        self.client = client
        self.script: list[bytes] = []
        self.sent = b""


class Watch(Filter):
    """Lets some targets pass, and remembers every attempt."""

    def __init__(self) -> None:
        self.begun: list[Attempt] = []
        self.ended: list[Attempt] = []
        self.skipping: set[str] = set()
        self.resting: set[str] = set()
        self.requests = self.done = 0

    def on_request(self, ex: Ex) -> None:
        self.requests += 1
        ex.veto(self.check)

    def check(self, target: Target) -> str | None:
        return "resting" if target.cluster.name in self.resting else None

    def on_attempt(self, ex: Ex, attempt: Attempt) -> None:
        if attempt.target.cluster.name in self.skipping:
            raise SkipTarget("skipped")
        self.begun.append(attempt)

    def on_attempt_end(self, ex: Ex, attempt: Attempt) -> None:
        self.ended.append(attempt)

    def on_done(self, ex: Ex) -> None:
        self.done += 1


class Exchanges(RuleBasedStateMachine):
    """The engine between clients and providers that do as they like."""

    @initialize(providers=st.integers(1, 3))
    def begin(self, providers: int) -> None:
        self.watch = Watch()
        self.relay = Relay(
            providers=providers,
            filters=[self.watch],
            timeouts=Timeouts(first_token=4, idle=3, total=12),
            price=own_price({"input": 1.0, "output": 1.0}),
        )
        self.clients: list[Client] = []
        self.played: dict[int, Provider] = {}
        self.logs = capture_logs()
        self.seen_logs = self.logs.__enter__()

    # -- what can happen

    @rule(
        body=st.sampled_from([PLAIN, STREAM, STREAM, STREAM, TYPED, b"not json"]),
        room=st.sampled_from([None, None, 1, 200]),
        patience=st.sampled_from([None, None, b"1500", b"9000"]),
    )
    def a_client_comes(self, body: bytes, room: int | None, patience: bytes | None) -> None:
        number = len(self.clients)
        headers = [(b"x-request-id", f"client-{number}".encode())]
        if patience is not None:
            headers.append((b"x-headgate-timeout-ms", patience))
        path = "/v1/responses" if body is TYPED else "/v1/chat/completions"
        client = Client(number, body, FakeDownstream(body, path=path, headers=headers, room=room))
        self.clients.append(client)
        self.relay.accept(client.downstream)

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def its_body_arrives(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.waiting()))
        client.delivered = True
        client.downstream.deliver()

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def its_body_does_not_arrive(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.waiting()))
        client.delivered = True
        client.downstream.fail_body(BodyTimeoutError("too slow"))

    @precondition(lambda self: self.open_clients())
    @rule(data=st.data())
    def a_client_leaves(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.open_clients())).downstream.leave()

    @precondition(lambda self: self.behind())
    @rule(data=st.data(), room=st.sampled_from([None, 1, 500]))
    def a_client_reads_again(self, data: st.DataObject, room: int | None) -> None:
        data.draw(st.sampled_from(self.behind())).downstream.resume(room)

    @precondition(lambda self: self.open_calls())
    @rule(data=st.data())
    def a_request_has_been_sent(self, data: st.DataObject) -> None:
        played = data.draw(st.sampled_from(self.open_calls()))
        if not played.sent:
            played.call.sent()

    @precondition(lambda self: self.open_calls())
    @rule(data=st.data(), script=st.sampled_from(sorted(SCRIPTS)), how_much=st.sampled_from([1, 2, 3, 99, 0.5]))
    def a_provider_says_more(self, data: st.DataObject, script: str, how_much: float) -> None:
        """Whole pieces of its answer, or half of one."""
        played = data.draw(st.sampled_from(self.open_calls()))
        if not played.sent:
            played.script = list(SCRIPTS[script])
        for _ in range(int(how_much) or 1):
            if not played.script or played.call.over:
                return
            piece = played.script.pop(0)
            if how_much < 1 and len(piece) > 1:
                played.script.insert(0, piece[len(piece) // 2 :])
                piece = piece[: len(piece) // 2]
            played.sent += piece
            played.call.feed(piece)

    @precondition(lambda self: self.open_calls())
    @rule(
        data=st.data(),
        script=st.sampled_from(sorted(SCRIPTS)),
        sizes=st.lists(st.integers(1, 40) | st.integers(1, 4000), min_size=1, max_size=8),
    )
    def a_provider_says_more_in_segments(self, data: st.DataObject, script: str, sizes: list[int]) -> None:
        """So many bytes at a time, wherever that cuts heads, chunks, lines and runes."""
        played = data.draw(st.sampled_from(self.open_calls()))
        if not played.sent:
            played.script = list(SCRIPTS[script])
        for size in sizes:
            whole = b"".join(played.script)
            if not whole or played.call.over:
                return
            played.script = [whole[size:]] if whole[size:] else []
            played.sent += whole[:size]
            played.call.feed(whole[:size])

    @precondition(lambda self: self.open_calls())
    @rule(data=st.data(), how=st.sampled_from(["rst", "fin"]))
    def a_provider_breaks_off(self, data: st.DataObject, how: str) -> None:
        getattr(data.draw(st.sampled_from(self.open_calls())).call, how)()

    @precondition(lambda self: self.open_calls())
    @rule(data=st.data())
    def a_provider_cannot_be_reached(self, data: st.DataObject) -> None:
        played = data.draw(st.sampled_from(self.open_calls()))
        if not played.sent:
            played.call.fail(ConnectError("refused"))

    @rule(seconds=st.sampled_from([0.02, 0.3, 1.0, 2.2, 3.2, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.relay.clock.advance(seconds)

    @rule(name=st.sampled_from(["up0", "up1", "up2"]), kind=st.sampled_from(["resting", "skipping"]))
    def a_filter_changes_its_mind(self, name: str, kind: str) -> None:
        names: set[str] = getattr(self.watch, kind)
        names.symmetric_difference_update({name})

    @rule(really=st.integers(0, 9))
    def the_gateway_cuts_what_runs(self, really: int) -> None:
        if really == 0:
            self.relay.engine.cut()

    # -- what must hold at any time

    @invariant()
    def nothing_is_lost_from_sight(self) -> None:
        if not hasattr(self, "relay"):
            return
        for call in self.relay.calls:
            if id(call) not in self.played:
                [client] = [value.decode() for name, value in call.request.headers if name == b"x-request-id"]
                self.played[id(call)] = Provider(call, client)
        engine = self.relay.engine
        assert len(engine.live) == len([c for c in self.clients if not c.downstream.finished])
        open_calls = len(self.open_calls())
        assert len(engine.deadlines) == open_calls
        assert open_calls <= len(engine.live) + len(engine.lingering)
        assert [log for log in self.seen_logs if log["event"] == "internal_error"] == []

    # -- what must hold in the end

    def teardown(self) -> None:
        if not hasattr(self, "relay"):
            return
        try:
            self.nothing_is_lost_from_sight()
            for client in self.open_clients()[::2]:
                client.downstream.leave()
            self.relay.clock.advance(100)
            self.nothing_is_lost_from_sight()
            for client in self.open_clients():
                client.downstream.leave()
            self.relay.clock.advance(100)
            self.nothing_is_lost_from_sight()
            self.check_the_end()
        finally:
            self.logs.__exit__(None, None, None)

    def check_the_end(self) -> None:
        relay, watch = self.relay, self.watch
        assert relay.at_rest()
        assert [cluster.retries_waiting for cluster in relay.clusters] == [0] * len(relay.clusters)
        assert {id(attempt) for attempt in watch.begun} == {id(attempt) for attempt in watch.ended}
        assert len(watch.begun) == len(watch.ended) == len(self.played) == sum(c.rq_total for c in relay.clusters)
        assert watch.requests == watch.done
        finished = sum(c.rq_success + c.rq_error for c in relay.clusters)
        assert finished == len([attempt for attempt in watch.ended if not attempt.cancelled])
        lines = relay.lines.take()
        opened = [line for line in lines if isinstance(line, Opened)]
        done = {line.client_request_id: line for line in lines if isinstance(line, Done)}
        assert [line.client_request_id for line in opened] == [client.id for client in self.clients]
        assert len(lines) == 2 * len(self.clients)
        for client in self.clients:
            self.check_client(client, done[client.id])

    def check_client(self, client: Client, row: Done) -> None:
        downstream = client.downstream
        assert [downstream.ended, downstream.aborted, downstream.gone].count(True) == 1
        providers = [played for played in self.played.values() if played.client == client.id]
        assert row.attempts == len(providers) <= 3
        assert row.bytes_out == len(downstream.received) or downstream.gone
        if row.outcome in ("ok", "upstream_error"):
            assert downstream.ended or (downstream.gone and client.body is not PLAIN)
        if downstream.gone:
            assert row.outcome in ("cancelled", "ok", "upstream_error")
        if row.outcome in ("failed", "refused"):
            assert downstream.status is not None
            assert downstream.status >= 400
        if row.outcome == "truncated":
            assert downstream.aborted or (downstream.ended and b'"error"' in downstream.received)
        if downstream.status is None or row.outcome in ("failed", "refused"):
            return
        said = [body_of(one.sent) for one in providers]
        if client.body is TYPED:
            said = list(map(as_typed, said))
        self.check_words(without_ours(downstream.received), row.outcome, said)

    def check_words(self, received: bytes, outcome: str, said: list[bytes]) -> None:
        """What went down is a beginning of what one provider said; a cut adds one error event to that."""
        spoken = received
        if outcome == "truncated" and not any(body.startswith(received) for body in said):
            last = events(received)[-1]
            assert b'"error"' in last
            spoken = received.removesuffix(last)
        [source] = [body for body in said if body.startswith(spoken)][-1:]
        assert has_done(received) <= has_done(source)
        assert set(finish_reasons(received)) <= set(finish_reasons(source))
        if outcome == "ok":
            assert spoken == source or DONE in spoken or b"response.completed" in spoken

    # -- who is there

    def waiting(self) -> list[Client]:
        return [c for c in self.open_clients() if c.downstream.asked is not None and not c.delivered]

    def open_clients(self) -> list[Client]:
        return [client for client in getattr(self, "clients", []) if not client.downstream.finished]

    def behind(self) -> list[Client]:
        return [c for c in self.open_clients() if c.downstream.room is not None and c.downstream.room <= 0]

    def open_calls(self) -> list[Provider]:
        return [played for played in getattr(self, "played", {}).values() if not played.call.over]


def run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Exchanges, settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    )


def test_whatever_happens_every_exchange_ends_once_and_truthfully() -> None:
    run(60, 40)


@pytest.mark.slow
def test_and_that_two_thousand_times() -> None:
    run(2000, 60)


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_the_scripts_are_read_as_they_are_meant(name: str) -> None:
    body: Any = body_of(b"".join(SCRIPTS[name]))
    assert isinstance(body, bytes)
    assert body_of(b"".join(SCRIPTS[name])[:10]) == b""
