"""overload: lag and memory turn new requests away before anything is spent on them, and nobody while all is well."""

from __future__ import annotations

import json
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from headgate.control.process.memory import Memory
from headgate.control.process.overload import LOOK_SECONDS, LOOKS_TOLD, Overload
from headgate.proxy.upstream.shedding import Shedding, SheddingSettings, Trigger
from tests_support.answers import chat_completion, json_response
from tests_support.downstream import FakeDownstream
from tests_support.gateway import gateway_over
from tests_support.process import gateway_process
from tests_support.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Iterator

BODY = b'{"model":"m"}'


class Health:
    """An engine with a watched loop; `memory` is what the test says."""

    def __init__(self) -> None:
        self.relay = Relay()
        self.memory = 0.1
        self.overload = Overload(
            self.relay.engine, self.relay.clock, Shedding(SheddingSettings(), Random(1)), lambda: self.memory
        )
        self.overload.start()

    def looks(self, times: int) -> None:
        """So many, in time."""
        for _ in range(times):
            self.relay.clock.advance(LOOK_SECONDS)

    def stands_still(self, seconds: float) -> None:
        """No timer runs meanwhile, and then the one that is due."""
        self.relay.clock._now += seconds
        self.relay.clock.advance(0)

    def ask(self) -> FakeDownstream:
        """One request."""
        return self.relay.accept(FakeDownstream(BODY)).downstream


@pytest.fixture
def health() -> Iterator[Health]:
    """Stopped at the end."""
    made = Health()
    yield made
    made.overload.stop()
    assert made.relay.engine.shedding is None


async def test_while_all_is_well_the_engine_asks_nobody(health: Health) -> None:
    assert health.overload.lag is None
    health.looks(20)
    assert health.relay.engine.shedding is None
    assert health.overload.lag == pytest.approx(0, abs=1e-6)
    assert health.overload.used == 0.1


async def test_memory_that_is_full_turns_all_away_with_a_time_to_come_back_and_no_record(health: Health) -> None:
    health.memory = 0.96
    with capture_logs() as logged:
        health.looks(3)
    assert [(event["event"], event["admission"], event["memory"]) for event in logged] == [("overload", "refuse", 0.96)]
    refused = [health.ask() for _ in range(10)]
    assert {one.status for one in refused} == {503}
    error = json.loads(refused[0].received)["error"]
    assert (error["code"], error["type"]) == ("overloaded", "server_error")
    assert all(1 <= float(one.header(b"retry-after") or 0) <= 6 for one in refused)
    assert refused[0].header(b"x-headgate-request-id") is not None
    assert health.relay.engine.stats.turned_away == 10
    assert health.relay.engine.ledger.rows == 0
    assert not health.relay.engine.live
    health.memory = 0.5
    health.looks(1)
    assert health.ask().status is None


async def test_between_the_thresholds_some_are_turned_away(health: Health) -> None:
    health.memory = 0.94
    health.looks(1)
    refused = sum(health.ask().status == 503 for _ in range(200))
    assert 100 < refused < 190


async def test_a_loop_that_is_late_again_and_again_refuses_and_recovers(health: Health) -> None:
    for _ in range(6):
        health.stands_still(2.0)
    assert health.overload.lag == pytest.approx(2.0 - LOOK_SECONDS)
    assert health.ask().status == 503
    health.looks(LOOKS_TOLD + 4)
    assert health.overload.lag == pytest.approx(0, abs=1e-6)
    assert health.ask().status is None


async def test_one_long_pause_turns_nobody_away(health: Health) -> None:
    health.stands_still(60.0)
    assert health.overload.lag == pytest.approx(60.0 - LOOK_SECONDS)
    assert health.relay.engine.shedding is None
    assert health.ask().status is None


async def test_other_thresholds_count_from_the_next_look_on(health: Health) -> None:
    health.memory = 0.5
    health.overload.adopt(SheddingSettings(memory=Trigger(0.3, 0.4)), lambda: health.memory)
    health.looks(1)
    assert health.ask().status == 503


async def test_over_a_socket_the_refusal_is_whole_and_others_than_exchanges_are_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Memory, "fraction", lambda _: 0.99)
    async with gateway_over(json_response(chat_completion())) as (gateway, upstream):
        gateway.server._overload._look()
        answer = await gateway.post()
        assert (answer.status, answer.error["code"], answer.whole) == (503, "overloaded", True)
        assert (await gateway.send("GET", "/healthz", key=None)).status == 200
        assert gateway.server.snapshot().shedding
        assert upstream.requests == []


async def test_a_process_above_its_memory_says_so_and_serves_again_after_a_reload() -> None:
    config: dict[str, Any] = {"providers": {"mock": {"base_url": "mock:"}}}
    async with gateway_process({**config, "limits": {"memory": "1MiB"}}) as gateway:
        await gateway.until(lambda: '"overload"' in gateway.log, "the first look")
        answer = await gateway.post()
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        ready = (await gateway.admin.send("GET", "/ready", key=None)).json()
        assert ready["state"] == "LIVE"
        assert any("too much to do" in warning for warning in ready["warnings"])
        stats = (await gateway.admin.send("GET", "/stats?filter=headgate_", key=None)).json()["stats"]
        found = {one["name"]: one["value"] for one in stats if "value" in one}
        assert found["headgate_turned_away_total"] == 1
        assert found["headgate_worker_memory_ratio"] > 1
        gateway.rewrite({**config, "limits": {"memory": "64GiB"}})
        gateway.process.send_signal(1)
        await gateway.until(lambda: gateway.log.count('"overload"') == 2, "the end of it")
        assert (await gateway.post()).status == 200
