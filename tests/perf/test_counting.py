"""counting: calls, tasks and timers of one thread, the same on every machine."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import uvloop

from perf import counting
from perf.counting import Counter, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def helper() -> int:
    return len("four")


@pytest.fixture
def counter() -> Iterator[Counter]:
    counter = Counter(asyncio.SelectorEventLoop, uvloop.Loop)
    yield counter
    counter.stop()


def calls(counter: Counter, work: Callable[[], object]) -> dict[str, int]:
    counter.start()
    work()
    counter.stop()
    return counter.snapshot()


def test_python_functions_and_builtins_are_counted_by_name(counter: Counter) -> None:
    counts = calls(counter, lambda: [helper() for _ in range(7)])
    place = f"{__file__}:{helper.__code__.co_firstlineno} helper"
    assert counts[place] == 7
    assert counts["<built-in method builtins.len>"] == 7


def test_the_kinds_are_told_apart(counter: Counter) -> None:
    counts = calls(counter, helper)
    assert {kind_of(name) for name in counts} == {"python", "builtin", "task", "timer"}


@pytest.mark.parametrize("new_loop", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_tasks_and_timers_are_counted(counter: Counter, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(60, helper).cancel()
        loop.call_at(loop.time() + 60, helper).cancel()
        await asyncio.gather(*[asyncio.create_task(asyncio.sleep(0)) for _ in range(3)])

    loop = new_loop()
    counts = calls(counter, lambda: loop.run_until_complete(work()))
    loop.close()
    assert counts["task"] == 4  # run_until_complete makes one of its own
    assert counts["timer"] == 2


def test_the_loop_is_as_it_was_afterwards(counter: Counter) -> None:
    before = (uvloop.Loop.call_later, asyncio.SelectorEventLoop.create_task)
    counter.start()
    counter.stop()
    assert (uvloop.Loop.call_later, asyncio.SelectorEventLoop.create_task) == before
    assert "call_later" not in vars(asyncio.SelectorEventLoop)


def test_other_threads_do_not_count(counter: Counter) -> None:
    thread = threading.Thread(target=lambda: [helper() for _ in range(50)])

    def work() -> None:
        thread.start()
        thread.join()

    counts = calls(counter, work)
    assert not any(name.endswith(" helper") for name in counts)


def test_a_snapshot_may_be_taken_from_outside_while_it_counts(counter: Counter) -> None:
    seen: list[dict[str, int]] = []

    def work() -> None:
        helper()
        thread = threading.Thread(target=lambda: seen.append(counter.snapshot()))
        thread.start()
        thread.join()
        helper()

    counts = calls(counter, work)
    name = next(name for name in counts if name.endswith(" helper"))
    assert seen[0][name] == 1
    assert counts[name] == 2


def test_run_as_a_program_it_answers_with_its_counts() -> None:
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        argv = [sys.executable, "-P", counting.__file__, str(theirs.fileno()), "version"]
        done = subprocess.run(argv, pass_fds=[theirs.fileno()], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip()


def test_a_snapshot_is_json() -> None:
    assert json.loads(json.dumps(Counter().snapshot())) == {"task": 0, "timer": 0}
