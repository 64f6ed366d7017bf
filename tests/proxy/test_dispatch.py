"""dispatch: a failure before commit is made good by somebody else, as far as policy, budget, vetoes and time allow."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from headgate.config import RetryConfig
from headgate.proxy.errors import (
    ConnectError,
    ConnectTimeoutError,
    GatewayError,
    PermissionDeniedError,
    PoolOverflowError,
    ProtocolError,
)
from headgate.proxy.filter import Filter, SkipTarget
from headgate.proxy.models import QUEUE, REJECT, Exhaustion
from headgate.proxy.plan import CROWD, CROWD_SECONDS
from headgate.proxy.upstream.cluster import OVERLOADED, Timeouts
from headgate.proxy.upstream.limits import LimitSettings
from tests_support.answers import chat_completion, error_response, json_response, response_head
from tests_support.downstream import FakeDownstream
from tests_support.relay import BACKOFF, EVERY_FAILURE, Relay

if TYPE_CHECKING:
    from collections.abc import Callable

    from headgate.proxy.attempt import Attempt
    from headgate.proxy.exchange import Exchange
    from headgate.proxy.plan import Target

BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
STREAM = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}'
GOOD = json_response(chat_completion())
CANARY = "sk-canary-b8fT2"


class Watch(Filter):
    """Counts the attempts it let begin and those it saw end; `act` may object."""

    def __init__(self, act: Callable[[Exchange, Attempt], None] | None = None) -> None:
        self.begun: list[Attempt] = []
        self.ended: list[Attempt] = []
        self.act = act

    def on_attempt(self, ex: Exchange, attempt: Attempt) -> None:
        if self.act is not None:
            self.act(ex, attempt)
        self.begun.append(attempt)

    def on_attempt_end(self, ex: Exchange, attempt: Attempt) -> None:
        self.ended.append(attempt)


class Objects(Filter):
    """Installs a veto."""

    def __init__(self, check: Callable[[Target], str | None]) -> None:
        self.check = check

    def on_request(self, ex: Exchange) -> None:
        ex.veto(self.check)


def skip(*names: str) -> Callable[[Exchange, Attempt], None]:
    def act(_: Exchange, attempt: Attempt) -> None:
        if attempt.target.cluster.name in names:
            raise SkipTarget("resting")

    return act


def fail(relay: Relay, at: int, how: str = "500") -> None:
    """The latest attempt at a provider fails."""
    call = relay.providers[at].last
    if how == "connect":
        call.fail(ConnectError("refused"))
    else:
        call.feed(error_response(int(how), f"said by up{at}"))


def asked(relay: Relay) -> list[int]:
    """How often each provider was asked."""
    return [len(provider.calls) for provider in relay.providers]


async def test_the_log_says_which_provider_failed_and_why() -> None:
    relay = Relay()
    with capture_logs() as logs:
        exchange = relay.ask(BODY)
        relay.providers[0].last.fail(
            ProtocolError("The provider's answer is not valid HTTP.", detail="a status in words")
        )
    [line] = [log for log in logs if log["event"] == "refused"]
    assert (line["provider"], line["detail"]) == ("up0", "a status in words")
    assert exchange.downstream.status == 502


# -- who is next


async def test_targets_are_tried_in_their_order_up_to_the_bound() -> None:
    relay = Relay(providers=4)
    exchange = relay.ask(BODY)
    for at in range(3):
        assert asked(relay) == [1] * (at + 1) + [0] * (3 - at)
        fail(relay, at)
        relay.clock.advance(BACKOFF)
    assert asked(relay) == [1, 1, 1, 0]
    assert exchange.row.attempts == 3


async def test_no_retry_filter_means_one_attempt() -> None:
    relay = Relay(providers=2, retry=None)
    exchange = relay.ask(BODY)
    fail(relay, 0)
    relay.clock.advance(BACKOFF)
    assert asked(relay) == [1, 0]
    assert exchange.downstream.status == 500
    assert exchange.downstream.header(b"x-should-retry") is None


async def test_a_back_off_comes_before_the_next_attempt() -> None:
    relay = Relay(providers=2)
    relay.ask(BODY)
    fail(relay, 0)
    assert asked(relay) == [1, 0]
    assert relay.clusters[1].retries_waiting == 1
    relay.clock.advance(0.025)
    assert asked(relay) == [1, 1]
    assert relay.clusters[1].retries_waiting == 0


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (ConnectError("x"), "connect-failure"),
        (ConnectTimeoutError("x"), "connect-failure"),
        (ProtocolError("x"), "reset"),
        (500, "5xx"),
        (503, "5xx"),
        (429, "429"),
        (PoolOverflowError("x"), None),
        (GatewayError("x"), None),
        (400, None),
        (404, None),
    ],
)
async def test_what_failed_decides_whether_another_is_asked(error: GatewayError | int, word: str | None) -> None:
    """Each failure has one word, and is repeated where the policy has that word and in no other place."""
    every = EVERY_FAILURE.on
    for on, repeated in ((every, word is not None), (every - {word}, False)):
        relay = Relay(providers=2, retry=RetryConfig.model_validate({"on": on}))
        exchange = relay.ask(BODY)
        if isinstance(error, int):
            fail(relay, 0, str(error))
        else:
            relay.providers[0].last.fail(error)
        relay.clock.advance(BACKOFF)
        assert asked(relay) == [1, 1 if repeated else 0]
        if repeated:
            relay.providers[1].last.feed(GOOD)
        assert len(exchange.rows) == 1
        assert relay.at_rest()


async def test_a_time_out_is_repeated_where_the_policy_says_so() -> None:
    for on, repeated in (({"timeout"}, True), ({"5xx"}, False)):
        retry = RetryConfig.model_validate({"on": on})
        relay = Relay(providers=2, retry=retry, timeouts=Timeouts(total=5))
        relay.ask(BODY)
        relay.providers[0].last.sent()
        relay.clock.advance(5.2 + BACKOFF)
        assert asked(relay) == [1, 1 if repeated else 0]


async def test_what_may_not_be_repeated_is_not() -> None:
    relay = Relay(providers=2)
    relay.engine.graph.faces.find("POST", "/v1/embeddings").repeatable = False
    try:
        exchange = relay.ask(b'{"model":"m","input":"x"}', FakeDownstream(path="/v1/embeddings"))
        fail(relay, 0, "connect")
        relay.clock.advance(BACKOFF)
        assert asked(relay) == [1, 0]
        assert exchange.downstream.status == 502
    finally:
        relay.engine.graph.faces.find("POST", "/v1/embeddings").repeatable = True


async def test_the_last_target_is_asked_again_only_if_it_never_heard_of_it() -> None:
    relay = Relay(providers=1)
    exchange = relay.ask(BODY)
    for _ in range(2):
        fail(relay, 0, "connect")
        relay.clock.advance(BACKOFF)
    assert asked(relay) == [3]
    fail(relay, 0, "connect")
    assert (exchange.downstream.status, exchange.row.attempts) == (502, 3)
    assert exchange.downstream.header(b"x-should-retry") == b"false"


# -- vetoes


async def test_vetoes_are_asked_again_before_each_attempt() -> None:
    resting: set[str] = set()
    relay = Relay(providers=3, filters=[Objects(lambda target: "rest" if target.cluster.name in resting else None)])
    exchange = relay.ask(BODY)
    resting.add("up1")
    fail(relay, 0)
    relay.clock.advance(BACKOFF)
    assert asked(relay) == [1, 0, 1]
    relay.providers[2].last.feed(GOOD)
    assert exchange.row.provider == "up2"


async def test_one_that_is_vetoed_during_the_back_off_is_passed_over() -> None:
    resting: set[str] = set()
    relay = Relay(providers=3, filters=[Objects(lambda target: "rest" if target.cluster.name in resting else None)])
    exchange = relay.ask(BODY)
    fail(relay, 0)
    resting.add("up1")
    relay.clock.advance(BACKOFF)
    assert asked(relay) == [1, 0, 1]
    relay.providers[2].last.feed(GOOD)
    assert exchange.row.attempts == 2
    assert relay.at_rest()


async def test_when_everybody_is_vetoed_during_the_back_off_the_last_answer_goes_down() -> None:
    resting: set[str] = set()
    relay = Relay(providers=2, filters=[Objects(lambda target: "rest" if target.cluster.name in resting else None)])
    exchange = relay.ask(BODY)
    fail(relay, 0)
    resting |= {"up0", "up1"}
    relay.clock.advance(BACKOFF)
    assert exchange.downstream.status == 500
    assert exchange.error["message"] == "said by up0"
    assert [cluster.retries_waiting for cluster in relay.clusters] == [0, 0]
    assert relay.at_rest()


async def test_a_plan_of_vetoed_targets_is_refused_and_says_why() -> None:
    relay = Relay(providers=2, filters=[Objects(lambda target: f"rests ({target.model})")])
    exchange = relay.ask(BODY)
    assert (exchange.downstream.status, exchange.error["code"]) == (503, "no_target")
    assert "up0: rests (m), up1: rests (m)" in exchange.error["message"]
    assert exchange.row.attempts == 0


# -- on_attempt and on_attempt_end


@pytest.mark.parametrize("end", ["good", "500", "connect", "rst", "gone", "cut", "total"])
async def test_every_attempt_ends_once(end: str) -> None:
    watch = Watch()
    twice = RetryConfig(attempts=2, on=EVERY_FAILURE.on)
    relay = Relay(providers=2, filters=[watch], retry=twice, timeouts=Timeouts(total=5))
    exchange = relay.ask(BODY)
    fail(relay, 0)
    relay.clock.advance(BACKOFF)
    call = relay.providers[1].last
    call.sent()
    match end:
        case "good":
            call.feed(GOOD)
        case "rst":
            call.feed(GOOD[:30])
            call.rst()
        case "gone":
            exchange.downstream.leave()
        case "cut":
            relay.engine.cut()
        case "total":
            relay.clock.advance(5.2)
        case _:
            fail(relay, 1, end)
    assert relay.at_rest()
    relay.clock.advance(100)
    assert watch.begun == watch.ended
    assert len(watch.ended) == exchange.row.attempts == 2
    first, second = watch.ended
    assert first.error is not None
    assert (second.error is None) is (end in ("good", "gone", "cut"))
    assert second.cancelled is (end in ("gone", "cut"))


async def test_a_skipped_target_is_no_attempt_and_the_next_one_is() -> None:
    watch = Watch(skip("up0"))
    relay = Relay(providers=2, filters=[watch])
    exchange = relay.ask(BODY)
    assert asked(relay) == [0, 1]
    relay.providers[1].last.feed(GOOD)
    row = exchange.row
    assert (row.attempts, row.provider) == (1, "up1")
    assert [attempt.number for attempt in watch.ended] == [1]


async def test_a_target_skipped_after_a_failure_is_passed_over() -> None:
    relay = Relay(providers=3, filters=[Watch(skip("up1"))])
    exchange = relay.ask(BODY)
    fail(relay, 0)
    relay.clock.advance(BACKOFF)
    assert asked(relay) == [1, 0, 1]
    relay.providers[2].last.feed(GOOD)
    assert exchange.row.attempts == 2
    assert relay.clusters[1].rq_retry == 0
    assert relay.engine.stats.retries == relay.clusters[2].rq_retry == 1


async def test_all_skipped_is_no_target_and_says_why() -> None:
    exchange = Relay(providers=2, filters=[Watch(skip("up0", "up1"))]).ask(BODY)
    assert (exchange.downstream.status, exchange.error["code"]) == (503, "no_target")
    assert "up0: resting" in exchange.error["message"]


async def test_who_let_an_attempt_pass_hears_that_another_stopped_it() -> None:
    """A permit taken in `on_attempt` is given back, and nobody hears of the end of what they never saw."""
    above, stops, below = Watch(), Watch(skip("up0")), Watch()
    relay = Relay(providers=2, filters=[above, stops, below])
    relay.ask(BODY)
    [stopped] = above.ended
    assert (stopped.target.cluster.name, stopped.cancelled, stopped.error) == ("up0", True, None)
    assert len(above.begun) == 2
    assert stops.ended == below.ended == []
    relay.providers[1].last.feed(GOOD)
    assert above.begun == above.ended
    assert len(stops.ended) == len(below.ended) == 1


@pytest.mark.parametrize("error", [PermissionDeniedError("not now"), ZeroDivisionError()])
@pytest.mark.parametrize("at", ["up0", "up1"])
async def test_a_filter_may_end_the_exchange_at_any_attempt(error: Exception, at: str) -> None:
    def act(_: Exchange, attempt: Attempt) -> None:
        if attempt.target.cluster.name == at:
            raise error

    above = Watch()
    relay = Relay(providers=2, filters=[above, Watch(act)])
    with capture_logs() as logs:
        exchange = relay.ask(BODY)
        if at == "up1":
            fail(relay, 0)
            relay.clock.advance(BACKOFF)
    assert exchange.downstream.status == (403 if isinstance(error, GatewayError) else 500)
    assert len(logs) == (0 if isinstance(error, GatewayError) else 1)
    assert above.begun == above.ended
    assert len(exchange.rows) == 1
    assert relay.at_rest()


async def test_a_filter_that_breaks_when_a_stopped_attempt_ends_is_logged_and_the_others_hear_of_it() -> None:
    class Breaks(Watch):
        def on_attempt_end(self, ex: Exchange, attempt: Attempt) -> None:
            raise ZeroDivisionError

    above = Watch()
    relay = Relay(providers=2, filters=[above, Breaks(), Watch(skip("up0", "up1"))])
    with capture_logs() as logs:
        assert relay.ask(BODY).downstream.status == 503
    assert [log["moment"] for log in logs] == ["on_attempt_end"] * 2
    assert above.begun == above.ended


# -- time


async def test_a_429_that_stands_alone_is_waited_for() -> None:
    relay = Relay()
    exchange = relay.ask(BODY)
    relay.providers[0].last.feed(error_response(429, "slow down", headers=[("retry-after", "7")]))
    relay.clock.advance(6.9)
    assert asked(relay) == [1]
    relay.clock.advance(0.1)
    assert asked(relay) == [2]
    relay.providers[0].last.feed(GOOD)
    assert (exchange.row.attempts, exchange.downstream.status) == (2, 200)


@pytest.mark.parametrize("wait", ["61", "nonsense", "inf", None])
async def test_a_429_without_a_wait_that_fits_goes_down_as_it_is(wait: str | None) -> None:
    relay = Relay()
    exchange = relay.ask(BODY)
    relay.providers[0].last.feed(
        error_response(429, "slow down", headers=[("retry-after", wait)] if wait is not None else [])
    )
    assert exchange.downstream.status == 429
    assert exchange.error["message"] == "slow down"
    assert exchange.downstream.header(b"x-should-retry") is None
    assert exchange.row.outcome == "upstream_error"


async def test_nobody_waits_past_the_callers_deadline() -> None:
    for limit, waits in ((b"6000", False), (b"9000", True)):
        relay = Relay()
        relay.ask(BODY, FakeDownstream(headers=[(b"x-headgate-timeout-ms", limit)]))
        relay.providers[0].last.feed(error_response(429, "slow down", headers=[("retry-after", "7")]))
        relay.clock.advance(10)
        assert asked(relay) == [2 if waits else 1]


async def test_a_back_off_that_reaches_past_the_deadline_is_not_begun() -> None:
    relay = Relay(providers=2)
    exchange = relay.ask(BODY, FakeDownstream(headers=[(b"x-headgate-timeout-ms", b"1000")]))
    relay.clock.advance(0.9999)
    fail(relay, 0)
    assert exchange.downstream.status == 500
    assert relay.clusters[1].retries_waiting == 0


async def test_who_has_no_time_left_when_the_body_is_there_asks_nobody() -> None:
    relay = Relay()
    downstream = FakeDownstream(BODY, headers=[(b"x-headgate-timeout-ms", b"1000")])
    exchange = relay.accept(downstream)
    relay.clock.advance(1.1)
    downstream.deliver()
    assert (downstream.status, exchange.error["code"]) == (504, "upstream_timeout")
    assert asked(relay) == [0]
    assert exchange.row.outcome == "failed"


# -- the budget


async def test_retries_end_with_the_budget_of_the_provider_they_would_go_to() -> None:
    retry = RetryConfig.model_validate({"on": ["5xx"], "budget": {"percent": 0, "min_per_second": 0.1}})
    relay = Relay(providers=2, retry=retry)
    for expected in (1, 0, 0):  # one retry in ten seconds
        exchange = relay.ask(BODY)
        fail(relay, 0)
        relay.clock.advance(BACKOFF)
        assert asked(relay)[1] == expected
        if expected:
            relay.providers[1].last.feed(GOOD)
        else:
            assert exchange.error["message"] == "said by up0"
        relay.lines.take()
    assert relay.engine.stats.retries == 1


async def test_a_crowd_of_retries_is_spread_over_two_seconds() -> None:
    """Full jitter of 25 ms would send them all at once to a provider that is not failing yet."""
    relay = Relay(providers=2)
    downstreams = []
    for _ in range(60):
        downstream = FakeDownstream(BODY)
        relay.accept(downstream)
        downstream.deliver()
        downstreams.append(downstream)
    for call in relay.providers[0].calls:
        call.fail(ConnectError("refused"))
    assert relay.clusters[1].retries_waiting == 60
    relay.clock.advance(0.025)
    assert len(relay.providers[1].calls) >= CROWD
    seen = []
    for _ in range(20):
        seen.append(len(relay.providers[1].calls))
        relay.clock.advance(CROWD_SECONDS / 20)
    assert len(relay.providers[1].calls) == 60
    assert relay.clusters[1].retries_waiting == 0
    assert max(after - before for before, after in zip(seen, [*seen[1:], 60], strict=True)) <= 12
    for downstream in downstreams:
        downstream.leave()
    assert relay.at_rest()


async def test_retries_that_wait_are_forgotten_when_their_client_leaves() -> None:
    relay = Relay(providers=2)
    exchange = relay.ask(BODY)
    fail(relay, 0)
    assert relay.clusters[1].retries_waiting == 1
    exchange.downstream.leave()
    assert relay.clusters[1].retries_waiting == 0
    relay.clock.advance(1)
    assert asked(relay) == [1, 0]
    row = exchange.row
    assert (row.outcome, row.status, row.attempts) == ("cancelled", 499, 1)
    assert relay.at_rest()


# -- what goes down in the end


async def test_the_last_answer_of_a_provider_goes_down() -> None:
    relay = Relay(providers=3)
    exchange = relay.ask(BODY)
    fail(relay, 0, "503")
    relay.clock.advance(BACKOFF)
    fail(relay, 1, "500")
    relay.clock.advance(BACKOFF)
    fail(relay, 2, "connect")
    assert (exchange.downstream.status, exchange.error["message"]) == (500, "said by up1")
    assert exchange.downstream.header(b"x-should-retry") == b"false"
    assert exchange.downstream.header(b"x-headgate-provider") == b"up1"
    assert exchange.downstream.header(b"x-headgate-attempts") == b"3"
    row = exchange.row
    assert (row.outcome, row.status, row.provider, row.attempts) == ("upstream_error", 500, "up1", 3)


async def test_without_any_answer_the_last_error_does() -> None:
    relay = Relay(providers=2)
    exchange = relay.ask(BODY)
    fail(relay, 0, "connect")
    relay.clock.advance(BACKOFF)
    relay.providers[1].last.fail(ConnectTimeoutError("too slow"))
    relay.clock.advance(BACKOFF)
    relay.providers[1].last.fail(ConnectTimeoutError("too slow"))
    assert (exchange.downstream.status, exchange.error["message"]) == (504, "too slow")
    for name, value in (
        (b"x-headgate-provider", b"up1"),
        (b"x-headgate-model", b"m"),
        (b"x-headgate-route", b"default"),
    ):
        assert exchange.downstream.header(name) == value
    assert exchange.downstream.header(b"x-headgate-latency-ms") is not None
    assert exchange.row.outcome == "failed"


async def test_an_error_in_a_200_is_made_good_or_goes_down_as_it_is() -> None:
    body = {"error": {"message": "overloaded", "code": 529}}
    relay = Relay(providers=2)
    exchange = relay.ask(BODY)
    relay.providers[0].last.feed(json_response(body))
    relay.clock.advance(BACKOFF)
    relay.providers[1].last.feed(json_response(body))
    assert (exchange.downstream.status, json.loads(exchange.downstream.received)) == (200, body)
    assert exchange.row.outcome == "upstream_error"


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_of_our_own_credential_is_ours_to_explain(status: int) -> None:
    relay = Relay(has_credential=True)
    exchange = relay.ask(BODY)
    relay.providers[0].last.feed(error_response(status, f"Incorrect API key provided: {CANARY}"))
    relay.clock.advance(BACKOFF)
    assert (exchange.downstream.status, exchange.error["code"]) == (502, "upstream_auth_failed")
    assert CANARY.encode() not in exchange.downstream.received
    assert exchange.downstream.header(b"x-should-retry") == b"false"
    assert asked(relay) == [1]
    assert exchange.row.outcome == "failed"


@pytest.mark.parametrize("status", [401, 403])
async def test_another_provider_answers_where_our_credential_is_refused(status: int) -> None:
    relay = Relay(providers=2, has_credential=True)
    exchange = relay.ask(BODY)
    relay.providers[0].last.feed(error_response(status, CANARY))
    relay.clock.advance(BACKOFF)
    relay.providers[1].last.feed(GOOD)
    assert exchange.downstream.status == 200
    relay.ask(BODY)
    assert asked(relay) == ([0, 1] if status == 401 else [1, 0])  # a refused key rests, a forbidden model does not


async def test_also_when_another_had_answered_before() -> None:
    relay = Relay(providers=2, has_credential=True)
    exchange = relay.ask(BODY)
    fail(relay, 0)
    relay.clock.advance(BACKOFF)
    relay.providers[1].last.feed(error_response(401, CANARY))
    assert (exchange.downstream.status, exchange.error["code"]) == (502, "upstream_auth_failed")
    assert CANARY.encode() not in exchange.downstream.received


@pytest.mark.parametrize("status", [401, 403])
async def test_without_a_credential_of_ours_it_is_the_clients(status: int) -> None:
    relay = Relay()
    exchange = relay.ask(BODY)
    fail(relay, 0, str(status))
    assert (exchange.downstream.status, exchange.error["message"]) == (status, "said by up0")


@pytest.mark.parametrize("status", [302, 400, 404, 409, 422])
async def test_other_answers_pass_unchanged(status: int) -> None:
    relay = Relay(providers=2)
    exchange = relay.ask(BODY)
    relay.providers[0].last.feed(response_head(status, [("content-length", "2"), ("x-any", "y")]) + b"hm")
    assert (exchange.downstream.status, exchange.downstream.received) == (status, b"hm")
    assert exchange.downstream.header(b"x-any") == b"y"
    assert asked(relay) == [1, 0]
    assert exchange.row.outcome == ("ok" if status < 400 else "upstream_error")


# -- a provider without room


async def test_a_request_too_large_for_one_provider_goes_to_the_next() -> None:
    watch = Watch()
    relay = Relay(providers=2, filters=[watch])
    relay.clusters[0].set_limits(LimitSettings(tokens=10), 0.0, relay.clock.monotonic())
    exchange = relay.ask(BODY)
    assert asked(relay) == [0, 1]
    relay.providers[1].last.feed(GOOD)
    row = exchange.row
    assert (row.outcome, row.attempts, row.provider) == ("ok", 1, "up1")
    assert len(watch.begun) == len(watch.ended) == 2
    assert [cluster.rq_active for cluster in relay.clusters] == [0, 0]


async def test_where_nobody_has_room_the_answer_says_so() -> None:
    watch = Watch()
    relay = Relay(filters=[watch])
    relay.clusters[0].set_limits(LimitSettings(tokens=10), 0.0, relay.clock.monotonic())
    exchange = relay.ask(BODY)
    assert (exchange.downstream.status, exchange.error["code"]) == (503, "overloaded")
    assert (exchange.row.attempts, len(watch.begun), len(watch.ended)) == (0, 1, 1)
    assert relay.at_rest()


def take_room(relay: Relay, at: int) -> None:
    """No call of any size fits into a provider any more."""
    relay.clusters[at].set_limits(LimitSettings(tokens=10), 0.0, relay.clock.monotonic())


def give_room(relay: Relay, at: int) -> None:
    relay.clusters[at].set_limits(LimitSettings(), 0.0, relay.clock.monotonic())


async def test_waiting_for_room_remembers_each_target_once() -> None:
    relay = Relay(providers=2, on_exhausted=Exhaustion(QUEUE, 60.0))
    take_room(relay, 0)
    take_room(relay, 1)
    relay.ask(BODY)
    [run] = relay.engine.live
    for _ in range(100):
        relay.clock.advance(0.05)
    assert [(one.target.cluster.name, one.reason) for one in run.ex.skipped] == [
        ("up0", OVERLOADED),
        ("up1", OVERLOADED),
    ]
    give_room(relay, 1)
    relay.clock.advance(0.05)
    relay.providers[1].last.feed(GOOD)
    assert relay.engine.waiting == 0
    assert relay.at_rest()


async def test_an_explanation_says_who_had_no_room() -> None:
    relay = Relay(providers=2)
    take_room(relay, 0)
    exchange = relay.ask(BODY)
    relay.providers[1].last.feed(GOOD)
    decision = relay.engine.decisions.find(exchange.row.id)
    assert decision is not None
    assert f"up0/m was not asked: {OVERLOADED}." in decision["why"]


@pytest.mark.parametrize("on_exhausted", [REJECT, Exhaustion(QUEUE, 60.0)])
async def test_a_target_that_had_no_room_is_asked_once_it_has(on_exhausted: Exhaustion) -> None:
    relay = Relay(providers=2, on_exhausted=on_exhausted)
    take_room(relay, 0)
    if on_exhausted.kind == QUEUE:
        take_room(relay, 1)
    exchange = relay.ask(BODY)
    give_room(relay, 1)
    relay.clock.advance(0.05)
    assert asked(relay) == [0, 1]
    give_room(relay, 0)
    fail(relay, 1)
    relay.clock.advance(BACKOFF)
    assert asked(relay) == [1, 1]
    relay.providers[0].last.feed(GOOD)
    row = exchange.row
    assert (row.outcome, row.provider, row.attempts) == ("ok", "up0", 2)
    decision = relay.engine.decisions.find(row.id)
    assert decision is not None
    assert [one["veto"] for one in decision["candidates"]] == [None, None]


async def test_a_target_that_still_has_no_room_after_a_failure_is_passed_over() -> None:
    relay = Relay(providers=3)
    take_room(relay, 1)
    exchange = relay.ask(BODY)
    fail(relay, 0)
    relay.clock.advance(BACKOFF)
    assert asked(relay) == [1, 0, 1]
    relay.providers[2].last.feed(GOOD)
    assert (exchange.row.attempts, relay.clusters[1].rq_retry) == (2, 0)
    assert relay.at_rest()


# -- leaving and closing


@pytest.mark.parametrize("end", ["leave", "cut", "aclose"])
@pytest.mark.parametrize("state", ["body", "waiting", "sent", "collecting", "holding", "back-off", "relaying"])
async def test_an_exchange_can_end_in_every_state(state: str, end: str) -> None:
    watch = Watch()
    relay = Relay(providers=2, filters=[watch])
    head = response_head(200, [("content-type", "text/event-stream"), ("connection", "close")])
    downstream = FakeDownstream(STREAM)
    if state == "body":
        exchange = relay.accept(downstream)
    else:
        exchange = relay.ask(STREAM, downstream)
        call = relay.providers[0].last
        if state != "waiting":
            call.sent()
        match state:
            case "collecting":
                call.feed(GOOD[:-3])
            case "holding":
                call.feed(head + b": ping\n\n")
            case "relaying":
                call.feed(head + b'data: {"choices":[{"index":0,"delta":{"content":"Hello there"}}]}\n\n')
            case "back-off":
                fail(relay, 0)
    if end == "leave":
        downstream.leave()
    elif end == "cut":
        relay.engine.cut()
    else:
        await relay.engine.aclose()
    row = exchange.row
    relayed = state == "relaying"
    if end == "leave":
        assert (row.outcome, row.status) == ("cancelled", 200 if relayed else 499)
    else:
        assert (row.outcome, row.error_code) == ("truncated" if relayed else "refused", "shutting_down")
        assert downstream.ended
        assert b"shutting_down" in downstream.received
    assert row.usage_source == ("estimated" if relayed else "none")
    assert row.completion_tokens == (3 if relayed else 0)
    assert all(call.over for call in relay.calls)
    assert watch.begun == watch.ended
    assert sum(cluster.rq_success for cluster in relay.clusters) == 0
    assert sum(cluster.rq_error for cluster in relay.clusters) == (1 if state == "back-off" else 0)
    relay.clock.advance(1000)
    assert relay.at_rest()
    assert relay.lines.take() == []


async def test_what_goes_up_is_the_clients_request_with_our_id() -> None:
    relay = Relay()
    exchange = relay.ask(
        BODY, FakeDownstream(headers=[(b"x-any", b"1"), (b"x-headgate-tags", b"a"), (b"cookie", b"c")])
    )
    request = relay.providers[0].last.request
    names = dict(request.headers)
    assert names[b"x-any"] == b"1"
    assert not {b"x-headgate-tags", b"cookie"} & set(names)
    assert (request.method, request.target, request.body) == (b"POST", b"/chat/completions", BODY)
    relay.providers[0].last.feed(GOOD)
    assert names[b"x-request-id"].decode() == exchange.row.id


async def test_counters_tell_attempts_apart() -> None:
    relay = Relay(providers=2)
    exchange = relay.ask(BODY)
    fail(relay, 0)
    relay.clock.advance(BACKOFF)
    relay.providers[1].last.feed(GOOD)
    assert exchange.downstream.header(b"x-should-retry") is None
    counts: list[Any] = [(c.rq_total, c.rq_success, c.rq_error, c.rq_retry) for c in relay.clusters]
    assert counts == [(1, 0, 1, 0), (1, 1, 0, 1)]
