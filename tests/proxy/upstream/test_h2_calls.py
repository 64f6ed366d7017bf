"""HTTP/2: calls that go well, many over one connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, HeadersFrame, PingFrame, SettingsFrame, WindowUpdateFrame

from headgate.proxy.upstream.h2_session import CONNECTION_WINDOW, STREAM_WINDOW
from tests_support.caller import Caller, Recorder
from tests_support.h2_upstream import H2Upstream

if TYPE_CHECKING:
    from tests_support.h2_upstream import PeerStream

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_a_request_arrives_as_it_was_meant_and_the_answer_comes_back_whole() -> None:
    async def answer(stream: PeerStream) -> None:
        assert await stream.body() == b'{"m":1}'
        stream.head(200, [("content-type", "text/plain"), ("x-request-id", "u1"), ("content-length", "5")])
        await stream.data(b"hello", end=True)

    async with (
        H2Upstream(answer) as upstream,
        Caller(upstream.base_url, http2=True, credential=[(b"authorization", b"Bearer k")]) as caller,
    ):
        heard = caller.ask(target=b"/chat/completions?a=b", headers=[(b"x-a", b"1"), (b"x-a", b"2")], body=b'{"m":1}')
        assert heard.events == []
        assert await heard.over() == "clean"
        assert heard.events == ["sent", "head", "data", "end"]
        assert heard.head is not None
        assert (heard.head.status, heard.head.header(b"x-request-id")) == (200, b"u1")
        assert heard.body == b"hello"
        assert upstream.requests[0].headers == [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", f"127.0.0.1:{upstream.port}"),
            (":path", "/v1/chat/completions?a=b"),
            ("authorization", "Bearer k"),
            ("x-a", "1"),
            ("x-a", "2"),
            ("content-length", "7"),
        ]
        assert caller.stats.cx_http2_total == 1


async def test_many_calls_share_one_connection_and_what_one_turn_sends_leaves_together() -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        for _ in range(3):
            heard = [caller.ask() for _ in range(64)]
            assert [await one.over() for one in heard] == ["clean"] * 64
        assert len(upstream.peers) == caller.stats.cx_total == 1
        assert len(upstream.requests) == 192
        assert upstream.peers[0].reads < 30


async def test_our_first_words_forbid_pushes_and_bound_what_may_be_sent() -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask().over() == "clean"
        settings, window = upstream.peers[0].frames[:2]
        assert isinstance(settings, SettingsFrame)
        assert isinstance(window, WindowUpdateFrame)
        assert settings.settings == {
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            SettingCodes.MAX_HEADER_LIST_SIZE: 65536,
        }
        assert (window.stream_id, window.window_increment) == (0, CONNECTION_WINDOW - 65535)


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"DELETE", b"OPTIONS"])
async def test_a_request_without_a_body_ends_with_its_head(method: bytes) -> None:
    async def answer(stream: PeerStream) -> None:
        stream.head(200, [("content-length", "5")], end=method == b"HEAD")
        if method != b"HEAD":
            await stream.data(b"hello", end=True)

    async with H2Upstream(answer) as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask(method=method, body=b"")
        assert await heard.over() == "clean"
        assert heard.body == (b"" if method == b"HEAD" else b"hello")
        assert upstream.requests[0].header("content-length") is None
        heads = [one for one in upstream.peers[0].frames if isinstance(one, HeadersFrame)]
        assert "END_STREAM" in heads[0].flags
        assert not [one for one in upstream.peers[0].frames if isinstance(one, DataFrame)]


async def test_an_empty_post_says_that_it_is_empty() -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask(body=b"").over() == "clean"
        assert upstream.requests[0].header("content-length") == "0"


async def test_what_only_frames_http_1_1_does_not_cross_in_either_direction() -> None:
    connection = [("connection", "close"), ("keep-alive", "5"), ("transfer-encoding", "chunked"), ("upgrade", "x")]

    async def answer(stream: PeerStream) -> None:
        await stream.body()
        stream.head(200, [("x-a", "1"), *connection], end=True)

    sent = [(name.encode(), value.encode()) for name, value in connection] + [(b"host", b"evil"), (b"te", b"gzip")]
    async with H2Upstream(answer) as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask(headers=[*sent, (b"x-b", b"2")])
        assert await heard.over() == "clean"
        assert heard.head is not None
        assert heard.head.headers == [(b"x-a", b"1")]
        names = [name for name, _ in upstream.requests[0].headers if not name.startswith(":")]
        assert names == ["x-b", "content-length"]


@pytest.mark.parametrize(
    "field",
    [
        *[(b"x-a", value) for value in (b"b\r\nc: d", b"\n", b"\r", b"\0")],
        *[(name, b"b") for name in (b"x a", b"X-A", b"", b":path", b"x-a\r\n")],
    ],
)
async def test_a_field_that_cannot_be_sent_is_an_error_of_ours_and_costs_nobody_else(
    field: tuple[bytes, bytes],
) -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        good, bad, after = caller.ask(), caller.ask(headers=[field]), caller.ask()
        assert bad.events == []
        assert [await one.over() for one in (good, bad, after)] == ["clean", "GatewayError", "clean"]
        assert await caller.ask(headers=[field]).over() == "GatewayError"
        assert len(upstream.requests) == 2


@pytest.mark.parametrize("target", [b"/a b", b"/a\r\nx: y", b"/\0"])
async def test_a_target_that_is_none_is_not_sent(target: bytes) -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask(target=target).over() == "GatewayError"
        assert upstream.requests == []


async def test_interim_answers_are_skipped_and_trailers_dropped() -> None:
    async def answer(stream: PeerStream) -> None:
        await stream.body()
        for _ in range(3):
            stream.head(103, [("link", "</a>")])
        stream.head(200)
        await stream.data(b"hello")
        stream.trailers([("x-checksum", "1")])

    async with H2Upstream(answer) as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask()
        assert await heard.over() == "clean"
        assert (heard.status, heard.body) == (200, b"hello")


async def test_padding_and_priorities_are_understood() -> None:
    async def answer(stream: PeerStream) -> None:
        await stream.body()
        encoder = stream.peer.h2.encoder
        head = HeadersFrame(stream.id, encoder.encode([(":status", "200"), ("content-length", "5")]))
        head.flags |= {"PADDED", "PRIORITY", "END_HEADERS"}
        head.pad_length, head.depends_on, head.stream_weight, head.exclusive = 7, 0, 15, False
        data = DataFrame(stream.id, b"hello")
        data.flags |= {"PADDED", "END_STREAM"}
        data.pad_length = 255
        stream.peer.raw(head, data)

    async with H2Upstream(answer) as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask()
        assert await heard.over() == "clean"
        assert heard.body == b"hello"


async def test_a_head_too_large_for_one_frame_goes_out_and_comes_in_in_several() -> None:
    long = "x" * 40_000

    async def answer(stream: PeerStream) -> None:
        await stream.body()
        stream.head(200, [("x-long", long)], end=True)

    async with H2Upstream(answer) as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask(headers=[(b"x-long", long.encode())])
        assert await heard.over() == "clean"
        assert heard.head is not None
        assert heard.head.header(b"x-long") == long.encode()
        assert upstream.requests[0].header("x-long") == long
        kinds = [type(one).__name__ for one in upstream.peers[0].frames]
        assert kinds[kinds.index("HeadersFrame") :][:3] == ["HeadersFrame", "ContinuationFrame", "ContinuationFrame"]


async def test_a_ping_is_answered_with_its_own_bytes() -> None:
    async def answer(stream: PeerStream) -> None:
        await stream.body()
        stream.peer.raw(PingFrame(0, b"12345678"))
        stream.head(200, end=True)

    async with H2Upstream(answer) as upstream, Caller(upstream.base_url, http2=True) as caller:
        assert await caller.ask().over() == "clean"
        await upstream.until(lambda: [one for one in upstream.peers[0].frames if isinstance(one, PingFrame)])
        ping = next(one for one in upstream.peers[0].frames if isinstance(one, PingFrame))
        assert ("ACK" in ping.flags, ping.opaque_data) == (True, b"12345678")


async def test_calls_and_connections_say_where_they_stand() -> None:
    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        heard = caller.ask()
        assert repr(heard.call) == "<HttpCall waiting>"
        await heard.heard("sent")
        assert repr(heard.call) == "<HttpCall sent>"
        connection = caller.endpoint._pool._shared[0]
        assert repr(connection) == "<H2Connection 1 of 128>"
        assert repr(connection.session.streams[1]) == "<H2Stream 1>"
        await heard.over()
        assert repr(heard.call) == "<HttpCall over>"
        assert repr(connection) == "<H2Connection 0 of 128>"
    assert repr(connection) == "<H2Connection closed>"


async def test_a_receiver_that_raises_costs_its_own_call_and_is_heard_of() -> None:
    def raises(_: object) -> None:
        raise RuntimeError("a bug")

    async with H2Upstream() as upstream, Caller(upstream.base_url, http2=True) as caller:
        told: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context))
        for event in ("head", "data"):
            bad = caller.ask(Recorder({event: raises}))
            good = caller.ask()
            assert await bad.over() == "GatewayError"
            assert await good.over() == "clean"
        loop.set_exception_handler(None)
        assert [str(one["exception"]) for one in told] == ["a bug"] * 2
        assert len(upstream.peers) == 1
