"""What the kernel holds of a connection that the loop has not read yet.

A timer runs before the sockets of its turn are looked at. So on a loop that is behind, a connection can be over its
idle time while a request on it has long arrived; closing it then would answer that request with a reset.
"""

from __future__ import annotations

import struct
from fcntl import ioctl
from termios import FIONREAD
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

_COUNT = struct.Struct("i")


def has_unread(transport: asyncio.Transport) -> bool:
    """Whether bytes of the peer wait in the socket; False where there is none, or it is closed."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False
    try:
        (count,) = _COUNT.unpack(ioctl(sock.fileno(), FIONREAD, bytes(_COUNT.size)))
    except OSError:
        return False
    return bool(count)
