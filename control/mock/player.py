"""Plays a script in time: one segment for each step, no faster than the other side reads, and an end in any case.

No task: a step is sent from a timer or from the transport's word that there is room again. What is left of a script
when its connection goes away is dropped by `stop`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .steps import DEAF, END, FIN, RST, Act, Reset, Wait

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ...proxy.clock import Clock, Timer
    from .steps import Say, Step

STALL_SECONDS = 3600.0
"""A stall that nobody gives up is ended after this time, so that no connection is kept for ever."""


class Wire(Protocol):
    """A connection, or a stream of one, that a script is played on."""

    def send(self, step: Say) -> bool:
        """Say it; False: no more until `resume`."""

    def end(self) -> None:
        """The message is whole, as far as the script goes."""

    def abandon(self, code: int) -> None:
        """End a stream of HTTP/2 with this error code."""

    def deafen(self) -> None:
        """Read nothing more."""

    def close(self) -> None:
        """End the connection in order, after what was said."""

    def reset(self) -> None:
        """End it at once."""


class Player:
    """One script on one wire. `speed`: how many times faster than life its waits are."""

    __slots__ = ("_blocked", "_clock", "_over", "_speed", "_step", "_steps", "_timer", "_wire")

    def __init__(self, wire: Wire, steps: Iterable[Step], clock: Clock, speed: float) -> None:
        self._wire = wire
        self._steps = iter(steps)
        self._step = next(self._steps, None)
        self._clock = clock
        self._speed = speed
        self._timer: Timer | None = None
        self._blocked = False
        self._over = False

    def start(self) -> None:
        """Play the first step now, and the others as they fall due."""
        self._play()

    def resume(self) -> None:
        """There is room again."""
        if self._blocked and not self._over:
            self._blocked = False
            self._play()

    def stop(self) -> None:
        """Play no more; idempotent."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _play(self) -> None:
        self._timer = None
        step, self._step = self._step, next(self._steps, None)
        if step is None:
            self._again_in(STALL_SECONDS, reset=True)
        elif isinstance(step, Wait):
            self._again_in(step.seconds / self._speed)
        elif isinstance(step, Act):
            self._act(step)
        elif isinstance(step, Reset):
            self.stop()
            self._wire.abandon(step.code)
        else:
            flowing = self._wire.send(step)
            if self._step is END:  # with the last of it: whoever has read it all may ask again at once
                self._act(END)
            elif flowing:
                self._again_in(0.0)  # a turn of the loop, so that the next step is a segment of its own
            else:
                self._blocked = True

    def _act(self, act: Act) -> None:
        wire = self._wire
        if act is DEAF:
            wire.deafen()
            self._again_in(0.0)
            return
        self.stop()
        {END: wire.end, FIN: wire.close, RST: wire.reset}[act]()

    def _again_in(self, seconds: float, *, reset: bool = False) -> None:
        if not self._over:
            then = self._wire.reset if reset else self._play
            self._timer = self._clock.call_at(self._clock.monotonic() + seconds, then)
