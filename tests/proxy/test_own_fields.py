"""own_fields: what a caller may ask of the gateway, and what stands on every answer, to the tenth of a millisecond."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from headgate.proxy.accounting.prices import own_price
from headgate.proxy.upstream.cluster import Timeouts
from tests_support.answers import USAGE, chat_chunks, chat_completion, error_response, json_response, sse
from tests_support.downstream import FakeDownstream
from tests_support.relay import BACKOFF, Relay

if TYPE_CHECKING:
    from tests_support.relay import Exchange

BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
STREAM = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}'
DAY_MS = 86_400_000


def asking(relay: Relay, body: bytes = BODY, **fields: str) -> Exchange:
    """An exchange whose request has these `x-headgate-` fields."""
    headers = [(b"x-headgate-" + name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    return relay.ask(body, FakeDownstream(body, headers=headers))


def own(exchange: Exchange) -> dict[str, str]:
    """Our fields of its answer."""
    found = {name.decode(): value.decode() for name, value in exchange.downstream.headers}
    return {name: value for name, value in found.items() if name.startswith("x-headgate-") or name == "server-timing"}


# What may be asked


@pytest.mark.parametrize("wish", ["", "0", "-1", "1.5", "soon", "1e3", " 5", str(DAY_MS + 1), "0000000005"])
def test_a_time_that_is_none_is_refused(wish: str) -> None:
    exchange = asking(Relay(), timeout_ms=wish)
    assert exchange.downstream.status == 400
    message = "x-headgate-timeout-ms must be a whole number of milliseconds from 1 to a day."
    assert exchange.error["message"] == message


@pytest.mark.parametrize("wish", ["1", "1500", "000000005"])
def test_a_time_that_is_one_ends_the_exchange(wish: str) -> None:
    relay = Relay(timeouts=Timeouts(first_token=10**6, idle=10**6, total=10**6))
    exchange = asking(relay, timeout_ms=wish)
    assert exchange.downstream.status is None
    relay.clock.advance(int(wish) / 1000 - 0.0005)
    assert exchange.downstream.status is None
    relay.clock.advance(0.2)
    assert exchange.downstream.status == 504


def test_a_day_is_not_too_long() -> None:
    assert asking(Relay(), timeout_ms=str(DAY_MS)).downstream.status is None


def test_a_provider_that_is_asked_for_answers_alone() -> None:
    relay = Relay(providers=3)
    exchange = asking(relay, provider="up1")
    assert [len(one.calls) for one in relay.providers] == [0, 1, 0]
    relay.providers[1].last.feed(json_response(chat_completion()))
    assert own(exchange)["x-headgate-provider"] == "up1"


def test_one_that_is_not_there_is_refused_and_not_repeated_for_it_may_be_a_key_in_the_wrong_field() -> None:
    exchange = asking(Relay(), provider="y" * 70)
    assert exchange.downstream.status == 400
    assert exchange.error["message"] == "x-headgate-provider: there is no provider of this name."


# What is said


def test_every_answer_says_who_gave_it_what_it_used_and_where_its_time_went() -> None:
    relay = Relay(providers=2, price=own_price({"input": 1.0, "output": 2.0}))
    exchange = relay.ask(BODY)
    relay.clock.advance(0.25)
    relay.providers[0].last.feed(error_response(500, "broken"))
    waited = 0.0
    while not relay.providers[1].calls:
        relay.clock.advance(0.01)
        waited += 0.01
    relay.clock.advance(0.5)
    relay.providers[1].last.feed(json_response(chat_completion()))
    fields = own(exchange)
    row = exchange.row
    assert fields.pop("x-headgate-request-id") == fields.pop("x-headgate-decision-id") == row.id
    assert fields.pop("x-headgate-config") == "test"
    total, upstream, ours = (float(fields.pop(f"x-headgate-{kind}-ms")) for kind in ("latency", "upstream", "overhead"))
    assert total == pytest.approx(750 + waited * 1000, abs=10)
    assert 750 <= upstream < 750 + 10
    assert ours == pytest.approx(total - upstream, abs=0.11)
    assert fields.pop("server-timing") == f"upstream;dur={upstream:.1f}, gateway;dur={ours:.1f}"
    assert fields == {
        "x-headgate-attempts": "2",
        "x-headgate-route": "default",
        "x-headgate-provider": "up1",
        "x-headgate-model": "m",
        "x-headgate-strategy": "config-order",
        "x-headgate-tokens-prompt": str(USAGE["prompt_tokens"]),
        "x-headgate-tokens-completion": str(USAGE["completion_tokens"]),
        "x-headgate-cost-usd": "0.000033",
    }


def test_what_is_not_known_is_not_said() -> None:
    relay = Relay()
    exchange = relay.ask(BODY)
    relay.providers[0].last.feed(json_response(chat_completion(None, usage=None)))
    assert not [name for name in own(exchange) if "tokens" in name or "cost" in name]
    refused = relay.ask(b"{")
    assert "x-headgate-route" not in own(refused)
    assert own(refused)["x-headgate-attempts"] == "0"


def test_the_comment_of_a_stream_says_the_rest() -> None:
    relay = Relay(price=own_price({"input": 1.0, "output": 2.0}))
    exchange = relay.ask(STREAM)
    head, role, first, *others = sse(chat_chunks(usage=USAGE))
    relay.clock.advance(0.25)
    relay.providers[0].last.feed(head + role)
    relay.clock.advance(0.25)
    relay.providers[0].last.feed(first)
    relay.clock.advance(0.5)
    relay.providers[0].last.feed(b"".join(others))
    [comment] = [piece for piece in exchange.downstream.received.split(b"\n\n") if piece.startswith(b": headgate ")]
    assert json.loads(comment.removeprefix(b": headgate ")) == {
        "request_id": exchange.row.id,
        "latency_ms": 1000.0,
        "ttft_ms": 500.0,
        "tokens_prompt": USAGE["prompt_tokens"],
        "tokens_completion": USAGE["completion_tokens"],
        "usage": "reported",
        "cost_usd": pytest.approx(0.000033),
    }


def test_a_stream_that_says_nothing_is_said_little_of() -> None:
    relay = Relay()
    exchange = relay.ask(STREAM)
    relay.providers[0].last.feed(b"".join(sse([b"data: [DONE]\n\n"])))
    [comment] = [piece for piece in exchange.downstream.received.split(b"\n\n") if piece.startswith(b": headgate ")]
    assert json.loads(comment.removeprefix(b": headgate ")).keys() == {"request_id", "latency_ms"}


@pytest.mark.parametrize(("wish", "wanted"), [("off", False), ("OFF", False), ("on", True), ("", True)])
def test_the_comment_can_be_left_out(wish: str, wanted: bool) -> None:
    relay = Relay()
    exchange = asking(relay, STREAM, stream_metadata=wish)
    relay.providers[0].last.feed(b"".join(sse(chat_chunks())))
    relay.clock.advance(BACKOFF)
    assert (b": headgate " in exchange.downstream.received) == wanted


@pytest.mark.parametrize("said", [None, b"mine"])
def test_the_request_id_is_the_clients_or_ours(said: bytes | None) -> None:
    relay = Relay()
    headers = [] if said is None else [(b"x-request-id", said)]
    exchange = relay.ask(BODY, FakeDownstream(BODY, headers=headers))
    relay.providers[0].last.feed(json_response(chat_completion()))
    assert exchange.downstream.header(b"x-request-id") == (said or exchange.row.id.encode())
