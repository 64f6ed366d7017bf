"""run: filters in their order, one way out of every path, and one record for every exchange that auth let through."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from headgate.proxy.errors import (
    BodyTooLargeError,
    PermissionDeniedError,
    RateLimitError,
    ShuttingDownError,
    UnauthorizedError,
)
from headgate.proxy.filter import Event, Filter
from headgate.proxy.replies import Reply, json_reply
from tests_support.answers import chat_chunks, chat_completion, json_response, sse
from tests_support.downstream import FakeDownstream
from tests_support.relay import FullSpool, Relay

if TYPE_CHECKING:
    from collections.abc import Callable

    from headgate.proxy.attempt import Attempt
    from headgate.proxy.exchange import Exchange
    from headgate.proxy.upstream.call import ResponseHead

BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
STREAM = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}'
GOOD = json_response(chat_completion())
GOOD_STREAM = b"".join(sse(chat_chunks()))


class Spy(Filter):
    """Notes every moment, and does what it is told at some of them."""

    def __init__(self, name: str, seen: list[str], **acts: Callable[..., Any]) -> None:
        self.name = name
        self.seen = seen
        self.acts = acts

    def note(self, moment: str, *args: Any) -> Any:
        self.seen.append(f"{self.name} {moment}")
        act = self.acts.get(moment)
        return act(*args) if act is not None else None

    def on_request(self, ex: Exchange) -> Any:
        return self.note("request", ex)

    def on_attempt(self, ex: Exchange, attempt: Attempt) -> None:
        self.note("attempt", ex, attempt)

    def on_attempt_end(self, ex: Exchange, attempt: Attempt) -> None:
        self.note("attempt_end", ex, attempt)

    def on_response(self, ex: Exchange, head: ResponseHead) -> None:
        self.note("response", ex, head)

    def on_bytes(self, ex: Exchange, data: bytes) -> None:
        self.note("bytes", ex, data)

    def on_done(self, ex: Exchange) -> None:
        self.note("done", ex)


class Early(Spy):
    """One that runs before the body is read."""

    reads_body = False


class Admitting(Early):
    """Decides whether there is an exchange at all, as auth does."""

    admits = True


class Waiting(Filter):
    """An async filter that waits until it is told what to do."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.go = asyncio.Event()
        self.answer: Reply | None = None
        self.error: BaseException | None = None
        self.cancelled = False
        self.done = 0
        self.at_cancel: Callable[[], Reply | None] | None = None

    async def on_request(self, ex: Exchange) -> Reply | None:
        self.reached.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            if self.at_cancel is None:
                raise
            return self.at_cancel()
        if self.error is not None:
            raise self.error
        return self.answer

    def on_done(self, ex: Exchange) -> None:
        self.done += 1


def raises(error: BaseException) -> Callable[..., Any]:
    def act(*_: object) -> None:
        raise error

    return act


def gives(value: Any) -> Callable[..., Any]:
    return lambda *_: value


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def three(seen: list[str], kind: type[Spy] = Spy, **of_b: Any) -> list[Filter]:
    return [kind("a", seen), kind("b", seen, **of_b), kind("c", seen)]


# -- the order


async def test_every_moment_runs_in_its_order() -> None:
    seen: list[str] = []
    relay = Relay(filters=three(seen))
    exchange = relay.ask(BODY)
    assert seen == ["a request", "b request", "c request", "a attempt", "b attempt", "c attempt"]
    seen.clear()
    relay.providers[0].last.feed(GOOD)
    assert seen == [
        "c attempt_end", "b attempt_end", "a attempt_end",
        "c response", "b response", "a response",
        "c bytes", "b bytes", "a bytes",
        "c done", "b done", "a done",
    ]  # fmt: skip
    assert exchange.row.outcome == "ok"


async def test_filters_that_need_no_body_run_before_it_is_asked_for() -> None:
    seen: list[str] = []
    relay = Relay(before=[Early("early", seen)], filters=[Spy("late", seen)])
    downstream = FakeDownstream(BODY)
    relay.accept(downstream)
    assert seen == ["early request"]
    assert downstream.asked == 1 << 25
    downstream.deliver()
    assert seen[:2] == ["early request", "late request"]


async def test_a_filter_above_the_prefix_waits_for_its_turn() -> None:
    """The prefix ends with the first filter that reads the body: order is never changed for speed."""
    seen: list[str] = []
    relay = Relay(before=[Spy("reads", seen), Early("early", seen)])
    relay.accept(FakeDownstream(BODY))
    assert seen == []


# -- local answers


@pytest.mark.parametrize("kind", [Spy, Early])
async def test_a_filters_own_answer_passes_the_filters_above_it_alone(kind: type[Spy]) -> None:
    seen: list[str] = []
    relay = Relay(filters=three(seen, kind, request=gives(json_reply({"cached": True}))), retry=None)
    exchange = relay.ask(BODY)
    assert seen == ["a request", "b request", "a response", "b done", "a done"]
    assert (exchange.downstream.status, exchange.downstream.received) == (200, b'{"cached":true}')
    assert exchange.row.outcome == "ok"
    assert relay.calls == []


async def test_a_filters_own_error_answer_is_a_refusal_in_the_ledger() -> None:
    relay = Relay(filters=three([], request=gives(json_reply({}, 418))))
    assert (relay.ask(BODY).row.status, relay.lines.take()) == (418, [])
    relay = Relay(filters=three([], request=gives(json_reply({}, 418))))
    assert relay.ask(BODY).row.outcome == "refused"


@pytest.mark.parametrize("kind", [Spy, Early])
async def test_a_refusal_passes_the_filters_above_it_alone(kind: type[Spy]) -> None:
    seen: list[str] = []
    relay = Relay(filters=three(seen, kind, request=raises(RateLimitError("slow down"))))
    exchange = relay.ask(BODY)
    assert seen == ["a request", "b request", "a response", "b done", "a done"]
    assert exchange.downstream.status == 429
    assert exchange.downstream.header(b"retry-after") == b"1"
    assert (exchange.row.outcome, exchange.error["code"]) == ("refused", "rate_limit_exceeded")


async def test_an_error_after_the_last_filter_passes_all_of_them() -> None:
    seen: list[str] = []
    relay = Relay(filters=three(seen))
    relay.ask(b'{"model":"m","stream":7}')
    assert seen == []
    relay.engine.graph.models._entries.clear()
    relay.engine.graph.models._wildcards.clear()
    relay.ask(BODY)
    assert seen[3:] == ["c response", "b response", "a response", "c done", "b done", "a done"]


async def test_an_error_after_the_prefix_passes_the_whole_prefix() -> None:
    seen: list[str] = []
    relay = Relay(before=[Early("a", seen), Early("b", seen)], filters=[Spy("late", seen)])
    exchange = relay.ask(b"not json")
    assert seen == ["a request", "b request", "b response", "a response", "b done", "a done"]
    assert exchange.downstream.status == 400


async def test_a_filter_may_edit_the_head_of_any_answer() -> None:
    def sign(_: object, head: ResponseHead) -> None:
        head.headers.append((b"x-signed", b"yes"))
        head.status = 203

    relay = Relay(filters=[Spy("a", [], response=sign)])
    exchange = relay.ask(BODY)
    relay.providers[0].last.feed(GOOD)
    assert (exchange.downstream.status, exchange.downstream.header(b"x-signed")) == (203, b"yes")
    assert exchange.row.status == 203


async def test_a_filter_without_a_body_phase_is_still_done() -> None:
    """`on_done` belongs to every filter that was passed, also to one that has no `on_request`."""

    class OnlyDone(Filter):
        count = 0

        def on_done(self, ex: Exchange) -> None:
            self.count += 1

    link = OnlyDone()
    relay = Relay(filters=[link, Spy("x", [], request=raises(RateLimitError("no")))])
    relay.ask(BODY)
    assert link.count == 1


# -- async filters


async def test_an_async_filter_lets_pass_and_the_rest_follows() -> None:
    seen: list[str] = []
    waiting = Waiting()
    relay = Relay(filters=[Spy("a", seen), waiting, Spy("b", seen)])
    exchange = relay.ask(BODY)
    await waiting.reached.wait()
    assert seen == ["a request"]
    waiting.go.set()
    await turns()
    assert seen[1:3] == ["b request", "a attempt"]
    relay.providers[0].last.feed(GOOD)
    assert exchange.row.outcome == "ok"
    assert relay.at_rest()


async def test_an_async_filter_of_the_prefix_comes_before_the_body() -> None:
    class EarlyWaiting(Waiting):
        reads_body = False

    waiting = EarlyWaiting()
    relay = Relay(before=[waiting])
    downstream = FakeDownstream(BODY)
    relay.accept(downstream)
    assert downstream.asked is None
    waiting.go.set()
    await turns()
    assert downstream.asked is not None


@pytest.mark.parametrize(
    ("answer", "error", "status", "outcome"),
    [
        (json_reply({"a": 1}), None, 200, "ok"),
        (None, PermissionDeniedError("no"), 403, "refused"),
        (None, ZeroDivisionError("oops"), 500, "failed"),
        (None, asyncio.CancelledError(), 500, "failed"),
    ],
)
async def test_an_async_filter_ends_an_exchange_like_any_other(
    answer: Reply | None, error: BaseException | None, status: int, outcome: str
) -> None:
    """Cancelled by something it waited for, it must not leave its client waiting for ever."""
    waiting = Waiting()
    waiting.answer, waiting.error = answer, error
    relay = Relay(filters=[waiting])
    exchange = relay.ask(BODY)
    await waiting.reached.wait()
    waiting.go.set()
    await turns()
    assert exchange.downstream.status == status
    assert (exchange.row.outcome, exchange.downstream.ended, waiting.done) == (outcome, True, 1)
    assert relay.at_rest()


async def test_a_client_that_leaves_cancels_the_async_filter() -> None:
    waiting = Waiting()
    relay = Relay(filters=[waiting])
    exchange = relay.ask(BODY)
    await waiting.reached.wait()
    exchange.downstream.leave()
    assert exchange.row.outcome == "cancelled"
    await turns()
    assert waiting.cancelled
    assert waiting.done == 1
    assert relay.at_rest()


async def test_a_client_that_leaves_before_the_async_filter_began_never_starts_it() -> None:
    waiting = Waiting()
    relay = Relay(filters=[waiting])
    exchange = relay.ask(BODY)
    exchange.downstream.leave()
    await turns()
    assert not waiting.reached.is_set()
    assert exchange.row.status == 499


async def test_what_a_cancelled_filter_says_goes_nowhere() -> None:
    """It may make light of its cancellation, answer, refuse or break: its exchange is over."""

    def refuses() -> Reply:
        raise RateLimitError("too late")

    def breaks() -> Reply:
        raise ZeroDivisionError

    for act in (lambda: None, lambda: json_reply({"late": 1}), refuses, breaks):
        waiting = Waiting()
        waiting.at_cancel = act
        relay = Relay(filters=[waiting])
        exchange = relay.ask(BODY)
        await waiting.reached.wait()
        with capture_logs() as logs:
            relay.engine.cut()
            assert exchange.row.error_code == "shutting_down"
            await turns()
        assert [log["event"] for log in logs] == (["internal_error"] if act is breaks else [])
        assert len(exchange.downstream.writes) == 1
        assert relay.lines.take() == []
        assert relay.calls == []


async def test_a_filter_that_gives_neither_a_reply_nor_none_is_a_bug() -> None:
    relay = Relay(filters=[Spy("a", [], request=gives("ok"))])
    with capture_logs() as logs:
        exchange = relay.ask(BODY)
    assert exchange.downstream.status == 500
    assert [log["event"] for log in logs] == ["internal_error"]


# -- bugs


@pytest.mark.parametrize("body", [BODY, STREAM])
@pytest.mark.parametrize("moment", ["request", "attempt", "response"])
async def test_a_bug_before_the_head_is_a_500_and_its_traceback_is_in_the_log_alone(moment: str, body: bytes) -> None:
    seen: list[str] = []
    of_b: dict[str, Any] = {moment: raises(ZeroDivisionError("secret detail"))}
    relay = Relay(providers=2, filters=three(seen, **of_b))
    with capture_logs() as logs:
        exchange = relay.ask(body)
        if relay.providers[0].calls:
            relay.providers[0].last.feed(GOOD_STREAM if body is STREAM else GOOD)
    assert exchange.downstream.status == 500
    assert exchange.downstream.ended
    assert exchange.error["code"] == "internal_error"
    assert b"secret" not in exchange.downstream.received
    assert exchange.downstream.header(b"x-headgate-request-id") is not None
    [log] = logs
    assert (log["event"], type(log["exc_info"])) == ("internal_error", ZeroDivisionError)
    row = exchange.row
    assert (row.outcome, row.status, row.error_code) == ("failed", 500, "internal_error")
    assert row.bytes_out == len(exchange.downstream.received)
    assert relay.engine.stats.internal_errors == 1
    assert seen.count("a done") == seen.count("b done") == 1
    assert relay.at_rest()


@pytest.mark.parametrize("moment", ["attempt_end", "done", "bytes"])
async def test_a_bug_where_nothing_depends_on_it_hurts_nobody(moment: str) -> None:
    seen: list[str] = []
    of_b: dict[str, Any] = {moment: raises(ZeroDivisionError())}
    relay = Relay(filters=three(seen, **of_b))
    with capture_logs() as logs:
        exchange = relay.ask(BODY)
        relay.providers[0].last.feed(GOOD)
    assert exchange.row.outcome == "ok"
    assert seen.count(f"a {moment}") == 1
    [log] = logs
    assert (log["event"], log["moment"]) == ("internal_error", f"on_{moment}")
    assert relay.engine.stats.internal_errors == 1


async def test_an_observer_that_breaks_is_asked_once_and_the_stream_goes_on() -> None:
    seen: list[str] = []
    relay = Relay(filters=three(seen, bytes=raises(ZeroDivisionError())))
    with capture_logs() as logs:
        exchange = relay.ask(STREAM)
        for piece in sse(chat_chunks()):
            relay.providers[0].last.feed(piece)
    assert exchange.row.outcome == "ok"
    assert seen.count("b bytes") == 1
    assert seen.count("a bytes") == seen.count("c bytes") > 2
    assert len(logs) == 1


async def test_a_bug_in_the_middle_of_a_stream_closes_the_connection() -> None:
    class Breaks(Filter):
        def on_event(self, ex: Exchange, event: Event) -> Event:
            if b"there" in event.raw:
                raise ZeroDivisionError
            return event

    relay = Relay(filters=[Breaks()])
    with capture_logs() as logs:
        exchange = relay.ask(STREAM)
        for piece in sse(chat_chunks()):
            relay.providers[0].last.feed(piece)
    assert len(logs) == 1
    assert exchange.downstream.aborted
    assert b"[DONE]" not in exchange.downstream.received
    row = exchange.row
    assert (row.outcome, row.status, row.error_code) == ("failed", 200, "internal_error")
    assert relay.providers[0].last.cancelled
    assert relay.at_rest()


@pytest.mark.parametrize("client", ["start", "write", "end"])
async def test_a_client_that_cannot_be_answered_is_cut_off(client: str) -> None:
    class Broken(FakeDownstream):
        __slots__ = ()

    def fail(*_: object) -> None:
        raise OSError("no")

    setattr(Broken, client, fail)
    relay = Relay()
    downstream = Broken(BODY)
    with capture_logs():
        exchange = relay.ask(BODY, downstream)
        relay.providers[0].last.feed(GOOD)
    assert downstream.aborted
    assert exchange.row.outcome == "ok"  # written before the last byte
    assert relay.at_rest()


# -- records


async def test_a_filter_below_auth_that_answers_before_the_body_leaves_a_record() -> None:
    seen: list[str] = []
    relay = Relay(before=[Admitting("auth", seen), Early("cache", seen, request=gives(json_reply({})))])
    downstream = FakeDownstream(BODY)
    exchange = relay.accept(downstream)
    assert downstream.asked is None
    assert exchange.row.outcome == "ok"


async def test_what_auth_refuses_is_counted_and_leaves_no_record() -> None:
    relay = Relay(before=[Admitting("auth", [], request=raises(UnauthorizedError("who?")))])
    exchange = relay.accept(FakeDownstream(BODY))
    assert exchange.downstream.status == 401
    assert relay.lines.take() == []
    assert relay.engine.stats.refused_by_auth == 1
    assert relay.engine.stats.exchanges == {}


async def test_what_a_filter_below_auth_refuses_leaves_a_record() -> None:
    seen: list[str] = []
    relay = Relay(before=[Admitting("auth", seen), Early("limit", seen, request=raises(RateLimitError("no")))])
    exchange = relay.accept(FakeDownstream(BODY))
    assert exchange.row.outcome == "refused"
    assert relay.engine.stats.refused_by_auth == 0
    assert relay.engine.stats.exchanges == {("chat", "refused", 429): 1}


async def test_a_client_that_leaves_behind_auth_leaves_a_record() -> None:
    class EarlyWaiting(Waiting):
        reads_body = False

    waiting = EarlyWaiting()
    relay = Relay(before=[Admitting("auth", []), waiting])
    exchange = relay.accept(FakeDownstream(BODY))
    await waiting.reached.wait()
    exchange.downstream.leave()
    await turns()
    assert (exchange.row.outcome, exchange.rows) == ("cancelled", [])


async def test_a_full_ledger_refuses_and_is_not_written_past_its_bound() -> None:
    lines = FullSpool()
    relay = Relay(before=[Admitting("auth", [])], lines=lines)
    exchange = relay.accept(FakeDownstream(BODY))
    assert (exchange.downstream.status, exchange.error["code"]) == (503, "overloaded")
    assert exchange.downstream.header(b"retry-after") == b"5"
    assert lines.written == []
    assert relay.engine.stats.exchanges == {("chat", "refused", 503): 1}
    assert relay.engine.stats.refused_by_auth == 0


async def test_a_path_that_is_not_ours_is_no_exchange() -> None:
    relay = Relay()
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405)):
        downstream = FakeDownstream(method=method, path=path)
        relay.accept(downstream)
        assert downstream.status == status
        id_ = downstream.header(b"x-headgate-request-id")
        assert id_ == downstream.header(b"x-request-id")
        assert id_ == json.loads(downstream.received)["error"]["request_id"].encode()
        assert downstream.header(b"x-headgate-config") == b"test"
        downstream.listener.on_resume()
        downstream.listener.on_gone()
    assert relay.lines.take() == []
    assert not relay.engine.live


async def test_a_path_that_is_not_utf_8_is_refused_like_any_other() -> None:
    relay = Relay()
    downstream = FakeDownstream(method="POST", path=b"/v1/models/\xff".decode("utf-8", "surrogateescape"))
    relay.accept(downstream)
    assert downstream.status == 405
    assert "'/v1/models/?'" in json.loads(downstream.received)["error"]["message"]


async def test_a_handler_answers_without_a_plan_or_a_record() -> None:
    seen: list[str] = []
    relay = Relay(filters=[Spy("a", seen)])
    downstream = FakeDownstream(method="GET", path="/v1/models")
    relay.accept(downstream)
    assert (downstream.status, downstream.asked) == (200, None)
    assert seen == ["a request", "a response", "a done"]
    assert relay.lines.take() == []


# -- the body


async def test_a_body_that_cannot_be_had_is_refused_once() -> None:
    relay = Relay()
    downstream = FakeDownstream(BODY)
    exchange = relay.accept(downstream)
    downstream.fail_body(BodyTooLargeError("too much"))
    assert exchange.row.status == 413
    downstream.fail_body(BodyTooLargeError("too much"))
    downstream.listener.on_body(BODY)
    assert relay.lines.take() == []


async def test_a_bug_of_the_dialect_is_a_500(monkeypatch: pytest.MonkeyPatch) -> None:
    relay = Relay()
    monkeypatch.setattr(type(relay.engine.operations["chat"]), "read", raises(ZeroDivisionError()))
    with capture_logs():
        assert relay.ask(BODY).downstream.status == 500


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"content-encoding", b"gzip")], 415),
        ([(b"content-encoding", b" Identity ")], None),
        ([(b"content-type", b"Multipart/form-data; boundary=x")], 415),
        ([(b"content-type", b"text/plain")], None),
        ([], None),
    ],
)
async def test_encoded_bodies_and_forms_are_refused_unread(
    headers: list[tuple[bytes, bytes]], status: int | None
) -> None:
    downstream = FakeDownstream(BODY, headers=headers)
    Relay().accept(downstream)
    assert downstream.status == status
    assert (downstream.asked is None) is (status is not None)


# -- what the caller asks of the gateway


@pytest.mark.parametrize("value", [b"", b"0", b"-1", b"1.5", b"x", b"86400001", b"9" * 400, b"0000000000000005"])
async def test_an_unfit_deadline_is_refused(value: bytes) -> None:
    exchange = Relay().accept(FakeDownstream(BODY, headers=[(b"x-headgate-timeout-ms", value)]))
    assert (exchange.downstream.status, exchange.row.outcome) == (400, "refused")


async def test_auth_comes_before_what_the_caller_asks_for() -> None:
    """Who is not known hears nothing else, and leaves no record."""
    relay = Relay(before=[Admitting("auth", [], request=raises(UnauthorizedError("who?")))])
    exchange = relay.accept(FakeDownstream(BODY, headers=[(b"x-headgate-timeout-ms", b"x")]))
    assert exchange.downstream.status == 401
    relay.engine.draining = True
    assert relay.accept(FakeDownstream(BODY)).downstream.status == 401


async def test_a_caller_may_choose_the_provider() -> None:
    relay = Relay(providers=3)
    exchange = relay.ask(BODY, FakeDownstream(headers=[(b"x-headgate-provider", b"up1")]))
    assert [len(provider.calls) for provider in relay.providers] == [0, 1, 0]
    relay.providers[1].last.feed(json_response({}, 500))
    relay.clock.advance(1)
    assert relay.calls == relay.providers[1].calls
    assert exchange.row.provider == "up1"


async def test_a_provider_nobody_knows_is_refused() -> None:
    exchange = Relay().accept(FakeDownstream(BODY, headers=[(b"x-headgate-provider", b"nobody\xff")]))
    assert (exchange.downstream.status, exchange.error["code"]) == (400, "invalid_request")
    assert exchange.error["message"] == "x-headgate-provider: there is no provider of this name."


# -- the end of the gateway


async def test_a_draining_gateway_takes_no_new_work_and_records_the_refusal() -> None:
    relay = Relay()
    relay.engine.draining = True
    exchange = relay.accept(FakeDownstream(BODY))
    assert (exchange.downstream.status, exchange.error["code"]) == (503, "shutting_down")
    assert exchange.row.outcome == "refused"


async def test_an_exchange_that_breaks_while_it_is_cut_is_a_bug_and_over(monkeypatch: pytest.MonkeyPatch) -> None:
    relay = Relay()
    exchange = relay.ask(STREAM)
    for piece in sse(chat_chunks())[:3]:
        relay.providers[0].last.feed(piece)
    monkeypatch.setattr(type(relay.engine.operations["chat"]), "error_event", raises(ZeroDivisionError()))
    monkeypatch.setattr(type(relay.engine.ledger), "settle", raises(ZeroDivisionError()))
    with capture_logs() as logs:
        relay.engine.cut()
    assert len(logs) == 2
    assert exchange.downstream.aborted
    assert exchange.row.outcome == "failed"
    assert relay.at_rest()


@pytest.mark.parametrize("relayed", [True, False])
async def test_an_exchange_that_breaks_while_its_client_leaves_is_over_all_the_same(
    relayed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = Relay()
    exchange = relay.ask(STREAM)
    if relayed:
        for piece in sse(chat_chunks())[:3]:
            relay.providers[0].last.feed(piece)
    monkeypatch.setattr(type(relay.engine.ledger), "settle", raises(ZeroDivisionError()))
    monkeypatch.setattr(type(relay.providers[0].last), "cancel", raises(ZeroDivisionError()))
    with capture_logs() as logs:
        exchange.downstream.leave()
    assert len(logs) == 2 if relayed else 1
    row = exchange.row
    assert (row.outcome, row.status) == ("failed", 200 if relayed else 500)
    assert not relay.engine.live
    assert len(relay.engine.deadlines) == 0


async def test_a_cut_run_says_why() -> None:
    relay = Relay()
    downstream = FakeDownstream(BODY)
    exchange = relay.accept(downstream)
    [run] = relay.engine.live
    run.cut(ShuttingDownError("bye"))
    assert (downstream.status, exchange.row.outcome) == (503, "refused")
    run.cut(ShuttingDownError("bye"))
    assert relay.lines.take() == []
