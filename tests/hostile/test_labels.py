"""Thousands of made-up models, users, paths, statuses and codes: a page of metrics stays small, whole and true."""

from __future__ import annotations

import asyncio
import json
import time
from random import Random
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headgate.control.telemetry.bounds import LABEL_BYTES, MAX_BYTES, MAX_SERIES
from tests_support.answers import chat_completion, json_response
from tests_support.gateway import bearer, config_for
from tests_support.process import gateway_process
from tests_support.raw import CHAT, RawClient, request
from tests_support.tokens import Issuer
from tests_support.upstream import FakeUpstream, Request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests_support.process import GatewayProcess

CONNECTIONS = 8
ODD = ('"', "\\", "\n", "{", "}", "\t", "\x7f", "é", "💥", "\u2028", " ", "=", ",", "#", "x" * 200)
STATUSES = sorted(set(range(400, 600)) - {401, 403, 429})
"""But those after which a key rests."""
ISSUER = Issuer(time.time())


def value(n: int) -> str:
    """A made-up name, no two alike."""
    return Random(n).choice(ODD) + f"{n}" + Random(n + 1).choice(ODD)


def said(asked: Request) -> bytes:
    """An answer to one in two, an error under a status and a code of its own to the others."""
    if asked.target.endswith("/keys"):
        return json_response(json.loads(ISSUER.jwks()))
    n = int(asked.header("x-number") or 0)
    if n % 2:
        return json_response(chat_completion(model=value(n)))
    error = {"message": value(n), "type": value(n), "param": value(n), "code": value(n)}
    made = json_response({"error": error}, 400, headers=[("x-request-id", f"up-{n}")])
    return made.replace(b" 400 Bad Request", b" %d Made Up" % STATUSES[n // 2 % len(STATUSES)], 1)


def asked(numbers: range, tokens: list[str]) -> Iterator[bytes]:
    for n in numbers:
        name = value(n)
        body = json.dumps({"model": name, "user": name, "messages": [{"role": "user", "content": "hi"}]}).encode()
        fields = [("x-number", str(n)), ("x-request-id", f"mine-{n}"), ("x-headgate-tags", f"t{n}")]
        fields += bearer(tokens[n % len(tokens)])
        match n % 5:
            case 0:
                yield request("POST", f"/openai/deployments/{quote(name, safe='')}/chat/completions", body, fields)
            case 1:
                yield request("GET", f"/v1/models/{quote(name, safe='')}", None, fields)
            case 2:
                yield request("GET", f"/made/{quote(name, safe='')}", None, fields)
            case _:
                yield request("POST", CHAT, body, fields)


async def ask_all(gateway: GatewayProcess, number: int, tokens: list[str]) -> None:
    async def some(first: int) -> None:
        left = asked(range(first, number, CONNECTIONS), tokens)
        data = next(left, None)
        while data is not None:
            async with RawClient(gateway.port) as client:
                closes = False
                while data is not None and not closes:
                    await client.send(data)
                    closes = (await client.answer()).header("connection") == "close"
                    data = next(left, None)

    await asyncio.gather(*map(some, range(CONNECTIONS)))


async def keys_known(gateway: GatewayProcess, token: str) -> None:
    """The keys of tokens are on their way."""
    while (await gateway.send("GET", "/v1/models", key=token)).status == 503:  # noqa: ASYNC110 - nobody tells when
        await asyncio.sleep(0.1)


async def answered_of(gateway: GatewayProcess) -> float:
    """How many exchanges a page counts, once that is as many as the ledger has rows, and both stand still."""
    before = -1.0
    while True:
        page = (await gateway.admin.send("GET", "/metrics", key=None)).body
        counted = sum(count for (name, _), count in series_of(page).items() if name == "headgate_exchanges_total")
        if counted == before == len(gateway.ledger()):
            return counted
        before = counted
        await asyncio.sleep(0.7)  # workers tell once a second, and spools are read twice


def series_of(page: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found: dict[Any, float] = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, key
            found[key] = sample.value
    return found


@pytest.mark.parametrize(
    ("workers", "number"),
    [(1, 600), pytest.param(1, 10_000, marks=pytest.mark.slow), pytest.param(2, 10_000, marks=pytest.mark.slow)],
)
async def test_a_page_of_metrics_stays_small_and_counts_every_exchange(workers: int, number: int) -> None:
    tokens = [ISSUER.token(sub=value(n), team=value(n)) for n in range(50)]
    async with FakeUpstream(said) as upstream:
        config = config_for(upstream, retry=False)
        config["filters"][0]["auth"]["jwt"] = ISSUER.config(f"{upstream.base_url}/keys")
        config["filters"] += [
            {"rate_limit": {"per": ["key", "model"], "requests_per_day": 1_000_000}},
            "circuit_breaker",
        ]
        async with gateway_process(config, workers=workers) as gateway:
            await keys_known(gateway, tokens[0])
            await ask_all(gateway, number, tokens)
            async with asyncio.timeout(120):
                exchanges = await answered_of(gateway)
            page = (await gateway.admin.send("GET", "/metrics", key=None)).body
            stats = await gateway.admin.send("GET", "/stats", key=None)
    found = series_of(page)
    assert len(found) <= MAX_SERIES
    assert len(page) <= MAX_BYTES
    values = {text for _, labels in found for _, text in labels}
    assert all(text.isprintable() and len(text.encode()) <= LABEL_BYTES for text in values)
    assert number * 0.2 < exchanges <= number  # the others are refused for their token or their path, or are no calls
    assert stats.status == 200
    assert "headgate_exchanges_total" in stats.body.decode()
