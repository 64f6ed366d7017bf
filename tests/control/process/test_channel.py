"""channel: whole messages in order however the bytes arrive, and the end of the stream for anything else."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.config import Problem
from headgate.control.process.channel import (
    MAX_MESSAGE,
    Channel,
    Configure,
    Explain,
    Explained,
    FromSupervisor,
    FromWorker,
    Jwks,
    Leave,
    ReadKeys,
    Ready,
    Refuse,
    Refused,
    Show,
    Told,
    WantJwks,
)
from headgate.proxy.catalog import ListedModel, Listing
from headgate.proxy.snapshot import Counters, Snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

WITHIN = 5.0
LISTING = Listing("openai", "https://a/v1", (ListedModel("a/é:b", 5, 4096, {"tools": True}), ListedModel("c")))
ORDERS: list[FromSupervisor] = [
    Configure("filters: [retry]\n# é\u2028\x00", "d1"), Show(LISTING), Jwks("https://a/keys", b"\xff{}"), ReadKeys(),
    Refuse(), Explain(3, "hg_1"), Leave(), Leave(),
]  # fmt: skip
SNAPSHOT = Snapshot(
    "0",
    17,
    1.5,
    "d1",
    ready=True,
    upstreams={("openai", "https://a:443"): {"cx_active": 3}},
    counters=Counters(exchanges={("chat", "ok", 200): 7}, engine={"rows": 7}),
)
NEWS: list[FromWorker] = [
    WantJwks(),
    Ready("d1", [{"route": "default", "filters": ["auth"]}]),
    Refused("d2", [Problem("gateway.yaml", 3, 5, "filters[0]", "is no filter"), Problem("f", 0, 0, "", "é")]),
    Explained(3, {"id": "hg_1", "attempts": [{"status": 200, "score": None}]}),
    Explained(4, None),
    Told(SNAPSHOT),
]


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Channel, Channel]]:
    """Two ends."""
    ours, theirs = socket.socketpair()
    one, other = await Channel.over(ours), await Channel.over(theirs)
    try:
        yield one, other
    finally:
        await one.aclose()
        await other.aclose()


@asynccontextmanager
async def raw_pair() -> AsyncIterator[tuple[socket.socket, Channel]]:
    """Bare bytes on one side."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    channel = await Channel.over(theirs)
    try:
        yield ours, channel
    finally:
        ours.close()
        await channel.aclose()


async def test_every_message_arrives_as_it_was_sent_and_in_order() -> None:
    async with asyncio.timeout(WITHIN), pair() as (supervisor, worker):
        for order in ORDERS:
            supervisor.send(order)
        for news in NEWS:
            worker.send(news)
        assert [await worker.from_supervisor() for _ in ORDERS] == ORDERS
        assert [await supervisor.from_worker() for _ in NEWS] == NEWS


async def test_a_megabyte_of_config_passes() -> None:
    async with asyncio.timeout(WITHIN), pair() as (supervisor, worker):
        order = Configure("x" * (1 << 20), "big")
        supervisor.send(order)
        assert await worker.from_supervisor() == order


async def test_the_other_end_going_away_is_the_end_of_the_stream() -> None:
    async with asyncio.timeout(WITHIN), pair() as (supervisor, worker):
        supervisor.send(Refuse())
        await supervisor.aclose()
        assert await worker.from_supervisor() == Refuse()
        with pytest.raises(EOFError, match="gone"):
            await worker.from_supervisor()
        worker.send(NEWS[0])
        await asyncio.sleep(0.01)
        worker.send(NEWS[0])  # to nobody, which is no error


async def test_what_is_buffered_when_it_closes_still_arrives() -> None:
    async with asyncio.timeout(WITHIN), pair() as (supervisor, worker):
        order = Configure("x" * (4 << 20), "big")
        supervisor.send(order)
        closing = asyncio.ensure_future(supervisor.aclose())
        assert await worker.from_supervisor() == order
        await closing


async def test_closing_does_not_wait_for_a_reader_that_is_stuck() -> None:
    async with asyncio.timeout(WITHIN), raw_pair() as (_, channel):
        channel.send(Configure("x" * (4 << 20), "big"))
        await channel.aclose()


async def test_to_a_reader_that_is_stuck_messages_are_dropped_above_a_bound() -> None:
    async with asyncio.timeout(WITHIN), raw_pair() as (_, channel):
        order = Configure("x" * (1 << 20), "big")
        for _ in range(40):
            channel.send(order)
        assert channel._writer.transport.get_write_buffer_size() < MAX_MESSAGE + (2 << 20)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (struct.pack("!I", MAX_MESSAGE + 1), "too large"),
        (b"\xff\xff\xff\xff" + b"x" * 100, "too large"),
        (struct.pack("!I", 3) + b"\xc1\xc1\xc1", "not understood"),
        (struct.pack("!I", 0), "not understood"),
        (struct.pack("!I", 5) + b"\xdd\xff\xff\xff\xff", "not understood"),
        (struct.pack("!I", 1000) + b"\x91" * 1000, "not understood"),
        (struct.pack("!I", 8) + msgspec.msgpack.encode({"type": "Leave"})[:8], "not understood"),
        (struct.pack("!I", 100) + b"x" * 99, "gone"),
        (b"\x00\x00", "gone"),
    ],
)
async def test_bytes_that_are_no_message_are_the_end_of_the_stream(data: bytes, why: str) -> None:
    async with asyncio.timeout(WITHIN), raw_pair() as (sock, channel):
        sock.send(data)
        sock.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError, match=why):
            await channel.from_supervisor()


async def test_a_message_for_the_other_side_is_not_understood() -> None:
    async with asyncio.timeout(WITHIN), pair() as (supervisor, worker):
        worker.send(Leave())
        with pytest.raises(EOFError, match="not understood"):
            await supervisor.from_worker()


def framed(messages: Sequence[FromSupervisor]) -> bytes:
    """As they stand on the wire."""
    encoded = [msgspec.msgpack.encode(message) for message in messages]
    return b"".join(struct.pack("!I", len(data)) + data for data in encoded)


texts = st.text(max_size=50)
orders = st.one_of(st.builds(Configure, texts, texts), st.just(Refuse()), st.just(Leave()))


def run(work: object) -> None:
    """hypothesis calls no coroutine functions."""
    asyncio.run(asyncio.wait_for(work, WITHIN))  # type: ignore[arg-type]  # a coroutine


@settings(deadline=None)
@given(st.lists(orders, max_size=5), st.data())
def test_messages_survive_any_cut_of_their_bytes(messages: list[FromSupervisor], data: st.DataObject) -> None:
    wire = framed(messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))

    async def check() -> None:
        async with raw_pair() as (sock, channel):
            hearing = asyncio.ensure_future(take(channel, len(messages)))
            for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
                sock.send(wire[start:end])
                await asyncio.sleep(0)
            assert await hearing == messages

    run(check())


async def take(channel: Channel, count: int) -> list[FromSupervisor]:
    """The next messages."""
    return [await channel.from_supervisor() for _ in range(count)]


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_messages_or_the_end_and_nothing_else(noise: bytes) -> None:
    async def check() -> None:
        async with raw_pair() as (sock, channel):
            sock.send(struct.pack("!I", len(noise)) + noise + noise)
            sock.shutdown(socket.SHUT_WR)
            with pytest.raises(EOFError):
                await take_news(channel)

    run(check())


async def take_news(channel: Channel) -> None:
    """Until the end."""
    while True:
        await channel.from_worker()
