"""budget: nothing is begun that may not be paid for, what was set aside is corrected to what was charged, and the
client is told which budget it is, how much is left and until when."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import openai
import pytest

from headgate.config import BudgetConfig, HedgeConfig, RetryConfig, parse_config
from headgate.filters.budget import Budget
from headgate.filters.stores.memory import MemoryStore
from headgate.proxy.accounting.money import nanos
from headgate.proxy.accounting.prices import own_price
from headgate.proxy.accounting.record import Done, Reserved, Spent, decode
from headgate.proxy.decisions import _facts
from headgate.proxy.errors import BudgetExceededError
from headgate.proxy.exchange import Principal
from headgate.proxy.filter import Filter, SkipTarget
from headgate.proxy.models import ModelTable, ModelTarget
from headgate.proxy.plan import Target
from headgate.proxy.stats import Stats
from headgate.proxy.websocket.frames import CLOSE
from tests_support.answers import (
    DONE,
    USAGE,
    chat_chunk,
    chat_chunks,
    chat_completion,
    chunk,
    error_response,
    event,
    json_response,
    response_head,
    sse,
)
from tests_support.cached import CachedRelay
from tests_support.clock import WALL_START
from tests_support.downstream import FakeDownstream
from tests_support.gateway import CLIENT_KEY, config_for, gateway_over, load, running_gateway, written
from tests_support.relay import EVERY_FAILURE, Relay
from tests_support.upstream import FakeUpstream, Pause
from tests_support.websocket import HANDSHAKE, frames_of, response_done, switching, text

if TYPE_CHECKING:
    from pathlib import Path

    from headgate.proxy.exchange import Exchange

NANO = 10**9
SAID = [{"role": "user", "content": "hello there"}]
HEAD = response_head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])


def settings(text: str) -> BudgetConfig:
    """Of the filter, as a file says them."""
    config = parse_config(f"filters: [{{budget: {{{text}}}}}]", env={}).filters[0].config
    assert isinstance(config, BudgetConfig)
    return config


class Caller(Filter):
    """Says who calls, and that another model is meant."""

    def __init__(self) -> None:
        self.name = "caller"
        self.team = "web"
        self.model = ""
        self.policy: str | None = None

    def on_request(self, ex: Exchange) -> None:
        """From fields of this object."""
        ex.principal = Principal("app", team=self.team)
        if self.policy is not None:
            ex.veto(lambda target: self.policy if target.cluster.name == "up0" else None)


class Renames(Filter):
    """Stands below the budget."""

    def __init__(self, models: dict[str, str]) -> None:
        self.name = "renames"
        self.models = models

    def on_request(self, ex: Exchange) -> None:
        """Another model is meant."""
        ex.model = self.models.get(ex.model, ex.model)


@dataclass
class Shop:
    """A gateway whose providers cost a dollar a token out and nothing in, unless `prices` say otherwise."""

    relay: Relay
    budget: Budget
    caller: Caller
    names: list[str]

    def ask(self, *, tokens: int | None = 1, stream: bool = False, model: str = "m", **fields: Any) -> Any:
        body = {"model": model, "messages": [], "stream": stream, **fields}
        if tokens is not None:
            body["max_tokens"] = tokens
        return self.relay.ask(json.dumps(body).encode())

    def answer(self, used: int, provider: int = 0) -> None:
        usage = {"prompt_tokens": 0, "completion_tokens": used, "total_tokens": used}
        self.relay.providers[provider].last.feed(json_response(chat_completion(usage=usage)))

    def pays(self, tokens: int, used: int | None = None) -> bool:
        """Whether a call of at most so many tokens is let in; it uses them."""
        asked = self.ask(tokens=tokens)
        if asked.downstream.status == 402:
            return False
        self.answer(tokens if used is None else used)
        assert asked.downstream.status == 200
        return True

    @property
    def records(self) -> list[Reserved | Spent]:
        lines = map(decode, self.relay.lines.written)
        return [record for record in lines if isinstance(record, Reserved | Spent)]


def shop(
    text: str = "per: team, usd_per_month: 10",
    *,
    prices: tuple[float | None, ...] = (1.0,),
    retry: RetryConfig | None = EVERY_FAILURE,
    below: tuple[Filter, ...] = (),
    store: MemoryStore | None = None,
) -> Shop:
    relay: Relay
    caller = Caller()
    budget = Budget(
        settings(text),
        place="budget",
        store=store or MemoryStore(),
        monotonic=lambda: relay.clock.monotonic(),
        wall=lambda: relay.clock.wall(),
        foresee=lambda ex, target, output: relay.engine.ledger.foresee(ex, target, output),
        write=lambda record: relay.engine.ledger.write(record),
        hold=lambda record: relay.engine.ledger.hold(record),
    )
    relay = Relay(providers=len(prices), retry=retry, before=(caller, budget, *below))
    for cluster, price in zip(relay.clusters, prices, strict=True):
        if price is not None:
            cluster.price = own_price({"input": 0.0, "output": price * 1e6})
    return Shop(relay, budget, caller, [cluster.name for cluster in relay.clusters])


def test_a_budget_is_spent_to_its_last_cent_and_not_beyond() -> None:
    it = shop()
    assert [it.pays(4), it.pays(6), it.pays(1)] == [True, True, False]
    assert (it.budget.admitted, it.budget.refused, it.budget.overrun) == (2, 1, 0)


def test_what_a_call_is_charged_goes_to_the_spool_in_one_piece_with_its_record() -> None:
    it = shop()
    asked = it.ask()
    before = len(it.relay.lines.pieces)
    assert isinstance(it.records[-1], Reserved)  # before anybody answers
    it.answer(1)
    assert asked.downstream.status == 200
    [last] = it.relay.lines.pieces[before:]
    assert [type(decode(line)) for line in last.splitlines()] == [Spent, Done]


async def test_what_a_call_is_charged_is_in_the_spool_where_no_record_of_it_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    it = shop()

    def breaks(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Stats, "count", breaks)
    it.ask()
    it.answer(1)
    kinds = [type(decode(line)) for line in it.relay.lines.written]
    assert (kinds.count(Spent), kinds.count(Done)) == (1, 0)


def test_what_a_shared_call_is_charged_is_in_the_spool_before_its_client_has_read_it() -> None:
    it: CachedRelay
    budget = Budget(
        settings("per: key, usd_per_day: 100"),
        place="budget",
        store=MemoryStore(),
        monotonic=lambda: it.relay.clock.monotonic(),
        wall=lambda: it.relay.clock.wall(),
        foresee=lambda ex, target, output: it.relay.engine.ledger.foresee(ex, target, output),
        write=lambda record: it.relay.engine.ledger.write(record),
        hold=lambda record: it.relay.engine.ledger.hold(record),
    )
    it = CachedRelay(below=[budget])
    slow = it.ask(room=10)
    it.feed(*sse(chat_chunks(usage=USAGE)))
    assert not slow.ended
    assert [type(decode(line)) for line in it.relay.lines.written][1:] == [Reserved, Spent]
    slow.resume()
    assert it.row(slow).cost_usd is not None


def test_a_refusal_names_the_budget_what_is_left_and_until_when() -> None:
    it = shop("limits: [{per: [team], usd_per_month: 10}, {per: [key, model], usd_per_day: 50}]")
    assert it.pays(7)
    refused = it.ask(tokens=4)
    assert refused.error == {
        "message": (
            "This request may cost 4 USD, and of the budget of 10 USD per month for each team 3 USD is left until "
            "2023-12-01 00:00 UTC."
        ),
        "type": "insufficient_quota",
        "param": None,
        "code": "budget_exceeded",
        "request_id": refused.error["request_id"],
    }
    december = 1_701_388_800
    assert refused.downstream.header(b"retry-after") == b"%d" % (december - int(it.relay.clock.wall()))
    assert refused.downstream.header(b"x-should-retry") == b"false"
    assert refused.rows[-1].error_code == "budget_exceeded"


def test_what_no_budget_could_ever_pay_is_said_so() -> None:
    refused = shop().ask(tokens=11)
    assert (
        "may cost 11 USD, and the budget is 10 USD per month for each team. Shorten it, or set a lower max_tokens."
        in refused.error["message"]
    )
    assert refused.downstream.header(b"retry-after") is None


def test_what_is_set_aside_is_corrected_to_what_was_charged() -> None:
    it = shop()
    assert all(it.pays(8, used=2) for _ in range(2))
    assert it.pays(6)
    assert not it.pays(1)
    kinds = [(type(record).__name__, record.nanos) for record in it.records]
    assert kinds[:4] == [("Reserved", 8 * NANO), ("Spent", 2 * NANO)] * 2
    spent = it.records[-1]
    assert isinstance(spent, Spent)
    assert (spent.exhausted, spent.nanos, [share.caller for share in spent.shares]) == (True, 0, ["tweb"])


def test_calls_at_the_same_time_cannot_spend_the_same_money() -> None:
    it = shop()
    first = it.ask(tokens=6)
    call = it.relay.providers[0].last
    assert it.ask(tokens=6).downstream.status == 402
    call.feed(json_response(chat_completion(usage={"prompt_tokens": 0, "completion_tokens": 1, "total_tokens": 1})))
    assert first.downstream.status == 200
    assert it.ask(tokens=6).downstream.status is None


def test_everybody_has_a_budget_of_his_own_and_a_new_one_each_period() -> None:
    it = shop("per: team, usd_per_day: 10")
    assert it.pays(10)
    it.caller.team = "lab"
    assert it.pays(10)
    assert not it.pays(1)
    until_midnight = 86_400 - int(it.relay.clock.wall()) % 86_400
    it.relay.clock.advance(until_midnight - 2)
    assert not it.pays(1)
    it.relay.clock.advance(2)
    assert it.pays(10)


def test_a_call_counts_in_the_period_it_began_in() -> None:
    it = shop("per: team, usd_per_day: 10")
    it.relay.clock.advance(86_400 - int(it.relay.clock.wall()) % 86_400 - 10)
    it.ask(tokens=10)
    call = it.relay.providers[0].last
    it.relay.clock.advance(20)
    assert it.pays(10)
    call.feed(json_response(chat_completion(usage={"prompt_tokens": 0, "completion_tokens": 10, "total_tokens": 10})))
    assert not it.pays(1)
    days = {(share.period, share.until) for record in it.records for share in record.shares}
    assert sorted(days) == [("2023-11-14", 1_700_006_400), ("2023-11-15", 1_700_092_800)]
    assert 0 < 1_700_006_400 - WALL_START < 86_400


def test_a_limit_that_no_double_can_hold_is_too_much_like_any_other() -> None:
    it = shop()
    for number in (10**19, 10**305, 10**400):
        for fields in ({"tokens": number}, {"n": number}, {"tokens": None, "max_completion_tokens": number}):
            assert it.ask(**fields).downstream.status == 402
    assert it.budget.refused == 9


def test_the_dearest_target_is_paid_for_and_where_that_is_too_much_a_cheaper_one_is_asked() -> None:
    it = shop(prices=(2.0, 1.0))
    assert it.ask(tokens=2).downstream.status is None
    assert it.records[-1].nanos == 4 * NANO
    it.answer(2)
    cheaper = it.ask(tokens=4)
    assert it.records[-1].nanos == 4 * NANO
    assert not it.relay.providers[0].calls
    it.answer(4, provider=1)
    assert cheaper.downstream.status == 200
    assert it.budget.skipped == 1
    assert [(one.target.cluster.name, one.reason) for one in _skipped(it)] == [("up0", "budget")]


def _skipped(it: Shop) -> list[Any]:
    return list(_facts(it.relay.engine.decisions._latest[-1]).skipped)


def test_a_retry_uses_what_the_failed_attempt_did_not() -> None:
    it = shop(prices=(2.0, 1.0))
    asked = it.ask(tokens=5)
    it.relay.providers[0].last.feed(error_response(500, "no"))
    it.relay.clock.advance(1)
    it.answer(5, provider=1)
    assert asked.downstream.status == 200
    assert [record.nanos for record in it.records] == [10 * NANO, 5 * NANO]
    assert it.pays(2)
    assert not it.pays(2)


def test_what_has_failed_costs_nothing() -> None:
    it = shop(retry=None)
    for answer in (error_response(500, "no"), error_response(429, "no"), b"nonsense\r\n\r\n"):
        it.ask(tokens=10)
        it.relay.providers[0].last.feed(answer)
    it.ask(tokens=10)
    it.relay.providers[0].last.rst()
    assert it.pays(10)


def test_an_answer_that_does_not_say_what_it_used_is_charged_as_foreseen() -> None:
    it = shop()
    asked = it.ask(tokens=7)
    it.relay.providers[0].last.feed(json_response(chat_completion(text=None, usage=None)))
    assert asked.rows[-1].cost_usd is None
    assert it.records[-1].nanos == 7 * NANO
    assert not it.pays(4)


def test_a_client_that_leaves_pays_for_what_it_got_or_for_its_prompt() -> None:
    it = shop("per: team, usd_per_month: 1000")
    it.relay.clusters[0].price = own_price({"input": 1e6, "output": 1e6})
    for begun in (b"", HEAD, HEAD + chunk(event(chat_chunk({"content": "Hi"})))):
        asked = it.ask(tokens=50, stream=True, messages=SAID)
        it.relay.providers[0].last.sent()
        it.relay.providers[0].last.feed(begun)
        asked.downstream.leave()
        spent = it.records[-1].nanos
        cost = asked.rows[-1].cost_usd
        assert spent == (nanos(cost) if cost is not None else _prompt(it))
        assert 0 < spent < 40 * NANO
    asked = it.ask(tokens=50, messages=SAID)
    asked.downstream.leave()
    assert it.records[-1].nanos == 0, "nothing was sent"


def _prompt(it: Shop) -> int:
    body = json.dumps({"model": "m", "messages": SAID}).encode()
    return it.relay.engine.ledger.estimator.estimate_prompt("m", body).tokens * NANO


def test_what_costs_more_than_foreseen_is_counted_and_made_up_for() -> None:
    it = shop()
    assert it.pays(2, used=13)
    assert it.budget.overrun == 1
    assert not it.pays(1)


def test_a_late_stream_is_paid_for_twice_beforehand_and_its_loser_afterwards() -> None:
    retry = RetryConfig(on=EVERY_FAILURE.on, hedge=HedgeConfig(percent=100, spend_percent=100))
    it = shop("per: team, usd_per_month: 1000000", retry=retry)
    it.relay.clusters[0].price = own_price({"input": 1e6, "output": 1e6})
    whole = HEAD + chunk(event(chat_chunk({"content": "Hi"})) + event(chat_chunk({}, finish_reason="stop")))
    whole += chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    for _ in range(120):
        it.ask(tokens=8, stream=True)
        it.relay.clock.advance(0.1)
        it.relay.providers[0].last.feed(whole)
    asked = it.ask(tokens=8, stream=True)
    reserved = it.records[-1].nanos
    it.relay.clock.advance(1)
    assert len(it.relay.providers[0].calls) == 2
    it.relay.providers[0].calls[1].feed(whole)
    row = asked.rows[-1]
    assert row.attempts == 2
    assert row.cost_usd is not None
    assert it.records[-1].nanos == nanos(row.cost_usd)
    assert reserved >= 2 * (8 + row.prompt_tokens) * NANO
    assert it.budget.overrun == 0


def test_where_only_one_attempt_is_paid_for_no_second_runs_beside_it() -> None:
    retry = RetryConfig(on=EVERY_FAILURE.on, hedge=HedgeConfig(percent=100, spend_percent=100))
    it = shop("per: team, usd_per_day: 10", retry=retry)
    whole = sse(chat_chunks("Hi", usage={"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}))
    for _ in range(120):
        it.ask(tokens=5, stream=True)
        it.relay.clock.advance(0.1)
        it.relay.providers[0].last.feed(b"".join(whole))
    it.ask(tokens=8, stream=True)
    it.relay.clock.advance(5)
    assert len(it.relay.providers[0].calls) == 1
    assert it.budget.skipped == 1


def test_what_has_no_known_price_is_not_asked() -> None:
    it = shop(prices=(None, 1.0))
    asked = it.ask()
    assert not it.relay.providers[0].calls
    it.answer(1, provider=1)
    assert asked.downstream.status == 200
    alone = shop(prices=(None,))
    refused = alone.ask()
    assert (refused.downstream.status, refused.error["code"]) == (402, "price_unknown")
    assert (it.budget.vetoed, alone.budget.refused) == (1, 1)


def test_what_has_no_known_price_may_be_allowed() -> None:
    it = shop("per: team, usd_per_month: 10, unknown_price: allow", prices=(None,))
    assert all(it.pays(1000) for _ in range(3))
    assert (it.budget.admitted, it.budget.unpriced) == (3, 3)
    assert not it.records


def test_a_target_that_the_key_may_not_use_is_not_paid_for() -> None:
    it = shop(prices=(20.0, 1.0))
    it.caller.policy = "policy"
    it.ask(tokens=1)
    assert it.records[-1].nanos == 1 * NANO
    it.answer(1, provider=1)
    it.relay.clusters[1].price = own_price({"input": 0.0, "output": 20e6})
    assert it.ask(tokens=1).error["code"] == "budget_exceeded"


def test_what_is_free_is_let_in_when_the_money_is_spent() -> None:
    it = shop()
    assert it.pays(10)
    assert it.ask(tokens=0 or None).downstream.status == 402
    it.relay.clusters[0].price = own_price({"input": 0.0, "output": 0.0})
    assert it.pays(100)


def test_another_model_is_reserved_for_anew() -> None:
    it = shop(below=(Renames({"cheap": "dear", "nowhere": "dear", "dear": "dear"}),))
    leads(it, dear=3.0, cheap=1.0)
    it.ask(tokens=2, model="cheap")
    assert [(type(one).__name__, one.nanos) for one in it.records] == [
        ("Reserved", 2 * NANO),
        ("Spent", 0),
        ("Reserved", 6 * NANO),
    ]
    it.answer(2)
    assert it.records[-1].nanos == 6 * NANO
    refused = it.ask(tokens=2, model="nowhere")
    assert refused.error["code"] == "budget_exceeded"
    assert it.ask(tokens=1, model="nowhere").downstream.status is None


def leads(it: Shop, **prices: float) -> None:
    """From now on these are all the models there are."""
    cluster = it.relay.clusters[0]
    entries = {
        name: [ModelTarget(cluster, None, 0, own_price({"input": 0.0, "output": usd * 1e6}))]
        for name, usd in prices.items()
    }
    it.relay.engine.graph.models = ModelTable(entries, {cluster.name: cluster}, frozenset())


def test_a_share_of_a_models_money_goes_to_the_model_that_is_asked_at_last() -> None:
    it = shop("per: model, usd_per_month: 10", below=(Renames({"cheap": "dear"}),))
    leads(it, dear=3.0, cheap=1.0)
    it.ask(tokens=2, model="cheap")
    it.answer(2)
    assert [(one.nanos // NANO, one.shares[0].caller) for one in it.records] == [
        (2, "up0/cheap"),
        (0, "up0/cheap"),
        (6, "up0/dear"),
        (6, "up0/dear"),
    ]


def test_a_stand_in_that_is_not_asked_is_no_reason_to_let_a_call_in() -> None:
    it = shop(prices=(20.0, 0.0))
    it.relay.clusters[1].stand_in = True
    refused = it.ask(tokens=1)
    assert "the budget is 10 USD per month" in refused.error["message"]
    assert it.budget.refused == 1


def test_a_model_that_leads_nowhere_is_404_and_costs_nothing() -> None:
    it = shop()
    leads(it, somewhere=1.0)
    assert it.ask(model="nowhere").downstream.status == 404
    assert not it.records


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models", 200),
        ("GET", "/v1/batches", None),
        ("DELETE", "/v1/files/f-1", None),
        ("POST", "/v1/batches", 402),
        ("POST", "/v1/fine_tuning/jobs", 402),
    ],
)
def test_what_names_no_model_passes_where_it_starts_nothing(method: str, path: str, status: int | None) -> None:
    it = shop()
    downstream = FakeDownstream(b"{}", method=method, path=path)
    it.relay.ask(b"{}", downstream)
    assert downstream.status == status


def test_what_names_no_model_may_be_allowed() -> None:
    it = shop("usd_per_month: 10, unknown_price: allow")
    downstream = FakeDownstream(b"{}", path="/v1/batches")
    it.relay.ask(b"{}", downstream)
    it.relay.providers[0].last.feed(json_response({"id": "batch_1"}))
    assert (downstream.status, it.records) == (200, [])


def test_a_target_that_comes_up_later_is_paid_for_or_not_asked() -> None:
    it = shop(prices=(1.0, None))
    first = it.ask(tokens=4)
    [run] = it.relay.engine.live
    budget, attempt = it.budget, run.ex.attempts[0]
    late = Target(attempt.target.cluster, "another")
    attempt.target = late
    with pytest.raises(SkipTarget, match="budget"):
        budget.on_attempt(run.ex, attempt)
    attempt.ended_at = it.relay.clock.monotonic()
    budget.on_attempt(run.ex, attempt)
    attempt.target = Target(it.relay.clusters[1], "another")
    with pytest.raises(SkipTarget, match="price unknown"):
        budget.on_attempt(run.ex, attempt)
    first.downstream.leave()


def test_a_stream_that_fails_in_its_own_words_costs_nothing_unless_it_says_so() -> None:
    it = shop(retry=None)
    it.ask(tokens=9, stream=True)
    it.relay.providers[0].last.feed(HEAD + chunk(event({"error": {"message": "no"}}) + DONE) + b"0\r\n\r\n")
    assert it.records[-1].nanos == 0


def test_it_is_remembered_of_so_many_that_their_money_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headgate.filters.budget.MOST_TOLD", 2)
    it = shop()
    for team in ("a", "b", "c", "c"):
        it.caller.team = team
        it.pays(10)
        assert not it.pays(1)
    assert sum(isinstance(one, Spent) and one.exhausted for one in it.records) == 3


def test_another_model_whose_price_is_half_known_is_objected_to_once() -> None:
    it = shop(prices=(1.0, None), below=(Renames({"one": "two"}),))
    it.ask(model="one")
    it.answer(1)
    assert it.budget.vetoed == 2
    assert it.pays(9)


def test_without_a_limit_of_its_own_an_answer_is_foreseen_and_with_strict_limited() -> None:
    it = shop("per: team, usd_per_month: 5000, output_tokens: 100, strict: true", prices=(1.0,))
    it.ask(tokens=None)
    assert it.records[-1].nanos == 100 * NANO
    assert it.relay.providers[0].last.request.body == (
        b'{"model": "m","max_completion_tokens":100, "messages": [], "stream": false}'
    )
    lax = shop("per: team, usd_per_month: 5000, output_tokens: 100", prices=(1.0,))
    lax.ask(tokens=None, n=3)
    assert lax.records[-1].nanos == 300 * NANO
    assert b"100" not in lax.relay.providers[0].last.request.body


def test_a_filter_that_counts_anew_keeps_what_was_counted_for_the_same_limit() -> None:
    store = MemoryStore()
    one, two = shop(store=store), shop("per: team, usd_per_month: 12", store=store)
    assert one.pays(10)
    assert [two.pays(2), two.pays(1)] == [True, False]


def test_a_session_whose_next_answer_no_budget_could_pay_is_closed_and_a_cheap_one_goes_on() -> None:
    it = shop("per: team, usd_per_month: 10, output_tokens: 3")
    it.ask(tokens=3)
    [run] = it.relay.engine.live
    run.ex.cost_usd = 0.0
    it.budget.on_usage(run.ex)
    assert len(it.records) == 1
    run.ex.cost_usd = 12.0
    with pytest.raises(BudgetExceededError, match="the budget is 10 USD per month"):
        it.budget.on_usage(run.ex)


def test_a_session_is_paid_answer_by_answer_and_closed_where_the_next_is_not_paid_for() -> None:
    it = shop("per: team, usd_per_month: 10, output_tokens: 3")
    fields = [(name.encode(), value.encode()) for name, value in HANDSHAKE]
    client = FakeDownstream(
        method="GET", path="/v1/realtime", query=b"model=m", websocket=True, headers=[(b"host", b"localhost"), *fields]
    )
    asked = it.relay.ask(b"", client)
    call = it.relay.providers[0].last
    call.sent()
    call.feed(switching(dict(call.request.headers)[b"sec-websocket-key"].decode()))
    for n in range(4):
        assert not client.finished
        call.feed(text(response_done({"total_tokens": 2, "input_tokens": 0, "output_tokens": 2}, f"resp_{n}")))
    assert [one.nanos // NANO for one in it.records if isinstance(one, Reserved)] == [3, 5, 7, 9]
    assert it.records[-1].nanos == 8 * NANO
    assert (asked.rows[-1].cost_usd, asked.rows[-1].error_code) == (8, "budget_exceeded")
    *said, last = frames_of(client.received)[0]
    assert (len(said), last.opcode, last.code) == (4, CLOSE, 1008)
    assert it.pays(2)
    assert not it.pays(1)


# -- over sockets

PRICED = {"models": {"*": {"targets": [{"provider": "up", "price": {"input": 0, "output": 1_000_000}}]}}}


def budgeted(text: str) -> dict[str, Any]:
    keys = [{"name": "app", "key": CLIENT_KEY, "team": "web"}]
    return {**PRICED, "filters": [{"auth": {"keys": keys}}, {"budget": json.loads(text)}, "retry"]}


async def test_the_sdk_is_told_402_and_why_and_does_not_try_again() -> None:
    usage = {"prompt_tokens": 0, "completion_tokens": 3, "total_tokens": 3}
    changes = budgeted('{"per": "team", "usd_per_month": 5}')
    async with (
        gateway_over(json_response(chat_completion(usage=usage)), changes=changes) as (gateway, upstream),
        openai.AsyncOpenAI(base_url=gateway.base_url, api_key=CLIENT_KEY, max_retries=2) as client,
    ):
        messages: Any = [{"role": "user", "content": "hi"}]
        await client.chat.completions.create(model="gpt-4o", messages=messages, max_tokens=3)
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(model="gpt-4o", messages=messages, max_tokens=3)
        rows = await gateway.rows(2)
    error = caught.value
    assert (error.status_code, error.code, error.type) == (402, "budget_exceeded", "insufficient_quota")
    assert "of the budget of 5 USD per month for each team 2 USD is left until" in error.message
    assert int(error.response.headers["retry-after"]) > 0
    assert len(upstream.requests) == 1
    assert [(row.status, row.outcome, row.cost_usd) for row in rows] == [(200, "ok", 3.0), (402, "refused", None)]


async def test_a_route_has_a_budget_of_its_own_or_none() -> None:
    usage = {"prompt_tokens": 0, "completion_tokens": 1, "total_tokens": 1}
    routes = [
        {"name": "free", "match": {"model": "free-*"}, "filters": {"budget": "off"}},
        {"name": "two", "match": {"model": "two-*"}, "filters": {"budget": {"usd_per_day": 2}}},
    ]
    changes = {**budgeted('{"usd_per_day": 1}'), "routes": routes}
    async with gateway_over(json_response(chat_completion(usage=usage)), changes=changes) as (gateway, _):
        statuses = {}
        for name in ("free-1", "two-1", "any"):
            body = json.dumps({"model": name, "messages": [], "max_tokens": 1}).encode()
            statuses[name] = [(await gateway.post(body)).status for _ in range(3)]
    assert statuses == {"free-1": [200, 200, 200], "two-1": [200, 200, 402], "any": [200, 402, 402]}


async def test_a_reload_keeps_what_was_spent_also_where_the_amount_changes(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 0, "completion_tokens": 1, "total_tokens": 1}
    body = b'{"model":"m","messages":[],"max_tokens":1}'
    async with FakeUpstream(json_response(chat_completion(usage=usage))) as upstream:
        first = {**config_for(upstream), **budgeted('{"usd_per_week": 1}')}
        async with running_gateway(written(first, tmp_path)) as gateway:
            assert [(await gateway.post(body)).status for _ in range(2)] == [200, 402]
            more = {**first, **budgeted('{"usd_per_week": 2}')}
            await gateway.half.reload(load(written(more, tmp_path)))
            assert [(await gateway.post(body)).status for _ in range(2)] == [200, 402]


async def test_who_shares_a_call_pays_nothing_for_it_and_neither_does_who_gets_it_again() -> None:
    pause = Pause()
    usage = {"prompt_tokens": 0, "completion_tokens": 3, "total_tokens": 3}
    changes = budgeted('{"per": "team", "usd_per_month": 12}')
    changes["filters"].insert(2, {"cache": {"ttl": "5m"}})
    body = b'{"model":"m","messages":[],"max_tokens":3}'
    async with gateway_over([pause, json_response(chat_completion(usage=usage))], changes=changes) as (
        gateway,
        upstream,
    ):
        asking = [asyncio.create_task(gateway.post(body)) for _ in range(3)]
        await upstream.wait_request()
        pause.go()
        answers = [*(await asyncio.gather(*asking)), await gateway.post(body)]
        rows = await gateway.rows(4)
        lines = (line for file in gateway.folder.glob("spool/*.seg") for line in file.read_bytes().splitlines())
        spent = [record.nanos for line in lines if isinstance(record := decode(line), Spent)]
    assert [answer.status for answer in answers] == [200] * 4
    assert len(upstream.requests) == 1
    assert sorted(spent) == [0, 0, 0, 3 * NANO]
    assert sum(row.cost_usd or 0 for row in rows) == 3


async def test_a_decision_says_which_target_was_too_dear() -> None:
    price = {"input": 0, "output": 1_000_000}
    targets = [
        {"provider": "up", "model": "big", "price": {"input": 0, "output": 9_000_000}},
        {"provider": "up", "model": "small", "price": price},
    ]
    changes = {**budgeted('{"usd_per_day": 5}'), "models": {"*": {"targets": targets}}}
    async with gateway_over(json_response(chat_completion()), changes=changes) as (gateway, _):
        answer = await gateway.post(b'{"model":"m","messages":[],"max_tokens":1}')
        explained = gateway.half.engine.decisions.find(answer.header("x-headgate-decision-id") or "")
    assert answer.header("x-headgate-model") == "small"
    assert explained is not None
    assert [(one["model"], one["veto"]) for one in explained["candidates"]] == [("big", "budget"), ("small", None)]
    assert {"name": "budget", "verdict": "passed"}.items() <= explained["filters"][1].items()
