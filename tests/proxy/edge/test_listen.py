"""listen: sockets are bound as asked, and descriptors running out neither stops the listener nor starves the rest."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import subprocess
import sys
from collections import Counter

import pytest

from headgate.proxy.edge.context import MAX_CONNECTIONS, RESERVED_FILES, connection_bound
from headgate.proxy.edge.listen import bind
from tests_support.raw import RawClient, request


def test_a_free_port_is_found() -> None:
    with bind("127.0.0.1", 0) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"
        assert sock.getsockname()[1] > 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not sock.getblocking()


def test_ipv6_is_bound_as_ipv6_alone() -> None:
    try:
        sock = bind("::1", 0)
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with sock:
        assert sock.family == socket.AF_INET6
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def test_a_port_in_use_is_refused() -> None:
    with bind("127.0.0.1", 0) as sock:
        sock.listen()
        with pytest.raises(OSError, match="in use"):
            bind("127.0.0.1", sock.getsockname()[1])


@pytest.mark.parametrize(
    ("files", "bound"), [(256, 96), (1024, 480), (64, 1), (1 << 20, MAX_CONNECTIONS), (-1, MAX_CONNECTIONS)]
)
def test_connections_are_bounded_by_descriptors(monkeypatch: pytest.MonkeyPatch, files: int, bound: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert connection_bound() == bound


SERVER = """
import asyncio, resource, sys
import uvloop
from headgate.proxy.clock import Deadlines, LoopClock
from headgate.proxy.edge.context import EdgeContext, EdgeLimits, connection_bound
from headgate.proxy.edge.guard import Guard
from headgate.proxy.edge.listen import bind, serve

class Answers:
    def accepts(self, path):
        return True

    def accept(self, downstream):
        downstream.listener = self
        downstream.reply(200, [], b"{}")

    def on_gone(self):
        pass

async def main(files, connections):
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    clock = LoopClock()
    limits = EdgeLimits(connections=connections or connection_bound())
    guard = Guard(open_to_all=True)
    context = EdgeContext(Answers(), clock=clock, deadlines=Deadlines(clock), guard=guard, limits=limits)
    server = await serve(None, context, [bind("127.0.0.1", 0)])
    print(server.port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.aclose()

uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
"""
FILES = 128
CLIENTS = 300


@pytest.mark.parametrize("connections", [0, 10_000])
async def test_when_descriptors_run_out_some_are_served_and_the_listener_lives(connections: int) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, str(FILES), str(connections), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    port = int(await process.stdout.readline())

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{process.pid}/fd"))

    before = descriptors()

    async def ask() -> int:
        try:
            async with RawClient(port) as client:
                await client.send(request("GET", "/"))
                status = (await client.answer()).status
                await everybody.wait()
                return status
        except (ConnectionError, AssertionError):
            return 0

    everybody = asyncio.Event()
    clients = [asyncio.create_task(ask()) for _ in range(CLIENTS)]
    try:
        await asyncio.sleep(1.5)
        held = descriptors()
        everybody.set()
        statuses = Counter(await asyncio.gather(*clients))
        served = statuses[200]
        assert set(statuses) <= {0, 200, 503}
        if connections:
            assert FILES - 30 <= served < FILES
        else:
            assert served == (FILES - RESERVED_FILES) // 2
            assert held <= before + served + served // 8 + 1
        for _ in range(300):
            if descriptors() <= before:
                break
            await asyncio.sleep(0.02)
        assert descriptors() <= before
        assert await ask() == 200
    finally:
        process.stdin.close()
        assert await process.wait() == 0
