"""pieces: bytes reach one reader in order, once, within a bound, with one end."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.clients.pieces import Pieces


class BrokenError(Exception):
    pass


def pieces(room: int = 10) -> tuple[Pieces, list[bool]]:
    resumed: list[bool] = []
    return Pieces(room, lambda: resumed.append(True)), resumed


async def test_what_is_put_is_read_and_then_comes_the_end() -> None:
    queue, _ = pieces()
    assert queue.put(b"a")
    assert queue.put(b"b")
    assert queue
    queue.end()
    assert [await queue.read(), await queue.read(), await queue.read()] == [b"ab", None, None]


async def test_a_reader_waits_for_what_comes() -> None:
    queue, _ = pieces()
    reading = asyncio.ensure_future(queue.read())
    await asyncio.sleep(0)
    assert not reading.done()
    queue.put(b"a")
    assert await reading == b"a"


async def test_a_writer_hears_when_to_stop_and_when_to_go_on() -> None:
    queue, resumed = pieces(room=2)
    assert queue.put(b"ab")
    assert not queue.put(b"c")
    assert resumed == []
    assert await queue.read() == b"abc"
    assert resumed == [True]
    assert queue.put(b"d")
    assert await queue.read() == b"d"
    assert resumed == [True]


async def test_what_is_over_needs_no_room() -> None:
    queue, resumed = pieces(room=1)
    queue.put(b"abc")
    queue.end()
    assert (await queue.read(), resumed) == (b"abc", [])


async def test_an_error_comes_after_what_was_there() -> None:
    queue, _ = pieces()
    queue.put(b"a")
    queue.end(BrokenError())
    assert await queue.read() == b"a"
    for _ in range(2):
        with pytest.raises(BrokenError):
            await queue.read()


async def test_the_first_end_counts() -> None:
    queue, _ = pieces()
    queue.end()
    queue.end(BrokenError())
    assert queue.put(b"late")
    assert await queue.read() is None


async def test_who_leaves_takes_what_was_there_along() -> None:
    queue, _ = pieces()
    queue.put(b"a")
    queue.drop(BrokenError())
    with pytest.raises(BrokenError):
        await queue.read()
    assert queue.put(b"b")
    assert not queue


async def test_leaving_what_was_read_to_its_end_changes_nothing() -> None:
    queue, _ = pieces()
    queue.end()
    queue.drop(BrokenError())
    assert await queue.read() is None


async def test_a_reader_that_is_cancelled_loses_nothing() -> None:
    queue, _ = pieces()
    reading = asyncio.ensure_future(queue.read())
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    queue.put(b"a")
    assert await queue.read() == b"a"


@given(st.lists(st.binary(max_size=6) | st.none(), max_size=30), st.integers(0, 12))
def test_nothing_is_lost_doubled_or_kept_above_the_bound(steps: list[bytes | None], room: int) -> None:
    """None reads. A writer that stops when it is told to never has more than `room` and one piece waiting."""

    async def run() -> bytes:
        queue, resumed = pieces(room)
        taken, waiting, stopped = b"", 0, False
        for step in steps:
            if step is None and queue:
                had = len(resumed)
                taken += await queue.read() or b""
                assert (len(resumed) > had) is stopped
                waiting, stopped = 0, False
            elif step is not None and not stopped:
                stopped = not queue.put(step)
                sent.append(step)
                waiting += len(step)
                assert stopped is (waiting > room)
        queue.end()
        while (rest := await queue.read()) is not None:
            taken += rest
        return taken

    sent: list[bytes] = []
    assert asyncio.run(run()) == b"".join(sent)
