"""A worker's own health: how late its event loop is, how full its memory; and what follows for new requests.

One timer looks four times a second (as in Envoy's example of an overload manager). How late it fires is the lag:
whatever kept the loop, this timer waited for it as well. While all is well the engine does not know that this exists;
only in between is `engine.shedding` set, and asked by each new exchange.

Not here: when to turn whom away (proxy/upstream/shedding.py), a loop that stands still for good (crew.py).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...proxy.clock import Clock, Timer
    from ...proxy.engine import Engine
    from ...proxy.upstream.shedding import Level, Shedding, SheddingSettings

LOOK_SECONDS = 0.25
LOOKS_TOLD = 8
"""Two seconds of them: whoever asks once a second misses none."""
log = structlog.get_logger("headgate")


class Overload:
    """Looks from `start` to `stop`. `memory` gives the part that is in use."""

    def __init__(self, engine: Engine, clock: Clock, shedding: Shedding, memory: Callable[[], float]) -> None:
        self.shedding = shedding
        self.memory = memory
        self.used: float | None = None
        """The part of the memory that was in use at the last look; None before it."""
        self._engine = engine
        self._clock = clock
        self._level: Level = "accept"
        self._lags: deque[float] = deque(maxlen=LOOKS_TOLD)
        self._due = 0.0
        self._timer: Timer | None = None

    def start(self) -> None:
        """Look from now on."""
        self._due = self._clock.monotonic() + LOOK_SECONDS
        self._timer = self._clock.call_at(self._due, self._look)

    def adopt(self, settings: SheddingSettings, memory: Callable[[], float]) -> None:
        """Other thresholds and bounds from the next look on."""
        self.shedding.settings, self.memory = settings, memory

    def stop(self) -> None:
        """Look no more, and turn nobody away; harmless when it never started."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._engine.shedding = None

    @property
    def lag(self) -> float | None:
        """Seconds: the most the loop was late at any of the last looks; None before the first."""
        return max(self._lags, default=None)

    def _look(self) -> None:
        lag = max(0.0, self._clock.monotonic() - self._due)
        before = self._lags[-1] if self._lags else 0.0
        self._lags.append(lag)
        self.used = used = self.memory()
        # One pause, however long, is over when it is seen: only a loop that is late again has too much to do.
        level = self.shedding.observe(min(lag, before), used)
        self._engine.shedding = None if level == "accept" else self.shedding
        if level != self._level:
            self._level = level
            log.warning("overload", admission=level, lag=round(lag, 3), memory=round(used, 3))
        self.start()
