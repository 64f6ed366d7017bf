"""Who begins flights and keeps their answers: what a cache is to a flight (flight.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .cache_note import Verdict
    from .flight import Flight
    from .tape import Recorded


class Room:
    """Memory for what flights keep, shared by all of a filter. `most` in bytes."""

    __slots__ = ("most", "used")

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0


class Owner(Protocol):
    """Who began a flight, and keeps its answer."""

    room: Room

    def begins(self, flight: Flight) -> None:
        """Somebody waits for it: `lead`, `found`, now or later."""

    def landed(self, flight: Flight, recorded: Recorded | None) -> None:
        """It is over, and nobody may join any more; `recorded` where the answer is whole and good. Once."""

    def noted(self, verdict: Verdict) -> None:
        """One more client knows where its answer comes from. Once more for one that leads after all."""

    def lost(self) -> None:
        """A client was cut because it was too slow."""
