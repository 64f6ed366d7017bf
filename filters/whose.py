"""Whose money a call spends, and of which period: its share of each limit, and the key under which that is counted.

A caller who was here a moment ago is not spelled again: what is known of each is kept for as long as its period lasts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..proxy.accounting.record import Share
from ..proxy.exchange import ANONYMOUS
from .callers import SCOPES, spelled
from .periods import Calendar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..proxy.exchange import Exchange
    from .stores.rules import Kind

MOST_KNOWN: Final = 4096
_OF_KEYS: Final = frozenset(("key", "user", "team"))
"""What the key of a call says of its caller."""
_OF_STRANGERS: Final = _OF_KEYS | {"address"}
"""What the address says of a caller that has no key."""


class Whose:
    """Of the kinds of one filter."""

    def __init__(self, kinds: Sequence[Kind], zone: str) -> None:
        self._calendar = Calendar(zone)
        self._limits = [("+".join(kind.per), kind.unit) for kind in kinds]
        scopes = list(dict.fromkeys(kind.per for kind in kinds))
        self._scopes = [tuple(SCOPES[name] for name in per) for per in scopes]
        self._scope_of = [scopes.index(kind.per) for kind in kinds]
        names = {name for kind in kinds for name in kind.per}
        self._by_principal, self._by_address = names <= _OF_KEYS, names <= _OF_STRANGERS
        self._known: dict[object, tuple[tuple[Share, ...], list[str]]] = {}
        """By the names of the caller; where these follow from it, also by its principal, or the address of a
        stranger."""
        self._times = range(0)
        """Unix seconds in which what is known holds."""

    def shares(self, ex: Exchange, wall: float) -> tuple[tuple[Share, ...], list[str]]:
        """For each kind the share and the key, at the Unix time `wall`."""
        if int(wall) in self._times:
            principal = ex.principal
            known = self._known.get(ex.head.client if principal is ANONYMOUS else principal)
            if known is not None:
                return known
        return self._by_name(ex, wall)

    def _by_name(self, ex: Exchange, wall: float) -> tuple[tuple[Share, ...], list[str]]:
        callers = tuple([scope(ex) for scopes in self._scopes for scope in scopes])
        if int(wall) not in self._times:
            self._known.clear()
        known = self._known.get(callers)
        if len(self._known) > MOST_KNOWN - 2:
            self._known.clear()
        if known is None:
            known = self._known[callers] = self._find(ex, wall)
        if ex.principal is not ANONYMOUS:
            if self._by_principal:
                self._known[ex.principal] = known
        elif self._by_address:
            self._known[ex.head.client] = known
        return known

    def _find(self, ex: Exchange, wall: float) -> tuple[tuple[Share, ...], list[str]]:
        callers = [" & ".join([spelled(scope(ex)) for scope in scopes]) for scopes in self._scopes]
        periods = [self._calendar.at(unit, wall) for _, unit in self._limits]
        self._times = range(max(period.start for period in periods), min(period.until for period in periods))
        shares = tuple(
            Share(per, unit, callers[at], period.name, period.until)
            for (per, unit), at, period in zip(self._limits, self._scope_of, periods, strict=True)
        )
        return shares, [meter_key(share.caller, share.period) for share in shares]


def meter_key(caller: str, period: str) -> str:
    """Under which a store counts a caller in a period."""
    return f"{caller} {period}"
