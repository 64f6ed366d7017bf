"""Filters that take their time only now and then: over a request, or over a whole answer; and how that can end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from headgate.proxy.errors import AnswerRefusedError, PermissionDeniedError
from headgate.proxy.filter import Filter
from headgate.proxy.replies import Reply, json_reply
from tests_support.answers import USAGE, chat_completion, json_response
from tests_support.downstream import FakeDownstream
from tests_support.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from headgate.proxy.exchange import Exchange
    from headgate.proxy.upstream.call import ResponseHead

BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
GOOD = json_response(chat_completion(usage=USAGE))


class Slow:
    """Work that waits until it is told what to do."""

    def __init__(self, result: Any = None, error: BaseException | None = None) -> None:
        self.reached = asyncio.Event()
        self.go = asyncio.Event()
        self.cancelled = False
        self.result = result
        self.error = error

    async def work(self) -> Any:
        self.reached.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        return self.result


class Asks(Filter):
    """Lets most requests pass at once, and waits for one."""

    def __init__(self, slow: Slow, *, waits: bool = True) -> None:
        self.slow = slow
        self.waits = waits

    def on_request(self, ex: Exchange) -> Coroutine[Any, Any, Reply | None] | None:
        return self.slow.work() if self.waits else None


class Judges(Filter):
    """Looks at whole answers for as long as it is told."""

    def __init__(self, slow: Slow) -> None:
        self.slow = slow

    def on_answer(self, ex: Exchange, head: ResponseHead, body: bytes) -> Coroutine[Any, Any, bytes]:
        return self.slow.work()


class Signs(Filter):
    """Adds to an answer at once."""

    def on_answer(self, ex: Exchange, head: ResponseHead, body: bytes) -> bytes:
        return body + b" signed"


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def answered(relay: Relay) -> Any:
    """An exchange whose provider has said everything."""
    exchange = relay.ask(BODY)
    relay.providers[0].last.feed(GOOD)
    return exchange


async def test_a_request_that_waits_goes_on_where_it_stood() -> None:
    slow = Slow()
    relay = Relay(filters=[Asks(slow), Asks(Slow(), waits=False)])
    exchange = relay.ask(BODY)
    await slow.reached.wait()
    assert relay.calls == []
    slow.go.set()
    await turns()
    relay.providers[0].last.feed(GOOD)
    assert exchange.row.outcome == "ok"
    assert relay.at_rest()


async def test_one_that_does_not_wait_costs_no_task() -> None:
    relay = Relay(filters=[Asks(Slow(), waits=False)])
    before = asyncio.all_tasks()
    exchange = answered(relay)
    assert asyncio.all_tasks() == before
    assert exchange.row.outcome == "ok"


@pytest.mark.parametrize(
    ("result", "error", "status", "outcome"),
    [
        (json_reply({"a": 1}), None, 200, "ok"),
        (None, PermissionDeniedError("no"), 403, "refused"),
        (None, ZeroDivisionError(), 500, "failed"),
        (None, asyncio.CancelledError(), 500, "failed"),
    ],
)
async def test_a_request_that_waited_ends_like_any_other(
    result: Reply | None, error: BaseException | None, status: int, outcome: str
) -> None:
    slow = Slow(result, error)
    relay = Relay(filters=[Asks(slow)])
    exchange = relay.ask(BODY)
    slow.go.set()
    await turns()
    assert (exchange.downstream.status, exchange.row.outcome) == (status, outcome)
    assert relay.at_rest()


@pytest.mark.parametrize("begun", [True, False])
async def test_a_client_that_leaves_ends_what_was_waited_for_whether_it_had_begun_or_not(begun: bool) -> None:
    for filters, ask in (([Asks(Slow())], Relay.ask), ([Judges(Slow(b""))], None)):
        relay = Relay(filters=filters)
        slow = filters[0].slow
        exchange = answered(relay) if ask is None else relay.ask(BODY)
        if begun:
            await slow.reached.wait()
        exchange.downstream.leave()
        row = exchange.row
        assert (row.outcome, row.status) == ("cancelled", 499)
        await turns()
        assert (slow.reached.is_set(), slow.cancelled) == (begun, begun)
        assert relay.at_rest()


async def test_an_answer_goes_down_when_it_was_judged_and_passes_the_filters_above() -> None:
    slow = Slow(b'{"judged":1}')
    relay = Relay(before=[Signs()], filters=[Judges(slow)])
    exchange = answered(relay)
    await slow.reached.wait()
    assert exchange.downstream.status is None
    slow.go.set()
    await turns()
    assert exchange.downstream.status == 200
    assert exchange.downstream.received == b'{"judged":1} signed'
    row = exchange.row
    assert (row.outcome, row.completion_tokens) == ("ok", USAGE["completion_tokens"])
    assert relay.at_rest()


async def test_several_may_take_their_time_one_after_the_other() -> None:
    first, second = Slow(b"first"), Slow(b"second")
    relay = Relay(filters=[Judges(second), Judges(first)])
    exchange = answered(relay)
    await first.reached.wait()
    assert not second.reached.is_set()
    first.go.set()
    await second.reached.wait()
    second.go.set()
    await turns()
    assert exchange.downstream.received == b"second"


@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [
        (AnswerRefusedError("not this"), 403, "refused"),
        (ZeroDivisionError(), 500, "failed"),
        (asyncio.CancelledError(), 500, "failed"),
    ],
)
async def test_an_answer_that_is_not_let_pass_is_charged_and_not_shown(
    error: BaseException, status: int, outcome: str
) -> None:
    slow = Slow(error=error)
    relay = Relay(filters=[Judges(slow)])
    exchange = answered(relay)
    slow.go.set()
    await turns()
    row = exchange.row
    assert (exchange.downstream.status, row.outcome) == (status, outcome)
    assert b"choices" not in exchange.downstream.received
    assert row.completion_tokens == USAGE["completion_tokens"]
    assert relay.at_rest()


async def test_a_gateway_that_stops_meanwhile_says_so() -> None:
    for filters in ([Asks(Slow())], [Judges(Slow(b""))]):
        relay = Relay(filters=filters)
        downstream = FakeDownstream(BODY)
        exchange = relay.ask(BODY, downstream)
        if isinstance(filters[0], Judges):
            relay.providers[0].last.feed(GOOD)
        await filters[0].slow.reached.wait()
        relay.engine.cut()
        assert (exchange.downstream.status, exchange.row.error_code) == (503, "shutting_down")
        await turns()
        assert relay.at_rest()
