"""fetch: one whole answer or the reason why not, within a size and a time; nothing stays under way."""

from __future__ import annotations

import asyncio

import pytest

from headgate.proxy.errors import BrokenAnswerError, ConnectError, GatewayError, ResetError
from headgate.proxy.upstream.call import ResponseHead, UpstreamRequest
from headgate.proxy.upstream.fetch import fetch
from tests_support.answers import response
from tests_support.calls import FakeCall, FakeEndpoint

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Asking:
    """One fetch of 10 bytes at the most, under way."""

    def __init__(self, seconds: float = 30.0) -> None:
        self._endpoint = FakeEndpoint("http://up")
        request = UpstreamRequest(b"GET", b"/models", [], b"")
        self.task = asyncio.ensure_future(fetch(self._endpoint, request, most=10, seconds=seconds))

    async def call(self) -> FakeCall:
        await asyncio.sleep(0)
        return self._endpoint.calls[0]


async def whole(asking: Asking) -> tuple[ResponseHead, bytes]:
    async with asyncio.timeout(5):
        return await asking.task


async def test_a_whole_answer_is_given() -> None:
    asking = Asking()
    call = await asking.call()
    assert (call.request.method, call.request.target) == (b"GET", b"/models")
    call.sent()
    call.feed(response(404, b"0123456789", [("x-a", "b")]))
    head, body = await whole(asking)
    assert (head.status, head.header(b"x-a"), body) == (404, b"b", b"0123456789")


async def test_without_a_length_the_end_of_the_connection_is_the_end() -> None:
    asking = Asking()
    call = await asking.call()
    call.feed(b"HTTP/1.1 200 OK\r\n\r\n01")
    call.fin()
    assert (await whole(asking))[1] == b"01"


async def test_one_byte_more_than_may_be_is_refused_and_the_call_ended() -> None:
    asking = Asking()
    call = await asking.call()
    call.feed(HEAD + b"6\r\n012345\r\n")
    call.feed(b"5\r\n01234\r\n")
    call.feed(b"5\r\n01234\r\n0\r\n\r\n")
    with pytest.raises(BrokenAnswerError, match="larger than 10 bytes"):
        await whole(asking)
    assert call.over


@pytest.mark.parametrize("error", [ConnectError("no"), ResetError("gone")])
async def test_what_kept_it_from_being_whole_is_raised(error: GatewayError) -> None:
    asking = Asking()
    (await asking.call()).fail(error)
    with pytest.raises(type(error)) as caught:
        await whole(asking)
    assert caught.value is error


async def test_too_late_is_a_timeout_and_ends_the_call() -> None:
    asking = Asking(seconds=0.01)
    call = await asking.call()
    call.feed(HEAD)
    with pytest.raises(TimeoutError):
        await whole(asking)
    assert call.cancelled


async def test_cancelled_it_ends_the_call() -> None:
    asking = Asking()
    call = await asking.call()
    asking.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking.task
    assert call.cancelled
