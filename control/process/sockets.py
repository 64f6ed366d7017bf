"""Listening sockets, with errors that say what to do."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ...proxy.edge.listen import bind
from .errors import BootError

if TYPE_CHECKING:
    import socket


def bound(address: str, port: int, setting: str) -> socket.socket:
    """A bound socket; `setting` names what to change when it cannot be had. Raises BootError."""
    try:
        return bind(address, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = f"port {port} of {address} is in use: stop what listens there, or set {setting} to another"
        else:
            why = f"cannot listen on {address}:{port}: {error.strerror}; check {setting}"
        raise BootError(why) from None
