"""http_protocol: a connection serves one request after the other, and says truly whether an answer is whole."""

from __future__ import annotations

from tests_support.edge import EchoAcceptor, post, running_edge
from tests_support.raw import RawClient


async def test_a_body_goes_up_and_an_answer_comes_down() -> None:
    async with running_edge(EchoAcceptor()) as edge, RawClient(edge.port) as client:
        await client.send(post(b'{"a": 1}'))
        answer = await client.answer()
    assert (answer.status, answer.body) == (200, b'{"a": 1}')
    assert answer.header("connection") is None


async def test_a_connection_is_kept_for_the_next_request() -> None:
    async with running_edge(EchoAcceptor()) as edge, RawClient(edge.port) as client:
        for number in range(5):
            await client.send(post(b"%d" % number))
            assert (await client.answer()).body == b"%d" % number
        assert edge.context.stats.accepted == 1
        assert edge.context.stats.requests == 5


async def test_other_paths_go_to_the_app() -> None:
    async with running_edge(EchoAcceptor()) as edge:
        answer = await edge.ask(post(b"x", path="/healthz"))
    assert answer.body == b"/healthz x"


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with running_edge(EchoAcceptor()) as edge, RawClient(edge.port) as client:
        await client.send(b"".join(post(b"%d" % number) for number in range(50)))
        for number in range(50):
            assert (await client.answer()).body == b"%d" % number
