"""500 slow clients, by slowhttptest: each is closed by its deadline, and nobody else notices.

Needs `slowhttptest` (a Debian package) and 1 200 descriptors. The listener runs in a process of its own, under the
limits it comes with, and says what it counts. Good clients alternate between it and a second, idle one, so that what
else the machine does weighs on both.
"""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time

import pytest

from tests_support.raw import CHAT, RawClient, request

CONNECTIONS = 500
SERVER = """
import asyncio, json, sys
import uvloop
from headgate.proxy.clock import Deadlines, LoopClock
from headgate.proxy.edge.context import EdgeContext, EdgeLimits
from headgate.proxy.edge.guard import Guard
from headgate.proxy.edge.listen import bind, serve

BIG = b"x" * (1 << 20)

class Echo:
    def __init__(self, downstream):
        self.downstream = downstream

    def on_body(self, body):
        self.downstream.reply(200, [], BIG if self.downstream.head.method == "GET" else body)

    def on_body_error(self, error):
        self.downstream.reply(error.status, [], b"")

    def on_resume(self): pass
    def on_gone(self): pass

class Acceptor:
    def accepts(self, path):
        return True

    def accept(self, downstream):
        downstream.listener = Echo(downstream)
        downstream.read_body(1 << 20)

async def main():
    clock = LoopClock()
    limits = EdgeLimits(connections=2000)
    context = EdgeContext(
        Acceptor(), clock=clock, deadlines=Deadlines(clock), guard=Guard(open_to_all=True), limits=limits
    )
    server = await serve(None, context, [bind("127.0.0.1", 0)])
    print(server.port, flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        stats = {name: getattr(context.stats, name) for name in context.stats.__slots__}
        print(json.dumps({**stats, "connections": len(context.connections), "held": context.budget.used}), flush=True)
    await server.aclose()

uvloop.run(main())
"""
MODES = {
    "slow headers": (["-H", "-i", "5"], 20, "head_timeouts"),
    "slow bodies": (["-B", "-i", "5", "-s", "8192"], 60, "body_timeouts"),
    "slow reading": (["-X", "-n", "1", "-z", "5", "-w", "1", "-y", "512", "-k", "1"], 60, "write_stalls"),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("slowhttptest") is None, reason="slowhttptest is not installed"),
    pytest.mark.skipif(
        resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1200,
        reason="ulimit -n is below 1200: 500 connections do not fit",
    ),
]


class Listener:
    """The listener's process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.port = int(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def stats(self) -> dict[str, int]:
        """Its counters, now."""
        assert self.process.stdin is not None
        self.process.stdin.write("stats\n")
        self.process.stdin.flush()
        stats: dict[str, int] = json.loads(self._line())
        return stats

    def stop(self) -> int:
        """End it; its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def slowhttptest(*options: str) -> subprocess.Popen[bytes]:
    """An attack that has begun."""
    command = ["slowhttptest", *options, "-c", str(CONNECTIONS), "-r", "100", "-v", "0"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


async def seconds_of_a_good_client(port: int) -> float:
    """One request on a connection of its own, which must be answered."""
    begun = time.perf_counter()
    async with RawClient(port) as client:
        await client.send(request("POST", CHAT, b"{}"))
        assert (await client.answer()).status == 200
    return time.perf_counter() - begun


def p99(times: list[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(times, n=100)[98]


@pytest.mark.parametrize("mode", MODES)
async def test_slow_clients_are_closed_and_nobody_else_notices(mode: str) -> None:
    options, seconds, counter = MODES[mode]
    listener, idle = Listener(), Listener()
    attack = slowhttptest(*options, "-l", str(seconds), "-u", f"http://127.0.0.1:{listener.port}{CHAT}")
    attacked_times, idle_times = [], []
    try:
        while attack.poll() is None:
            attacked_times.append(await seconds_of_a_good_client(listener.port))
            idle_times.append(await seconds_of_a_good_client(idle.port))
            await asyncio.sleep(0.01)
        stats = listener.stats()
    finally:
        attack.kill()
        attack.wait()
        assert listener.stop() == idle.stop() == 0
    assert stats[counter] >= CONNECTIONS * 0.98, stats
    assert p99(attacked_times) <= 2 * p99(idle_times)
