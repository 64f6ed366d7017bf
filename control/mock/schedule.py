"""Which request meets which fault: the one its model names, else each that is due, in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .catalogue import MODEL_PREFIX, find

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .fault import Fault


class Schedule:
    """`faults` in turn, for every `every`-th request, until `times` requests have met one (None: for ever).

    Connections that fail before they are read count as requests, and requests that name a fault do not.
    """

    __slots__ = ("_count", "_every", "_faults", "_left", "_met")

    def __init__(self, faults: Sequence[Fault] = (), *, every: int = 1, times: int | None = None) -> None:
        self._faults = tuple(faults)
        self._every = every
        self._left = times
        self._count = 0
        self._met = 0

    def at_accept(self) -> Fault | None:
        """The fault of a new connection, if the one that is due is of that kind."""
        due = self._due()
        return self._take() if due is not None and due.at_accept else None

    def at_request(self, model: str) -> Fault | None:
        """The fault of a request. Raises KeyError, with what to say, when its model names one that does not exist."""
        if model.startswith(MODEL_PREFIX):
            return find(model.removeprefix(MODEL_PREFIX))
        return self._take()

    def _due(self) -> Fault | None:
        if not self._faults or self._left == 0 or (self._count + 1) % self._every:
            return None
        return self._faults[self._met % len(self._faults)]

    def _take(self) -> Fault | None:
        due = self._due()
        self._count += 1
        if due is not None:
            self._met += 1
            if self._left is not None:
                self._left -= 1
        return due
