"""When a second attempt is worth its price: the first token is later than it almost ever is.

The delay is learned, not configured: 97.5 % of the first attempts have had their first token by then. So about one
call in forty asks for a second attempt, and a budget holds whatever happens: each call earns a part of a hedge and each
of its cents a part of a cent, and a hedge spends both. A provider that slows down as a whole therefore gets 3 % more
load and not twice as much.

Only for streams; whoever asks knows which calls are. One of these for each target, since models differ in their speed.

Source: Dean, Barroso 2013, The Tail at Scale (hedged requests).
"""

from __future__ import annotations

from typing import NamedTuple

from .quantile import DecayedQuantile

REFRESH_SECONDS = 1.0
"""How long a learned delay is used before it is looked up again."""


class HedgeSettings(NamedTuple):
    """Percentages 0 to 100, times in seconds."""

    quantile: float = 97.5
    percent: float = 3.0
    """Hedges for each hundred calls, at most."""
    spend_percent: float = 5.0
    """What hedges may cost, of what the calls cost."""
    min_samples: int = 100
    """No hedge before so many first tokens have been seen lately."""
    half_life: float = 600.0
    burst: int = 10
    """Hedges that may be saved up."""


class Hedge:
    """See the top. `hedges` were started, `refused` were due but not in the budget."""

    __slots__ = (
        "_calls",
        "_credit",
        "_delay",
        "_look",
        "_money",
        "_seen",
        "_typical",
        "_window",
        "hedges",
        "refused",
        "settings",
    )

    def __init__(self, settings: HedgeSettings) -> None:
        self.settings = settings
        self.hedges = 0
        self.refused = 0
        self._seen = DecayedQuantile(settings.half_life)
        self._delay: float | None = None
        self._look = float("-inf")
        self._credit = 0.0
        self._money = 0.0
        self._calls = 0
        self._typical = 0.0
        """What a call costs, on average over the last `_window` calls."""
        self._window = max(1.0, settings.burst * 100 / settings.percent) if settings.percent else 1.0
        """Calls it takes to save up a burst."""

    def on_call(self, cost: float = 0.0) -> None:
        """A first attempt starts, of an estimated `cost`: 0 where the price is not known, then money sets no limit."""
        settings = self.settings
        self._credit = min(self._credit + settings.percent / 100, settings.burst)
        if cost or self._typical:
            share = settings.spend_percent / 100
            self._calls += 1
            self._typical += (cost - self._typical) / min(self._calls, self._window)
            self._money = min(self._money + cost * share, self._typical * share * self._window)

    def on_first_token(self, seconds: float, now: float) -> None:
        """How long a first attempt took to its first token. For one that lost against its hedge, or was left by its
        client after the delay, how long it had waited: not to count it would make the delay ever shorter."""
        self._seen.add(seconds, now)

    def delay(self, now: float) -> float | None:
        """Seconds after which an attempt that starts now may be hedged; None while too little is known."""
        if now >= self._look:
            self._look = now + REFRESH_SECONDS
            enough = self._seen.count(now) >= self.settings.min_samples
            self._delay = self._seen.quantile(self.settings.quantile / 100) if enough else None
        return self._delay

    def take(self, cost: float = 0.0) -> bool:
        """Whether a hedge that is due fits the budget; True has spent it."""
        if self._credit < 1 or self._money < cost:
            self.refused += 1
            return False
        self._credit -= 1
        self._money -= cost
        self.hedges += 1
        return True
