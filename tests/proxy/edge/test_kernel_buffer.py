"""kernel_buffer: bytes the loop has not read are seen, and nothing is claimed where there is no socket to ask."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from headgate.proxy.edge.kernel_buffer import has_unread


class Over(asyncio.Transport):
    """A transport over a socket, or none."""

    def __init__(self, sock: socket.socket | None) -> None:
        super().__init__()
        self._sock = sock

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._sock if name == "socket" else default


def test_bytes_that_wait_are_seen_until_they_are_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not has_unread(Over(ours))
        theirs.send(b"x")
        assert has_unread(Over(ours))
        ours.recv(1)
        assert not has_unread(Over(ours))


def test_a_peer_that_left_without_a_word_has_none() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        assert not has_unread(Over(ours))


def test_no_socket_and_a_closed_one_have_none() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    ours.close()
    assert not has_unread(Over(ours))
    assert not has_unread(Over(None))
