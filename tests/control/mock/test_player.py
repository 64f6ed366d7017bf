"""player: one segment for each step, in time, no faster than it is read, and an end in any case."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from headgate.control.mock.player import STALL_SECONDS, Player
from headgate.control.mock.steps import DEAF, END, FIN, RST, Data, Say, Step, Wait
from tests_support.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

A, B, C = Data(b"a"), Data(b"b"), Data(b"c")


class Wire:
    """Writes down what it is told; `room` says how many steps it takes."""

    def __init__(self, room: int = 99) -> None:
        self.told: list[Say | str] = []
        self.room = room

    def send(self, step: Say) -> bool:
        self.told.append(step)
        self.room -= 1
        return self.room > 0

    def end(self) -> None:
        self.told.append("end")

    def abandon(self, code: int) -> None:
        self.told.append(f"abandoned {code}")

    def deafen(self) -> None:
        self.told.append("deaf")

    def close(self) -> None:
        self.told.append("fin")

    def reset(self) -> None:
        self.told.append("rst")


def playing(*steps: Step, wire: Wire, clock: FakeClock, speed: float = 1.0) -> Player:
    player = Player(wire, steps, clock, speed)
    player.start()
    return player


def test_each_step_is_a_segment_of_its_own_and_the_end_comes_with_the_last() -> None:
    wire, clock = Wire(), FakeClock()
    playing(A, B, END, wire=wire, clock=clock)
    assert wire.told == [A]
    clock.advance(0)
    assert wire.told == [A, B, "end"]
    assert clock.pending == []


@pytest.mark.parametrize(("end", "told"), [(FIN, "fin"), (RST, "rst")])
def test_the_end_of_a_connection_comes_after_what_was_said(end: Step, told: str) -> None:
    wire, clock = Wire(), FakeClock()
    playing(A, end, wire=wire, clock=clock)
    assert wire.told == [A]
    clock.advance(0)
    assert wire.told == [A, told]
    assert clock.pending == []


@pytest.mark.parametrize("speed", [1.0, 10.0])
def test_a_wait_takes_its_time_divided_by_the_speed(speed: float) -> None:
    wire, clock = Wire(), FakeClock()
    playing(Wait(30.0), A, END, wire=wire, clock=clock, speed=speed)
    clock.advance(29.9 / speed)
    assert wire.told == []
    clock.advance(0.2 / speed)
    assert wire.told == [A, "end"]


def test_a_script_that_runs_out_stalls_and_is_reset_in_the_end() -> None:
    wire, clock = Wire(), FakeClock()
    playing(A, wire=wire, clock=clock)
    clock.advance(STALL_SECONDS - 1)
    assert wire.told == [A]
    clock.advance(2)
    assert wire.told == [A, "rst"]
    assert clock.pending == []


def test_deafness_comes_before_what_is_said_next() -> None:
    wire, clock = Wire(), FakeClock()
    playing(DEAF, A, FIN, wire=wire, clock=clock)
    clock.advance(0)
    assert wire.told == ["deaf", A, "fin"]


def test_it_waits_for_room_and_goes_on_where_it_was() -> None:
    wire, clock = Wire(room=1), FakeClock()
    player = playing(A, B, C, END, wire=wire, clock=clock)
    clock.advance(10)
    assert wire.told == [A]
    wire.room = 99
    player.resume()
    player.resume()
    clock.advance(0)
    assert wire.told == [A, B, C, "end"]
    player.resume()
    assert wire.told[-1] == "end"


def test_what_is_stopped_says_nothing_more() -> None:
    wire, clock = Wire(room=1), FakeClock()
    waiting = playing(A, Wait(5), B, END, wire=Wire(), clock=clock)
    blocked = playing(A, B, END, wire=wire, clock=clock)
    for player in (waiting, blocked):
        player.stop()
        player.stop()
        player.resume()
    clock.advance(10)
    assert wire.told == [A]
    assert clock.pending == []


def test_a_wire_that_closes_inside_a_step_hears_no_other() -> None:
    clock = FakeClock()

    class Closing(Wire):
        def send(self, step: Say) -> bool:
            player.stop()
            return super().send(step)

    wire = Closing()
    player = Player(wire, [A, B, END], clock, 1.0)
    player.start()
    clock.advance(1)
    assert wire.told == [A]
    assert clock.pending == []


def test_no_more_is_asked_of_a_script_than_is_about_to_be_said() -> None:
    asked: list[int] = []

    def endless() -> Iterator[Step]:
        for number in range(1_000_000):
            asked.append(number)
            yield Data(b"%d" % number)

    steps: Iterable[Step] = endless()
    wire, clock = Wire(room=3), FakeClock()
    Player(wire, steps, clock, 1.0).start()
    clock.advance(0)
    assert len(wire.told) == 3
    assert len(asked) == 4
