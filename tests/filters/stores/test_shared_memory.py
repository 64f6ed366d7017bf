"""Shared memory itself: it takes up room where something is counted, knows who counts, and forgets the slots of the
dead."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from headgate.filters.stores import shared_memory
from headgate.filters.stores.rules import Granted, Kind, Rule
from headgate.filters.stores.shared import SharedStore
from headgate.filters.stores.shared_memory import Berths, SharedMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

AT_ONCE = Kind("concurrent", ("user",), "")


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    made = SharedMemory.create(8)
    yield made
    made.close()


def test_there_is_a_berth_for_as_many_as_were_planned(memory: SharedMemory) -> None:
    berths = Berths(memory)
    assert [berths.take() for _ in range(8)] == list(range(8))
    with pytest.raises(OSError, match="as many processes"):
        berths.take()
    berths.leave(5)
    assert berths.take() == 5


def test_every_slot_of_a_process_that_is_gone_is_given_back_and_none_of_another(memory: SharedMemory) -> None:
    berths = Berths(memory)
    berths.take()
    berths.take()
    rules = [Rule(AT_ONCE, 1)]
    dead, alive = SharedStore(memory, 1).open("it", rules), SharedStore(memory, 0).open("it", rules)
    for n in range(500):
        assert isinstance(dead.take([f"dead-{n}"], 0, 0), Granted)
    kept = alive.take(["alive"], 0, 0)
    assert isinstance(kept, Granted)
    berths.leave(1)
    taken = [alive.take([f"dead-{n}"], 0, 0) for n in range(500)]
    assert all(isinstance(one, Granted) for one in taken)
    assert not isinstance(alive.take(["alive"], 0, 0), Granted)


def test_what_is_not_counted_in_takes_up_no_room(memory: SharedMemory) -> None:
    limits = SharedStore(memory).open("it", [Rule(AT_ONCE, 1)])
    for n in range(10):
        limits.take([f"caller-{n}"], 0, 0)
    Berths(memory).leave(3)
    status = os.fstat(memory.file)
    assert status.st_size > 10_000_000
    assert status.st_blocks * 512 < 250_000


def test_a_process_of_another_version_does_not_count_in_it(
    memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "FORMAT", shared_memory.FORMAT + 1)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="another version"):
        SharedMemory.attach(memory.file)
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_two_serials_are_alike(memory: SharedMemory) -> None:
    other = SharedMemory.attach(memory.file)
    assert [one.serial() for one in (memory, other, memory)] == [1, 2, 3]
    other.close()
