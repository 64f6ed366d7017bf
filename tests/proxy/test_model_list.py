"""model_list: what may be asked for, in the shape of the API, and ids as clients encode them."""

from __future__ import annotations

import json

import pytest

from headgate.proxy.models import ModelTable, ModelTarget
from tests_support.downstream import FakeDownstream
from tests_support.relay import Relay


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


async def test_exact_names_are_listed_in_their_order(relay: Relay) -> None:
    downstream = get(relay, "/v1/models")
    assert downstream.status == 200
    assert json.loads(downstream.received) == {
        "object": "list",
        "data": [
            {"id": "fast", "object": "model", "created": 1_700_000_000, "owned_by": "up0"},
            {"id": "vendor/big:free", "object": "model", "created": 1_700_000_000, "owned_by": "up1"},
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
