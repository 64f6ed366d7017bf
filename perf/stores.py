"""What it costs to count a call, by store and rules, as filters do it: the short way, else the long. No requests.

CPU time of this process, the kernel's part included. The stores are timed in turn, many short runs each, and the
median run is told: a busy machine then slows all alike. A thousand callers take part, as many as a gateway meets
between two looks at one of them.

    python -m perf.stores [--runs N] [--save]
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from headgate.filters.stores.memory import MemoryStore
from headgate.filters.stores.rules import Granted, Kind, Limits, Rule, Store
from headgate.filters.stores.shared import SharedStore
from headgate.filters.stores.shared_memory import SharedMemory

from . import report

CALLS = 2_000
CALLERS = 1_000
MUCH = 10**9
WORKERS = 4
"""Whose cells are looked at in shared memory."""


def rule_sets() -> dict[str, list[Rule]]:
    """By what they are called in the table."""
    user = ("user",)
    requests, tokens = Rule(Kind("requests", user, "minute"), MUCH), Rule(Kind("tokens", user, "minute"), MUCH)
    more = [Rule(Kind("requests", user, "day"), MUCH), Rule(Kind("concurrent", user, ""), MUCH)]
    return {
        "requests": [requests],
        "requests, tokens": [requests, tokens],
        "requests, tokens, concurrent": [requests, tokens, more[1]],
        "requests, tokens, requests a day, concurrent": [requests, tokens, *more],
        "tokens, even refill": [Rule(Kind("tokens", user, "minute", continuous=True), MUCH)],
    }


def a_run(limits: Limits, rules: int) -> Callable[[], float]:
    """Counts `CALLS` calls from their admission to their end; returns CPU seconds for each."""
    callers = [[f"ukey-{n}"] * rules for n in range(CALLERS)]
    now = 0

    def run() -> float:
        nonlocal now
        count, recount, take, settle = limits.count, limits.recount, limits.take, limits.settle
        begun = time.process_time()
        for n in range(CALLS):
            now += 300
            keys = callers[n % CALLERS]
            counted = count(keys[0], 500, now)
            if counted is not None:
                recount(counted, 450)
                continue
            granted = take(keys, 500, now)
            if not isinstance(granted, Granted):
                raise RuntimeError("a call was refused, so this does not measure admissions")
            if granted.holds:
                settle(granted, 450, now)
        return (time.process_time() - begun) / CALLS

    return run


def medians(runs: dict[str, Callable[[], float]], times: int) -> dict[str, float]:
    """Microseconds."""
    for run in runs.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    gc.collect()
    for _ in range(times):
        for name, run in runs.items():
            taken[name].append(run())
    return {name: statistics.median(column) * 1e6 for name, column in taken.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m perf.stores", description="What it costs to count a call.")
    parser.add_argument("--runs", type=int, default=40, help=f"of {CALLS} calls each (default: 40)")
    parser.add_argument("--save", action="store_true", help="put the table into perf/README.md")
    args = parser.parse_args(argv)
    memory = SharedMemory.create(4 * WORKERS)
    memory.expect(WORKERS - 1)
    stores: dict[str, Store] = {"memory": MemoryStore(), "shared": SharedStore(memory)}
    sets = rule_sets()
    runs = {
        f"{store}|{name}": a_run(opened.open(name, rules), len(rules))
        for name, rules in sets.items()
        for store, opened in stores.items()
    }
    found = medians(runs, args.runs)
    lines = ["| µs per call | " + " | ".join(stores) + " |", "|---|" + "---|" * len(stores)]
    lines += [
        f"| {name} | " + " | ".join(f"{found[f'{store}|{name}']:.1f}" for store in stores) + " |" for name in sets
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.save:
        report.save("stores", f"`python -m perf.stores`, {report.machine()}.\n\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
