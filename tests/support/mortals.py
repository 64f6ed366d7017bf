"""Processes that count in shared memory as fast as they can, and are killed (SIGKILL) at any instruction.

    python mortals.py SEED KILLS [WORKERS]      # prints a `Toll` as JSON

One process plays the supervisor: it forks the workers, kills one after the other, gives its place to another. What a
worker was told is written, by itself and after it was told, into memory that outlives it; so it says at most one call
less than was counted for it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from mmap import mmap
from random import Random
from typing import NamedTuple, NoReturn

from headgate.filters.stores.rules import Granted, Kind, Rule
from headgate.filters.stores.shared import SharedStore
from headgate.filters.stores.shared_lock import FileLock
from headgate.filters.stores.shared_memory import Berths, SharedMemory
from headgate.proxy.errors import OverloadError

MUCH = 10**12
ESTIMATE, USED = 10, 5
SLOTS = 2
A_SECOND = 300
"""Requests in each window of a second: fewer than the workers ask for."""
RULES = [
    Rule(Kind("requests", ("user",), "day"), MUCH),
    Rule(Kind("tokens", ("user",), "day"), MUCH),
    Rule(Kind("concurrent", ("user",), ""), SLOTS),
]
WINDOW = Rule(Kind("requests", ("user",), "second"), A_SECOND)
CALLERS = 3
SECONDS = 600
"""A run is shorter."""
MOST_NAP = 0.004

# Words of a worker's part of the memory that outlives it.
ADMITTED, SETTLED, HOLDING, BEYOND, LOCKED = range(5)
WINDOWS = 5
PART = WINDOWS + SECONDS


class Toll(NamedTuple):
    """What it came to. `admitted` and `settled` as the workers say, the others as is counted."""

    deaths: int
    with_the_lock: int
    """Of them so many while they held it."""
    admitted: int
    settled: int
    counted: int
    tokens: int
    slots: int
    """That a newcomer gets, of all callers."""
    beyond: int
    """How often a worker saw more calls at once than there are slots."""
    windows: list[int]
    """What each admitted, as the workers say, in order."""


class _Told(FileLock):
    """Notes that it is held."""

    __slots__ = ("_at", "_notes")

    def __init__(self, file: int, notes: memoryview[int], at: int) -> None:
        super().__init__(file)
        self._notes = notes
        self._at = at

    def take(self) -> bool:
        taken = super().take()
        self._notes[self._at] = taken
        return taken

    def release(self) -> None:
        self._notes[self._at] = 0
        super().release()


def work(file: int, berth: int, processes: int, notes: memoryview[int], begun: int) -> NoReturn:
    """Until it is killed. `begun`: the second in which all this began."""
    memory = SharedMemory.attach(file)
    part = berth * PART
    memory.lock = _Told(memory.file, notes, part + LOCKED)
    store = SharedStore(memory, berth)
    limits, windows = store.open("it", RULES), store.open("windows", [WINDOW])
    rng = Random()
    while True:
        caller = f"caller-{rng.randrange(CALLERS)}"
        holding = [n * PART + HOLDING for n in range(processes)]
        try:
            now = time.monotonic_ns() // 1000
            counted = limits.count(caller, ESTIMATE, now)
            call = limits.take([caller] * len(RULES), ESTIMATE, now) if counted is None else None
            if counted is not None or isinstance(call, Granted):
                notes[part + ADMITTED] += 1
                notes[part + HOLDING] = 1
                if sum(notes[at] for at in holding) > SLOTS * CALLERS:
                    notes[part + BEYOND] += 1
                notes[part + HOLDING] = 0
                if counted is not None:
                    limits.recount(counted, USED)
                elif isinstance(call, Granted):
                    limits.settle(call, USED, now)
                notes[part + SETTLED] += 1
            counted = windows.count("all", 0, now)
            answer = windows.take(["all"], 0, now) if counted is None else None
            if counted is not None:
                notes[part + WINDOWS + counted[1] // 1_000_000 - begun] += 1
            elif isinstance(answer, Granted) and answer.requests is not None:
                notes[part + WINDOWS + answer.requests.resets_at // 1_000_000 - begun] += 1
        except OverloadError:
            continue


def toll(seed: int, kills: int, workers: int) -> Toll:
    """Kill so many, and then those that are left."""
    rng = Random(seed)
    memory = SharedMemory.create(workers + 1)
    berths = Berths(memory)
    notes = memoryview(mmap(-1, 8 * PART * (workers + 1))).cast("q")
    running: list[tuple[int, int]] = []
    begun = time.monotonic_ns() // 10**9
    deaths = with_the_lock = 0

    def start() -> None:
        berth = berths.take()
        pid = os.fork()
        if pid == 0:
            try:
                work(memory.file, berth, workers + 1, notes, begun)
            finally:
                os._exit(1)
        running.append((pid, berth))

    def kill(pid: int, berth: int) -> None:
        nonlocal deaths, with_the_lock
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            raise RuntimeError("a worker ended by itself")
        deaths += 1
        with_the_lock += notes[berth * PART + LOCKED]
        notes[berth * PART + LOCKED] = notes[berth * PART + HOLDING] = 0
        berths.leave(berth)

    for _ in range(workers):
        start()
    time.sleep(0.1)
    for _ in range(kills):
        time.sleep(rng.random() * MOST_NAP)
        kill(*running.pop(rng.randrange(workers)))
        start()
    for pid, berth in running:
        kill(pid, berth)

    now = time.monotonic_ns() // 1000
    limits = SharedStore(memory, berths.take()).open("it", RULES)
    counted = tokens = slots = 0
    for n in range(CALLERS):
        answers = [limits.take([f"caller-{n}"] * len(RULES), ESTIMATE, now) for _ in range(SLOTS + 1)]
        first = answers[0]
        if not isinstance(first, Granted) or first.requests is None or first.tokens is None:
            raise RuntimeError("a newcomer is refused")
        counted += MUCH - first.requests.left - 1
        tokens += MUCH - first.tokens.left - ESTIMATE
        slots += sum(isinstance(answer, Granted) for answer in answers)
    parts = [notes[berth * PART : (berth + 1) * PART].tolist() for berth in range(workers + 1)]
    windows = [sum(column) for column in zip(*(part[WINDOWS:] for part in parts), strict=True)]
    return Toll(
        deaths, with_the_lock, sum(part[ADMITTED] for part in parts), sum(part[SETTLED] for part in parts),
        counted, tokens, slots, sum(part[BEYOND] for part in parts), [n for n in windows if n],
    )  # fmt: skip


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    print(json.dumps(toll(numbers[0], numbers[1], numbers[2] if len(numbers) > 2 else 4)._asdict()))
