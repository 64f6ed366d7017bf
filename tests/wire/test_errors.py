"""Errors of our own: status, code, the shape SDKs read, a request id, advice; nothing of it goes upstream."""

from __future__ import annotations

import gzip
from typing import Any

import pytest

from tests_support.answers import chat_completion, error_response, json_response
from tests_support.gateway import CLIENT_KEY, bearer, config_for, gateway_over, gateway_over_two, running_gateway
from tests_support.raw import CHAT, Answer, RawClient, request
from tests_support.upstream import FIN, RST, STALL, FakeUpstream, Step, in_turn

GOOD = b'{"model":"known","messages":[]}'


def assert_error(answer: Answer, status: int, code: str, param: str | None = None) -> None:
    """The shape every SDK reads (wire 14), with an id (wire 13)."""
    assert answer.status == status, answer.raw
    assert answer.whole
    assert (answer.header("content-type") or "").startswith("application/json")
    assert set(answer.json()) == {"error"}
    error = answer.error
    assert {"message", "type", "param", "code"} <= set(error)
    assert (error["code"], error["param"]) == (code, param)
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert answer.header("x-request-id")
    assert b"Traceback" not in answer.raw
    assert b"127.0.0.1" not in answer.body


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b'{"model":', "invalid_json", None),
        (b"", "invalid_json", None),
        (b"[]", "invalid_json", None),
        (b'{"messages":[]}', "missing_model", "model"),
        (b'{"model":""}', "missing_model", "model"),
        (b'{"model":7}', "missing_model", "model"),
        (b'{"model":"known","model":"known"}', "duplicate_field", None),
        (b'{"model":"known","x":%b%b}' % (b"[" * 64, b"]" * 64), "json_too_deep", None),
    ],
)
async def test_a_bad_body_is_the_callers_fault(body: bytes, code: str, param: str | None) -> None:
    """Wire 10."""
    async with gateway_over(json_response(chat_completion())) as (gateway, upstream):
        answer = await gateway.post(body)
        assert answer.error["type"] == "invalid_request_error"
        assert_error(answer, 400, code, answer.error["param"] if param is None else param)
    assert upstream.connections == []


async def test_an_unknown_model_is_404() -> None:
    """Wire 10."""
    async with FakeUpstream(json_response(chat_completion())) as upstream:
        config = {**config_for(upstream), "models": {"known": {"targets": [{"provider": "up"}]}}}
        async with running_gateway(config) as gateway:
            assert_error(await gateway.post(b'{"model":"unknown"}'), 404, "model_not_found", "model")
            assert (await gateway.post(GOOD)).status == 200
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    "credential",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {CLIENT_KEY}x",
        f"Bearer {CLIENT_KEY[:-1]}",
        f"Bearer {CLIENT_KEY.upper()}",
        f"Basic {CLIENT_KEY}",
        "Bearer caf\xe9",
        "Bearer " + "k" * 8000,
    ],
)
async def test_a_wrong_key_is_401_and_is_never_sent_on(credential: str | None) -> None:
    """Wire 15, design §5."""
    headers = [] if credential is None else [("authorization", credential)]
    async with gateway_over(json_response(chat_completion())) as (gateway, upstream):
        answer = await gateway.post(headers=headers, key=None)
        assert_error(answer, 401, "invalid_api_key")
        assert await gateway.rows(0) == []
    assert upstream.connections == []


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_is_read_in_any_case(scheme: str) -> None:
    """RFC 9110 §11.1."""
    async with gateway_over(json_response(chat_completion())) as (gateway, _):
        assert (await gateway.post(headers=[("authorization", f"{scheme} {CLIENT_KEY}")], key=None)).status == 200


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/", "/v1/chat", "/v1/chat/completion/x/y", "/v2/chat/completions", "/admin", "/metrics"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unknown_path_is_404_with_a_json_error(method: str, path: str) -> None:
    """Wire 2."""
    async with running_gateway(config_for()) as gateway:
        assert_error(await gateway.send(method, path, b"{}" if method == "POST" else None), 404, "unknown_path")


@pytest.mark.parametrize("path", ["/v1/%00", "/v1/%zz", "/v1/../admin", "//v1/models", "/v1/chat%2f"])
async def test_an_odd_path_is_refused_in_json(path: str) -> None:
    """Faults §3.6."""
    async with running_gateway(config_for()) as gateway:
        answer = await gateway.send("GET", path)
    assert answer.status in (400, 404)
    assert_error(answer, answer.status, answer.error["code"], answer.error["param"])


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [(method, CHAT, {"POST"}) for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS")]
    + [("POST", "/v1/models", {"GET", "HEAD"}), ("DELETE", "/v1/models/x", {"GET", "HEAD"})],
)
async def test_a_wrong_method_is_405_with_a_json_error_that_says_what_is_allowed(
    method: str, path: str, allowed: set[str]
) -> None:
    """Wire 2, RFC 9110 §15.5.6."""
    async with running_gateway(config_for()) as gateway:
        answer = await gateway.send(method, path, None if method == "GET" else b"{}")
    assert_error(answer, 405, "method_not_allowed")
    said = {one.strip() for one in (answer.header("allow") or "").split(",")}
    assert said
    assert said <= allowed


async def test_head_on_an_unknown_path_has_no_body() -> None:
    """Wire 2."""
    async with running_gateway(config_for()) as gateway, RawClient(gateway.port) as client:
        await client.send(request("HEAD", "/nowhere") + request("GET", "/healthz"))
        first = await client.answer(bodiless=True)
        second = await client.answer()
    assert (first.status, second.status) == (404, 200)


@pytest.mark.parametrize(
    "headers",
    [
        [("content-encoding", "gzip")],
        [("content-encoding", "br")],
        [("content-type", "multipart/form-data; boundary=x")],
    ],
)
async def test_encoded_and_multipart_bodies_are_415(headers: list[tuple[str, str]]) -> None:
    """Design §10."""
    async with gateway_over(json_response(chat_completion())) as (gateway, upstream):
        assert_error(await gateway.post(gzip.compress(GOOD), headers=headers), 415, "unsupported_media_type")
    assert upstream.connections == []


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_413_before_it_is_read_whole(chunked: bool) -> None:
    """Wire 9."""
    changes = {"limits": {"body": "64KiB"}}
    key = bearer(CLIENT_KEY)
    async with (
        gateway_over(json_response(chat_completion()), changes=changes) as (gateway, upstream),
        RawClient(gateway.port) as client,
    ):
        if chunked:
            await client.send(request("POST", CHAT, headers=[*key, ("Transfer-Encoding", "chunked")]))
            await client.send((b"8000\r\n" + b"x" * 0x8000 + b"\r\n") * 2 + b"8000\r\nx")
        else:
            await client.send(request("POST", CHAT, headers=[*key, ("Content-Length", "1000000000")]))
        assert_error(await client.answer(), 413, "body_too_large")
        assert await client.closed()
    assert upstream.connections == []


async def test_too_many_header_bytes_are_431() -> None:
    """Faults A9."""
    async with running_gateway(config_for()) as gateway, RawClient(gateway.port) as client:
        await client.send(request("GET", "/v1/models", headers=[("x-fill", "y" * 70_000)]))
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (431, "headers_too_large")
        assert await client.closed()


async def test_a_provider_without_its_key_is_503_and_the_variable_is_named() -> None:
    """Design §3, §6."""
    async with gateway_over(json_response(chat_completion()), provider_key="${NOWHERE_SET_KEY:-}") as (
        gateway,
        upstream,
    ):
        answer = await gateway.post(GOOD)
    assert_error(answer, 503, "provider_not_configured")
    assert "NOWHERE_SET_KEY" in answer.error["message"]
    assert 1 <= int(answer.header("retry-after") or 0) <= 60
    assert upstream.connections == []


BREAKS: dict[str, list[Step]] = {
    "closes before a word": [FIN],
    "resets before a word": [RST],
    "closes in the head": [b"HTTP/1.1 200 OK\r\nconte", FIN],
    "is not HTTP": [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", FIN],
    "closes in the body": [b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 90\r\n\r\n{", FIN],
    "resets in the body": [b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 90\r\n\r\n{", RST],
    "bad chunk": [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", FIN],
    "no last chunk": [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", FIN],
    "both framings": [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        FIN,
    ],
}


@pytest.mark.parametrize("how", BREAKS)
async def test_a_provider_that_breaks_is_502(how: str) -> None:
    """Faults §3.3."""
    async with gateway_over(BREAKS[how]) as (gateway, _):
        answer = await gateway.post(GOOD)
        [row] = await gateway.rows(1)
    assert_error(answer, 502, "upstream_error")
    assert answer.header("x-should-retry") is None
    assert (row.outcome, row.status, row.attempts) == ("failed", 502, 1)


async def test_a_provider_that_is_not_there_is_502_and_the_sdk_need_not_try_again() -> None:
    """Wire 16; faults §3.3."""
    async with FakeUpstream() as upstream:
        config = config_for(upstream)
    async with running_gateway(config) as gateway:
        answer = await gateway.post(GOOD)
        [row] = await gateway.rows(1)
    assert_error(answer, 502, "upstream_error")
    assert (row.outcome, row.attempts, answer.header("x-should-retry")) == ("failed", 3, "false")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_provider_that_says_nothing_is_504(stream: bool) -> None:
    """Wire 18."""
    timeouts = {"total": "300ms", "first_token": "300ms"}
    async with gateway_over([STALL], timeouts=timeouts, retry=False) as (gateway, upstream):
        answer = await gateway.post(b'{"model":"m","stream":%b}' % (b"true" if stream else b"false"))
        [row] = await gateway.rows(1)
        connection = await upstream.wait_closed()
    assert_error(answer, 504, "upstream_timeout")
    assert (row.outcome, row.status) == ("failed", 504)
    assert connection.closed_at is not None


async def test_the_callers_own_deadline_is_504() -> None:
    """Design §5: `x-headgate-timeout-ms`."""
    async with gateway_over([STALL]) as (gateway, upstream):
        answer = await gateway.post(GOOD, headers=[("x-headgate-timeout-ms", "200")])
    assert_error(answer, 504, "upstream_timeout")
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 529])
async def test_the_last_answer_goes_down_when_all_tries_are_spent(status: int) -> None:
    """Wire 16, design §3."""
    raw = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: 18\r\nx-try: %d\r\n\r\n"
    body = b'{"error":{"a":1}}\n'
    scripts = [raw % (status, n) + body for n in (1, 2)]
    async with gateway_over_two(in_turn(*scripts), in_turn(*scripts)) as (gateway, up, up2):
        answer = await gateway.post(GOOD)
        [row] = await gateway.rows(1)
    assert (answer.status, answer.body, answer.header("x-should-retry")) == (status, body, "false")
    assert (len(up.requests), len(up2.requests)) == (1, 1)
    assert (row.attempts, row.outcome, row.status) == (2, "upstream_error", status)


async def test_a_429_with_another_target_fails_over_at_once() -> None:
    """Faults G22."""
    busy, free = error_response(429, "slow", headers=[("retry-after", "30")]), json_response(chat_completion())
    async with gateway_over_two(busy, free) as (gateway, _, _):
        answer = await gateway.post(GOOD)
    assert (answer.status, answer.header("x-headgate-attempts")) == (200, "2")
    assert answer.header("x-headgate-provider") == "up2"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "169.254.169.254"])
async def test_a_foreign_host_is_refused_while_no_key_guards_the_port(host: str) -> None:
    """Design §10."""
    async with gateway_over(json_response(chat_completion()), auth=False) as (gateway, upstream):
        answer = await gateway.raw(request("POST", CHAT, GOOD, host=host))
    assert_error(answer, 403, "host_not_allowed")
    assert upstream.connections == []


@pytest.mark.parametrize("auth", [True, False])
async def test_a_foreign_origin_is_refused(auth: bool) -> None:
    """Design §10."""
    async with gateway_over(json_response(chat_completion()), auth=auth) as (gateway, upstream):
        assert_error(await gateway.post(GOOD, headers=[("origin", "https://evil.example")]), 403, "origin_not_allowed")
        host = f"127.0.0.1:{gateway.port}"
        own = await gateway.raw(request("POST", CHAT, GOOD, [("origin", gateway.url), *bearer(CLIENT_KEY)], host=host))
    assert own.status == 200
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("value", ["", "0", "-1", "x", "1.5", "99999999999999999999"])
async def test_an_unfit_deadline_of_the_caller_is_400(value: str) -> None:
    """Design §5."""
    async with gateway_over(json_response(chat_completion())) as (gateway, upstream):
        answer = await gateway.post(GOOD, headers=[("x-headgate-timeout-ms", value)])
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert upstream.connections == []


def test_the_helper_would_notice_a_missing_key() -> None:
    """`assert_error` is what many tests rest on."""
    fields: list[Any] = [("content-type", "application/json"), ("x-request-id", "1")]
    answer = Answer(400, fields, pieces=[b'{"error":{"message":"m","type":"t","code":"c"}}'], whole=True)
    with pytest.raises(AssertionError):
        assert_error(answer, 400, "c")
