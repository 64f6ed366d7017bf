"""Answers that are no streams: status, type and bytes of the provider pass unchanged, our fields beside its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests_support.answers import chat_completion, chunk, error_response, json_response, response, response_head
from tests_support.gateway import CLIENT_KEY, PROVIDER_KEY, gateway_over
from tests_support.upstream import FIN, Step

if TYPE_CHECKING:
    from tests_support.raw import Answer

ODD_BODY = '{ "choices": [],\n "x": 1.0, "y": 1e3, "é": "\\u0041\u2028", "usage": null }\n'.encode()

PASSED_HEADERS = [
    ("x-request-id", "req_upstream_1"),
    ("openai-processing-ms", "411"),
    ("openai-version", "2020-10-01"),
    ("openai-organization", "org-1"),
    ("openai-project", "proj_1"),
    ("x-ratelimit-limit-requests", "10000"),
    ("x-ratelimit-remaining-tokens", "199990"),
    ("x-ratelimit-reset-requests", "8.64s"),
    ("x-ratelimit-reset-tokens", "6m0s"),
    ("x-unheard-of", "one"),
    ("x-unheard-of", "two"),
]
DROPPED_HEADERS = [
    ("set-cookie", "__cf_bm=canary"),
    ("server", "cloudflare"),
    ("alt-svc", 'h3=":443"'),
    ("keep-alive", "timeout=5"),
    ("x-headgate-cost-usd", "0"),
    ("x-headgate-anything", "spoofed"),
    ("connection", "x-hop"),
    ("x-hop", "1"),
]


async def asked(*script: Step, body: bytes = b'{"model":"gpt-4o-mini"}', retry: bool = False) -> Answer:
    async with gateway_over(script, retry=retry) as (gateway, _):
        answer = await gateway.post(body)
    assert answer.whole
    return answer


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_body_bytes_pass_unchanged_whatever_frames_them(framing: str) -> None:
    """Wire 12."""
    head = [("content-type", "application/json; charset=utf-8")]
    scripts: dict[str, list[Step]] = {
        "length": [response(200, ODD_BODY, head)],
        "chunked": [
            response_head(200, [*head, ("transfer-encoding", "chunked")]),
            *(chunk(ODD_BODY[at : at + 7]) for at in range(0, len(ODD_BODY), 7)),
            b"0\r\n\r\n",
        ],
        "close": [response_head(200, [*head, ("connection", "close")]), ODD_BODY, FIN],
    }
    answer = await asked(*scripts[framing])
    assert (answer.status, answer.body, answer.header("content-type")) == (200, ODD_BODY, head[0][1])


@pytest.mark.parametrize("status", [400, 402, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529])
async def test_a_providers_own_error_passes_unchanged(status: int) -> None:
    """Wire 12, 15."""
    head = b"HTTP/1.1 %d Whatever\r\ncontent-type: application/json\r\nx-request-id: up-1\r\n" % status
    body = b'{"error": {"message": "no", "type": "t", "param": null, "code": "c", "more": [1.0]}}'
    answer = await asked(head + b"content-length: %d\r\n\r\n" % len(body) + body)
    assert (answer.status, answer.body, answer.header("x-request-id")) == (status, body, "up-1")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html", b"<html>Bad Gateway</html>"),
        ("text/plain; charset=latin-1", b"caf\xe9"),
        ("application/json", b""),
        ("application/json", b"[1"),
    ],
)
async def test_a_body_that_is_not_json_passes_unchanged(content_type: str, body: bytes) -> None:
    """Wire 12."""
    answer = await asked(response(500, body, [("content-type", content_type)]))
    assert (answer.status, answer.body, answer.header("content-type")) == (500, body, content_type)


async def test_an_encoded_answer_passes_encoded() -> None:
    """Wire 4, design §10."""
    import gzip

    body = gzip.compress(json.dumps(chat_completion()).encode())
    answer = await asked(response(200, body, [("content-type", "application/json"), ("content-encoding", "gzip")]))
    assert (answer.body, answer.header("content-encoding")) == (body, "gzip")


async def test_the_providers_fields_pass_but_not_its_hop_its_cookies_or_our_names() -> None:
    """Wire 13; faults §4 (20)."""
    answer = await asked(json_response(chat_completion(), headers=[*PASSED_HEADERS, *DROPPED_HEADERS]))
    passed = [field for field in answer.headers if field[0] in dict(PASSED_HEADERS)]
    assert passed == PASSED_HEADERS
    names = {name for name, _ in answer.headers}
    assert not names & {"set-cookie", "alt-svc", "x-headgate-anything", "x-hop"}
    assert answer.header("server") != "cloudflare"
    assert answer.header("x-headgate-cost-usd") != "0"


@pytest.mark.parametrize(
    ("name", "value"),
    [("retry-after", "7"), ("retry-after-ms", "1500"), ("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT")],
)
async def test_a_providers_retry_advice_passes(name: str, value: str) -> None:
    """Wire 13, 17."""
    answer = await asked(error_response(429, "slow down", headers=[(name, value)]))
    assert (answer.status, answer.header(name)) == (429, value)


@pytest.mark.parametrize("status", [401, 403])
async def test_our_own_bad_credential_is_a_gateway_error_and_not_the_clients(status: int) -> None:
    """Design §5."""
    answer = await asked(error_response(status, f"Incorrect API key provided: {PROVIDER_KEY[:8]}"))
    assert (answer.status, answer.error["code"]) == (502, "upstream_auth_failed")
    assert PROVIDER_KEY[:8].encode() not in answer.raw
    assert answer.header("x-request-id")


async def test_what_an_answer_used_and_cost_stands_on_it() -> None:
    """Design §5."""
    async with gateway_over(json_response(chat_completion(model="gpt-4o-mini-2024-07-18"))) as (gateway, _):
        answer = await gateway.post(b'{"model":"gpt-4o-mini"}')
        [row] = await gateway.rows(1)
    fields = dict(answer.headers)
    assert fields["x-headgate-provider"] == "up"
    assert fields["x-headgate-model"] == "gpt-4o-mini"
    assert fields["x-headgate-attempts"] == "1"
    assert (fields["x-headgate-tokens-prompt"], fields["x-headgate-tokens-completion"]) == ("9", "12")
    assert float(fields["x-headgate-cost-usd"]) == pytest.approx(9 * 0.15e-6 + 12 * 0.6e-6)
    for name in ("latency-ms", "upstream-ms", "overhead-ms"):
        assert float(fields[f"x-headgate-{name}"]) >= 0
    assert float(fields["x-headgate-latency-ms"]) >= float(fields["x-headgate-upstream-ms"])
    assert "server-timing" in fields
    assert fields["x-headgate-config"]
    assert fields["x-headgate-request-id"] == row.id
    assert row.cost_usd == pytest.approx(float(fields["x-headgate-cost-usd"]))
    assert (row.outcome, row.status, row.provider, row.upstream_model) == ("ok", 200, "up", "gpt-4o-mini")


async def test_a_vendors_price_list_can_be_named() -> None:
    """Design §6: `price_as`, where the host does not tell whose prices hold."""
    costs = []
    for price_as in (None, "groq"):
        async with gateway_over(json_response(chat_completion()), price_as=price_as) as (gateway, _):
            costs.append((await gateway.post(b'{"model":"llama-3.3-70b-versatile"}')).header("x-headgate-cost-usd"))
    assert costs[0] is None
    assert float(costs[1] or 0) > 0


async def test_an_unknown_price_is_absent_and_never_zero() -> None:
    """Design §5."""
    async with gateway_over(json_response(chat_completion(model="home-made"))) as (gateway, _):
        answer = await gateway.post(b'{"model":"home-made"}')
        [row] = await gateway.rows(1)
    assert answer.header("x-headgate-cost-usd") is None
    assert row.cost_usd is None


async def test_the_upstreams_request_id_comes_down_and_ours_beside_it() -> None:
    """Wire 13, design §5."""
    async with gateway_over(json_response(chat_completion(), headers=[("x-request-id", "req_up")])) as (
        gateway,
        upstream,
    ):
        answer = await gateway.post(headers=[("x-request-id", "mine-1")])
        [row] = await gateway.rows(1)
    assert answer.header("x-request-id") == "req_up"
    assert (row.upstream_request_id, row.client_request_id) == ("req_up", "mine-1")
    assert upstream.requests[0].request_id == "mine-1"
    assert answer.header("x-headgate-request-id") not in (None, "req_up", "mine-1")


async def test_an_answer_without_an_id_gets_one() -> None:
    """Wire 13."""
    answer = await asked(json_response(chat_completion()))
    assert answer.header("x-request-id")


async def test_no_secret_is_in_an_answer() -> None:
    """Wire 5."""
    answer = await asked(json_response(chat_completion()))
    assert PROVIDER_KEY.encode() not in answer.raw
    assert CLIENT_KEY.encode() not in answer.raw


async def test_a_large_answer_passes_whole() -> None:
    """Wire 12; above what is collected for failover it is relayed as it comes."""
    body = json.dumps(chat_completion("x" * 12_000_000)).encode()
    answer = await asked(json_response(body))
    assert answer.body == body
