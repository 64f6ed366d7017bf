"""graph: the first route that holds, the price that is nearest, and nothing that changes under an exchange."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from headgate.dialects.openai import OpenAI
from headgate.proxy.accounting.prices import Price, own_price
from headgate.proxy.edge.downstream import RequestHead
from headgate.proxy.exchange import Exchange, Principal
from headgate.proxy.faces import Face
from headgate.proxy.graph import Route
from headgate.proxy.plan import Target
from headgate.proxy.upstream.cluster import Cluster
from tests_support.relay import Relay

CHAIN = cast("Any", None)


def exchange(*, passes: bool = False) -> Exchange:
    path = "/v1/chat/completions"
    face = Face("chat", "POST", path, passes=passes)
    ex = Exchange("hg_1", RequestHead("POST", path, []), face, Relay().engine.graph, 0.0, 0.0)
    ex.model, ex.principal = "gpt-4o", Principal("app")
    return ex


@pytest.mark.parametrize(
    ("match", "matches"),
    [
        ({}, True),
        ({"path": "/v1/chat/completions"}, True),
        ({"path": "/v1/chat/*"}, True),
        ({"path": "/v1/**"}, True),
        ({"path": "/v1/chat"}, False),
        ({"path": "/v2/**"}, False),
        ({"model": "gpt-4o"}, True),
        ({"model": "gpt-*"}, True),
        ({"model": "*"}, True),
        ({"model": "claude-*"}, False),
        ({"key": "app"}, True),
        ({"key": "other"}, False),
        ({"path": "/v1/**", "model": "gpt-*", "key": "app"}, True),
        ({"path": "/v1/**", "model": "gpt-*", "key": "other"}, False),
    ],
)
def test_all_that_is_written_must_hold(match: dict[str, Any], matches: bool) -> None:
    assert Route("r", CHAIN, **match).matches(exchange()) is matches


@pytest.mark.parametrize(
    ("wanted", "header", "matches"),
    [
        ("batch", None, True),
        ("batch night", None, False),
        ("night", b"night", True),
        ("batch night", b"other, night ,\xff", True),
        ("other", b"night,other", False),
        ("Night", b"Night", False),
    ],
)
def test_tags_are_those_of_the_key_and_those_it_may_add(wanted: str, header: bytes | None, matches: bool) -> None:
    ex = exchange()
    ex.principal = Principal("app", tags=frozenset({"batch"}), allow_tags=frozenset({"night"}))
    if header is not None:
        ex.head.headers.append((b"x-headgate-tags", header))
    assert Route("r", CHAIN, tags=frozenset(wanted.split())).matches(ex) is matches


def test_whoever_has_no_key_adds_no_tags() -> None:
    ex = exchange()
    ex.head.headers.append((b"x-headgate-tags", b"batch"))
    assert ex.tags == frozenset()


def test_a_catch_all_with_a_provider_takes_only_what_names_no_model() -> None:
    files = Route("files", CHAIN, path="/v1/**", provider="up0")
    assert not files.matches(exchange())
    assert files.matches(exchange(passes=True))
    assert Route("any", CHAIN, path="/v1/**").matches(exchange())


def test_the_first_route_that_holds_is_taken_else_the_default() -> None:
    graph = Relay().engine.graph
    graph.routes = (Route("a", CHAIN, model="x"), Route("b", CHAIN, model="gpt-*"), Route("c", CHAIN))
    assert graph.route(exchange()).name == "b"
    graph.routes = graph.routes[:1]
    assert graph.route(exchange()) is graph.default


def test_the_nearest_price_is_the_price() -> None:
    graph = Relay().engine.graph
    own, of_cluster, listed = (own_price({"input": rate}, source=name) for rate, name in ((1, "t"), (2, "c"), (3, "l")))
    asked: list[Any] = []

    def lookup(*args: Any, **named: Any) -> Any:
        asked.append((*args, named))
        return listed

    cluster = Cluster("up", OpenAI(), (), host="https://api.example", price_as="vendor/x")
    priced = Cluster("up", OpenAI(), (), price=of_cluster)
    assert graph.price(Target(cluster, "m")) is None
    graph.prices = cast("Any", SimpleNamespace(lookup=lookup))
    assert graph.price(Target(cluster, "m", price=own)) is own
    assert graph.price(Target(priced, "m")) is of_cluster
    assert graph.price(Target(priced, "m", price=own)) is own
    assert asked == []
    assert graph.price(Target(cluster, "m")) is listed
    assert asked == [("https://api.example", "m", {"dialect": "openai", "price_as": "vendor/x"})]


def test_a_listed_price_is_looked_for_once_where_it_holds_for_ever() -> None:
    graph = Relay().engine.graph
    asked = 0
    found: Price | None = None

    def lookup(*_: object, **__: object) -> Price | None:
        nonlocal asked
        asked += 1
        return found

    graph.prices = cast("Any", SimpleNamespace(lookup=lookup))
    target = Target(Cluster("up", OpenAI(), (), host="https://api.example"), "m")
    for found, times in ((None, 3), (msgspec.structs.replace(own_price({"input": 1}), until=5.0), 3),
                         (own_price({"input": 2}), 1)):  # fmt: skip
        asked = 0
        assert [graph.price(target) for _ in range(3)] == [found] * 3
        assert asked == times
