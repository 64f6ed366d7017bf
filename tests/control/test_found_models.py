"""found_models: lists that providers told are shown soon, whole, and of the providers that still are."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from headgate.control.found_models import AT_A_TIME
from headgate.proxy.catalog import ListedModel, Listing
from headgate.proxy.upstream.health import Verdict
from tests_support.caller import eventually
from tests_support.gateway import RunningGateway, config_for, load, running_gateway, written

HOME = "http://127.0.0.1:9/v1"


def listing(*ids: str, provider: str = "up", base_url: str = HOME) -> Listing:
    return Listing(provider, base_url, tuple(map(ListedModel, ids)))


async def shown(gateway: RunningGateway) -> list[str]:
    answer = (await gateway.send("GET", "/v1/models")).json()
    return [model["id"] for model in answer["data"]]


def shows(gateway: RunningGateway, model: str, part: bytes) -> bool:
    return part in gateway.half.engine.graph.found_models.get(model, b"")


async def test_a_list_is_shown_when_all_of_it_is_made() -> None:
    ids = [f"m{number}" for number in range(3 * AT_A_TIME)]
    async with running_gateway(config_for()) as gateway:
        gateway.half.take_listing(listing("old"))
        await eventually(lambda: "old" in gateway.half.engine.graph.found_models)
        gateway.half.take_listing(listing(*ids))
        seen = []
        while (found := await shown(gateway)) != ids:
            seen.append(found)
        assert all(found == ["old"] for found in seen)


async def test_one_that_comes_while_another_is_made_is_not_forgotten() -> None:
    async with running_gateway(config_for()) as gateway:
        graph = gateway.half.engine.graph
        gateway.half.take_listing(listing(*(f"a{number}" for number in range(50))))
        gateway.half.take_listing(listing("b"))
        await eventually(lambda: list(graph.found_models) == ["b"])


async def test_that_of_another_address_or_of_nobody_is_ignored() -> None:
    async with running_gateway(config_for()) as gateway:
        gateway.half.take_listing(listing("a", base_url="http://127.0.0.1:10/v1"))
        gateway.half.take_listing(listing("a", provider="who"))
        gateway.half.take_listing(listing("b"))
        await eventually(lambda: bool(gateway.half.engine.graph.found_models))
        assert await shown(gateway) == ["b"]


async def test_a_reload_shows_at_once_what_its_providers_have_told() -> None:
    async with running_gateway(config_for()) as gateway:
        gateway.half.take_listing(listing("gpt-1", "o3"))
        await eventually(lambda: len(gateway.half.engine.graph.found_models) == 2)
        wildcard: dict[str, Any] = {"gpt-*": {"targets": [{"provider": "up"}]}}
        await gateway.half.reload(load(written({**config_for(), "models": wildcard}, gateway.folder)))
        assert await shown(gateway) == ["gpt-1"]
        moved = json.loads(written(config_for(), gateway.folder))
        moved["providers"]["up"]["base_url"] = "http://127.0.0.1:10/v1"
        await gateway.half.reload(load(json.dumps(moved)))
        assert await shown(gateway) == []


async def test_the_mock_lists_itself_while_it_stands_in() -> None:
    targets = {"targets": [{"provider": "paid"}, {"provider": "mock", "priority": 1}]}
    for key, ids in (("", ["mock"]), ("sk-1", [])):
        config = {
            "providers": {"paid": {"base_url": HOME, "api_key": f"${{KEY:-{key}}}"}, "mock": {"base_url": "mock:"}},
            "models": {"*": targets},
        }
        async with running_gateway(config) as gateway:
            assert await shown(gateway) == ids


async def test_entries_follow_the_health_of_their_provider() -> None:
    config = config_for()
    config["providers"]["up"]["health_check"] = {}
    async with running_gateway(config) as gateway:
        gateway.half.take_listing(listing("m"))
        for healthy, said in ((True, "configured"), (False, "unhealthy"), (True, "configured")):
            gateway.half.take_verdict(Verdict("up", "http://127.0.0.1:9", healthy))
            entry = b'"health":"%b"' % said.encode()
            await eventually(partial(shows, gateway, "m", entry))
