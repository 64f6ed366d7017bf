"""Which request fields reach the provider: unknown ones pass, credentials and hop-by-hop fields never do (wire 3-7)."""

from __future__ import annotations

import pytest

from tests_support.answers import chat_completion, json_response
from tests_support.gateway import CLIENT_KEY, PROVIDER_KEY, config_for, gateway_over, running_gateway
from tests_support.upstream import FakeUpstream

KEPT = [
    ("user-agent", "OpenAI/Python 3.51.0"),
    ("accept", "application/json"),
    ("accept-language", "*"),
    ("openai-organization", "org-1"),
    ("openai-project", "proj_1"),
    ("openai-beta", "assistants=v2"),
    ("x-stainless-lang", "python"),
    ("x-stainless-retry-count", "1"),
    ("x-stainless-read-timeout", "600"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("tracestate", "a=b"),
    ("baggage", "k=v"),
    ("idempotency-key", "ik-1"),
    ("x-unheard-of", "one"),
    ("x-unheard-of", "two"),
    ("x-empty", ""),
    ("x-latin", "caf\xe9"),
]
STRIPPED = [
    ("x-api-key", "client-secret-0001"),
    ("api-key", "client-secret-0002"),
    ("x-goog-api-key", "client-secret-0003"),
    ("cookie", "session=client-secret-0004"),
    ("proxy-authorization", "Basic client-secret-0005"),
    ("proxy-connection", "keep-alive"),
    ("te", "trailers"),
    ("trailer", "x-checksum"),
    ("keep-alive", "timeout=5"),
    ("x-forwarded-for", "10.1.2.3"),
    ("x-forwarded-host", "internal.example"),
    ("x-forwarded-proto", "https"),
    ("forwarded", "for=10.1.2.3"),
    ("x-real-ip", "10.1.2.3"),
    ("via", "1.1 proxy"),
    ("x-headgate-tags", "a"),
    ("x-headgate-anything", "b"),
]
OURS = {"host", "content-length", "content-type", "accept-encoding", "authorization", "x-request-id"}


async def sent_up(headers: list[tuple[str, str]], target: str = "/v1/chat/completions") -> tuple[FakeUpstream, int]:
    async with gateway_over(json_response(chat_completion())) as (gateway, upstream):
        answer = await gateway.post(headers=headers, target=target)
    return upstream, answer.status


async def test_unknown_fields_pass_in_order_and_repeated_ones_stay_repeated() -> None:
    """Wire 3, 7."""
    upstream, _ = await sent_up(KEPT)
    assert [field for field in upstream.requests[0].headers if field[0] not in OURS] == KEPT


async def test_credentials_hop_by_hop_and_our_own_fields_never_go_up() -> None:
    """Wire 5."""
    upstream, status = await sent_up([*KEPT, *STRIPPED])
    assert status == 200
    assert [field for field in upstream.requests[0].headers if field[0] not in OURS] == KEPT
    assert b"client-secret" not in upstream.requests[0].raw


async def test_fields_that_connection_names_never_go_up() -> None:
    """Wire 5."""
    named = [
        ("connection", "keep-alive, X-Hop-One"),
        ("connection", "x-hop-two"),
        ("x-hop-one", "1"),
        ("x-hop-two", "2"),
    ]
    upstream, _ = await sent_up([*named, ("x-stays", "3")])
    names = {name for name, _ in upstream.requests[0].headers}
    assert not names & {"x-hop-one", "x-hop-two"}
    assert "x-stays" in names


async def test_the_provider_gets_its_own_key_and_never_the_clients() -> None:
    """Wire 5."""
    upstream, _ = await sent_up([])
    request = upstream.requests[0]
    assert [value for name, value in request.headers if name == "authorization"] == [f"Bearer {PROVIDER_KEY}"]
    assert CLIENT_KEY.encode() not in request.raw


async def test_a_provider_without_a_key_gets_no_credential_at_all() -> None:
    """Wire 5."""
    async with gateway_over(json_response(chat_completion()), provider_key=None) as (gateway, upstream):
        await gateway.post()
    assert upstream.requests[0].header("authorization") is None
    assert CLIENT_KEY.encode() not in upstream.requests[0].raw


async def test_a_key_in_a_field_of_its_own_stays_here_and_so_does_the_bearer() -> None:
    """Wire 5."""
    async with FakeUpstream(json_response(chat_completion())) as upstream:
        config = config_for(upstream, provider_key=None)
        config["filters"][0]["auth"]["header"] = "X-Team-Key"
        async with running_gateway(config) as gateway:
            headers = [("x-team-key", CLIENT_KEY), ("authorization", "Bearer somebody-elses")]
            answer = await gateway.post(headers=headers, key=None)
    assert answer.status == 200
    assert CLIENT_KEY.encode() not in upstream.requests[0].raw
    assert b"somebody-elses" not in upstream.requests[0].raw


@pytest.mark.parametrize("asked", ["gzip, deflate, br, zstd", "*", "identity;q=0", None])
async def test_identity_is_asked_for_whatever_the_client_takes(asked: str | None) -> None:
    """Wire 4."""
    upstream, _ = await sent_up([("accept-encoding", asked)] if asked else [])
    assert [value for name, value in upstream.requests[0].headers if name == "accept-encoding"] == ["identity"]


async def test_host_and_framing_are_the_upstreams_own() -> None:
    """Wire 5."""
    upstream, _ = await sent_up([])
    request = upstream.requests[0]
    assert request.header("host") == f"127.0.0.1:{upstream.port}"
    assert [value for name, value in request.headers if name == "content-length"] == [str(len(request.body))]
    assert request.header("transfer-encoding") is None


@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded", "text/plain", None])
async def test_the_body_goes_up_as_json_whatever_the_client_called_it(content_type: str | None) -> None:
    """Wire 9, as `curl -d` sends it."""
    upstream, status = await sent_up([("content-type", content_type)] if content_type else [])
    assert status == 200
    assert [value for name, value in upstream.requests[0].headers if name == "content-type"] == ["application/json"]


@pytest.mark.parametrize("query", ["", "?a=1&b=%2F%20x&a=2", "?api-version=2024-10-21", "?x=%C3%A9&empty=&flag"])
async def test_the_query_passes_as_it_was_spelled(query: str) -> None:
    """Wire 7."""
    upstream, status = await sent_up([], target="/v1/chat/completions" + query)
    assert status == 200
    assert upstream.requests[0].target == "/v1/chat/completions" + query


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("/v1", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("", "/chat/completions"),
        ("/", "/chat/completions"),
        ("/openai/v1", "/openai/v1/chat/completions"),
        ("/a/b%20c/v1/", "/a/b%20c/v1/chat/completions"),
    ],
)
async def test_any_base_url_works_with_and_without_a_trailing_slash(base: str, expected: str) -> None:
    """Wire 1."""
    async with FakeUpstream(json_response(chat_completion())) as upstream:
        config = config_for(upstream)
        config["providers"]["up"]["base_url"] = upstream.url + base
        async with running_gateway(config) as gateway:
            assert (await gateway.post()).status == 200
    assert upstream.requests[0].target == expected


@pytest.mark.parametrize("id_", ["r-1", "x" * 128, "a/b:c=d?"])
async def test_the_clients_request_id_goes_up(id_: str) -> None:
    """Design §5."""
    upstream, _ = await sent_up([("x-request-id", id_)])
    assert upstream.requests[0].request_id == id_


@pytest.mark.parametrize("id_", ["", "x" * 129, "with space", "caf\xe9"])
async def test_an_unfit_request_id_is_replaced(id_: str) -> None:
    """Design §5: at most 128 visible ASCII characters."""
    upstream, status = await sent_up([("x-request-id", id_)])
    assert status == 200
    assert upstream.requests[0].request_id not in ("", id_, None)
