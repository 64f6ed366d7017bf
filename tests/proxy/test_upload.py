"""Upload: held until somebody takes it, then passed on piece by piece, and given away once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.dialects.pass_through import PassReader
from headgate.proxy.errors import InvalidRequestError
from headgate.proxy.upload import Upload
from tests_support.downstream import FakeDownstream


class Sink:
    """Takes `room` bytes, then pauses its source."""

    def __init__(self, source: Upload, room: int | None = None) -> None:
        self.source = source
        self.room = room
        self.taken = b""
        self.finished = 0

    def put(self, data: bytes) -> None:
        assert data
        assert not self.finished
        self.taken += data
        if self.room is not None:
            self.room -= len(data)
            if self.room <= 0:
                self.source.pause()

    def finish(self) -> None:
        self.finished += 1


def upload(length: int | None = None) -> tuple[FakeDownstream, Upload]:
    fields = [] if length is None else [(b"content-length", b"%d" % length)]
    downstream = FakeDownstream(headers=fields)
    return downstream, Upload(downstream, PassReader())


def test_a_body_that_is_shorter_or_longer_than_announced_is_refused() -> None:
    _, body = upload(3)
    body.take(b"ab")
    with pytest.raises(InvalidRequestError, match="shorter"):
        body.end()
    with pytest.raises(InvalidRequestError, match="longer"):
        body.take(b"cd")


def test_what_was_not_begun_may_go_to_another_sink() -> None:
    downstream, body = upload(4)
    first, second = Sink(body), Sink(body)
    body.take(b"ab")
    body.release()
    assert downstream.body_paused
    body.cancel()
    body.start(second)
    assert (second.taken, body.begun, downstream.body_paused) == (b"ab", True, False)
    body.take(b"cd")
    body.end()
    assert (first.taken, second.taken, second.finished, body.passed) == (b"", b"abcd", 1, True)


def test_a_sink_that_is_behind_stops_the_client() -> None:
    downstream, body = upload(None)
    body.release()
    sink = Sink(body, room=2)
    body.start(sink)
    body.take(b"abc")
    assert downstream.body_paused
    body.resume()
    assert not downstream.body_paused


def test_what_is_held_counts_until_it_has_gone() -> None:
    downstream, body = upload(None)
    body.take(b"abc")
    assert downstream.charged == 3
    body.release()
    body.start(Sink(body))
    assert downstream.charged == 0


def test_splices_change_the_length_and_the_held_bytes() -> None:
    _, body = upload(6)
    body.take(b"abcd")
    body.prepare([(1, 3, b"XYZ"), (0, 0, b"_")])
    assert body.length == 8
    body.prepare([(1, 3, b"")])
    assert body.length == 4
    body.release()
    sink = Sink(body)
    body.start(sink)
    body.take(b"ef")
    body.end()
    assert sink.taken == b"adef"


@given(st.lists(st.sampled_from(["take", "pause", "resume", "start", "end"]), max_size=30), st.integers(1, 5))
def test_every_byte_arrives_once_and_in_order(steps: list[str], room: int) -> None:
    downstream, body = upload(None)
    body.release()
    sink = Sink(body, room)
    sent, started, ended = b"", False, False
    for number, step in enumerate(steps):
        if step == "take" and not downstream.body_paused and not ended:
            piece = bytes([number]) * 3
            sent += piece
            body.take(piece)
        elif step == "end" and not downstream.body_paused and not ended:
            ended = True
            body.end()
        elif step == "start" and not started:
            started = True
            body.start(sink)
        elif step == "pause" and started and not sink.finished:
            body.pause()
        elif step == "resume" and started:
            sink.room = room
            body.resume()
        assert sent.startswith(sink.taken)
        assert not sink.finished or sink.taken == sent
    if not started:
        body.start(sink)
    sink.room = None
    body.resume()
    if not ended:
        body.end()
    assert (sink.taken, sink.finished, body.passed) == (sent, 1, True)
