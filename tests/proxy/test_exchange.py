"""exchange: candidates follow model, route and the caller's wish, and are found once."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from headgate.proxy.edge.downstream import RequestHead
from headgate.proxy.errors import ModelNotFoundError
from headgate.proxy.exchange import ANONYMOUS, Exchange, Principal
from headgate.proxy.faces import Face
from headgate.proxy.graph import Route
from tests_support.relay import Relay

if TYPE_CHECKING:
    from headgate.proxy.chain import Chain

FACE = Face("chat", "POST", "/v1/chat/completions")


@pytest.fixture
def ex() -> Exchange:
    return Exchange("hg_1", RequestHead("POST", FACE.path, []), FACE, Relay(providers=3).engine.graph, 0.0, 0.0)


def names(ex: Exchange) -> list[str]:
    return [f"{target.cluster.name}/{target.model}" for target in ex.candidates]


def route(provider: str | None) -> Route:
    return Route("r", cast("Chain", None), provider=provider)


def test_candidates_are_those_of_the_model(ex: Exchange) -> None:
    ex.model = "m"
    assert names(ex) == ["up0/m", "up1/m", "up2/m"]
    assert ex.candidates is ex.candidates


def test_another_model_has_others(ex: Exchange) -> None:
    ex.model = "m"
    assert names(ex)[0] == "up0/m"
    ex.model = "n"
    assert names(ex)[0] == "up0/n"


@pytest.mark.parametrize(
    ("of_route", "wish", "expected"),
    [("up1", None, ["up1/m"]), (None, "up2", ["up2/m"]), ("up1", "up1", ["up1/m"]), (None, None, None)],
)
def test_a_route_and_the_caller_may_name_the_provider(
    ex: Exchange, of_route: str | None, wish: str | None, expected: list[str] | None
) -> None:
    ex.model, ex.route, ex.provider = "m", route(of_route), wish
    assert names(ex) == (expected or ["up0/m", "up1/m", "up2/m"])


def test_the_caller_cannot_leave_the_route(ex: Exchange) -> None:
    ex.model, ex.route, ex.provider = "m", route("up1"), "up2"
    with pytest.raises(ModelNotFoundError, match="does not lead to the provider 'up2'"):
        ex.candidates  # noqa: B018 - asking is what raises


def test_vetoes_are_kept_with_their_softness(ex: Exchange) -> None:
    ex.veto(lambda _: "hard")
    ex.veto(lambda _: "soft", soft=True)
    assert [veto.soft for veto in ex.vetoes] == [False, True]


def test_time_at_providers_is_the_sum_of_attempts(ex: Exchange) -> None:
    assert ex.upstream_seconds(9.0) == 0


def test_it_says_what_it_is(ex: Exchange) -> None:
    ex.model = "m"
    assert repr(ex) == "<Exchange hg_1 chat model='m'>"
    assert repr(ANONYMOUS) == "<Principal ->"
    assert repr(Principal("app")) == "<Principal app>"
