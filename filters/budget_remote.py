"""budget where a server counts: a decision takes a moment, so it is waited for, and may not come.

A filter of its own, because only an `async def` costs a task for each request: who counts in memory does not pay it.

Not here: what a call may cost and what it is charged (budget.py), what is done while the server is away
(stores/redis_limits.py).

Status: stable. Trusts: upstream for the usage it reports.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..proxy.errors import OverloadError
from .budget import Budgeting
from .rate_limit_remote import NOTES
from .stores.rules import Refused

if TYPE_CHECKING:
    from ..config import BudgetConfig
    from ..proxy.errors import GatewayError
    from ..proxy.exchange import Exchange
    from .purse import Purse
    from .stores.rules import RemoteLimits, RemoteStore


class RemoteBudget(Budgeting):
    """As `Budget`; `store` is a server's."""

    def __init__(self, config: BudgetConfig, *, place: str, store: RemoteStore, **means: Any) -> None:
        super().__init__(config, place=place, **means)
        self.uncounted = 0
        """Calls that were let in and counted by the ledger alone."""
        self.closed = 0
        """Calls that were refused because nobody could count them."""
        self._limits: RemoteLimits = store.open(place, self._rules)
        self._asking: dict[Purse, asyncio.Task[None]] = {}
        """Of sessions under way: who asks for more."""
        self._refusals: WeakKeyDictionary[Purse, GatewayError] = WeakKeyDictionary()

    async def on_request(self, ex: Exchange) -> None:
        """Set aside what it may cost, or raise BudgetError; OverloadError where nobody may count it. Once more where
        another filter has changed the model. Cancelled, it holds nothing."""
        opened = self._open(ex)
        if opened is None:
            return
        purse, amounts = opened
        refused: Refused | None = None
        for amount in amounts:
            if not amount:
                self.admitted += 1
                return
            if self._may_fit(amount, refused):
                try:
                    result, verdict = await self._limits.take(purse.keys, amount)
                except OverloadError:
                    self.closed += 1
                    ex.note(self.name, "Redis is away: this budget is closed")
                    raise
                ex.note(self.name, NOTES[verdict])
                if not isinstance(result, Refused):
                    self.uncounted += verdict == "uncounted"
                    self.admitted += 1
                    self._fill(ex, purse, amount, result)
                    return
                refused = result
        raise self._refusal(ex, purse, amounts[-1], refused)

    def on_usage(self, ex: Exchange) -> None:
        """Have set aside what the next answer of a session may cost. Nobody waits for the word of Redis, so where it is
        no, BudgetError ends the session one answer later."""
        purse: Purse | None = ex.state.get(self)
        if purse is None or purse in self._asking:
            return
        if (refusal := self._refusals.pop(purse, None)) is not None:
            raise refusal
        lacks = self._lacks(ex)
        if lacks is not None:
            self._asking[purse] = asyncio.get_running_loop().create_task(self._ask(ex, *lacks))

    async def _ask(self, ex: Exchange, purse: Purse, more: int) -> None:
        try:
            result, _ = await self._limits.take(purse.keys, more)
        except OverloadError as error:
            self.closed += 1
            self._refusals[purse] = error
        else:
            if isinstance(result, Refused):
                self._refusals[purse] = self._refusal(ex, purse, more, result)
            elif purse.over:
                self._limits.settle(result, 0)
            else:
                self._fill(ex, purse, more, result)
        finally:
            del self._asking[purse]

    def _settle(self, piece: Any, amount: int) -> None:
        self._limits.settle(piece, amount)
