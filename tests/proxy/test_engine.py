"""engine: takes exchanges, drains, and closes with nothing left."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from headgate.proxy.edge.context import EdgeLimits
from headgate.proxy.edge.head_reader import HeadReader
from headgate.proxy.filter import Filter
from tests_support.answers import chat_completion, json_response
from tests_support.downstream import CHAT, FakeDownstream
from tests_support.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from headgate.proxy.edge.request_head import HttpRequestHead

BODY = b'{"model":"m"}'
GOOD = json_response(chat_completion())


async def test_it_takes_the_paths_of_its_table_whatever_the_method() -> None:
    engine = Relay().engine
    assert engine.accepts("/v1/chat/completions")
    assert engine.accepts("/v1/models/gpt-4o")
    assert not engine.accepts("/v1/models/")
    assert not engine.accepts("/")


async def test_ids_are_unique_and_say_nothing() -> None:
    first, second = Relay().engine, Relay().engine
    ids = [first.next_id() for _ in range(1000)] + [second.next_id() for _ in range(1000)]
    assert len(set(ids)) == 2000
    assert all(re.fullmatch(r"hg_[0-9a-f]{24}", id_) for id_ in ids)


async def test_draining_waits_for_what_runs_and_turns_away_what_comes() -> None:
    relay = Relay()
    exchange = relay.ask(BODY)
    draining = asyncio.create_task(relay.engine.drain(10))
    await relay.clock.run(1)
    assert not draining.done()
    assert relay.accept(FakeDownstream(BODY)).downstream.status == 503
    relay.providers[0].last.feed(GOOD)
    await relay.clock.run(0.1)
    assert draining.done()
    assert await draining == 0
    assert exchange.downstream.status == 200


async def test_draining_ends_with_its_grace_and_says_what_is_left() -> None:
    relay = Relay()
    relay.ask(BODY)
    draining = asyncio.create_task(relay.engine.drain(2))
    await relay.clock.run(2.1)
    assert await draining == 1
    assert len(relay.engine.live) == 1


async def test_closing_cancels_every_task() -> None:
    class Stuck(Filter):
        cancelled = False

        async def on_request(self, ex: object) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled = True

    stuck = Stuck()
    relay = Relay(filters=[stuck])
    exchange = relay.ask(BODY)
    other = relay.engine.spawn(asyncio.Event().wait())  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await relay.engine.aclose()
    assert stuck.cancelled
    assert other.cancelled()
    assert exchange.row.error_code == "shutting_down"
    assert relay.at_rest()
    await relay.engine.aclose()


async def test_every_exchange_that_is_cut_leaves_its_record() -> None:
    relay = Relay()
    for _ in range(5):
        relay.accept(FakeDownstream(BODY))
    downstream = FakeDownstream(BODY)
    relay.accept(downstream)
    downstream.deliver()
    relay.engine.cut()
    outcomes = [getattr(line, "outcome", "opened") for line in relay.lines.take()]
    assert sorted(outcomes) == ["opened"] * 6 + ["refused"] * 6
    assert relay.at_rest()


def heads_on_a_connection(fields: str, values: Sequence[str]) -> Iterator[HttpRequestHead]:
    """From the third on they are held against the one before. `%s` in `fields` stands for each of `values`."""
    reader = HeadReader()
    for value in values:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(BODY)}\r\n{fields}\r\n".replace("%s", value)
        found = reader.read(head.encode(), EdgeLimits(), "127.0.0.1")
        assert found is not None
        yield found[0]


def answer_to(relay: Relay, head: HttpRequestHead) -> FakeDownstream:
    downstream = FakeDownstream(BODY)
    downstream.head = head
    relay.ask(BODY, downstream)
    for call in relay.calls:
        call.feed(GOOD)
    return downstream


async def test_a_head_that_comes_again_is_for_the_face_that_the_table_of_the_moment_has() -> None:
    relay, other = Relay(), Relay()
    table = other.engine.graph.faces
    table._exact = {"/v1/embeddings": table._exact["/v1/embeddings"]}
    for n, head in enumerate(heads_on_a_connection("", "abcdef")):
        assert (head.known is not None) is (n > 1)
        if n == 4:
            relay.engine.graph = other.engine.graph
        assert answer_to(relay, head).status == (200 if n < 4 else 404)


async def test_what_a_head_asks_of_the_gateway_is_read_each_time_it_comes() -> None:
    relay = Relay()
    for head in heads_on_a_connection("x-headgate-timeout-ms: no\r\n", "abcd"):
        assert answer_to(relay, head).status == 400


async def test_each_head_that_comes_again_has_the_id_that_its_client_gave_it() -> None:
    relay, ids = Relay(), ["a", "b", "c", "d", "e"]
    heads = heads_on_a_connection("x-request-id: %s\r\n", ids)
    assert [answer_to(relay, head).header(b"x-request-id") for head in heads] == [b"a", b"b", b"c", b"d", b"e"]


async def test_exchanges_keep_the_graph_they_began_with() -> None:
    relay, other = Relay(), Relay()
    downstream = FakeDownstream(BODY)
    relay.accept(downstream)
    relay.engine.graph = other.engine.graph
    downstream.deliver()
    assert len(relay.providers[0].calls) == 1
    late = FakeDownstream(BODY)
    relay.accept(late)
    late.deliver()
    assert len(other.providers[0].calls) == 1
