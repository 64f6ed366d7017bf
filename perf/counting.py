"""What a gateway does, counted instead of timed: calls, tasks and timers in the thread of its loop.

Counts do not depend on the machine or on what else it does, so a test can hold them. cProfile counts every call of a
Python function and of a builtin; methods of Cython classes (uvloop's transports, httptools' parsers) are invisible to
it, so what asks the loop for a task or a timer is counted by wrapping the loop's class.

Run as a program it is `headgate` under a counter: whoever holds the other end of the socket that FD names gets one line
of JSON for every byte sent, `{"function": count}` since the start.

    python -P perf/counting.py FD serve gateway.yaml
"""

import asyncio
import cProfile
import json
import socket
import sys
import threading
from collections.abc import Callable
from types import CodeType
from typing import Any

TASK = "task"
TIMER = "timer"
ASKED_OF_THE_LOOP = {"create_task": TASK, "call_later": TIMER, "call_at": TIMER}


class Counter:
    """Counts in the thread that calls `start`, until `stop`; `snapshot` may be called from any thread."""

    def __init__(self, *loops: type[asyncio.AbstractEventLoop]) -> None:
        self._profile = cProfile.Profile()
        self._asked = dict.fromkeys(ASKED_OF_THE_LOOP.values(), 0)
        self._asking = False
        self._loops = loops
        self._unwrapped: list[tuple[type, str, Any]] = []
        self._own: set[CodeType] = set()

    def start(self) -> None:
        for loop in self._loops:
            for name, kind in ASKED_OF_THE_LOOP.items():
                self._unwrapped.append((loop, name, vars(loop).get(name)))
                setattr(loop, name, self._counting(kind, getattr(loop, name)))
        self._profile.enable()

    def stop(self) -> None:
        self._profile.disable()
        for loop, name, method in reversed(self._unwrapped):
            if method is None:
                delattr(loop, name)  # inherited, as it was
            else:
                setattr(loop, name, method)
        self._unwrapped.clear()

    def snapshot(self) -> dict[str, int]:
        """Calls so far: `file:line name` of Python functions, `<…>` of builtins, and `task` and `timer`."""
        counts = dict(self._asked)
        for entry in self._profile.getstats():
            code = entry.code
            if isinstance(code, CodeType):
                if code in self._own:
                    continue
                name = f"{code.co_filename}:{code.co_firstlineno} {code.co_name}"
            else:
                name = str(code)
            counts[name] = counts.get(name, 0) + entry.callcount
        return counts

    def _counting(self, kind: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._asking:  # a loop's call_later may be its call_at, or the reverse: one timer all the same
                return method(*args, **kwargs)
            self._asked[kind] += 1
            self._asking = True
            try:
                return method(*args, **kwargs)
            finally:
                self._asking = False

        self._own.add(counted.__code__)
        return counted


def kind_of(name: str) -> str:
    """What a name of a snapshot is: `python`, `builtin`, `task` or `timer`."""
    if name in (TASK, TIMER):
        return name
    return "builtin" if name.startswith("<") else "python"


def _answer(counter: Counter, peer: socket.socket) -> None:
    while peer.recv(1):
        peer.sendall(json.dumps(counter.snapshot()).encode() + b"\n")


def main(fd: int, arguments: list[str]) -> int:
    import uvloop

    from headgate.__main__ import main as headgate

    counter = Counter(uvloop.Loop)
    threading.Thread(target=_answer, args=(counter, socket.socket(fileno=fd)), daemon=True).start()
    counter.start()
    try:
        return headgate(arguments) or 0
    finally:
        counter.stop()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
