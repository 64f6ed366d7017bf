"""data_app: liveness, readiness and health without a key, and nothing else; no answer names what the gateway needs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from headgate.proxy.edge.data_app import data_app
from tests_support.edge import EchoAcceptor, running_edge
from tests_support.raw import request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests_support.edge import Edge

PATHS = ("/healthz", "/readyz", "/v1/health")


@asynccontextmanager
async def serving(*reasons: str) -> AsyncIterator[Edge]:
    async with running_edge(EchoAcceptor(), app=data_app(lambda: list(reasons), "1.2.3")) as edge:
        yield edge


async def test_a_gateway_in_service_says_so() -> None:
    async with serving() as edge:
        answers = [await edge.ask(request("GET", path)) for path in PATHS]
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert [answer.json() for answer in answers] == [
        {"status": "alive"},
        {"status": "ready"},
        {"status": "healthy", "version": "1.2.3"},
    ]
    assert {answer.header("content-type") for answer in answers} == {"application/json"}
    assert {answer.header("cache-control") for answer in answers} == {"no-store"}


@pytest.mark.parametrize("reason", ["starting", "draining"])
async def test_while_it_starts_or_drains_it_lives_and_is_not_ready(reason: str) -> None:
    async with serving(reason) as edge:
        alive, ready, health = [await edge.ask(request("GET", path)) for path in PATHS]
    assert alive.status == 200
    assert (ready.status, ready.json()) == (503, {"status": reason})
    assert (health.status, health.json()) == (503, {"status": reason, "version": "1.2.3"})
    assert ready.header("retry-after") == health.header("retry-after") == "1"


async def test_a_reason_that_names_a_dependency_is_not_told() -> None:
    async with serving("redis at 10.0.0.7 is away") as edge:
        answer = await edge.ask(request("GET", "/readyz"))
    assert (answer.status, answer.json()) == (503, {"status": "unavailable"})


async def test_readiness_is_asked_each_time() -> None:
    reasons = ["starting"]
    async with running_edge(EchoAcceptor(), app=data_app(lambda: reasons, "1")) as edge:
        assert (await edge.ask(request("GET", "/readyz"))).status == 503
        reasons.clear()
        assert (await edge.ask(request("GET", "/readyz"))).status == 200


@pytest.mark.parametrize("path", PATHS)
async def test_head_answers_like_get_without_a_body(path: str) -> None:
    async with serving() as edge:
        answer = await edge.ask(request("HEAD", path))
    assert answer.status == 200
    assert answer.header("content-length") != "0"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_another_method_is_refused_in_json(method: str) -> None:
    async with serving() as edge:
        answer = await edge.ask(request(method, "/v1/health", b"" if method != "OPTIONS" else None))
    assert (answer.status, answer.header("allow")) == (405, "GET, HEAD")
    assert answer.error["code"] == "method_not_allowed"
    assert answer.error["request_id"] == answer.header("x-request-id")


@pytest.mark.parametrize(
    "path", ["/", "/healthz/", "/v1/health/x", "/ready", "/metrics", "/admin/usage", "/docs", "/%20"]
)
async def test_every_other_path_is_unknown_in_json_and_never_redirected(path: str) -> None:
    async with serving() as edge:
        answer = await edge.ask(request("GET", path))
    assert answer.status == 404
    assert set(answer.error) == {"message", "type", "param", "code", "request_id"}
    assert answer.error["code"] == "unknown_path"


async def test_a_long_path_is_not_said_back_whole() -> None:
    async with serving() as edge:
        answer = await edge.ask(request("GET", "/" + "x" * 4000))
    assert answer.status == 404
    assert len(answer.body) < 500
