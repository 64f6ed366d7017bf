"""write_progress: what the client's own machine has confirmed counts, and nothing that merely left ours."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from headgate.proxy.edge.context import EdgeLimits
from headgate.proxy.edge.listen import bind
from headgate.proxy.edge.write_progress import WriteProgress
from tests_support.edge import FakeTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMITS = EdgeLimits(write_stall=30, write_progress=1000)


class OnSocket(FakeTransport):
    """A transport that keeps nothing itself: what it writes is in the kernel."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.sock = sock
        self.unsent = 1

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The socket."""
        return self.sock if name == "socket" else default


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A server's socket as a listener of ours accepts it, and a client's with little room."""
    with bind("127.0.0.1", 0) as listener, socket.socket() as client:
        listener.listen()
        listener.setblocking(True)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            server.setblocking(False)
            yield server, client


def fill(server: socket.socket) -> int:
    """Write until the kernel takes no more; how much it took."""
    written = 0
    while True:
        try:
            written += server.send(b"x" * 65536)
        except BlockingIOError:
            return written


def test_the_kernel_queues_little_for_a_client_that_does_not_read(pair: tuple[socket.socket, socket.socket]) -> None:
    assert fill(pair[0]) <= 512 * 1024


def test_bytes_in_the_kernel_are_not_taken_yet(pair: tuple[socket.socket, socket.socket]) -> None:
    server, client = pair
    progress = WriteProgress(LIMITS)
    progress.written = fill(server) + 1
    transport = OnSocket(server)
    progress.begin(0.0)
    assert not progress.has_stalled(transport, 0.0)
    assert not progress.has_stalled(transport, 29.0)
    assert progress.has_stalled(transport, 30.0)
    read = 0
    while read < progress.written - 1:
        read += len(client.recv(65536))
    assert not progress.has_stalled(transport, 30.0)


def test_a_socket_that_is_closed_confirms_nothing_and_raises_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].close()
    assert WriteProgress(LIMITS).has_stalled(OnSocket(pair[0]), 31.0)


def test_a_client_that_has_taken_everything_never_stalls() -> None:
    progress = WriteProgress(LIMITS)
    transport = FakeTransport()
    for now in range(0, 300, 5):
        assert not progress.has_stalled(transport, float(now))


@pytest.mark.parametrize(("each", "stalls"), [(1000, False), (200, False), (100, True), (0, True)])
def test_progress_is_so_much_in_each_stall_time(each: int, stalls: bool) -> None:
    progress = WriteProgress(LIMITS)
    transport = FakeTransport()
    progress.written = transport.unsent = 100_000
    progress.begin(0.0)
    stalled = False
    for now in range(0, 300, 5):
        stalled = stalled or progress.has_stalled(transport, float(now))
        transport.unsent -= each
    assert stalled is stalls


def test_a_new_wait_begins_from_nothing() -> None:
    progress = WriteProgress(LIMITS)
    transport = FakeTransport()
    progress.written = transport.unsent = 100
    assert progress.has_stalled(transport, 1000.0)
    progress.begin(1000.0)
    assert not progress.has_stalled(transport, 1029.0)
