"""upward: what a client sends is held for a read at most, leaves in order, and the last word before the end."""

from __future__ import annotations

from headgate.proxy.websocket.upward import Upward
from tests_support.downstream import FakeDownstream


class Sink:
    """A provider's connection that is full after `room` bytes."""

    def __init__(self, upward: Upward, room: int = 1 << 20) -> None:
        self.upward = upward
        self.room = room
        self.taken = b""
        self.finished = False

    def put(self, data: bytes) -> None:
        assert data
        self.taken += data
        if len(self.taken) >= self.room:
            self.upward.pause()

    def finish(self) -> None:
        self.finished = True


def test_before_the_provider_is_there_the_client_waits() -> None:
    upward = Upward(downstream := FakeDownstream())
    assert not upward.clear
    upward.give(b"ab")
    assert downstream.body_paused
    upward.give(b"c")
    upward.start(sink := Sink(upward))
    assert (sink.taken, downstream.body_paused, upward.clear, upward.begun) == (b"abc", False, True, True)


def test_a_provider_that_is_full_stops_the_client_until_it_has_room() -> None:
    upward = Upward(downstream := FakeDownstream())
    upward.start(sink := Sink(upward, room=3))
    upward.give(b"abc")
    assert (downstream.body_paused, upward.clear) == (True, False)
    upward.give(b"de")
    assert sink.taken == b"abc"
    sink.room = 5
    upward.resume()
    assert sink.taken == b"abcde"
    assert downstream.body_paused  # it was full again at once
    sink.room = 99
    upward.resume()
    assert not downstream.body_paused


def test_the_last_word_follows_what_is_held() -> None:
    upward = Upward(FakeDownstream())
    upward.start(sink := Sink(upward, room=1))
    upward.give(b"a")
    upward.give(b"b")
    upward.end(b"c")
    assert not sink.finished
    upward.resume()
    assert (sink.taken, sink.finished, upward.clear) == (b"abc", True, False)


def test_an_end_without_a_provider_is_nothing() -> None:
    upward = Upward(FakeDownstream())
    upward.start(sink := Sink(upward))
    upward.cancel()
    upward.end(b"x")
    upward.resume()
    assert (sink.taken, sink.finished) == (b"", False)
