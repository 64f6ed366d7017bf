"""CPU per request and per streamed event, latency, memory and time to ready of several gateways, beside each other
in one run.

Every round starts each gateway afresh on one core, presses it from the other, and ends it: A B C A B C, so that
whatever else the machine does meets all of them. What is compared is CPU time spent, as a ratio to the first one
(bare Envoy), and per round: a ratio taken within one round survives a noisy machine, a time in microseconds does
not. The cost of one event is what a window of long streams costs more than a window of short ones (`_event_cost`).

Not here: what it means (perf/README.md), counts that do not depend on the machine (perf.gate).
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from . import report, traffic
from .contestants import ALL, ROOT, Contestant, UnavailableError, headgate
from .load import Load, Sample
from .process import Process, StartError, busy_seconds, running
from .report import Round

READY_TIMEOUT = 90.0


@dataclass(frozen=True)
class Plan:
    """How long and how hard one run presses; `seconds` is one window, `pace` the one at a fixed rate, `rest` the pause
    after each."""

    rounds: int
    seconds: float
    pace: float
    warm: float = 1.0
    connections: int = 32
    streams: int = 32
    short: int = 8
    long: int = 200
    rate: float = 50.0
    rest: float = 0.0


FULL = Plan(rounds=7, seconds=3.0, pace=6.0)
QUICK = Plan(rounds=2, seconds=1.0, pace=2.0, warm=0.5)


@dataclass(frozen=True)
class Cores:
    """Where the gateway runs, and where both ends of it do."""

    gateway: int
    load: int


def choose_cores() -> Cores:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        print("only one core: the load competes with the gateway, latencies mean nothing", file=sys.stderr)
    return Cores(allowed[0], allowed[-1])


@dataclass(frozen=True)
class Subject:
    """What is pressed: where it listens, what is sent there, and how to read what it has used so far."""

    port: int
    headers: Mapping[str, str]
    cpu: Callable[[], float] = time.monotonic
    pss: Callable[[], int] = lambda: 0

    def plain(self) -> bytes:
        return traffic.request(f"127.0.0.1:{self.port}", self.headers, traffic.chat_body())

    def streams(self, count: int) -> list[bytes]:
        return [traffic.request(f"127.0.0.1:{self.port}", self.headers, traffic.chat_body(n)) for n in range(count)]


def measure(contestant: Contestant, home: Path, load: Load, plan: Plan, cores: Cores) -> Round:
    """One round of one gateway, from its start to its end."""
    with tempfile.TemporaryDirectory(prefix="headgate-bench-") as folder:
        work, port = Path(folder), free_port()
        launch = contestant.launch(home, work, port, load.provider_port)
        began = time.monotonic()
        with running(launch.argv, {**os.environ, **launch.env}, work, cores.gateway) as process:
            subject = Subject(port, launch.headers, process.cpu, process.pss)
            ready = wait_ready(load, process, subject) - began
            _verify(load, subject)
            return _press(load, subject, plan, cores, ready)


def _press(load: Load, subject: Subject, plan: Plan, cores: Cores, ready: float = 0.0) -> Round:
    port, cpu = subject.port, subject.cpu
    foreign: list[float] = []

    def window(sample: Callable[[], Sample]) -> Sample:
        busy, spent, began = busy_seconds(cores.gateway), cpu(), time.monotonic()
        taken = sample()
        others = busy_seconds(cores.gateway) - busy - (cpu() - spent)
        foreign.append(max(0.0, others) / (time.monotonic() - began))
        time.sleep(plan.rest)
        return taken

    def streams(count: int, events: int) -> Sample:
        requests = subject.streams(count)
        return window(
            lambda: load.streams(port, requests, cpu, events=events, warm=plan.warm / 2, seconds=plan.seconds)
        )

    requests = window(
        lambda: load.plain(
            port, subject.plain(), cpu, connections=plan.connections, warm=plan.warm, seconds=plan.seconds
        )
    )
    short, long = streams(plan.streams, plan.short), streams(plan.streams, plan.long)
    lone_short, lone_long = streams(1, plan.short), streams(1, plan.long)
    paced = load.paced(port, subject.plain(), connections=8, rate=plan.rate, seconds=plan.pace)
    event, stream = _event_cost(short, long)
    return Round(
        request_us=requests.cpu / max(1, requests.requests) * 1e6,
        requests_per_s=requests.requests / requests.wall,
        event_us=event * 1e6,
        lone_event_us=_event_cost(lone_short, lone_long)[0] * 1e6,
        stream_us=stream * 1e6,
        events_per_s=long.events / long.wall,
        latencies=paced.latencies,
        pss_mb=subject.pss() / 2**20,
        ready_ms=ready * 1e3,
        busy=requests.cpu / requests.wall,
        busy_streams=long.cpu / long.wall,
        rig_busy=requests.rig_cpu / requests.wall,
        foreign=statistics.median(foreign[:3]),  # those that load the core; ticks tell little about the others
        failed=sum(s.failed for s in (requests, short, long, lone_short, lone_long, paced)),
        stalls=sum(s.stalls for s in (short, long, lone_short, lone_long)),
    )


def _event_cost(short: Sample, long: Sample) -> tuple[float, float]:
    """CPU seconds of one event and of one stream without its events.

    Both windows spend `streams * s + events * e` with the same s and e, in very different proportion: two equations.
    """
    determinant = short.streams * long.events - long.streams * short.events
    if determinant <= 0:
        return float("nan"), float("nan")
    event = (short.streams * long.cpu - long.streams * short.cpu) / determinant
    stream = (long.events * short.cpu - short.events * long.cpu) / determinant
    return event, stream


def wait_ready(load: Load, process: Process, subject: Subject) -> float:
    deadline = time.monotonic() + READY_TIMEOUT
    while time.monotonic() < deadline:
        process.check()
        answer = load.once(subject.port, subject.plain(), 5.0)
        if answer is not None and answer.startswith(b"HTTP/1.1 200"):
            return time.monotonic()
        time.sleep(0.002)
    raise StartError(f"no answer within {READY_TIMEOUT:.0f} s")


def _verify(load: Load, subject: Subject) -> None:
    """Refuses to measure a gateway that does not carry the traffic."""
    answer = load.once(subject.port, subject.plain(), 5.0) or b""
    if b'"usage"' not in answer or b"GH-50-B" not in answer:
        raise StartError(f"the answer did not come through: {answer[:400]!r}")
    events = 12
    answer = load.once(subject.port, subject.streams(1)[0], 5.0, events=events) or b""
    at = [answer.find(traffic.marker(n)) for n in range(events)]
    if -1 in at or at != sorted(at) or b"data: [DONE]" not in answer:
        raise StartError(f"the stream did not come through: {answer[-400:]!r}")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def run(names: Sequence[str], plan: Plan, *, alone: bool = False) -> dict[str, list[Round]]:
    """All rounds of all gateways that can be had; those that cannot are named on stderr."""
    cores = choose_cores()
    homes: dict[str, Path] = {}
    for contestant in ALL:
        if contestant.name in names:
            try:
                homes[contestant.name] = contestant.prepare()
            except UnavailableError as reason:
                print(f"skipped {contestant.name} {contestant.version}: {reason}", file=sys.stderr)
    rounds: dict[str, list[Round]] = {}
    with on_core(cores.load, alone=alone), contextlib.closing(Load()) as load:
        if "direct" in names:
            rounds["direct"] = [_press(load, Subject(load.provider_port, {}), plan, cores)]
        for number in range(plan.rounds):
            for contestant in ALL:
                home = homes.get(contestant.name)
                if home is None:
                    continue
                try:
                    figures = measure(contestant, home, load, plan, cores)
                except StartError as reason:
                    print(f"skipped {contestant.name} {contestant.version}: {reason}", file=sys.stderr)
                    del homes[contestant.name]
                    continue
                rounds.setdefault(contestant.name, []).append(figures)
                print(f"round {number + 1}/{plan.rounds} {contestant.name:9} {figures.line()}", file=sys.stderr)
    return rounds


def compare_endpoints(plan: Plan, *, alone: bool = False) -> dict[str, list[float]]:
    """Microseconds of CPU per request to each endpoint of Headgate: one after the other under the same process, a fresh
    one in every round."""
    cores = choose_cores()
    rounds: dict[str, list[float]] = {path: [] for path in traffic.ENDPOINTS}
    with on_core(cores.load, alone=alone), contextlib.closing(Load()) as load:
        for number in range(plan.rounds):
            with tempfile.TemporaryDirectory(prefix="headgate-bench-") as folder:
                work, port = Path(folder), free_port()
                launch = headgate(ROOT, work, port, load.provider_port)
                with running(launch.argv, {**os.environ, **launch.env}, work, cores.gateway) as process:
                    subject = Subject(port, launch.headers, process.cpu, process.pss)
                    wait_ready(load, process, subject)
                    # Every path begins a round once: a process is not the same in its first second as in its third.
                    paths = list(rounds)[number % len(rounds) :] + list(rounds)[: number % len(rounds)]
                    for path in paths:
                        rounds[path].append(_request_us(load, subject, path, plan))
            latest = {path: figures[-1] for path, figures in rounds.items()}
            print(f"round {number + 1}/{plan.rounds} {latest}", file=sys.stderr)
    return rounds


def _request_us(load: Load, subject: Subject, path: str, plan: Plan) -> float:
    body, answer = traffic.ENDPOINTS[path]
    request = traffic.request(f"127.0.0.1:{subject.port}", subject.headers, body, path)
    came = load.once(subject.port, request, 5.0) or b""
    if not came.endswith(answer.partition(b"\r\n\r\n")[2]):
        raise StartError(f"the answer of {path} did not come through: {came[:400]!r}")
    time.sleep(plan.rest)
    sample = load.plain(
        subject.port, request, subject.cpu, connections=plan.connections, warm=plan.warm, seconds=plan.seconds
    )
    if sample.failed:
        raise StartError(f"{sample.failed} requests to {path} failed")
    return sample.cpu / max(1, sample.requests) * 1e6


@contextlib.contextmanager
def on_core(core: int, *, alone: bool) -> Iterator[None]:
    """The rig on its core; `alone` puts it, and every gateway it starts, ahead of all else that wants either core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    if alone:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    try:
        yield
    finally:
        if alone:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that what was started is ended."""

    def leave(number: int, frame: FrameType | None) -> None:
        del frame
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    known = [contestant.name for contestant in ALL]
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="CPU, latency and memory of Headgate beside other gateways."
    )
    parser.add_argument(
        "--quick", action="store_true", help="two short rounds: shows an order of magnitude, not a result"
    )
    parser.add_argument(
        "--only",
        metavar="A,B",
        default=",".join(known),
        help=f"of {', '.join(known)}; envoy is the measure of the ratios",
    )
    parser.add_argument(
        "--endpoints", action="store_true", help="Headgate alone: a request to other endpoints beside one to chat"
    )
    parser.add_argument(
        "--filters", action="store_true", help="Headgate with each filter and with all of them, beside bare Envoy"
    )
    parser.add_argument("--rounds", type=int, help="rounds instead of the plan's")
    parser.add_argument(
        "--alone",
        action="store_true",
        help="real-time priority, for a busy machine; needs root, stops others for every other second",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures")
    parser.add_argument("--save", action="store_true", help="put the table into perf/README.md")
    args = parser.parse_args(argv)
    names = [name.strip() for name in args.only.split(",")]
    if unknown := set(names) - set(known):
        parser.error(f"unknown gateway: {', '.join(sorted(unknown))}")
    plan = QUICK if args.quick else FULL
    if args.rounds:
        plan = replace(plan, rounds=args.rounds)
    if args.alone:
        plan = replace(plan, rest=plan.seconds)
    if args.endpoints:
        with _ended_by_signals():
            print(report.endpoints(compare_endpoints(plan, alone=args.alone)))
        return 0
    command = "scripts/bench " + " ".join(sys.argv[1:] if argv is None else argv)
    of = f"`{command.replace(' --save', '').strip()}`, {report.machine()}."
    if args.filters:
        from .filters import compare  # which stands on this module

        with _ended_by_signals():
            text = report.filters(compare(plan, alone=args.alone))
        print(text)
        if args.save:
            report.save("filters", f"{of}\n\n{text}")
        return 0
    with _ended_by_signals():
        rounds = run(["direct", *names], plan, alone=args.alone)
    text = report.table(rounds, {c.name: c for c in ALL}, plan.rate)
    print(text)
    if args.json:
        args.json.write_text(json.dumps(report.as_json(rounds), indent=1))
    if args.save:
        report.save("figures", f"{of}\n\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
