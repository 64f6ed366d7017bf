"""health_watch: endpoints are asked one by one, in the background; what is found is told once, and once more to hosts
that may be new."""

from __future__ import annotations

import json
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from structlog.testing import capture_logs

from headgate.control import health_watch
from headgate.control.clusters import open_check
from headgate.control.health_watch import MOST_BYTES, HealthWatch
from headgate.proxy.clock import Deadlines, LoopClock
from headgate.proxy.errors import ConnectError
from headgate.proxy.upstream.fetch import fetch as real_fetch
from headgate.proxy.upstream.health import Verdict
from tests_support.answers import json_response, response
from tests_support.calls import FakeCall, FakeEndpoint
from tests_support.clock import FakeClock
from tests_support.gateway import load
from tests_support.h2_upstream import H2Upstream
from tests_support.upstream import FakeUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from headgate.config import EndpointConfig, GatewayConfig, Provider

JITTER = 0.5
"""The most that is added to 5 seconds."""
A, B = "http://a:80", "http://b:80"


def config(*names: str, **check: Any) -> GatewayConfig:
    """One provider with endpoints of these names, checked at /health."""
    endpoints = [{"url": f"http://{name}/v1"} for name in names]
    return load(
        json.dumps({"providers": {"p": {"endpoints": endpoints, "health_check": {"path": "/health", **check}}}})
    )


class Watched:
    """A watch over endpoints that the test answers by hand."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.told: list[Verdict] = []
        self.calls = 0
        self.opened: dict[str, list[FakeEndpoint]] = {}
        self.watch = HealthWatch(self.clock, Random(1), self._open, self.told.append, lambda provider: self.calls)

    def _open(self, provider: Provider, place: EndpointConfig) -> FakeEndpoint:
        endpoint = FakeEndpoint(place.url)
        self.opened.setdefault(place.url.split("/")[2], []).append(endpoint)
        return endpoint

    async def follow(self, config: GatewayConfig) -> None:
        """To the first checks and no further."""
        self.watch.follow(config)
        await self.clock.run(JITTER)

    def asked(self, name: str) -> int:
        """How often."""
        return sum(len(endpoint.calls) for endpoint in self.opened.get(name, []))

    def call(self, name: str) -> FakeCall:
        """The latest one to an endpoint."""
        return self.opened[name][-1].last

    async def answer(self, name: str, status: int = 200) -> None:
        self.call(name).feed(json_response({}, status))
        await self.clock.run(0)

    async def fail(self, name: str) -> None:
        self.call(name).fail(ConnectError("The provider could not be reached.", detail="refused"))
        await self.clock.run(0)

    async def next(self, name: str) -> None:
        """To the next check, which is due."""
        asked = self.asked(name)
        await self.clock.run(5 + JITTER)
        assert self.asked(name) == asked + 1


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    made = Watched()
    yield made
    await made.watch.aclose()
    assert all(endpoint.closed for several in made.opened.values() for endpoint in several)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(health_watch, "log", structlog.get_logger("headgate"))
    with capture_logs() as events:
        yield events


async def test_each_endpoint_is_asked_soon_by_its_path_and_without_a_key(watched: Watched) -> None:
    await watched.follow(config("a", "b"))
    for name in "ab":
        request = watched.call(name).request
        assert (request.method, request.target, request.body) == (b"GET", b"/health", b"")
        assert {field for field, _ in request.headers} == {b"accept", b"accept-encoding", b"user-agent"}
        assert watched.asked(name) == 1


async def test_the_first_check_is_told_and_the_next_ones_only_when_they_change_something(
    watched: Watched, logged: list[Any]
) -> None:
    watched.calls = 1
    await watched.follow(config("a", no_traffic_interval="5s"))
    await watched.answer("a")
    assert watched.told == [Verdict("p", A, True)]
    await watched.next("a")
    await watched.answer("a")
    assert len(watched.told) == 1
    for _ in range(3):
        assert len(watched.told) == 1
        await watched.next("a")
        await watched.fail("a")
    assert watched.told[1:] == [Verdict("p", A, False)]
    assert logged == [
        {"event": "endpoint_unhealthy", "log_level": "warning", "provider": "p", "endpoint": A, "reason": "refused"}
    ]
    await watched.next("a")
    await watched.answer("a")
    assert watched.told[2:] == [Verdict("p", A, True)]
    assert [event["event"] for event in logged] == ["endpoint_unhealthy", "endpoint_healthy"]
    assert watched.watch.counters() == {
        ("p", A): {
            "health_check.attempt": 6,
            "health_check.success": 3,
            "health_check.failure": 3,
            "health_check.network_failure": 3,
            "health_check.passive_failure": 0,
        }
    }


async def test_a_first_check_that_fails_is_told_at_once(watched: Watched, logged: list[Any]) -> None:
    await watched.follow(config("a"))
    await watched.fail("a")
    assert watched.told == [Verdict("p", A, False)]
    assert len(logged) == 1


async def test_one_that_asks_to_be_left_alone_is_until_it_passes(watched: Watched, logged: list[Any]) -> None:
    watched.calls = 1
    await watched.follow(config("a", "b", no_traffic_interval="5s"))
    watched.watch.leave_alone("p", A)
    assert watched.told == [], "before its first check nothing is known of it"
    await watched.answer("a")
    await watched.answer("b")
    for name in (A, A, "http://c:80"):
        watched.watch.leave_alone("p", name)
    watched.watch.leave_alone("q", B)
    assert watched.told[2:] == [Verdict("p", A, False)]
    assert [(event["endpoint"], event["reason"]) for event in logged] == [(A, "it asked to be left alone")]
    counted = watched.watch.counters()
    assert [counted["p", name]["health_check.passive_failure"] for name in (A, B)] == [1, 0]
    await watched.next("a")
    await watched.answer("a")
    assert watched.told[3:] == [Verdict("p", A, True)]
    assert [event["event"] for event in logged] == ["endpoint_unhealthy", "endpoint_healthy"]


@pytest.mark.parametrize("status", [204, 301, 401, 503])
async def test_another_status_than_expected_takes_it_out_at_once(
    watched: Watched, logged: list[Any], status: int
) -> None:
    await watched.follow(config("a", no_traffic_interval="5s"))
    await watched.answer("a")
    await watched.next("a")
    await watched.answer("a", status)
    assert watched.told[-1] == Verdict("p", A, False)
    assert [event["reason"] for event in logged] == [f"status {status}"]


async def test_what_is_expected_and_what_is_only_counted_can_be_said(watched: Watched) -> None:
    await watched.follow(
        config(
            "a", no_traffic_interval="5s", expected_statuses=[200, 401], retriable_statuses=[503], unhealthy_threshold=2
        )
    )
    await watched.answer("a", 401)
    assert watched.told == [Verdict("p", A, True)]
    for healthy in (True, False):
        await watched.next("a")
        await watched.answer("a", 503)
        assert watched.told[-1].healthy is healthy


async def test_an_answer_that_is_late_or_too_long_is_none(
    watched: Watched, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_watch, "fetch", with_timeout(0.01))
    await watched.follow(config("a", unhealthy_threshold=1, no_traffic_interval="5s"))
    late = watched.call("a")
    while not watched.told:
        await watched.clock.run(0)
    assert late.cancelled
    assert "no answer within 1 s" in logged[0]["reason"]
    monkeypatch.undo()
    await watched.next("a")
    await watched.answer("a")
    await watched.next("a")
    watched.call("a").feed(json_response(b"x" * (MOST_BYTES + 1)))
    await watched.clock.run(0)
    assert [verdict.healthy for verdict in watched.told] == [False, True, False]


def with_timeout(real: float) -> Any:
    """Real time passes in `fetch`: less of it."""

    async def fetch(endpoint: Any, request: Any, *, most: int, seconds: float) -> Any:
        assert seconds == 1
        return await real_fetch(endpoint, request, most=most, seconds=real)

    return fetch


async def test_checks_are_rare_without_traffic_and_come_back_to_their_pace_with_it(watched: Watched) -> None:
    await watched.follow(config("a"))
    await watched.answer("a")
    await watched.next("a")  # once more after a change
    await watched.answer("a")
    await watched.clock.run(59)
    assert watched.asked("a") == 2
    await watched.clock.run(8)
    assert watched.asked("a") == 3
    await watched.answer("a")
    await watched.clock.run(20)
    watched.calls += 1
    await watched.next("a")


async def test_an_endpoint_that_is_out_is_asked_without_traffic(watched: Watched, logged: list[Any]) -> None:
    await watched.follow(config("a"))
    await watched.fail("a")
    await watched.next("a")
    await watched.fail("a")
    await watched.next("a")


async def test_a_bug_says_nothing_about_an_endpoint(
    watched: Watched, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_watch, "fetch", lambda *_, **__: 1 / 0)
    await watched.follow(config("a"))
    assert watched.told == []
    assert [(event["event"], event["log_level"]) for event in logged] == [("health_check_failed", "error")]
    monkeypatch.undo()
    await watched.next("a")
    await watched.answer("a")
    assert watched.told == [Verdict("p", A, True)]


async def test_only_who_has_checks_and_a_key_is_asked(watched: Watched) -> None:
    await watched.follow(
        load(
            json.dumps(
                {
                    "providers": {
                        "a": {"base_url": "http://a/v1"},
                        "b": {"base_url": "http://b/v1", "api_key": "${NONE:-}", "health_check": {}},
                        "mock": {"base_url": "mock:", "health_check": {}},
                        "c": {"base_url": "http://c/v1", "health_check": {}},
                    }
                }
            )
        )
    )
    assert list(watched.opened) == ["c"]


async def test_a_reload_adds_and_removes_checks_and_keeps_what_it_knows(watched: Watched) -> None:
    await watched.follow(config("a", "b"))
    await watched.answer("a")
    await watched.answer("b", 500)
    known = [Verdict("p", A, True), Verdict("p", B, False)]
    assert watched.told == known
    watched.told.clear()
    await watched.follow(config("a", "b", "c"))
    assert watched.told == known, "their hosts may be new"
    assert [watched.asked(name) for name in "abc"] == [1, 1, 1]
    await watched.answer("c")
    assert watched.watch.verdicts == [*known, Verdict("p", "http://c:80", True)]

    await watched.follow(config("a", "c", interval="1s"))
    assert watched.opened["b"][0].closed
    assert watched.asked("a") == 2, "under new settings at once"
    assert [verdict.endpoint for verdict in watched.watch.verdicts] == [A, "http://c:80"]
    await watched.follow(load("providers: {p: {base_url: 'http://a/v1'}}"))
    assert watched.watch.verdicts == []
    asked = watched.asked("a")
    await watched.clock.run(100)
    assert watched.asked("a") == asked


async def test_a_check_under_way_is_left_when_it_closes(watched: Watched) -> None:
    await watched.follow(config("a"))
    await watched.watch.aclose()
    assert watched.call("a").cancelled
    assert watched.opened["a"][0].closed


@pytest.mark.parametrize("http2", [False, True])
async def test_checks_go_to_the_root_of_the_server_over_one_connection(http2: bool, no_leaks: None) -> None:
    """Over real sockets."""
    clock = LoopClock()
    told: list[Verdict] = []
    async with H2Upstream() if http2 else FakeUpstream(response(200, b"well")) as upstream:
        check = {"path": "/health?deep", "interval": "5ms", "no_traffic_interval": "5ms"}
        provider = {"base_url": upstream.base_url, "http2": http2, "api_key": "secret", "health_check": check}
        opened = partial(open_check, clock, Deadlines(clock))
        watch = HealthWatch(clock, Random(1), opened, told.append, lambda _: 0)
        watch.follow(load(json.dumps({"providers": {"p": provider}})))
        if isinstance(upstream, H2Upstream):
            seen = await upstream.request(3)
            assert (seen.header(":path"), seen.header(":authority")) == ("/health?deep", upstream.base_url[7:-3])
            assert seen.header("authorization") is None
            assert len(upstream.peers) == 1
        else:
            request = await upstream.wait_request(3)
            assert (request.target, request.header("host")) == ("/health?deep", f"127.0.0.1:{upstream.port}")
            assert request.header("authorization") is None
            assert len(upstream.connections) == 1
        await watch.aclose()
        assert told == [Verdict("p", f"http://127.0.0.1:{upstream.port}", True)]
