"""GET /v1/models and /v1/models/{id}: the OpenAI list, of what this gateway serves (wire §1.1)."""

from __future__ import annotations

from typing import Any

import pytest

from tests_support.gateway import CLIENT_KEY, bearer, config_for, running_gateway
from tests_support.raw import RawClient, request

NAMES = ["fast", "org/model:free", "gpt-4o-mini"]


def config() -> dict[str, Any]:
    models: dict[str, Any] = {name: {"targets": [{"provider": "up"}]} for name in NAMES}
    models["gpt-*"] = {"targets": [{"provider": "up"}]}
    return {**config_for(), "models": models}


async def test_the_list_has_the_shape_of_the_api() -> None:
    async with running_gateway(config()) as gateway:
        answer = await gateway.send("GET", "/v1/models")
    assert answer.status == 200
    assert (answer.header("content-type") or "").startswith("application/json")
    listed = answer.json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == NAMES
    for model in listed["data"]:
        assert model["object"] == "model"
        assert isinstance(model["created"], int)
        assert isinstance(model["owned_by"], str)
        assert model["owned_by"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("fast", "fast"),
        ("org/model:free", "org/model:free"),
        ("org%2Fmodel%3Afree", "org/model:free"),
        ("org%2fmodel:free", "org/model:free"),
        ("gpt-4o-mini", "gpt-4o-mini"),
    ],
)
async def test_a_model_is_found_by_its_id_as_any_client_encodes_it(path: str, name: str) -> None:
    """Wire §1.1: an id may hold `/` and `:` and arrives percent-encoded."""
    async with running_gateway(config()) as gateway:
        answer = await gateway.send("GET", f"/v1/models/{path}")
    assert (answer.status, answer.json()["id"], answer.json()["object"]) == (200, name, "model")


async def test_an_unknown_model_is_404() -> None:
    async with running_gateway(config()) as gateway:
        answer = await gateway.send("GET", "/v1/models/unknown")
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert answer.header("x-request-id")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/fast"])
async def test_the_list_is_guarded_like_everything_else(path: str) -> None:
    async with running_gateway(config()) as gateway:
        answer = await gateway.send("GET", path, key=None)
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")


async def test_asking_for_models_leaves_no_row_and_carries_our_ids() -> None:
    async with running_gateway(config()) as gateway:
        answer = await gateway.send("GET", "/v1/models", headers=[("x-request-id", "mine")])
        assert await gateway.rows(0) == []
    assert answer.header("x-request-id") == "mine"
    assert answer.header("x-headgate-request-id")


async def test_a_get_with_a_body_leaves_the_connection_in_step() -> None:
    """Faults A1: the body of a request nobody reads must not become the next request."""
    async with running_gateway(config()) as gateway, RawClient(gateway.port) as client:
        poison = b"GET /v1/models/unknown HTTP/1.1\r\nHost: localhost\r\n\r\n"
        first = request("GET", "/v1/models", poison, bearer(CLIENT_KEY))
        await client.send(first + request("GET", "/v1/models/fast", headers=bearer(CLIENT_KEY)))
        assert (await client.answer()).status == 200
        second = await client.answer()
    assert (second.status, second.json()["id"]) == (200, "fast")
