"""The second attempt at a stream whose first token is late: when it starts, and which of the two is kept.

The first attempt is not given up: whichever commits first is the answer, and the other is cancelled in the same moment.
What it has cost by then, its prompt, stands on the exchange's row. Until one commits, either may fail, and as long as
the other is under way nothing follows.

How late is late, and how much may be spent, is upstream/hedge.py; what follows when both have failed is succession.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attempt import Attempt
    from .clock import Timer
    from .dispatch import Dispatch
    from .upstream.hedge import Hedge


class Hedging:
    """Of one exchange. `first` is what may be late; its rival is an attempt like any other."""

    __slots__ = ("_cost", "_dispatch", "_hedge", "_timer", "first", "rival")

    def __init__(self, dispatch: Dispatch, first: Attempt, hedge: Hedge) -> None:
        engine = dispatch.run.engine
        self.first = first
        self.rival: Attempt | None = None
        self._dispatch = dispatch
        self._hedge = hedge
        self._cost = engine.ledger.estimate_cost(dispatch.run.ex) or 0.0
        self._timer: Timer | None = None
        hedge.on_call(self._cost)
        delay = hedge.delay(first.started)
        if delay is not None:
            self._timer = engine.clock.call_at(first.started + delay, self._late)

    def committed(self, attempt: Attempt, now: float) -> None:
        """It is the answer: the other one is no longer wanted."""
        self.stop()
        self._learn(now)
        other = self.other(attempt)
        if other is not None:
            self._dispatch.lose(other)

    def left(self, now: float) -> None:
        """The client did not wait for either. Not to count a long wait would make the delay ever shorter."""
        if self.rival is not None:
            self._learn(now)
        self.stop()

    def other(self, attempt: Attempt) -> Attempt | None:
        """The one that is under way beside `attempt`."""
        other = self.rival if attempt is self.first else self.first
        return other if other is not None and other.ended_at is None else None

    def stop(self) -> None:
        """No second attempt any more, unless there is one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _learn(self, now: float) -> None:
        """How long the first attempt has taken, unless it failed: then others have, and it is no measure."""
        if self.first.error is None:
            self._hedge.on_first_token(now - self.first.started, now)

    def _late(self) -> None:
        self._timer = None
        dispatch = self._dispatch
        try:
            if dispatch.may_hedge(self.first) and self._hedge.take(self._cost):
                self.rival = dispatch.launch_rival(self.first.target)
        except Exception as problem:
            dispatch.run.fail(problem)
