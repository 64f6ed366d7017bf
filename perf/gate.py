"""The deterministic gate: how many calls, tasks and timers one request and one streamed event take, against ceilings;
and one request through a chain of every filter.

Time depends on the machine and on its other work; these counts do not. What the gate refuses is a change that makes
every exchange do more, at the moment it is made. Requests go one at a time, so each is read and written in one piece.
What happens in less than one exchange of ten is background, not part of an exchange.

    python -m perf.gate            a table; exit 1 above a ceiling of perf/ceilings.json
    python -m perf.gate --update   what is measured, and a little more, becomes the ceiling
    python -m perf.gate --list event   which functions; also of a request, and of one through every filter (chain)
"""

import argparse
import contextlib
import json
import math
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from . import contestants, counting
from .bench import Subject, free_port, wait_ready
from .filters import ALL_FILTERS, write_config
from .load import Load
from .process import running

CEILINGS = Path(__file__).parent / "ceilings.json"
CALLS = ("python", "builtin")
KINDS = (*CALLS, "task", "timer")
REQUESTS = 200
STREAMS = 20
RUNS = 3
SHORT, LONG = 8, 108
BACKGROUND = 0.1
"""Calls per exchange below which a function is not part of the exchange."""

TOLERANCE = 1.0
"""A read that happens to be split, or a sweep of the clock within the run, is not a regression."""

MARGIN = 2
"""Between what is measured and the ceiling it becomes: Python's own modules differ by a call between patch releases."""

KEYS = 1000
"""In the `keys_file` of the chain."""

Counts = Mapping[str, float]


class Counted:
    """A gateway under a counter, and traffic for it."""

    def __init__(self, load: Load, subject: Subject, peer: socket.socket) -> None:
        self.load = load
        self.subject = subject
        self.peer = peer.makefile("rwb")

    def snapshot(self) -> Counts:
        self.peer.write(b"?")
        self.peer.flush()
        counts: dict[str, float] = json.loads(self.peer.readline())
        return counts

    def per_request(self) -> Counts:
        """On a connection that is kept."""
        self._requests()
        before = self.snapshot()
        done = self._requests()
        return per_exchange(before, self.snapshot(), done)

    def per_event(self) -> Counts:
        """What long streams take more than short ones."""
        self._streams(LONG)
        start = self.snapshot()
        self._streams(SHORT)
        middle = self.snapshot()
        self._streams(LONG)
        end = self.snapshot()
        short = {name: count - start.get(name, 0) for name, count in middle.items()}
        long = {name: count - middle.get(name, 0) for name, count in end.items()}
        return per_exchange(short, long, STREAMS * (LONG - SHORT))

    def _requests(self) -> int:
        sample = self.load.paced(
            self.subject.port, self.subject.plain(), connections=1, rate=2000, seconds=REQUESTS / 2000
        )
        if sample.failed:
            raise RuntimeError(f"{sample.failed} requests failed")
        return sample.requests

    def _streams(self, events: int) -> None:
        for stream in self.subject.streams(STREAMS):
            answer = self.load.once(self.subject.port, stream, 10.0, events=events)
            if answer is None or b"data: [DONE]" not in answer:
                raise RuntimeError("a stream failed")


def per_exchange(before: Counts, after: Counts, exchanges: int) -> Counts:
    """Calls of each function per exchange, without the background."""
    grown = {name: (count - before.get(name, 0)) / exchanges for name, count in after.items()}
    return {name: count for name, count in grown.items() if count >= BACKGROUND}


def least(measure: Callable[[], Counts]) -> Counts:
    """The run in which the fewest calls were made: a read that is split, or a sweep of the clock, can only add some."""
    return min((measure() for _ in range(RUNS)), key=lambda counts: sum(counts.values()))


def totals(counts: Counts) -> dict[str, float]:
    """By kind."""
    sums = dict.fromkeys(KINDS, 0.0)
    for name, count in counts.items():
        sums[counting.kind_of(name)] += count
    return sums


@contextlib.contextmanager
def counted_gateway(*, every_filter: bool = False) -> Iterator[Counted]:
    """Headgate with the root gateway.yaml, or with every filter as in perf.filters, counted from its start to its
    end."""
    with (
        tempfile.TemporaryDirectory(prefix="headgate-gate-") as folder,
        contextlib.closing(Load()) as load,
        contextlib.ExitStack() as stack,
    ):
        work, port = Path(folder), free_port()
        launch = contestants.headgate(contestants.ROOT, work, port, load.provider_port)
        if every_filter:
            write_config(ALL_FILTERS, work, port, load.provider_port, keys=KEYS)
        ours, theirs = socket.socketpair()
        with ours:
            ours.settimeout(30)
            with theirs:
                argv = [sys.executable, "-P", counting.__file__, str(theirs.fileno()), "serve", "gateway.yaml"]
                core = min(os.sched_getaffinity(0))
                started = running(argv, {**os.environ, **launch.env}, work, core, pass_fds=[theirs.fileno()])
                process = stack.enter_context(started)
            subject = Subject(port, launch.headers)
            wait_ready(load, process, subject)
            yield Counted(load, subject, ours)


def above(measured: Mapping[str, Mapping[str, float]], ceilings: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What is above its ceiling, in words. A ceiling that is missing is zero."""
    return [
        f"{what}: {count:.2f} {kind} calls, ceiling {ceiling:g}"
        for what, counts in measured.items()
        for kind, count in counts.items()
        if count > (ceiling := ceilings.get(what, {}).get(kind, 0)) + TOLERANCE
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m perf.gate", description="Calls, tasks and timers per exchange.")
    parser.add_argument("--update", action="store_true", help="make what is measured the ceiling")
    parser.add_argument("--list", choices=["request", "event", "chain"], help="the functions behind a count")
    args = parser.parse_args(argv)
    with counted_gateway() as counted:
        found = {"request": least(counted.per_request), "event": least(counted.per_event)}
    with counted_gateway(every_filter=True) as counted:
        found["chain"] = least(counted.per_request)
    if args.list:
        for name, count in sorted(found[args.list].items(), key=lambda item: -item[1]):
            print(f"{count:8.2f}  {name.replace(f'{contestants.ROOT}/', '')}")
        return 0
    measured = {what: totals(counts) for what, counts in found.items()}
    if args.update:
        rounded = {
            what: {
                kind: math.ceil(count - 0.05) + (MARGIN if kind in CALLS and count else 0)
                for kind, count in counts.items()
            }
            for what, counts in measured.items()
        }
        CEILINGS.write_text(json.dumps(rounded, indent=2) + "\n")
    ceilings = json.loads(CEILINGS.read_text()) if CEILINGS.exists() else {}
    print(f"{'gate: per':16}" + "".join(f"{kind:>18}" for kind in KINDS))
    for what, counts in measured.items():
        cells = (f"{counts[kind]:.2f} of {ceilings.get(what, {}).get(kind, 0)}" for kind in KINDS)
        print(f"{what:16}" + "".join(f"{cell:>18}" for cell in cells))
    problems = above(measured, ceilings)
    for problem in problems:
        print(f"gate: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
