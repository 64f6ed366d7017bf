"""model_list: what may be asked for, and what is known of it, in the shape of the API; ids as clients encode them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from headgate.proxy.accounting.prices import Price, Rates, own_price
from headgate.proxy.catalog import ListedModel
from headgate.proxy.model_list import found_models
from headgate.proxy.models import ModelTable, ModelTarget
from tests_support.downstream import FakeDownstream
from tests_support.relay import Relay

if TYPE_CHECKING:
    from headgate.proxy.upstream.cluster import Cluster


@pytest.fixture
def relay() -> Relay:
    relay = Relay(providers=2)
    up0, up1 = relay.clusters
    entries = {
        "fast": [ModelTarget(up0, None, 0, None), ModelTarget(up1, None, 0, None)],
        "vendor/big:free": [ModelTarget(up1, None, 0, None)],
        "wild-*": [ModelTarget(up1, None, 0, None)],
    }
    relay.engine.graph.models = ModelTable(entries, relay.engine.graph.clusters, frozenset())
    return relay


def get(relay: Relay, target: str, path: str | None = None) -> FakeDownstream:
    downstream = FakeDownstream(method="GET", path=path or target)
    downstream.head.target = target.encode()
    relay.accept(downstream)
    return downstream


def entry(relay: Relay, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(get(relay, f"/v1/models/{name}").received)
    return answer


def listed(relay: Relay) -> dict[str, dict[str, Any]]:
    """The list, once what providers tell was taken in."""
    graph = relay.engine.graph
    graph.found_models = dict(filter(None, found_models(graph)))
    answer = json.loads(get(relay, "/v1/models").received)
    assert answer["object"] == "list"
    found = {one["id"]: one for one in answer["data"]}
    assert len(found) == len(answer["data"]), "a name stands there twice"
    return found


def route(relay: Relay, direct: frozenset[str] = frozenset(), /, **models: list[Cluster]) -> None:
    """Exact names and, where they end in an underscore, wildcards."""
    entries = {
        name.replace("_", "*"): [ModelTarget(cluster, None, 0, None) for cluster in clusters]
        for name, clusters in models.items()
    }
    relay.engine.graph.models = ModelTable(entries, relay.engine.graph.clusters, direct)


def tell(cluster: Cluster, *models: str | ListedModel) -> None:
    told = [ListedModel(model) if isinstance(model, str) else model for model in models]
    cluster.listed = {model.id: model for model in told}


async def test_exact_names_are_listed_in_their_order(relay: Relay) -> None:
    downstream = get(relay, "/v1/models")
    assert downstream.status == 200
    common = {"object": "model", "created": 1_700_000_000, "health": "configured"}
    assert json.loads(downstream.received) == {
        "object": "list",
        "data": [
            {"id": "fast", "owned_by": "up0", **common},
            {"id": "vendor/big:free", "owned_by": "up1", **common},
        ],
    }


@pytest.mark.parametrize(
    ("target", "id_", "owner"),
    [
        ("/v1/models/fast", "fast", "up0"),
        ("/v1/models/vendor/big:free", "vendor/big:free", "up1"),
        ("/v1/models/vendor%2Fbig%3Afree", "vendor/big:free", "up1"),
        ("/v1/models/wild-%C3%A9", "wild-é", "up1"),
        ("/v1/models/wild-%252F", "wild-%2F", "up1"),
    ],
)
async def test_one_is_found_by_its_id_as_any_client_encodes_it(relay: Relay, target: str, id_: str, owner: str) -> None:
    downstream = get(relay, target)
    assert downstream.status == 200
    answer = json.loads(downstream.received)
    assert (answer["id"], answer["owned_by"]) == (id_, owner)


@pytest.mark.parametrize("name", ["slow", "wild", "%00", "%0A", "a%1Bb"])
async def test_another_is_404(relay: Relay, name: str) -> None:
    downstream = get(relay, f"/v1/models/{name}", "/v1/models/any")
    assert downstream.status == 404
    assert json.loads(downstream.received)["error"]["code"] == "model_not_found"


async def test_a_target_that_hides_the_path_is_404(relay: Relay) -> None:
    assert get(relay, "/v1/%6dodels/fast", "/v1/models/fast").status == 404


async def test_what_providers_list_comes_behind_the_exact_names_and_each_once(relay: Relay) -> None:
    up0, up1 = relay.clusters
    tell(up0, "exact", "b", "b2", "a")
    tell(up1, "c")
    route(relay, exact=[up1], _=[up0])
    assert [(name, one["owned_by"]) for name, one in listed(relay).items()] == [
        ("exact", "up1"), ("b", "up0"), ("b2", "up0"), ("a", "up0"),
    ]  # fmt: skip


async def test_of_two_that_list_the_same_id_it_is_the_one_that_is_asked_first(relay: Relay) -> None:
    up0, up1 = relay.clusters
    tell(up0, "both", "zero")
    tell(up1, "both", "one")
    route(relay, _=[up1, up0])
    assert {name: one["owned_by"] for name, one in listed(relay).items()} == {"both": "up1", "one": "up1"}, (
        "'zero' would be asked of up1, which does not have it"
    )
    up1.unconfigured = True
    assert {name: one["owned_by"] for name, one in listed(relay).items()} == {"both": "up0", "zero": "up0"}


async def test_a_longer_wildcard_takes_its_names_from_the_shorter(relay: Relay) -> None:
    up0, up1 = relay.clusters
    tell(up0, "gpt-4", "o3")
    tell(up1, "gpt-4", "gpt-5", "o3")
    route(relay, **{"_": [up0], "gpt-_": [up1]})
    assert {name: one["owned_by"] for name, one in listed(relay).items()} == {
        "o3": "up0", "gpt-4": "up1", "gpt-5": "up1",
    }  # fmt: skip


async def test_a_provider_that_can_be_addressed_is_listed_by_address(relay: Relay) -> None:
    up0, up1 = relay.clusters
    tell(up0, "a")
    tell(up1, "a", "b/c")
    route(relay, frozenset({"up1"}), fast=[up0])
    assert list(listed(relay)) == ["fast", "up1/a", "up1/b/c"]
    assert entry(relay, "up1%2Fb%2Fc")["owned_by"] == "up1"


async def test_without_models_a_bare_name_is_the_first_providers(relay: Relay) -> None:
    up0, up1 = relay.clusters
    tell(up0, "a", "up1/x")
    tell(up1, "a", "x")
    route(relay)
    assert {name: one["owned_by"] for name, one in listed(relay).items()} == {
        "a": "up0",
        "up0/up1/x": "up0",  # the bare name is an address of the other
        "up1/a": "up1",
        "up1/x": "up1",
    }


async def test_an_entry_tells_what_its_provider_tells(relay: Relay) -> None:
    up0, _ = relay.clusters
    tell(up0, ListedModel("m", 1_715_367_049, 8192, {"tools": True, "vision": False}))
    route(relay, _=[up0])
    expected = {
        "id": "m", "object": "model", "created": 1_715_367_049, "owned_by": "up0", "health": "configured",
        "context_window": 8192, "capabilities": {"tools": True, "vision": False},
    }  # fmt: skip
    assert listed(relay) == {"m": expected}
    assert entry(relay, "m") == expected
    up0.unconfigured = True
    assert entry(relay, "m")["health"] == "unconfigured"


@pytest.mark.parametrize(
    ("price", "shown"),
    [
        (
            own_price({"input": 2.5, "output": 10, "cached_input": 1.25}),
            {"unit": "USD per 1M tokens", "input": 2.5, "output": 10.0, "cached_input": 1.25, "source": "target"},
        ),
        (own_price({"audio_hour": 0.36}), {"unit": "USD per 1M tokens", "per_audio_hour": 0.36, "source": "target"}),
        (own_price({"input": 0, "output": 0}, "mock"),
         {"unit": "USD per 1M tokens", "input": 0.0, "output": 0.0, "source": "mock"}),
        (
            Price(Rates(((0, 1.0), (100, 2.0)), ((0, 3.0), (100, 4.0), (900, 5.0)), request=0.01), "host", "m"),
            {
                "unit": "USD per 1M tokens", "input": 1.0, "output": 3.0, "per_request": 0.01, "source": "host",
                "above": [
                    {"prompt_tokens": 100, "input": 2.0, "output": 4.0}, {"prompt_tokens": 900, "output": 5.0},
                ],
            },
        ),
    ],
)  # fmt: skip
async def test_a_known_price_is_told(relay: Relay, price: Price, shown: dict[str, Any]) -> None:
    relay.clusters[0].price = price
    assert entry(relay, "fast")["price"] == shown
    assert "price" not in entry(relay, "vendor/big:free")
