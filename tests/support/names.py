"""A resolver under the test's control, at the seam: `found` is its answer, an OSError a failure, None silence.

    names = FakeResolver(("127.0.0.1", port))
    Caller("http://provider.example", resolver=names)

`answer()` says now what a silent one was asked.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

from headgate.proxy.upstream.resolver import Address

if TYPE_CHECKING:
    from collections.abc import Callable

    from headgate.proxy.upstream.resolver import Found

    Place = tuple[Any, ...]

DOWN = OSError("resolver down")


def address(place: Place) -> Address:
    """An address of IPv4 or IPv6, as its looks say."""
    return Address(socket.AF_INET6 if ":" in place[0] else socket.AF_INET, place)


class FakeResolver:
    """See the top."""

    def __init__(self, *places: Place) -> None:
        self.found: Found | None = [address(place) for place in places]
        self.asked: list[tuple[str, int]] = []
        self._silent: list[Callable[[Found], None]] = []

    def leads_to(self, *places: Place) -> None:
        """From now on."""
        self.found = [address(place) for place in places]

    def look_up(self, host: str, port: int, done: Callable[[Found], None]) -> None:
        """As Resolver does."""
        self.asked.append((host, port))
        if self.found is None:
            self._silent.append(done)
        else:
            asyncio.get_running_loop().call_soon(done, self.found)

    def answer(self) -> None:
        """What `found` is now, to all that wait."""
        silent, self._silent = self._silent, []
        for done in silent:
            assert self.found is not None
            done(self.found)
