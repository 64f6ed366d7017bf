"""What is learned of an answer that goes down unread, from a copy.

A meter may be behind what it was fed: a body that blows up takes a fifth of a second to inflate. That is done a slice
in each turn of the loop, and meanwhile the provider is not read and its end not believed: a bomb holds up its own
answer, and nobody else's. What was used is known before the last byte goes down, as with every answer; one that is cut,
or left by its client, is charged for what was read by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .answer import Source
    from .clock import Timer
    from .dialect import AnswerFacts
    from .meters import Meter
    from .run import Run


class Measured:
    """The copy of one answer, whose bytes come from `source`."""

    __slots__ = ("_client_behind", "_meter", "_run", "_slice", "_source", "_then")

    def __init__(self, meter: Meter, source: Source, run: Run) -> None:
        self._meter = meter
        self._source = source
        self._run = run
        self._slice: Timer | None = None
        """Set while the meter is behind."""
        self._then: Callable[[], None] | None = None
        self._client_behind = False

    def feed(self, data: bytes) -> None:
        """What goes down."""
        self._meter.feed(data)
        if self._meter.behind and self._slice is None:
            self._source.pause()
            self._go_on()

    def end(self) -> AnswerFacts:
        """What it has said, as far as it was read; the answer has ended, however far that is."""
        self._then = None
        if self._slice is not None:
            self._slice.cancel()
            self._slice = None
        return self._meter.facts()

    def puts_off(self, then: Callable[[], None]) -> bool:
        """Whether the meter is behind; if so, `then` is called when it has caught up."""
        if self._slice is None:
            return False
        self._then = then
        return True

    def on_client_behind(self) -> None:
        """The source is paused for the client's sake, too."""
        self._client_behind = True

    def on_client_reads(self) -> bool:
        """Whether the source may be read on."""
        self._client_behind = False
        return self._slice is None

    def _go_on(self) -> None:
        clock = self._run.engine.clock
        self._slice = clock.call_at(clock.monotonic(), self._next_slice)

    def _next_slice(self) -> None:
        self._slice = None
        try:
            self._meter.feed(b"")
            if self._meter.behind:
                self._go_on()
            elif self._then is not None:
                then, self._then = self._then, None
                then()
            elif not self._client_behind:
                self._source.resume()
        except Exception as error:
            self._run.crash(error)
