"""What the connections of one listener share: limits, counters, the body budget, the acceptor, the clock."""

from __future__ import annotations

import resource
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .body import BodyBudget

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..clock import Clock, Deadlines
    from .cors import Cors
    from .downstream import Acceptor
    from .guard import Guard
    from .http_protocol import HttpProtocol
    from .proxies import TrustedProxies

MAX_CONNECTIONS = 10_000
RESERVED_FILES = 64


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """Bounds of one listener; sizes in bytes, times in seconds."""

    request_line: int = 8 * 1024
    head_bytes: int = 64 * 1024
    head_fields: int = 100
    head_timeout: float = 10.0
    """From connect, or from the first byte of a later request, to the end of the head."""
    body_idle: float = 30.0
    body_progress: int = 4 * 1024
    """Bytes that must arrive in each `body_idle`, or all that is left: a byte now and then is not progress."""
    keep_alive: float = 75.0
    last_call: float = 5.0
    """Stands for `keep_alive` once the listener drains: a client that uses its connection comes back within it and
    hears `connection: close`, so that only connections nobody uses are closed under their clients."""
    write_stall: float = 30.0
    write_progress: int = 4 * 1024
    """Bytes that a client must take in each `write_stall` while more wait for it; checked every sixth of it."""
    linger_idle: float = 5.0
    linger: float = 30.0
    """How long we listen to a client that was refused, so that a reset does not swallow the answer on its way."""
    write_buffer: int = 64 * 1024
    unread: int = 64 * 1024
    """What is taken from a client before anybody wants it: an unasked body, or pipelined requests."""
    skipped_body: int = 64 * 1024
    """The largest rest of an unwanted body that is read and thrown away to keep the connection."""
    connections: int = MAX_CONNECTIONS
    """Per worker. Above it a connection hears 503; above it by an eighth it is closed without a word."""


def connection_bound(wanted: int = MAX_CONNECTIONS) -> int:
    """`wanted`, or half of what descriptors this process may have: each exchange needs one upstream, too."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, (files - RESERVED_FILES) // 2))


class EdgeStats:
    """Plain counters, read by whoever shows metrics."""

    __slots__ = (
        "accepted", "body_timeouts", "gone", "head_timeouts", "idle_closed", "over_limit", "refused", "requests",
        "write_stalls",
    )  # fmt: skip

    def __init__(self) -> None:
        self.accepted = 0
        self.over_limit = 0
        self.requests = 0
        self.refused = 0
        """Requests answered before anybody above saw them: malformed, or from a host or origin that is not allowed."""
        self.gone = 0
        """Clients that left, or were cut, before their answer was whole."""
        self.head_timeouts = 0
        self.body_timeouts = 0
        self.write_stalls = 0
        self.idle_closed = 0


class EdgeContext:
    """Handed to every connection. `app` serves the paths that `acceptor` does not accept; `serve` sets it."""

    __slots__ = (
        "acceptor", "app", "budget", "clock", "connections", "cors", "deadlines", "draining", "guard",
        "limits", "new_id", "proxies", "stats",
    )  # fmt: skip

    def __init__(
        self,
        acceptor: Acceptor,
        *,
        clock: Clock,
        deadlines: Deadlines,
        guard: Guard,
        limits: EdgeLimits | None = None,
        budget: BodyBudget | None = None,
        new_id: Callable[[], str] | None = None,
        cors: Cors | None = None,
        proxies: TrustedProxies | None = None,
    ) -> None:
        self.acceptor = acceptor
        self.app: Acceptor
        self.clock = clock
        self.deadlines = deadlines
        self.guard = guard
        """Replaced by each version of the config, with `cors` and `proxies`: what one has let in to an acceptor, it
        lets in again unasked."""
        self.limits = limits or EdgeLimits(connections=connection_bound())
        self.budget = budget or BodyBudget(512 * 1024 * 1024)
        self.new_id = new_id or _random_id
        self.cors = cors
        """None: no page of another origin."""
        self.proxies = proxies
        """None: the address of the connection is the client's."""
        self.stats = EdgeStats()
        self.connections: set[HttpProtocol] = set()
        self.draining = False


def _random_id() -> str:
    return secrets.token_hex(16)
