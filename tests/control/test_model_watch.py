"""model_watch: providers are asked in the background, only where it matters; what fails changes nothing."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from structlog.testing import capture_logs

from headgate.control import model_watch
from headgate.control.model_watch import ASK_SECONDS, FIRST_PAUSE, FRESH_SECONDS, ModelWatch, asked
from headgate.dialects.openai import OpenAI
from headgate.proxy.catalog import ListedModel, Listing
from headgate.proxy.errors import ConnectError
from tests_support.answers import json_response
from tests_support.calls import FakeCall, FakeEndpoint
from tests_support.clock import FakeClock
from tests_support.gateway import load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from headgate.config import GatewayConfig, Provider

ONE = json_response({"data": [{"id": "m"}]})
LISTED = (ListedModel("m"),)


def config(models: dict[str, Any] | None = None, **providers: dict[str, Any]) -> GatewayConfig:
    """Providers at addresses of their name."""
    named = {name: {"base_url": f"http://{name}/v1", **settings} for name, settings in providers.items()}
    return load(json.dumps({"providers": named, **({"models": models} if models else {})}))


def targets(*providers: str, model: str | None = None) -> dict[str, Any]:
    return {"targets": [{"provider": name, **({"model": model} if model else {})} for name in providers]}


@pytest.mark.parametrize(
    ("models", "providers", "expected"),
    [
        (None, {"a": {}, "b": {}}, ["a", "b"]),
        ({"fast": targets("a")}, {"a": {}, "b": {}}, []),
        ({"gpt-*": targets("b", "a")}, {"a": {}, "b": {}, "c": {}}, ["a", "b"]),
        ({"gpt-*": targets("a", model="one")}, {"a": {}}, []),
        ({"fast": targets("a")}, {"a": {}, "b": {"direct": True}}, ["b"]),
        (None, {"a": {"list_models": False}, "b": {"api_key": "${NOT_SET:-}"}, "c": {"base_url": "mock:"}}, []),
    ],
)
def test_those_are_asked_whose_list_says_what_the_config_does_not(
    models: dict[str, Any] | None, providers: dict[str, Any], expected: list[str]
) -> None:
    assert asked(config(models, **providers)) == expected


class Watched:
    """A watch over providers that the test answers by hand."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.told: list[Listing] = []
        self.asked: list[str] = []
        self.closed: list[str] = []
        self._endpoints: dict[str, list[FakeEndpoint]] = {}
        self.watch = ModelWatch(self.clock, self._open, self.told.append)

    def _open(self, provider: Provider) -> tuple[FakeEndpoint, OpenAI]:
        watched = self

        class Endpoint(FakeEndpoint):
            async def aclose(self) -> None:
                watched.closed.append(provider.address)

        self.asked.append(provider.address)
        self._endpoints.setdefault(provider.address, []).append(endpoint := Endpoint(provider.address))
        return endpoint, OpenAI()

    async def follow(self, config: GatewayConfig) -> None:
        self.watch.follow(config)
        await self.clock.run(0)

    def call(self, name: str) -> FakeCall:
        """The latest one to a provider."""
        return self._endpoints[f"http://{name}/v1"][-1].calls[-1]

    async def answer(self, name: str, data: bytes = ONE) -> None:
        self.call(name).feed(data)
        await self.clock.run(0)


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    made = Watched()
    yield made
    await made.watch.aclose()


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(model_watch, "log", structlog.get_logger("headgate"))
    with capture_logs() as events:
        yield events


async def test_a_list_is_told_and_asked_for_again_when_it_is_old(watched: Watched) -> None:
    await watched.follow(config(a={}))
    request = watched.call("a").request
    assert (request.method, request.target, request.body) == (b"GET", b"/models", b"")
    assert (b"accept-encoding", b"identity") in request.headers
    await watched.answer("a")
    assert watched.told == [Listing("a", "http://a/v1", LISTED)]
    assert watched.closed == watched.asked == ["http://a/v1"]
    await watched.clock.run(FRESH_SECONDS - 1)
    assert len(watched.asked) == 1
    await watched.clock.run(1)
    await watched.answer("a", json_response({"data": [{"id": "n"}]}))
    assert watched.told[1].models == (ListedModel("n"),)
    assert watched.watch.listings == {"a": watched.told[1]}


@pytest.mark.parametrize(
    "data",
    [json_response({"error": {}}, 401), json_response({"error": {}}), json_response(b"[" + b" " * 5_000_000 + b"]")],
)
async def test_what_fails_changes_nothing_and_is_tried_again_soon(
    watched: Watched, data: bytes, logged: list[Any]
) -> None:
    await watched.follow(config(a={}))
    await watched.answer("a")
    await watched.clock.run(FRESH_SECONDS)
    await watched.answer("a", data)
    assert [listing.models for listing in watched.told] == [LISTED]
    assert watched.watch.listings["a"].models == LISTED
    await watched.clock.run(FIRST_PAUSE)
    await watched.answer("a")
    assert len(watched.told) == 2
    assert [event["event"] for event in logged] == ["models_not_listed"]
    assert len(watched.closed) == len(watched.asked) == 3


async def test_pauses_double_up_to_the_age_of_a_list(watched: Watched, logged: list[Any]) -> None:
    await watched.follow(config(a={}))
    at = []
    for _ in range(9):
        at.append(watched.clock.monotonic())
        made = len(watched.asked)
        watched.call("a").fail(ConnectError("nobody there"))
        while len(watched.asked) == made:
            await watched.clock.run(FIRST_PAUSE)
    assert [after - before for before, after in pairwise(at)] == [
        15, 30, 60, 120, 240, 480, 600, 600,
    ]  # fmt: skip
    assert len(logged) == 1, "an outage is told once"


async def test_a_bug_costs_the_list_of_one_provider(
    watched: Watched, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenAI, "read_models", lambda *_: 1 / 0)
    await watched.follow(config(a={}))
    await watched.answer("a")
    assert [event["log_level"] for event in logged] == ["error"]
    monkeypatch.undo()
    await watched.clock.run(FIRST_PAUSE)
    await watched.answer("a")
    assert len(watched.told) == 1


async def test_a_reload_asks_only_those_that_are_new_or_changed(watched: Watched) -> None:
    await watched.follow(config(a={}, b={"api_key": "one"}, c={}))
    for name in "abc":
        await watched.answer(name)
    await watched.follow(config(a={"timeouts": {"idle": "1s"}}, b={"api_key": "two"}, d={}))
    assert watched.asked[3:] == ["http://b/v1", "http://d/v1"]
    assert sorted(watched.watch.listings) == ["a"]
    assert [listing.provider for listing in watched.told] == ["a", "b", "c", "a"], "what is known is told again"
    await watched.clock.run(FRESH_SECONDS)
    assert "http://c/v1" not in watched.asked[3:]


async def test_an_answer_under_way_is_left_when_it_closes(watched: Watched) -> None:
    await watched.follow(config(a={}))
    call = watched.call("a")
    await watched.watch.aclose()
    assert call.cancelled
    assert watched.closed == ["http://a/v1"]
    assert ASK_SECONDS < FRESH_SECONDS
