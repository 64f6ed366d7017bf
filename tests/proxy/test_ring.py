"""Ring: every reader gets every byte once and in order, or is lost; nobody waits for the slowest; memory is bounded."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headgate.proxy.ring import Place, Ring

PREFIX, MOST, LAG = 12_000, 9_000, 3_000
BIGGEST = 5_000


def fill(ring: Ring, *sizes: int, now: float = 0.0) -> bytes:
    data = b"".join(bytes([at % 251]) * size for at, size in enumerate(sizes))
    at = 0
    for size in sizes:
        ring.append(data[at : at + size], now)
        at += size
    return data


def all_of(ring: Ring, place: Place, most: int = 10**9) -> bytes:
    read = []
    while data := ring.read(place, most):
        read.append(data)
    return b"".join(read)


def test_a_reader_gets_what_came_before_it_and_what_comes_after() -> None:
    ring = Ring()
    before = fill(ring, 10, 20)
    place = ring.join()
    assert place is not None
    assert all_of(ring, place) == before
    after = fill(ring, 5000, 7)
    assert all_of(ring, place) == after


def test_whole_pieces_are_read_and_at_least_one() -> None:
    ring = Ring()
    place = ring.join()
    assert place is not None
    for piece in (b"a" * 5000, b"b" * 5000, b"c" * 5000):
        ring.append(piece, 0.0)
    assert ring.read(place, 12_000) == b"a" * 5000 + b"b" * 5000
    assert ring.read(place, 10) == b"c" * 5000
    assert ring.read(place, 10) == b""


def test_nobody_joins_once_the_beginning_is_gone() -> None:
    ring = Ring(prefix=100)
    assert ring.join() is not None
    fill(ring, 101)
    assert ring.join() is None
    with pytest.raises(ValueError, match="beginning"):
        ring.pieces()


def test_what_nobody_needs_is_forgotten_once_the_beginning_need_not_be_kept() -> None:
    ring = Ring(prefix=10_000)
    place = ring.join()
    assert place is not None
    fill(ring, 6000)
    all_of(ring, place)
    assert ring.held == 6000
    fill(ring, 6000)
    all_of(ring, place)
    assert ring.held == 0


def test_whoever_falls_off_the_ring_is_lost_at_once_and_the_others_read_on() -> None:
    ring = Ring(prefix=PREFIX, most=MOST, lag=LAG)
    slow, quick = ring.join(), ring.join()
    assert slow is not None
    assert quick is not None
    slow.stalled = True
    fallen = []
    for _ in range(5):
        fallen += ring.append(b"x" * 2000, 0.0)
        ring.read(quick, 10_000)
    assert fallen == [slow]
    assert slow.lost
    assert ring.places == [quick]


def test_whoever_stays_behind_is_lost_after_the_grace_and_told_once() -> None:
    ring = Ring(most=100_000, lag=LAG)
    slow = ring.join()
    assert slow is not None
    slow.stalled = True
    fill(ring, LAG + 1, now=100.0)
    assert ring.late(129.9) == []
    assert ring.late(130.0) == [slow]
    assert ring.late(140.0) == []


def test_whoever_catches_up_in_time_has_the_whole_grace_again() -> None:
    ring = Ring(most=100_000, lag=LAG)
    slow = ring.join()
    assert slow is not None
    slow.stalled = True
    fill(ring, LAG + 1, now=100.0)
    ring.read(slow, 10_000)
    fill(ring, LAG + 1, now=129.0)
    assert ring.late(131.0) == []
    assert ring.late(159.0) == [slow]


def test_the_source_is_held_up_only_while_nobody_keeps_up() -> None:
    ring = Ring()
    one, other = ring.join(), ring.join()
    assert one is not None
    assert other is not None
    assert ring.flows
    one.stalled = True
    assert ring.flows
    other.stalled = True
    assert not ring.flows
    ring.leave(other)
    one.stalled = False
    assert ring.flows
    ring.leave(one)
    ring.leave(one)
    assert not ring.flows


def test_scarce_memory_takes_the_beginning_and_who_is_far_behind() -> None:
    ring = Ring(lag=LAG)
    far, near = ring.join(), ring.join()
    assert far is not None
    assert near is not None
    far.stalled = True
    fill(ring, LAG, 10)
    ring.read(near, 10**6)
    near.stalled = True
    fill(ring, 100)
    assert ring.shrink() == [far]
    assert ring.held <= LAG + 100 + 4096
    assert ring.join() is None
    assert len(all_of(ring, near)) == 100


@settings(max_examples=60, stateful_step_count=40)
class Readers(RuleBasedStateMachine):
    """Any order of pieces, readers that stall and go on, and readers that come and leave."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = Ring(prefix=PREFIX, most=MOST, lag=LAG)
        self.sent = b""
        self.now = 0.0
        self.shrunk = False
        self.read: dict[int, tuple[Place, bytearray]] = {}

    def _take(self, place: Place, most: int) -> bytes:
        data = self.ring.read(place, most)
        self.read[id(place)][1].extend(data)
        return data

    @rule()
    def join(self) -> None:
        place = self.ring.join()
        assert (place is not None) == (len(self.sent) <= PREFIX and not self.shrunk)
        if place is not None:
            self.read[id(place)] = (place, bytearray())
            while self._take(place, 1000):
                pass

    @rule(size=st.integers(0, BIGGEST), wait=st.floats(0, 20))
    def append(self, size: int, wait: float) -> None:
        self.now += wait
        data = bytes([len(self.sent) % 251]) * size
        self.sent += data
        lost = [*self.ring.append(data, self.now), *self.ring.late(self.now)]
        assert all(place.lost and place.stalled for place in lost)
        for place in self.ring.places:
            if not place.stalled:
                while self._take(place, 1000):
                    pass

    @precondition(lambda self: self.ring.places)
    @rule(data=st.data())
    def stall(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.ring.places)).stalled = True

    @precondition(lambda self: self.ring.places)
    @rule(data=st.data(), most=st.integers(1, 8000), times=st.integers(0, 5))
    def go_on(self, data: st.DataObject, most: int, times: int) -> None:
        place = data.draw(st.sampled_from(self.ring.places))
        for _ in range(times):
            self._take(place, most)
        place.stalled = place.at < self.ring.end

    @precondition(lambda self: self.ring.places)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.ring.leave(data.draw(st.sampled_from(self.ring.places)))

    @rule()
    def shrink(self) -> None:
        assert all(place.lost for place in self.ring.shrink())
        self.shrunk = True

    @invariant()
    def every_reader_has_a_beginning_of_what_was_sent(self) -> None:
        for place, read in self.read.values():
            assert self.sent.startswith(read)
            assert place.at == len(read)

    @invariant()
    def who_does_not_stall_has_everything(self) -> None:
        for place in self.ring.places:
            assert place.stalled or place.at == len(self.sent)
            assert not place.lost

    @invariant()
    def memory_is_bounded(self) -> None:
        # A piece is let go of as a whole, and the last append may be what makes somebody fall.
        assert self.ring.held <= max(PREFIX, MOST) + BIGGEST + 4096
        assert self.ring.held == sum(len(piece) for piece in self.ring._pieces)

    @invariant()
    def nobody_is_further_behind_than_the_ring_is_long(self) -> None:
        assert all(self.ring.end - place.at <= MOST for place in self.ring.places)

    @invariant()
    def the_whole_is_there_while_it_is_kept(self) -> None:
        if self.ring.keeps:
            assert b"".join(self.ring.pieces()) == self.sent


TestReaders = Readers.TestCase
