"""Requests that no client means: each gets its JSON answer and a closed connection, and nobody above hears of it."""

from __future__ import annotations

from typing import Any

import pytest

from headgate.proxy.edge.guard import Guard
from headgate.proxy.edge.http_protocol import HttpProtocol
from tests_support.edge import EchoAcceptor, FakeTransport, running_edge
from tests_support.malformed import MALFORMED, OTHER_STATUS
from tests_support.raw import CHAT, RawClient

TABLE = [pytest.param(400, data, id=name) for name, data in MALFORMED.items()] + [
    pytest.param(status, data, id=name) for name, (status, data) in OTHER_STATUS.items()
]


@pytest.mark.parametrize(("status", "data"), TABLE)
@pytest.mark.parametrize("path", [CHAT, "/healthz"])
async def test_it_is_refused_and_the_connection_closed(status: int, data: bytes, path: str) -> None:
    asked: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope)

    acceptor = EchoAcceptor()
    async with running_edge(acceptor, app=app, guard=Guard(open_to_all=False)) as edge, RawClient(edge.port) as client:
        await client.send(data.replace(CHAT.encode(), path.encode()))
        answer = await client.answer()
        assert answer.status == status
        assert answer.header("connection") == "close"
        assert answer.header("content-type") == "application/json"
        assert set(answer.error) >= {"message", "type", "param", "code"}
        assert answer.error["type"] == "invalid_request_error"
        assert answer.header("x-request-id") == answer.error["request_id"]
        assert await client.closed()
        assert edge.context.stats.refused == 1
    assert acceptor.seen == []
    assert asked == []


@pytest.mark.parametrize(("status", "data"), TABLE)
async def test_it_is_refused_as_well_when_it_arrives_byte_by_byte(status: int, data: bytes) -> None:
    acceptor = EchoAcceptor()
    async with running_edge(acceptor) as edge:
        protocol = HttpProtocol(edge.context)
        transport = FakeTransport()
        protocol.connection_made(transport)
        for at in range(len(data)):
            protocol.data_received(data[at : at + 1])
            if transport.written:
                break
        protocol.connection_lost(None)
    assert transport.written.startswith(b"HTTP/1.1 %d " % status)
    assert acceptor.seen == []
