"""From a host name to addresses, by the system's resolver, in threads.

The system's call may hang for as long as it likes and cannot be given up. So it has threads of its own, a few at most,
that nobody waits for: neither the event loop nor the end of the process, nor what else the process does in threads.

Not here: how long an answer is good, and what is used while there is none (names.py).
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from contextlib import suppress
from ipaddress import ip_address
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MOST_THREADS = 8


class Address(NamedTuple):
    """One result of the resolver, as the socket module takes it."""

    family: int
    sockaddr: tuple[Any, ...]


Found = list[Address] | OSError
"""What a lookup comes to; the list is not empty."""


class Resolver:
    """Safe to share between loops and threads. At most `most` lookups run at once; the others wait their turn."""

    def __init__(self, most: int = MOST_THREADS) -> None:
        self._most = most
        self._lock = Lock()
        self._waiting: deque[_Lookup] = deque()
        self._threads = 0

    def look_up(self, host: str, port: int, done: Callable[[Found], None]) -> None:
        """Ask, and have `done` called on this loop, never from inside this call; never, where the system hangs."""
        lookup = _Lookup(asyncio.get_running_loop(), host, port, done)
        with self._lock:
            self._waiting.append(lookup)
            if self._threads >= self._most:
                return
            self._threads += 1
        Thread(target=self._work, name="headgate-resolver", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                lookup = self._waiting.popleft()
            found = _ask_system(lookup.host, lookup.port)
            with suppress(RuntimeError):  # its loop has ended meanwhile
                lookup.loop.call_soon_threadsafe(lookup.done, found)


SYSTEM = Resolver()
"""That of the process."""


class _Lookup(NamedTuple):
    loop: asyncio.AbstractEventLoop
    host: str
    port: int
    done: Callable[[Found], None]


def literal(host: str, port: int) -> tuple[Address, ...] | None:
    """The addresses of a host that needs no resolver: an IP address, or this machine (RFC 6761, 6.3). None for a
    name."""
    if host == "localhost" or host.endswith(".localhost"):
        return (Address(socket.AF_INET, ("127.0.0.1", port)), Address(socket.AF_INET6, ("::1", port, 0, 0)))
    try:
        version = ip_address(host).version
    except ValueError:
        return None
    if "%" in host:  # the system knows the number of that interface
        return None
    if version == 4:
        return (Address(socket.AF_INET, (host, port)),)
    return (Address(socket.AF_INET6, (host, port, 0, 0)),)


def _ask_system(host: str, port: int) -> Found:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return error
    except Exception as error:  # UnicodeError for what cannot be a name; of anything else, the threads must not die
        return OSError(repr(error))
    addresses = list(dict.fromkeys(Address(family, sockaddr) for family, _, _, _, sockaddr in found))
    return _alternate(addresses) if addresses else OSError("the name has no address")


def _alternate(addresses: Sequence[Address]) -> list[Address]:
    """One of each family in turn, beginning with the resolver's favourite: a dead family costs one head start."""
    first = [one for one in addresses if one.family == addresses[0].family]
    other = [one for one in addresses if one.family != addresses[0].family]
    mixed: list[Address] = []
    for at in range(max(len(first), len(other))):
        mixed += first[at : at + 1] + other[at : at + 1]
    return mixed
