"""HttpEndpoint: what is sent, and that a connection serves one call after the other."""

from __future__ import annotations

import pytest

from headgate.proxy.upstream.call import UpstreamRequest
from tests_support.answers import json_response, response
from tests_support.caller import Caller
from tests_support.upstream import FakeUpstream, Pause

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_a_request_leaves_with_the_endpoints_own_fields_first_and_the_answer_comes_back_whole() -> None:
    answer = json_response({"ok": True}, headers=[("X-Request-Id", "u1")])
    async with (
        FakeUpstream(answer) as upstream,
        Caller(upstream.base_url, credential=[(b"authorization", b"Bearer k")]) as caller,
    ):
        heard = caller.ask(target=b"/chat/completions?a=b", headers=[(b"x-a", b"1"), (b"x-a", b"2")], body=b'{"m":1}')
        assert heard.events == []
        assert await heard.over() == "clean"
        assert heard.events == ["sent", "head", "data", "end"]
        assert heard.head is not None
        assert (heard.head.status, heard.head.header(b"x-request-id")) == (200, b"u1")
        assert heard.body == b'{"ok": true}'
        assert upstream.requests[0].raw == (
            b"POST /v1/chat/completions?a=b HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nauthorization: Bearer k\r\n"
            b"x-a: 1\r\nx-a: 2\r\ncontent-length: 7\r\n\r\n" % upstream.port + b'{"m":1}'
        )


async def test_a_field_that_would_break_the_line_is_an_error_of_ours_and_nothing_is_sent() -> None:
    async with FakeUpstream(response(200, b"x")) as upstream, Caller(upstream.base_url) as caller:
        heard = caller.ask(headers=[(b"x-a", b"b\r\nauthorization: stolen")])
        assert heard.events == []
        assert await heard.over() == "GatewayError"
        assert upstream.connections == []


async def test_the_host_field_names_the_port_only_where_it_is_not_the_usual_one() -> None:
    for url, host, name in (
        ("http://a.example", b"a.example", "http://a.example:80"),
        ("https://a.example/v1/", b"a.example", "https://a.example:443"),
        ("https://a.example:8443", b"a.example:8443", "https://a.example:8443"),
        ("http://[::1]:80", b"[::1]", "http://[::1]:80"),
    ):
        async with Caller(url, credential=[(b"authorization", b"secret")]) as caller:
            assert caller.endpoint.name == name
            head = caller.endpoint.encode_h1(UpstreamRequest(b"GET", b"/t", [], b""))
            assert head.partition(b"/t ")[2] == b"HTTP/1.1\r\nhost: " + host + b"\r\nauthorization: secret\r\n\r\n"
            assert repr(caller.endpoint) == f"<HttpEndpoint {name}>"


@pytest.mark.parametrize("url", ["ftp://a", "//a", "http://", "http://u:p@a", "http://a?b", "http://a#b", "a.example"])
async def test_a_base_url_that_says_too_much_or_too_little_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        await Caller(url).__aenter__()


@pytest.mark.parametrize("key", [b"k\n", b"k\r\nx-a: b", b"k\0", b"k\r"])
async def test_a_credential_that_would_break_the_line_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="credential"):
        await Caller("http://a.example", credential=[(b"authorization", key)]).__aenter__()


async def test_calls_and_counters_say_where_they_stand() -> None:
    hold = Pause()
    async with FakeUpstream([hold, response(200, b"x")]) as upstream, Caller(upstream.base_url) as caller:
        heard = caller.ask()
        assert repr(heard.call) == "<HttpCall waiting>"
        await heard.heard("sent")
        assert repr(heard.call) == "<HttpCall sent>"
        hold.go()
        await heard.over()
        assert repr(heard.call) == "<HttpCall over>"
        assert repr(caller.stats) == "<UpstreamStats cx_active=1, cx_total=1, rq_total=1>"
        assert caller.stats.as_dict()["rq_total"] == 1


async def test_a_connection_serves_one_call_after_the_other() -> None:
    async with FakeUpstream(response(200, b"x")) as upstream, Caller(upstream.base_url) as caller:
        for _ in range(5):
            assert await caller.ask().over() == "clean"
        assert [len(one.requests) for one in upstream.connections] == [5]
        assert (caller.stats.cx_total, caller.stats.rq_total) == (1, 5)
