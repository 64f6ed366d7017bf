"""A list of filters, compiled: for each moment only the filters that override it.

The leading filters that do not read the body and that no route overrides are the *prefix*, the same for every route;
they run before the body is read. Each route then has its own *rest*. Positions count through prefix and rest, so "every
filter above this one" is a comparison of two numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .filter import Event, Filter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .exchange import Exchange


class RequestStep:
    """One `on_request`, and the `rest` of those that run after it. While it runs, the exchange has `reached` so far."""

    __slots__ = ("call", "position", "reached", "rest")

    def __init__(
        self, position: int, call: Callable[[Exchange], Any], reached: int, rest: tuple[RequestStep, ...]
    ) -> None:
        self.position = position
        self.call = call
        self.reached = reached
        self.rest = rest


class Chain:
    """The filters of one route from top to bottom. `first` is where `requests` begin: what is above has already run."""

    __slots__ = (
        "_parts",
        "admission",
        "answers",
        "attempt_ends",
        "attempts",
        "depth",
        "done",
        "events",
        "filters",
        "names",
        "observers",
        "records",
        "requests",
        "reservations",
        "responses",
        "usages",
    )

    def __init__(self, filters: Sequence[Filter], first: int = 0, span: range | None = None) -> None:
        """`span`: positions of those that count; the others are only counted."""
        self.filters = tuple(filters)
        self.depth = len(self.filters)
        self.names = tuple(link.name for link in self.filters)
        self._parts: dict[int, tuple[Chain, Chain]] = {}
        placed = [(at, link) for at, link in enumerate(self.filters) if span is None or at in span]
        self.admission = next((at for at, f in placed if f.admits), -1)
        """Position of the filter that decides whether there is an exchange at all; what it refuses leaves no record."""
        placed_requests = [(at, f) for at, f in placed if at >= first and _overrides(f, "on_request")]
        self.requests = _steps([(at, f.on_request, at) for at, f in placed_requests])
        self.reservations = _steps([(at, f.on_request, self.depth) for at, f in placed_requests if f.reserves])
        """What depends on the model that is asked for; every filter has let the exchange pass before."""
        self.attempts = tuple((f.on_attempt, f.on_attempt_end) for _, f in placed if _overrides(f, "on_attempt"))
        """Each with the `on_attempt_end` of the same filter, which takes it back."""
        self.attempt_ends = tuple(f.on_attempt_end for _, f in reversed(placed) if _overrides(f, "on_attempt_end"))
        self.responses = tuple((at, f.on_response) for at, f in reversed(placed) if _overrides(f, "on_response"))
        self.observers = tuple(f.on_bytes for _, f in reversed(placed) if _overrides(f, "on_bytes"))
        self.events = tuple(f.on_event for _, f in reversed(placed) if _overrides(f, "on_event"))
        self.answers = tuple(f.on_answer for _, f in reversed(placed) if _overrides(f, "on_answer"))
        self.usages = tuple(f.on_usage for _, f in placed if _overrides(f, "on_usage"))
        self.done = tuple((at, f.on_done) for at, f in reversed(placed) if _overrides(f, "on_done"))
        self.records = tuple((at, f.on_record) for at, f in reversed(placed) if _overrides(f, "on_record"))

    @property
    def byte_path(self) -> bool:
        """Streams pass as bytes: no filter rewrites events."""
        return not self.events

    def parts(self, at: int) -> tuple[Chain, Chain]:
        """The chain of a client that gets a shared answer at position `at`, and that of the call which is made for it:
        what is above and `at` itself, and what is below. Attempts concern all, so they are the second's."""
        parts = self._parts.get(at)
        if parts is None:
            above = Chain(self.filters, len(self.filters), range(at + 1))
            below = Chain(self.filters, at + 1, range(at + 1, len(self.filters)))
            above.admission = self.admission
            below.attempts, below.attempt_ends = self.attempts, self.attempt_ends
            below.reservations, below.usages = self.reservations, self.usages
            above.attempts = above.attempt_ends = ()
            parts = self._parts[at] = (above, below)
        return parts

    def rewrite(self, ex: Exchange, raw: bytes, state: dict[object, Any] | None = None) -> bytes:
        """One event through every `on_event`, bottom to top. `state` is its stream's."""
        events = [Event(raw, state)]
        for on_event in self.events:
            kept: list[Event] = []
            for event in events:
                result = on_event(ex, event)
                if isinstance(result, list):
                    kept += result
                elif result is not None:
                    kept.append(result)
            events = kept
        return b"".join([event.raw for event in events])


def _steps(calls: Sequence[tuple[int, Callable[[Exchange], Any], int]]) -> tuple[RequestStep, ...]:
    """Of (position, `on_request`, how far the exchange has come by then)."""
    steps: tuple[RequestStep, ...] = ()
    for position, call, reached in reversed(calls):
        steps = (RequestStep(position, call, reached, steps), *steps)
    return steps


def _overrides(link: Filter, moment: str) -> bool:
    return getattr(type(link), moment) is not getattr(Filter, moment)


def prefix_length(filters: Sequence[Filter], overridden: frozenset[str]) -> int:
    """How many leading filters form the prefix; `overridden` names those some route changes or switches off."""
    for at, link in enumerate(filters):
        if link.reads_body or link.name in overridden:
            return at
    return len(filters)


def misplaced(kinds: Sequence[str], after: Sequence[tuple[str, ...]]) -> list[tuple[int, str]]:
    """Positions of filters that stand above one they must come after, with the name of that one."""
    return [(at, later) for at, wanted in enumerate(after) for later in wanted if later in kinds[at + 1 :]]
