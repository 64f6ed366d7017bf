"""A place in a cluster: what a call asks of it, and who has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from .call import CallReceiver
from .host import Host

if TYPE_CHECKING:
    from .credentials import Credential


class Needs(msgspec.Struct, frozen=True, gc=False):
    """What a call asks of its place, beyond its model."""

    tokens: int = 0
    """What it is estimated to use, roughly where no limit counts it; 0 where nobody asks."""
    key: int | None = None
    """What ring_hash follows."""
    region: str = ""
    avoid: tuple[Host, ...] = ()
    """Hosts that have failed this exchange."""


PLAIN = Needs()


class Holder(CallReceiver, Protocol):
    """Who has a place in a cluster, from `start` to `end`. The cluster sets all three."""

    host: Host | None
    """None while it waits for a place."""
    credential: Credential | None
    tokens: int
