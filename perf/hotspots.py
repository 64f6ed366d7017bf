"""Where the gateway's time goes, function by function: the benchmark's traffic through a gateway under cProfile.

cProfile makes every call dearer, so read the order and the call counts, not the microseconds. Counts per exchange are
what `perf.gate` holds; costs of the parts without a profiler are in `perf.parts`.
"""

import argparse
import contextlib
import os
import pstats
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import contestants
from .bench import QUICK, Subject, choose_cores, free_port, wait_ready
from .load import Load
from .process import running

UNDER_PROFILER = """
import cProfile, sys
from headgate.__main__ import main
profile = cProfile.Profile()
profile.enable()
try:
    main(["serve", "gateway.yaml"])
finally:
    profile.disable()
    profile.dump_stats("profile")
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m perf.hotspots", description=__doc__)
    parser.add_argument("--streams", action="store_true", help="streams of 200 events instead of plain requests")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long to press (default 4)")
    parser.add_argument("--lines", type=int, default=45, help="functions to show (default 45)")
    parser.add_argument("--sort", default="tottime", help="pstats order: tottime, cumtime, ncalls (default tottime)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Load()) as load:
        work, port = Path(folder), free_port()
        launch = contestants.headgate(contestants.ROOT, work, port, load.provider_port)
        command = [sys.executable, "-c", UNDER_PROFILER]
        with running(command, {**os.environ, **launch.env}, work, choose_cores().gateway) as process:
            subject = Subject(port, launch.headers, process.cpu)
            wait_ready(load, process, subject)
            if args.streams:
                streams = subject.streams(32)
                sample = load.streams(port, streams, process.cpu, events=QUICK.long, warm=0, seconds=args.seconds)
                done, unit = sample.events, "event"
            else:
                sample = load.plain(port, subject.plain(), process.cpu, connections=32, warm=0, seconds=args.seconds)
                done, unit = sample.requests, "request"
            process.stop(grace=30)
        stats = pstats.Stats(str(work / "profile"))
    print(f"{done} {unit}s, {sample.cpu / done * 1e6:.1f} µs each under the profiler")
    print(f"{'calls/' + unit:>14} {'self µs':>8} {'total µs':>8}  function")
    rows = [(calls, own, total, where) for where, (_, calls, own, total, _) in stats.stats.items()]  # type: ignore[attr-defined]
    key = {"tottime": 1, "cumtime": 2, "ncalls": 0}[args.sort]
    for calls, own, total, (file, line, name) in sorted(rows, key=lambda row: row[key], reverse=True)[: args.lines]:
        with contextlib.suppress(ValueError):
            file = str(Path(file).relative_to(contestants.ROOT))
        place = name if file == "~" else f"{file}:{line} {name}"
        print(f"{calls / done:14.2f} {own / done * 1e6:8.2f} {total / done * 1e6:8.2f}  {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
