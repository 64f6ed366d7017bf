"""Whose money a call spends, and of which period: its share of each limit, and the key under which that is counted.

A caller who was here a moment ago is not spelled again: what is known of each is kept for as long as its period lasts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..proxy.accounting.record import Share
from .callers import SCOPES, spelled
from .periods import Calendar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..proxy.exchange import Exchange
    from .stores.rules import Kind

MOST_KNOWN: Final = 4096


class Whose:
    """Of the kinds of one filter."""

    def __init__(self, kinds: Sequence[Kind], zone: str) -> None:
        self._calendar = Calendar(zone)
        self._limits = [("+".join(kind.per), kind.unit) for kind in kinds]
        scopes = list(dict.fromkeys(kind.per for kind in kinds))
        self._scopes = [tuple(SCOPES[name] for name in per) for per in scopes]
        self._scope_of = [scopes.index(kind.per) for kind in kinds]
        self._known: dict[tuple[str, ...], tuple[tuple[Share, ...], list[str]]] = {}
        self._from = self._until = 0
        """What is known holds between these."""

    def shares(self, ex: Exchange, wall: float) -> tuple[tuple[Share, ...], list[str]]:
        """For each kind the share and the key, at the Unix time `wall`."""
        callers = tuple([scope(ex) for scopes in self._scopes for scope in scopes])
        if not self._from <= wall < self._until:
            self._known.clear()
        known = self._known.get(callers)
        if known is None:
            known = self._find(ex, wall)
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[callers] = known
        return known

    def _find(self, ex: Exchange, wall: float) -> tuple[tuple[Share, ...], list[str]]:
        callers = [" & ".join([spelled(scope(ex)) for scope in scopes]) for scopes in self._scopes]
        periods = [self._calendar.at(unit, wall) for _, unit in self._limits]
        self._from = max(period.start for period in periods)
        self._until = min(period.until for period in periods)
        shares = tuple(
            Share(per, unit, callers[at], period.name, period.until)
            for (per, unit), at, period in zip(self._limits, self._scope_of, periods, strict=True)
        )
        return shares, [meter_key(share.caller, share.period) for share in shares]


def meter_key(caller: str, period: str) -> str:
    """Under which a store counts a caller in a period."""
    return f"{caller} {period}"
