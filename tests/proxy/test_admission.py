"""admission: whatever a worker dies of, what anybody has heard of an exchange is in its spool before; what is said at
its end goes there in one piece."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from headgate.config import BudgetConfig, parse_config
from headgate.filters.budget import Budget
from headgate.filters.stores.memory import MemoryStore
from headgate.proxy.accounting.prices import own_price
from headgate.proxy.accounting.record import Done, Opened, Reserved, Spent, decode
from headgate.proxy.filter import Filter
from headgate.proxy.replies import Reply
from tests_support.answers import chat_completion, json_response
from tests_support.calls import FakeCall, FakeEndpoint
from tests_support.downstream import FakeDownstream
from tests_support.relay import FullSpool, Lines, Relay

if TYPE_CHECKING:
    from headgate.proxy.exchange import Exchange
    from headgate.proxy.upstream.call import CallReceiver, UpstreamRequest

BODY = b'{"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":5}'


class Below(Filter):
    """Stands below the budget, and may answer or take its time."""

    def __init__(self) -> None:
        self.name = "below"
        self.waits: asyncio.Event | None = None
        self.reply: Reply | None = None

    def on_request(self, ex: Exchange) -> Any:
        """As it was told to."""
        return self._wait(self.waits) if self.waits is not None else self.reply

    async def _wait(self, event: asyncio.Event) -> None:
        await event.wait()


class Gateway:
    """One whose calls may cost ten dollars a day, at a dollar a token out."""

    relay: Relay

    def __init__(self, lines: Lines | None = None) -> None:
        config = parse_config("filters: [{budget: {per: key, usd_per_day: 10}}]", env={}).filters[0].config
        assert isinstance(config, BudgetConfig)
        budget = Budget(
            config,
            place="budget",
            store=MemoryStore(),
            monotonic=lambda: self.relay.clock.monotonic(),
            wall=lambda: self.relay.clock.wall(),
            foresee=lambda ex, target, output: self.relay.engine.ledger.foresee(ex, target, output),
            write=lambda record: self.relay.engine.ledger.write(record),
            hold=lambda record: self.relay.engine.ledger.hold(record),
        )
        self.below = Below()
        price = own_price({"input": 1.0, "output": 1e6})
        self.relay = Relay(before=[budget], filters=[self.below], lines=lines, price=price)

    def ask(self) -> FakeDownstream:
        """A request of which the head has come."""
        downstream = FakeDownstream(BODY)
        self.relay.engine.accept(downstream)
        return downstream

    def answer(self) -> None:
        """The provider does."""
        self.relay.providers[0].last.feed(json_response(chat_completion()))

    @property
    def pieces(self) -> list[list[type]]:
        """The kinds of the records that went to the spool, as they went there."""
        return [[type(decode(line)) for line in piece.splitlines()] for piece in self.relay.lines.pieces]

    @property
    def kinds(self) -> list[type]:
        """The same, one by one."""
        return [kind for piece in self.pieces for kind in piece]


def test_a_body_is_waited_for_with_an_opened() -> None:
    it = Gateway()
    downstream = it.ask()
    assert it.kinds == [Opened]
    downstream.leave()
    assert it.kinds == [Opened, Done]


async def test_a_filter_that_takes_its_time_is_waited_for_with_all_that_was_said() -> None:
    it = Gateway()
    it.below.waits = event = asyncio.Event()
    it.ask().deliver()
    assert it.kinds == [Opened, Reserved]
    assert not it.relay.calls
    event.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(it.relay.calls) == 1


def test_a_provider_hears_of_nothing_that_is_not_in_the_spool(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Gateway()
    heard: list[list[type]] = []
    start = FakeEndpoint.start

    def hears(endpoint: FakeEndpoint, request: UpstreamRequest, receiver: CallReceiver) -> FakeCall:
        heard.append(it.kinds)
        return start(endpoint, request, receiver)

    monkeypatch.setattr(FakeEndpoint, "start", hears)
    it.ask().deliver()
    assert heard == [[Opened, Reserved]]
    it.answer()
    assert it.pieces[-1] == [Spent, Done]
    assert it.kinds == [Opened, Reserved, Spent, Done]


@pytest.mark.parametrize("body", [BODY, b"no JSON", b'{"model":"m","messages":[],"max_tokens":50}'])
def test_what_is_over_in_the_turn_it_began_has_all_its_records(body: bytes) -> None:
    it = Gateway()
    it.below.reply = Reply(200, b"{}")
    downstream = it.ask()
    downstream.body = body
    downstream.deliver()
    assert downstream.finished
    assert it.kinds == ([Opened, Reserved, Spent, Done] if body == BODY else [Opened, Done])


def test_a_full_ledger_turns_away_and_asks_for_no_body() -> None:
    it = Gateway(FullSpool())
    downstream = it.ask()
    assert (downstream.asked, downstream.status) == (None, 503)
    assert it.kinds == []
