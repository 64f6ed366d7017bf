"""Providers that cannot be reached, or whose TLS is wrong: no request leaves, and the client is told so in time."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import trustme

from tests_support.upstream import FIN, RST, STALL, FakeUpstream
from tests_support.wall import HEALTHY, REACHED_BY, wall

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests_support.wall import Wall

EXPECTED = {
    "refused": (502, "upstream_error"),
    "no-such-name": (502, "upstream_error"),
    "backlog-full": (504, "upstream_timeout"),
    "tls-stall": (504, "upstream_timeout"),
    "tls-reset": (502, "upstream_error"),
    "tls-is-http": (502, "upstream_error"),
    "tls-unknown-authority": (502, "upstream_error"),
}


def filled_backlog(stack: ExitStack) -> int:
    """A port that answers no more connections: its backlog is full."""
    deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    for _ in range(4):
        caller = stack.enter_context(socket.socket())
        caller.setblocking(False)
        caller.connect_ex(deaf.getsockname())
    return int(deaf.getsockname()[1])


def unused_port(stack: ExitStack) -> int:
    """A port on which nobody listens, and nobody will while the test runs."""
    taken = stack.enter_context(socket.socket())
    taken.bind(("127.0.0.1", 0))
    return int(taken.getsockname()[1])


@pytest.fixture
async def reached() -> AsyncIterator[tuple[Wall, list[FakeUpstream]]]:
    """A gateway whose providers are all of them, and those of them that listen."""
    unknown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(unknown)
    with ExitStack() as stack:
        async with (
            FakeUpstream(greeting=[STALL]) as stalling,
            FakeUpstream(greeting=[RST]) as resetting,
            FakeUpstream(greeting=[b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", FIN]) as plain,
            FakeUpstream(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", tls=unknown) as unverified,
        ):
            listening = [stalling, resetting, plain, unverified]
            urls = {
                "refused": f"http://127.0.0.1:{unused_port(stack)}/v1",
                "no-such-name": "http://no-such-host.invalid/v1",
                "backlog-full": f"http://127.0.0.1:{filled_backlog(stack)}/v1",
                "tls-stall": f"https://127.0.0.1:{stalling.port}/v1",
                "tls-reset": f"https://127.0.0.1:{resetting.port}/v1",
                "tls-is-http": f"https://127.0.0.1:{plain.port}/v1",
                "tls-unknown-authority": f"{unverified.base_url}",
            }
            async with wall(places=urls) as held:
                yield held, listening


async def test_nothing_is_sent_and_the_client_hears_of_it_in_time(
    reached: tuple[Wall, list[FakeUpstream]],
) -> None:
    held, listening = reached
    asked = {
        (place, stream): held.ask(HEALTHY, stream=stream, model=place, within=REACHED_BY)
        for place in EXPECTED
        for stream in (False, True)
    }
    told = dict(zip(asked, await asyncio.gather(*asked.values()), strict=True))
    await held.settled()
    for (place, _), one in told.items():
        assert one.row is not None
        assert (one.answer.status, one.answer.error["code"]) == EXPECTED[place], (place, one)
        assert one.row.outcome == "failed"
        assert b"no-such-host" not in one.answer.body
    assert [upstream.requests for upstream in listening] == [[], [], [], []]
    after = await held.ask(HEALTHY, stream=True)
    await held.settled()
    assert after.received == after.good
