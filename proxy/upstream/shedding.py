"""When the gateway itself has too much to do: which new requests it turns away so that those it has go on well.

Two resources say how it is: how late the event loop is, and how full the memory. Between the two thresholds of a
resource requests are turned away by chance, the more the fuller it is, those of low priority first; above the upper one
all are. A threshold is left a little below where it was entered, so that a value that hovers there does not flap.

Only new requests: what runs is never cut. Not here: what a provider can take (limits.py, gradient.py).

Source: Envoy's overload manager (scaled triggers).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from random import Random

Level = Literal["accept", "shed", "refuse"]

LAG_WEIGHT = 0.3
"""Of each new lag in their average: about three observations decide, and one hiccup does not."""


class Trigger(NamedTuple):
    """Where a resource begins to shed, and where it refuses."""

    shed: float
    refuse: float

    @property
    def margin(self) -> float:
        """How far below a threshold it is left again."""
        return min((self.refuse - self.shed) / 3, self.shed / 5)

    def probability(self, value: float, before: float) -> float:
        """The part of requests to turn away at `value`, when it was `before` so far: 0 accepts and 1 refuses all."""
        if value >= self.refuse - (self.margin if before >= 1 else 0):
            return 1.0
        calm = self.shed - self.margin
        if value < (calm if before else self.shed):
            return 0.0
        return max(0.01, (value - calm) / (self.refuse - calm))


class SheddingSettings(NamedTuple):
    """`memory` as parts of what the process may have, `lag` in seconds."""

    memory: Trigger = Trigger(0.92, 0.95)
    lag: Trigger = Trigger(0.25, 1.0)


class Shedding:
    """See the top. `turned_away` counts requests."""

    __slots__ = ("_by_lag", "_by_memory", "_lag", "_rng", "probability", "settings", "turned_away")

    def __init__(self, settings: SheddingSettings, rng: Random) -> None:
        self.settings = settings
        self.probability = 0.0
        """0 accepts, 1 refuses; in between, the part that is turned away where half the requests are of each kind."""
        self.turned_away = 0
        self._rng = rng
        self._lag = 0.0
        self._by_lag = 0.0
        self._by_memory = 0.0

    @property
    def level(self) -> Level:
        """In one word."""
        return "refuse" if self.probability >= 1 else "shed" if self.probability else "accept"

    def observe(self, lag: float, memory: float) -> Level:
        """What the two are now; to be called at regular short intervals. `lag`: seconds the loop was late since the
        last time, averaged here. `memory`: part that is in use, 0 where that is not known."""
        lag_trigger, memory_trigger = self.settings.lag, self.settings.memory
        # However long the loop stood still, that was one hiccup: it must take more than one to refuse.
        self._lag += (min(lag, 2 * lag_trigger.refuse) - self._lag) * LAG_WEIGHT
        self._by_lag = lag_trigger.probability(self._lag, self._by_lag)
        self._by_memory = memory_trigger.probability(memory, self._by_memory)
        self.probability = max(self._by_lag, self._by_memory)
        return self.level

    def admits(self, *, low_priority: bool | None = None) -> bool:
        """Whether a new request may come in. All of low priority are turned away before the first of the others is;
        None where nobody says which is which."""
        probability = self.probability
        if not probability:
            return True
        share = probability if low_priority is None else 2 * probability - (0 if low_priority else 1)
        if self._rng.random() >= share:
            return True
        self.turned_away += 1
        return False

    def retry_after(self) -> float:
        """Seconds to tell one that was turned away: the fuller the longer, and spread, or all come back together."""
        return self._rng.uniform(1, 1 + 4 * self.probability)
