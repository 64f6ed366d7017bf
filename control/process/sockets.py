"""Listening sockets, with errors that say what to do."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ...proxy.edge.listen import bind
from .errors import BootError

if TYPE_CHECKING:
    import socket

    from ...config import Listener


def listening(listener: Listener, setting: str) -> socket.socket:
    """The bound socket of a listener; `setting` is its place in the config. Raises BootError."""
    return bound(listener.address, listener.port, f"{setting}.port", f"{setting}.address")


def bound(address: str, port: int, port_setting: str, address_setting: str) -> socket.socket:
    """A bound socket; the settings name what to change when it cannot be had. Raises BootError."""
    try:
        return bind(address, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = f"port {port} of {address} is in use: stop what listens there, or set {port_setting} to another"
        elif error.errno == errno.EACCES:
            why = f"this user may not listen on port {port}: set {port_setting} to one above 1023"
        else:
            why = f"cannot listen on {address} port {port}: {error.strerror}; check {address_setting}"
        raise BootError(why) from None
