"""What is set aside for one exchange, and how its attempts share it.

An attempt that is under way holds what it may cost; one that has ended holds nothing, but what it has cost all the same
(a hedge that lost) is gone. So attempts one after the other may each use all of it, and two at a time its halves.

Pure, in whole nano-dollars. Not here: where the money comes from (budget.py, stores/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..proxy.plan import PRICE_UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..proxy.accounting.record import Share
    from ..proxy.plan import Target
    from .stores.rules import Granted


class Purse:
    """Of one exchange in one filter. `costs`: what each target may cost, None where nobody knows."""

    __slots__ = ("__weakref__", "_held", "amount", "costs", "grants", "keys", "model", "over", "shares", "wary")

    def __init__(self) -> None:
        self.shares: tuple[Share, ...] = ()
        self.keys: Sequence[str] = ()
        """Of each limit, whose money it is."""
        self.model: str | None = None
        """The one that the targets belong to."""
        self.costs: dict[Target, int | None] = {}
        self.grants: list[tuple[Granted[Any], int]] = []
        """What was granted, in pieces; none: nothing is counted for it."""
        self.amount = 0
        """What is set aside, all pieces together."""
        self.over = False
        """The exchange has ended."""
        self.wary = False
        """It objects to targets already."""
        self._held: dict[int, int] = {}

    def hold(self, number: int, cost: int, lost: int) -> bool:
        """The attempt `number` may cost so much, and `lost` is gone already; False where that is not left."""
        if cost + lost + sum(self._held.values()) > self.amount:
            return False
        self._held[number] = cost
        return True

    def let_go(self, number: int) -> None:
        """The attempt has ended. Harmless for one that holds nothing."""
        self._held.pop(number, None)

    def add(self, granted: Granted[Any], amount: int) -> None:
        """One more piece."""
        self.grants.append((granted, amount))
        self.amount += amount

    def empty(self, spent: int) -> list[tuple[Granted[Any], int]]:
        """Take out every piece, each with what was spent of it; the last one bears what was spent beyond."""
        pieces: list[tuple[Granted[Any], int]] = []
        for at, (granted, amount) in enumerate(self.grants, 1):
            part = spent if at == len(self.grants) else min(amount, spent)
            pieces.append((granted, part))
            spent -= part
        self.grants, self.amount = [], 0
        return pieces

    def objection(self, target: Target) -> str | None:
        """To a target whose cost nobody knows."""
        return PRICE_UNKNOWN if self.costs.get(target, 0) is None else None
