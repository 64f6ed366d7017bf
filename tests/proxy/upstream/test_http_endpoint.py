"""HttpEndpoint: what is sent, and that a connection serves one call after the other."""

from __future__ import annotations

import pytest

from tests_support.answers import json_response, response
from tests_support.caller import Caller
from tests_support.upstream import FakeUpstream

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


async def test_a_connection_serves_one_call_after_the_other() -> None:
    async with FakeUpstream(response(200, b"x")) as upstream, Caller(upstream.base_url) as caller:
        for _ in range(5):
            assert await caller.ask().over() == "clean"
        assert [len(one.requests) for one in upstream.connections] == [5]
        assert (caller.stats.cx_total, caller.stats.rq_total) == (1, 5)
