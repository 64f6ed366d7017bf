"""Whether a client takes what waits for it.

Bytes that left the process have not left the machine: the kernel queues them for a client that does not read. So
progress is counted where the client confirms it, as what was written less what waits here and what waits in the
kernel. A byte now and then is not progress: a client reading that slowly holds a connection, and the exchange behind
it, for as long as it likes.
"""

from __future__ import annotations

import fcntl
import sys
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from .context import EdgeLimits


class WriteProgress:
    """One connection's. Whoever writes adds to `written`; the rest is looked at only now and then."""

    __slots__ = ("_confirmed", "_limits", "_since", "written")

    def __init__(self, limits: EdgeLimits) -> None:
        self._limits = limits
        self._confirmed = 0
        self._since = 0.0
        self.written = 0

    def begin(self, now: float) -> None:
        """A new wait: what the client did before does not count."""
        self._since = now

    def has_stalled(self, transport: asyncio.Transport, now: float) -> bool:
        """Whether bytes wait and too few were confirmed for `limits.write_stall`. Ask a few times in that time."""
        buffered = transport.get_write_buffer_size()
        if not buffered:
            self._since = now
            return False
        confirmed = self.written - buffered - _unconfirmed(transport)
        if confirmed - self._confirmed >= self._limits.write_progress:
            self._confirmed = confirmed
            self._since = now
        return now - self._since >= self._limits.write_stall


def _unconfirmed(transport: asyncio.Transport) -> int:
    """What the kernel has taken from us and the client has not confirmed; 0 where the system cannot tell."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError):  # not a kernel that knows, not a socket any more
        return 0
