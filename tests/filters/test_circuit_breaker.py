"""circuit_breaker: a target that fails is passed over, is tried by one attempt at a time, and is used again."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest

from headgate.config import CircuitBreakerConfig
from headgate.filters.breaker import OPEN
from headgate.filters.circuit_breaker import MAX_TARGETS, CircuitBreaker
from headgate.proxy.errors import BadStatusError, BusyStatusError, ResetError
from headgate.proxy.plan import RetryPolicy, Target
from headgate.proxy.snapshot import Resting
from tests_support.answers import chat_chunks, chat_completion, error_response, json_response, sse
from tests_support.clock import FakeClock
from tests_support.gateway import RunningGateway, config_for, load, running_gateway, written
from tests_support.upstream import RST, STALL, FakeUpstream, Pause, in_turn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from headgate.proxy.attempt import Attempt
    from headgate.proxy.errors import GatewayError
    from headgate.proxy.exchange import Exchange, Veto
    from headgate.proxy.upstream.call import ResponseHead
    from headgate.proxy.upstream.cluster import Cluster
    from tests_support.upstream import Source

WHOLE = json_response(chat_completion())
BROKEN = error_response(500, "no")
BREAKER: dict[str, Any] = {"failures": 3, "window": "60s", "open_for": "60s"}
STREAM = b'{"model":"gpt-4o-mini","stream":true,"messages":[]}'


def breaker_of(gateway: RunningGateway) -> CircuitBreaker:
    """The filter in force."""
    [found] = [f for f in gateway.half.engine.graph.default.chain.filters if isinstance(f, CircuitBreaker)]
    return found


def counts(link: CircuitBreaker) -> tuple[int, int, int]:
    """opened, probes, closed."""
    return link.opened, link.probes, link.closed


async def until(ready: Callable[[], bool], within: float = 10.0) -> None:
    """Look again every 5 ms."""
    deadline = time.monotonic() + within
    while not ready():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


@asynccontextmanager
async def over(
    *sources: Source, retry: bool = False, models: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[RunningGateway, list[FakeUpstream]]]:
    """A gateway with the filter before one provider for each source, tried in this order."""
    ups = [FakeUpstream(source) for source in sources]
    for up in ups:
        await up.__aenter__()
    try:
        config = config_for(*ups, auth=False, retry=False)
        config["filters"] = [{"circuit_breaker": {**BREAKER, **settings}}, *(["retry"] if retry else [])]
        config.update(models or {})
        async with running_gateway(config) as gateway:
            yield gateway, ups
    finally:
        for up in ups:
            await up.__aexit__(None, None, None)


async def test_a_target_that_fails_is_asked_no_more() -> None:
    async with over([BROKEN]) as (gateway, [up]):
        answers = [await gateway.post(key=None) for _ in range(5)]
        link = breaker_of(gateway)
        assert (len(up.requests), counts(link), link.rejected) == (3, (1, 0, 0), 2)
    assert [answer.status for answer in answers] == [500, 500, 500, 503, 503]
    assert answers[3].error["code"] == "no_target"
    assert "up: circuit open" in answers[3].error["message"]


async def test_the_next_target_answers_without_an_attempt_that_is_lost() -> None:
    async with over([RST], [WHOLE], retry=True) as (gateway, [first, second]):
        answers = [await gateway.post(key=None) for _ in range(5)]
        assert (len(first.requests), len(second.requests)) == (3, 5)
    assert [answer.status for answer in answers] == [200] * 5
    assert [answer.header("x-headgate-attempts") for answer in answers] == ["2", "2", "2", "1", "1"]


async def test_another_model_of_the_provider_is_another_target() -> None:
    async with over([BROKEN]) as (gateway, _):
        for _ in range(3):
            await gateway.post(key=None)
        assert (await gateway.post(key=None)).status == 503
        assert (await gateway.post(b'{"model":"other","messages":[]}', key=None)).status == 500


async def test_one_probe_at_a_time_finds_out_and_closes_it() -> None:
    pause = Pause()
    source = in_turn([BROKEN], [BROKEN], [BROKEN], [pause, WHOLE], [WHOLE])
    async with over(source, open_for="50ms") as (gateway, [up]):
        for _ in range(3):
            await gateway.post(key=None)
        await asyncio.sleep(0.06)  # the rest, on a real clock
        probe = asyncio.create_task(gateway.post(key=None))
        await pause.reached()
        beside = [(await gateway.post(key=None)).status for _ in range(3)]
        pause.go()
        assert (await probe).status == 200
        after = [(await gateway.post(key=None)).status for _ in range(2)]
        assert (counts(breaker_of(gateway)), len(up.requests)) == ((1, 1, 1), 6)
    assert (beside, after) == ([503] * 3, [200] * 2)


async def test_a_stream_that_has_begun_closes_it_before_its_end() -> None:
    pause = Pause()
    pieces = sse(chat_chunks())
    source = in_turn([BROKEN], [BROKEN], [BROKEN], [*pieces[:-2], pause, *pieces[-2:]], [WHOLE])
    async with over(source, open_for="50ms") as (gateway, _):
        for _ in range(3):
            await gateway.post(key=None)
        await asyncio.sleep(0.06)  # the rest, on a real clock
        stream = asyncio.create_task(gateway.post(STREAM, key=None))
        await pause.reached()
        await until(lambda: breaker_of(gateway).closed == 1)
        assert (await gateway.post(key=None)).status == 200
        pause.go()
        assert (await stream).status == 200


async def test_a_probe_whose_client_leaves_gives_its_permit_back() -> None:
    source = in_turn([BROKEN], [BROKEN], [BROKEN], [STALL], [WHOLE])
    async with over(source, open_for="50ms") as (gateway, [up]):
        for _ in range(3):
            await gateway.post(key=None)
        await asyncio.sleep(0.06)  # the rest, on a real clock
        probe = asyncio.create_task(gateway.post(key=None))
        await up.wait_request(4)
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        await until(lambda: not gateway.half.engine.live)
        assert (await gateway.post(key=None)).status == 200
        assert counts(breaker_of(gateway)) == (1, 2, 1)


@pytest.mark.parametrize("status", [400, 401, 404, 429])
async def test_what_is_the_callers_or_the_keys_is_no_failure(status: int) -> None:
    async with over([error_response(status, "no")]) as (gateway, [up]):
        for _ in range(6):
            await gateway.post(key=None)
        assert counts(breaker_of(gateway)) == (0, 0, 0)
        assert up.requests


async def test_a_time_out_of_the_clients_own_is_no_failure() -> None:
    async with over([STALL]) as (gateway, _):
        answers = [await gateway.post(headers=[("x-headgate-timeout-ms", "30")], key=None) for _ in range(4)]
        assert counts(breaker_of(gateway)) == (0, 0, 0)
    assert [answer.status for answer in answers] == [504] * 4


async def test_least_bad_asks_all_the_same_when_everybody_rests() -> None:
    async with over([BROKEN], [BROKEN], retry=True, on_all_open="least_bad") as (gateway, [first, second]):
        statuses = [(await gateway.post(key=None)).status for _ in range(5)]
        assert (len(first.requests), len(second.requests), breaker_of(gateway).opened) == (5, 3, 2)
    assert statuses == [500] * 5


async def test_the_models_own_word_on_exhaustion_holds_for_open_circuits() -> None:
    models = {"models": {"*": {"targets": [{"provider": "up"}], "on_exhausted": "least_bad"}}}
    async with over([BROKEN], models=models) as (gateway, [up]):
        assert [(await gateway.post(key=None)).status for _ in range(5)] == [500] * 5
        assert len(up.requests) == 5


async def test_it_survives_a_reload_with_equal_settings_and_no_other() -> None:
    async with over([BROKEN]) as (gateway, [up]):
        for _ in range(3):
            await gateway.post(key=None)
        before = breaker_of(gateway)
        base = config_for(up, auth=False, retry=False)

        async def status_under(filters: list[Any]) -> int:
            await gateway.half.reload(load(written({**base, "filters": filters}, gateway.folder)))
            return (await gateway.post(key=None)).status

        assert await status_under([{"circuit_breaker": BREAKER}, "retry"]) == 503
        assert breaker_of(gateway) is before
        assert await status_under([{"circuit_breaker": {**BREAKER, "failures": 4}}]) == 500


class ScriptedExchange:
    """As much of an exchange as the filter looks at, with its attempts by hand."""

    def __init__(self, link: CircuitBreaker, clock: FakeClock, attempts: int = 3) -> None:
        self.link = link
        self.clock = clock
        self.state: dict[type, Any] = {}
        self.vetoes: list[Veto] = []
        self.attempts: list[Any] = []
        self.attempt: Any = None
        self.deadline = float("inf")
        self.retry = RetryPolicy(attempts, frozenset())

    @property
    def ex(self) -> Exchange:
        """For the filter."""
        return cast("Exchange", self)

    def start(self, target: Target, host: Any) -> Any:
        """An attempt begins."""
        attempt: Any = type("ScriptedAttempt", (), {})()
        attempt.target, attempt.host, attempt.started = target, host, self.clock.monotonic()
        attempt.ended_at, attempt.status, attempt.error, attempt.cancelled = None, 0, None, False
        self.link.on_attempt(self.ex, cast("Attempt", attempt))
        self.attempts.append(attempt)
        self.attempt = attempt
        return attempt

    def end(self, attempt: Any, error: GatewayError | None = None, *, status: int = 200) -> None:
        """It ends."""
        attempt.ended_at, attempt.error, attempt.status = self.clock.monotonic(), error, status
        self.link.on_attempt_end(self.ex, cast("Attempt", attempt))

    def done(self) -> None:
        """The exchange is over."""
        self.link.on_done(self.ex)


class Endpoint:
    """A host that is there."""

    available = True


def link_and_target(hosts: int, **settings: Any) -> tuple[CircuitBreaker, FakeClock, Target, list[Any]]:
    clock = FakeClock()
    target = Target(
        cast("Cluster", type("Hosted", (), {"name": "p", "hosts": [Endpoint() for _ in range(hosts)]})()), "m"
    )
    link = CircuitBreaker(CircuitBreakerConfig(**{"failures": 1, **settings}), now=clock.monotonic)
    return link, clock, target, list(target.cluster.hosts)


def test_what_rests_is_open_until_its_time_is_over_and_half_open_from_then_on() -> None:
    link, clock, target, [host] = link_and_target(1, open_for="60s")
    assert link.left_alone() == {}
    ex = ScriptedExchange(link, clock, attempts=1)
    ex.end(ex.start(target, host), ResetError("…"))
    assert link.left_alone() == {("p", "m"): Resting("open", 60.0)}
    clock.advance(61)
    assert link.left_alone() == {("p", "m"): Resting("half_open", 0.0)}
    probe = ex.start(target, host)
    assert link.left_alone() == {("p", "m"): Resting("open", 0.0)}, "whoever comes now has to wait for the probe"
    ex.end(probe)
    assert link.left_alone() == {}


def test_what_another_endpoint_of_the_target_saves_is_no_failure() -> None:
    link, clock, target, [one, two] = link_and_target(2)
    ex = ScriptedExchange(link, clock)
    ex.end(ex.start(target, one), ResetError("…"))
    ex.end(ex.start(target, two))
    ex.done()
    assert (link.opened, ex.state) == (0, {type_: [] for type_ in ex.state})


def test_what_no_other_endpoint_saves_is_one_failure_however_many_were_asked() -> None:
    link, clock, target, [one, two] = link_and_target(2, failures=2)
    for _ in range(2):
        ex = ScriptedExchange(link, clock)
        ex.end(ex.start(target, one), ResetError("…"))
        assert link.opened == 0
        ex.end(ex.start(target, two), BadStatusError("…"), status=500)
        ex.done()
    assert link.opened == 1


def test_what_may_be_saved_is_judged_when_the_exchange_goes_elsewhere_or_ends() -> None:
    link, clock, target, [one, _] = link_and_target(2)
    ex = ScriptedExchange(link, clock)
    ex.end(ex.start(target, one), ResetError("…"))
    assert link.opened == 0
    ex.start(link_and_target(1)[2], None)
    assert link.opened == 1

    link, clock, target, [one, _] = link_and_target(2)
    ex = ScriptedExchange(link, clock)
    ex.end(ex.start(target, one), ResetError("…"))
    assert link.opened == 0
    ex.done()
    assert link.opened == 1


def test_a_429_in_between_does_not_save_it() -> None:
    link, clock, target, [one, two] = link_and_target(2)
    ex = ScriptedExchange(link, clock)
    ex.end(ex.start(target, one), ResetError("…"))
    ex.end(ex.start(target, two), BusyStatusError("…"), status=429)
    ex.done()
    assert link.opened == 1


def test_without_retries_it_counts_at_once() -> None:
    link, clock, target, [one, _] = link_and_target(2)
    ex = ScriptedExchange(link, clock, attempts=1)
    ex.end(ex.start(target, one), ResetError("…"))
    assert link.opened == 1


def test_a_rival_that_is_under_way_may_save_it() -> None:
    link, clock, target, [one] = link_and_target(1)
    ex = ScriptedExchange(link, clock)
    first, rival = ex.start(target, one), ex.start(target, one)
    ex.end(first, ResetError("…"))
    assert link.opened == 0
    ex.end(rival)
    ex.done()
    assert link.opened == 0


def test_a_probe_that_never_began_gives_its_permit_back() -> None:
    link, clock, target, [one] = link_and_target(1)
    ex = ScriptedExchange(link, clock)
    ex.end(ex.start(target, one), ResetError("…"))
    clock.advance(31)
    for _ in range(2):
        ex = ScriptedExchange(link, clock)
        ex.start(target, one)
        ex.done()
    assert link.probes == 2


def test_a_probe_that_is_answered_with_an_error_has_not_shown_enough() -> None:
    link, clock, target, [one] = link_and_target(1)
    ex = ScriptedExchange(link, clock)
    ex.end(ex.start(target, one), ResetError("…"))
    clock.advance(31)
    ex.start(target, one)
    link.on_response(ex.ex, cast("ResponseHead", type("Head", (), {"status": 500})()))
    assert link.closed == 0
    link.on_response(ex.ex, cast("ResponseHead", type("Head", (), {"status": 200})()))
    assert link.closed == 1


def test_its_veto_is_idle_while_every_circuit_is_closed() -> None:
    link, clock, target, [one] = link_and_target(1)
    ex = ScriptedExchange(link, clock)
    link.on_request(ex.ex)
    [veto] = ex.ex.vetoes
    assert veto.idle
    ex.end(ex.start(target, one), ResetError("…"))
    assert (veto.idle, veto.check(target)) == (False, OPEN)
    clock.advance(31)
    assert (veto.idle, veto.check(target)) == (False, None)  # half-open
    again = ScriptedExchange(link, clock)
    again.end(again.start(target, one))
    assert (veto.idle, link.closed) == (True, 1)


def test_what_it_remembers_is_bounded_and_open_circuits_are_kept() -> None:
    link, clock, target, [one] = link_and_target(1)
    ex = ScriptedExchange(link, clock)
    ex.end(ex.start(target, one), ResetError("…"))
    for n in range(2 * MAX_TARGETS):
        other = Target(target.cluster, f"m{n}")
        ex.end(ex.start(other, one))
    assert len(link._breakers) <= MAX_TARGETS
    assert link._breakers[target.cluster, "m"].objection(clock.monotonic()) is not None
    clock.advance(100)
    ex.end(ex.start(Target(target.cluster, "late"), one))
    ex.end(ex.start(Target(target.cluster, "later"), one))
    assert len(link._breakers) <= MAX_TARGETS
