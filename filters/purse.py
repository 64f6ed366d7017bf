"""What is set aside for one exchange, and how its attempts share it.

An attempt that is under way holds what it may cost; one that has ended holds nothing, but what it has cost all the same
(a hedge that lost) is gone. So attempts one after the other may each use all of it, and two at a time its halves.

Pure, in whole nano-dollars. Not here: where the money comes from (budget.py, stores/).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ..proxy.accounting.record import Share
from ..proxy.plan import PRICE_UNKNOWN, Target
from .stores.rules import Counted, Granted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..proxy.attempt import Attempt


Piece = tuple[Granted[Any] | Counted, int]
"""What a store has granted, and how much."""


class Purse(msgspec.Struct, eq=False, weakref=True):
    """Of one exchange in one filter. A struct, because one is made for each exchange, by one call of C."""

    model: str
    """The one that the targets belong to."""
    costs: dict[Target, int | None] = {}
    """What each target may cost, None where nobody knows."""
    shares: tuple[Share, ...] = ()
    keys: Sequence[str] = ()
    """Of each limit, whose money it is."""
    amount: int = 0
    """What is set aside, all pieces together."""
    counted: Counted | None = None
    """What the store says of it, where it was counted in one go."""
    paid: Collection[Target] = ()
    """For each of these, one at a time, what is set aside is enough."""
    pieces: tuple[Piece, ...] = ()
    """Where it was not, or there is more than that: all of it."""
    over: bool = False
    """The exchange has ended."""
    wary: bool = False
    """It objects to targets already."""

    def pays(self, cost: int, attempts: Iterable[Attempt], lost: int) -> bool:
        """Whether as much as `cost` is left beside the `attempts` that are under way, where `lost` is gone already."""
        costs = self.costs
        held = sum([costs.get(one.target) or 0 for one in attempts if one.ended_at is None])
        return cost + lost + held <= self.amount

    def add(self, granted: Granted[Any], amount: int) -> None:
        """One more piece."""
        self.pieces = (*self._all(), (granted, amount))
        self.counted = None
        self.amount += amount

    def empty(self, spent: int) -> list[Piece]:
        """Take out every piece, each with what was spent of it; the last one bears what was spent beyond."""
        before, after = self._all(), list[Piece]()
        for at, (piece, amount) in enumerate(before, 1):
            part = spent if at == len(before) else min(amount, spent)
            after.append((piece, part))
            spent -= part
        self.counted, self.pieces, self.amount = None, (), 0
        return after

    def _all(self) -> tuple[Piece, ...]:
        return self.pieces if self.counted is None else ((self.counted, self.amount),)

    def objection(self, target: Target) -> str | None:
        """To a target whose cost nobody knows."""
        return PRICE_UNKNOWN if self.costs.get(target, 0) is None else None
