"""budget, over whatever may happen: the engine, the filter, the store and the ledger on a clock that only moves when
told. In every run the ledger comes to no more than the budget, to the nano-dollar, and to no more than the documented
bound above it where answers are longer than was foreseen."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from headgate.config import BudgetConfig, HedgeConfig, RetryConfig, parse_config
from headgate.control.events.schema import migrate
from headgate.control.events.spending import Spending, read_spent
from headgate.filters.budget import Budget, Budgeting
from headgate.filters.stores.memory import MemoryStore
from headgate.proxy.accounting.money import nanos
from headgate.proxy.accounting.prices import own_price
from headgate.proxy.accounting.record import Done, Reserved, Spent, decode
from tests_support.answers import (
    chat_chunk,
    chat_completion,
    chunk,
    error_response,
    event,
    json_response,
    response_head,
)
from tests_support.relay import EVERY_FAILURE, Relay

if TYPE_CHECKING:
    from tests_support.calls import FakeCall
    from tests_support.relay import Exchange

LIMIT = 100
"""Dollars a day; every run is a day."""
OUTPUT = 8
"""Tokens of an answer whose request sets no limit."""
HEAD = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
DAY = 86_400


@dataclass
class Asked:
    """An exchange, and what an honest provider may report of it."""

    exchange: Exchange
    id: str
    prompt: int
    output: int
    stream: bool
    calls: list[FakeCall] = field(default_factory=list)
    pieces: Counter[int] = field(default_factory=Counter)
    """Of text, by call."""

    @property
    def is_over(self) -> bool:
        return self.exchange.downstream.finished


def settings(text: str) -> BudgetConfig:
    config = parse_config(f"filters: [{{budget: {{{text}}}}}]", env={}).filters[0].config
    assert isinstance(config, BudgetConfig)
    return config


class World:
    """One gateway, day after day. `honest`: providers use no more than they were asked for and than was estimated."""

    def __init__(self, *, honest: bool, strict: bool = False, kind: type[Budget] = Budget) -> None:
        self.honest = honest
        relay: Relay
        strictly = ", strict: true" if strict else ""
        self.budget = kind(
            settings(f"per: address, usd_per_day: {LIMIT}, output_tokens: {OUTPUT}{strictly}"),
            place="budget",
            store=MemoryStore(),
            monotonic=lambda: relay.clock.monotonic(),
            wall=lambda: relay.clock.wall(),
            foresee=lambda ex, target, output: relay.engine.ledger.foresee(ex, target, output),
            write=lambda record: relay.engine.ledger.write(record),
        )
        retry = RetryConfig(attempts=3, on=EVERY_FAILURE.on, hedge=HedgeConfig(percent=100, spend_percent=100))
        relay = self.relay = Relay(providers=2, retry=retry, before=[self.budget])
        self.hedged = 0
        self._learn()

    def _learn(self) -> None:
        """How late a first token is that is late."""
        for cluster in self.relay.clusters:
            cluster.price = own_price({"input": 0.0, "output": 0.1e6})
        body = json.dumps({"model": "m", "stream": True, "messages": [], "max_tokens": 1}).encode()
        whole = HEAD + chunk(event(chat_chunk({"content": "Hi"})) + b"data: [DONE]\n\n") + b"0\r\n\r\n"
        for _ in range(120):
            self.relay.ask(body)
            self.relay.clock.advance(0.1)
            self.relay.providers[0].last.feed(whole)

    def day(self, rng: Random) -> None:
        """From midnight to midnight, and what it has come to."""
        relay, clock = self.relay, self.relay.clock
        clock.jump_wall(DAY - clock.wall() % DAY + 1)
        relay.lines.written.clear()
        for provider in relay.providers:
            provider.calls.clear()
        for cluster in relay.clusters:
            rates = {"input": rng.choice((0.0, 0.1, 1.0)) * 1e6, "output": rng.choice((0.5, 1.0, 3.0)) * 1e6}
            cluster.price = own_price(rates)
        asked: list[Asked] = []
        under_way: list[Asked] = []
        before_last: set[str] = set()
        for n in range(rng.randrange(5, 40)):
            if rng.random() < 0.4:
                admitted = self.budget.admitted
                asked.append(self._ask(rng, n))
                if self.budget.admitted > admitted:
                    before_last = {one.id for one in asked if not one.is_over or one is asked[-1]}
            elif under_way:
                self._happen(rng, rng.choice(under_way))
            if rng.random() < 0.3:
                clock.advance(rng.choice((0.01, 0.3, 2.0)))
            for provider in relay.providers:
                for call in provider.calls:
                    number = int(json.loads(call.request.body)["user"])
                    mine = next(one for one in asked if _user(one) == number)
                    if call not in mine.calls:
                        mine.calls.append(call)
            under_way = [one for one in asked if not one.is_over]
        for one in under_way:
            if not one.is_over:
                one.exchange.downstream.leave()
        self._check(before_last)

    def _ask(self, rng: Random, n: int) -> Asked:
        limit, stream, many = rng.choice((None, 1, 5, 30)), rng.random() < 0.6, rng.choice((1, 1, 2))
        body: dict[str, Any] = {
            "model": "m",
            "stream": stream,
            "n": many,
            "user": str(n),
            "messages": [{"role": "user", "content": "x" * rng.randrange(40)}],
        }
        if limit is not None:
            body["max_tokens"] = limit
        raw = json.dumps(body).encode()
        prompt = self.relay.engine.ledger.estimator.estimate_prompt("m", raw).tokens
        exchange = self.relay.ask_now(raw)
        live = (run.ex.id for run in self.relay.engine.live if run.downstream is exchange.downstream)
        return Asked(exchange, next(live, ""), prompt, (limit or OUTPUT) * many, stream)

    def _happen(self, rng: Random, one: Asked) -> None:
        calls = [call for call in one.calls if not call.over]
        what = rng.choice(("leave", "sent", "answer", "answer", "answer", "unknown", "error", "rst", "begin", "more"))
        if what == "leave":
            one.exchange.downstream.leave()
            return
        if not calls:
            return
        call = rng.choice(calls)
        self.hedged += len(calls) > 1
        most = 1 if self.honest else 4
        prompt, output = rng.randrange(one.prompt * most + 1), rng.randrange(one.output * most + 1)
        usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
        if what == "sent":
            call.sent()
        elif what == "error":
            call.feed(b"" if call.headed else error_response(rng.choice((400, 429, 500)), "no"))
        elif what == "rst":
            call.rst()
        elif one.stream:
            text = b"" if call.headed else HEAD
            if what != "begin" and not (self.honest and one.pieces[id(call)] >= one.output):
                one.pieces[id(call)] += 1
                text += chunk(event(chat_chunk({"content": "x"})))
            if what == "answer":
                text += chunk(event(chat_chunk(None, usage=usage)) + b"data: [DONE]\n\n") + b"0\r\n\r\n"
            elif what == "unknown":
                text += chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
            call.feed(text)
        elif what == "answer":
            call.feed(json_response(chat_completion(usage=usage)))
        elif what == "unknown":
            call.feed(json_response(chat_completion(text=None, usage=None)))

    @property
    def books(self) -> list[tuple[type, float, int, object]]:
        """What the last day has set aside and charged, call by call."""
        records = [decode(line) for line in self.relay.lines.written]
        return [(type(one), one.at, one.nanos, one.shares) for one in records if isinstance(one, Reserved | Spent)]

    @property
    def counted(self) -> tuple[int, ...]:
        it = self.budget
        return it.admitted, it.refused, it.vetoed, it.skipped, it.unpriced, it.overrun

    def _check(self, before_last: set[str]) -> None:
        records = [decode(line) for line in self.relay.lines.written]
        ledger = sum(nanos(one.cost_usd) for one in records if isinstance(one, Done) and one.cost_usd is not None)
        money = [one for one in records if isinstance(one, Reserved | Spent)]
        reserved, charged = dict[str, int](), dict[str, int]()
        for record in money:
            (reserved if isinstance(record, Reserved) else charged)[record.id] = record.nanos
        total = sum(charged.values())
        assert self.relay.at_rest()
        assert charged.keys() >= reserved.keys()
        assert ledger <= total
        limit = LIMIT * 10**9
        if self.honest:
            assert total <= limit
        else:
            over = (max(0, amount - reserved.get(id, 0)) for id, amount in charged.items() if id in before_last)
            assert total <= limit + sum(over)
        assert total == self._kept(money)
        (_, table), *_ = self.budget._limits._places  # type: ignore[attr-defined]
        period = money[0].shares[0] if money else None
        if period is not None:
            meter = table._meters.get(f"{period.caller} {period.period}")
            assert total == (meter.used if meter is not None else 0)

    def _kept(self, money: list[Reserved | Spent]) -> int:
        """What the control half makes of the same records."""
        db = sqlite3.connect(":memory:", isolation_level=None)
        migrate(db, 0.0)
        spending = Spending(db)
        for at in range(0, len(money), 5):
            spending.add("w0", money[at : at + 5], 0.0)
        periods = {share.period for record in money for share in record.shares}
        assert len(periods) <= 1
        found = [read_spent(db, [(("budget", "address", "day"), period)])[0] for period in periods]
        db.close()
        return sum(sum(callers.values()) for callers in found)


def _user(one: Asked) -> int:
    return int(json.loads(one.exchange.downstream.body)["user"])


@pytest.mark.parametrize(("honest", "strict", "days"), [(True, False, 400), (True, True, 200), (False, False, 400)])
def test_the_ledger_never_comes_to_more_than_the_budget_and_its_bound(honest: bool, strict: bool, days: int) -> None:
    world = World(honest=honest, strict=strict)
    for seed in range(days):
        world.day(Random(seed))
    assert world.budget.refused > days / 10
    assert world.hedged
    assert honest == (world.budget.overrun == 0)


class AlwaysGeneral(Budget):
    """Takes no short cut."""

    def on_request(self, ex: Any) -> None:
        self._set_aside(ex)

    def on_done(self, ex: Any) -> None:
        Budgeting.on_done(self, ex)


def test_who_goes_straight_sets_aside_and_charges_what_who_goes_the_general_way_does() -> None:
    straight, general = World(honest=False), World(honest=False, kind=AlwaysGeneral)
    for seed in range(150):
        straight.day(Random(seed))
        general.day(Random(seed))
        assert straight.books == general.books
    assert straight.counted == general.counted
    assert straight.budget.refused > 15
