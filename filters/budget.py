"""How much money each caller may spend, hard: what may not be paid for is refused before a provider hears of it.

What a call costs is known when it is over. So what it may cost at most is set aside first: the dearest target of its
model, twice where a late stream may be asked for a second time. Where that is not left, a cheaper target may do. An
attempt only shares out what is set aside, so a fallback never costs more than was counted. At the end it is corrected
to what the ledger charges; where the provider has answered and nobody knows what it used, what was foreseen stands, and
a client that left before the answer began pays for its prompt. A call counts in the day, week or month it began in.

Nearly every call is of one kind: all its targets have a price, nobody objects to any, and the dearest is paid for. For
these `Budget` goes straight, at a third of the cost; it leaves for the general way at the first thing that is unlike.

That no call spends what another has set aside is exact. What may go over the limit is what calls that were under way
cost beyond what was foreseen for them: a prompt longer than estimated, an answer without a limit (`strict` gives it
one).

Every amount goes to the spool before a provider hears of it, so a process that dies is charged what it had set aside,
and one that starts knows what was spent before (control/events/spending.py).

Not here: which targets may be asked (payees.py), how attempts share (purse.py), where it is counted (stores/), who a
caller is (callers.py).

Status: stable. Trusts: upstream for the usage it reports.
"""

from __future__ import annotations

from abc import abstractmethod
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from ..proxy.accounting.money import nanos, usd
from ..proxy.accounting.record import Reserved, Spent
from ..proxy.errors import BudgetExceededError, ModelNotFoundError, PriceUnknownError, UnknownIssuerError
from ..proxy.filter import Filter, SkipTarget
from ..proxy.plan import BUDGET, PRICE_UNKNOWN
from .payees import asked, is_objected, may_be_hedged, pays_nobody
from .purse import Purse
from .stores.rules import Granted, Kind, Refused, Rule
from .whose import Whose

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..config import BudgetConfig
    from ..proxy.accounting.record import Share
    from ..proxy.attempt import Attempt
    from ..proxy.exchange import Exchange
    from ..proxy.plan import Target
    from .stores.rules import Limits, Store

MOST_TOLD: Final = 4096
"""Callers of whom it is remembered that the ledger knows their money is spent."""


class Budgeting(Filter):
    """What does not depend on where it is counted: what a call may cost, and what it is charged.

    `place` is this filter's name in the ledger; `monotonic` and `wall` give seconds; `foresee` what a call may cost at
    a target (`Ledger.foresee`); `write` takes records to the spool, and `hold` the last one of an exchange, which goes
    there with the record of its end.
    """

    after = ("auth",)
    reserves = True

    def __init__(
        self,
        config: BudgetConfig,
        *,
        place: str,
        monotonic: Callable[[], float],
        wall: Callable[[], float],
        foresee: Callable[[Exchange, Target, int | None], float | None],
        write: Callable[[Reserved | Spent], object],
        hold: Callable[[Spent], object] | None = None,
    ) -> None:
        self.name = "budget"
        self.admitted = 0
        self.refused = 0
        self.vetoed = 0
        """Targets that were not asked because their price is unknown."""
        self.skipped = 0
        """Attempts that were not made because what is set aside does not pay for them."""
        self.unpriced = 0
        """Calls that were let in and of which nobody knows what they cost."""
        self.overrun = 0
        """Calls that have cost more than was set aside for them."""
        self._place = place
        self._rules = rules_of(config)
        self._least = min(rule.limit for rule in self._rules)
        self._monotonic = monotonic
        self._wall = wall
        self._foresee = foresee
        self._write = write
        self._hold = hold or write
        self._shares = Whose([rule.kind for rule in self._rules], config.time_zone).shares
        self._output = config.output_tokens
        self._strict = config.strict
        self._refuses_unknown = config.unknown_price == "refuse"
        self._told: set[tuple[str, ...]] = set()

    def on_attempt(self, ex: Exchange, attempt: Attempt) -> None:
        """Whether what is set aside pays for it, too."""
        purse: Purse | None = ex.state.get(self)
        if purse is None or (attempt.target in purse.paid and not ex.attempts):
            return
        target = attempt.target
        if target not in purse.costs:  # it was no candidate when there was money to be set aside
            purse.costs[target] = self._cost(ex, target)
        cost = purse.costs[target]
        if cost is None and self._refuses_unknown:
            raise SkipTarget(PRICE_UNKNOWN)
        if cost and not purse.pays(cost, ex.attempts, nanos(ex.lost_cost_usd)):
            self.skipped += 1
            message = f"This request may cost {usd(cost)} USD, which is more than is left of the budget."
            raise SkipTarget(BUDGET, BudgetExceededError(message))

    def on_done(self, ex: Exchange) -> None:
        """Correct what was set aside to what the call is charged."""
        purse: Purse | None = ex.state.get(self)
        if purse is None:
            return
        purse.over = True
        amount = nanos(ex.cost_usd) if ex.cost_usd is not None else self._charge(ex, purse)
        if amount > purse.amount:
            self.overrun += 1
        self._end(ex, purse, amount, self._hold)

    # -- before

    def _open(self, ex: Exchange) -> tuple[Purse, list[int]] | None:
        """Its purse, still empty, and the amounts that would do, which descend; None where there is nothing to pay, or
        nothing new. Raises PriceUnknownError."""
        face = ex.face
        if face.handler is not None or (face.passes and self._is_free(ex)):
            return None
        purse: Purse | None = ex.state.get(self)
        if purse is None:
            purse = ex.state[self] = Purse(ex.model)
        elif purse.model == ex.model:
            return None
        else:
            self._end(ex, purse, 0, self._write)  # it was for the model before
            purse.model = ex.model
            purse.paid = ()
        if self._strict and ex.facts is not None:
            ex.facts.limit_output(self._output)
        costs = self._costs(ex)
        if costs is None:
            return None
        known = self._known(ex, purse, costs)
        purse.costs = costs  # not before: what it knows is what it objects to
        if not known:
            self.admitted += 1
            return None
        purse.shares, purse.keys = self._shares(ex, ex.wall)
        if may_be_hedged(ex):
            known |= {2 * cost for cost in known}
        return purse, sorted(known, reverse=True)

    def _is_free(self, ex: Exchange) -> bool:
        """What names no model. Raises PriceUnknownError for what may cost something."""
        if not self._refuses_unknown or pays_nobody(ex):
            return True
        self.refused += 1
        raise PriceUnknownError(
            "Nobody knows what this request will cost, and money is counted here. unknown_price: allow lets it pass."
        )

    def _costs(self, ex: Exchange) -> dict[Target, int | None] | None:
        """What each target may cost; None where there is none, or none yet: a filter below may set another model, and
        where none does, the plan says what is wrong."""
        try:
            candidates = ex.candidates
        except (ModelNotFoundError, UnknownIssuerError):
            return None
        return {target: self._cost(ex, target) for target in candidates}

    def _cost(self, ex: Exchange, target: Target) -> int | None:
        cost = self._foresee(ex, target, self._output)
        return nanos(cost) if cost is not None else None

    def _known(self, ex: Exchange, purse: Purse, costs: Mapping[Target, int | None]) -> set[int]:
        """The costs of those that may be asked. Raises PriceUnknownError where none of them is known."""
        likely = asked(ex, costs)
        known = {cost for cost in likely if cost is not None}
        if len(known) == len(likely) or not self._refuses_unknown or None not in likely:
            return known
        if not known:
            self.refused += 1
            raise PriceUnknownError(
                f"The price of the model '{ex.model[:128]}' is not known, and money is counted here. Give its target "
                "a price, or this budget unknown_price: allow.",
                param="model",
            )
        if not purse.wary:
            purse.wary = True
            ex.veto(purse.objection)
        self.vetoed += likely.count(None)
        return known

    def _may_fit(self, amount: int, refused: Refused | None) -> bool:
        """Not more than the whole budget, nor than what was left a moment ago."""
        return amount <= self._least and (refused is None or amount <= refused.report.left)

    def _fill(self, ex: Exchange, purse: Purse, amount: int, granted: Granted[Any]) -> None:
        """It is set aside, and the ledger knows before a provider does."""
        purse.add(granted, amount)
        self._write(Reserved(ex.id, ex.wall, self._place, purse.amount, purse.shares))

    def _end(self, ex: Exchange, purse: Purse, amount: int, write: Callable[[Spent], object]) -> None:
        """Of what is set aside so much was spent."""
        pieces = purse.empty(amount)
        if pieces:
            for piece, part in pieces:
                self._settle(piece, part)
            write(Spent(ex.id, ex.wall, self._place, amount, purse.shares))

    def _lacks(self, ex: Exchange) -> tuple[Purse, int] | None:
        """For a session of which one more answer is over: what the next one may cost beyond what is set aside; None
        where that is enough."""
        purse: Purse | None = ex.state.get(self)
        if purse is None or ex.attempt is None:
            return None
        next_ = purse.costs.get(ex.attempt.target) or 0
        more = nanos(ex.cost_usd or 0.0) + next_ - purse.amount
        return (purse, more) if next_ and more > 0 else None

    @abstractmethod
    def _settle(self, piece: Any, amount: int) -> None:
        """Tell the store."""

    def _refusal(self, ex: Exchange, purse: Purse, amount: int, refused: Refused | None) -> BudgetExceededError:
        """For a call that may cost `amount` at least."""
        self.refused += 1
        may_cost = f"This request may cost {usd(amount)} USD"
        if refused is None:
            rule = min(self._rules, key=lambda rule: rule.limit)
            return BudgetExceededError(f"{may_cost}, and the budget is {rule}. Shorten it, or set a lower max_tokens.")
        share = purse.shares[self._rules.index(refused.rule)]
        self._tell(ex, share)
        again = datetime.fromtimestamp(share.until, UTC)
        return BudgetExceededError(
            f"{may_cost}, and of the budget of {refused.rule} {usd(refused.report.left)} USD is left until "
            f"{again:%Y-%m-%d %H:%M} UTC.",
            retry_after=max(1.0, share.until - self._wall()),
        )

    def _tell(self, ex: Exchange, share: Share) -> None:
        """The ledger hears once of each caller whose money is spent."""
        told = (share.per, share.unit, share.caller, share.period)
        if told not in self._told:
            if len(self._told) >= MOST_TOLD:
                self._told.clear()
            self._told.add(told)
            self._write(Spent(ex.id, ex.wall, self._place, 0, (share,), exhausted=True))

    # -- after

    def _charge(self, ex: Exchange, purse: Purse) -> int:
        """Nano-dollars of a call that is over, and of which the ledger does not know what it has cost."""
        lost = nanos(ex.lost_cost_usd)
        attempt = ex.attempt
        if attempt is None or attempt.sent_at is None or attempt.status >= 300 or ex.face.websocket:
            return lost
        cost = purse.costs.get(attempt.target)
        if cost is None:
            self.unpriced += 1
            return lost
        if attempt.status and ex.outcome == "ok":
            return cost + lost
        if ex.outcome in ("cancelled", "truncated"):
            return min(cost, nanos(self._foresee(ex, attempt.target, None) or 0.0)) + lost
        return lost


class Budget(Budgeting):
    """Refuses with 402 what its limits do not pay for. `store` keeps the sums, in this process or beside it."""

    def __init__(self, config: BudgetConfig, *, place: str, store: Store, **means: Any) -> None:
        super().__init__(config, place=place, **means)
        self.crowded = 0
        """Calls that were counted together with those of strangers, for want of room."""
        self._limits: Limits = store.open(place, self._rules)
        self._count, self._recount = self._limits.count, self._limits.recount

    def on_request(self, ex: Exchange) -> None:
        """Set aside what it may cost, or raise BudgetError. Once more where another filter has changed the model.

        Straight for a call whose targets all have a price and may be asked, one at a time; `_set_aside` says all that
        may be otherwise."""
        facts = ex.facts
        if (
            facts is None  # no provider is asked, or for no model
            or ex.face.passes
            or self in ex.state
            or self._strict
            or (facts.stream and may_be_hedged(ex))
        ):
            self._set_aside(ex)
            return
        try:
            candidates = ex.candidates
        except (ModelNotFoundError, UnknownIssuerError):
            candidates = ()
        costs: dict[Target, int | None] = {}
        dearest = 0
        for target in candidates:
            cluster = target.cluster
            cost = self._foresee(ex, target, self._output)
            if cost is None or cluster.unconfigured or cluster.stand_in:
                self._set_aside(ex)
                return
            costs[target] = amount = nanos(cost)
            if amount > dearest:
                dearest = amount
        if not dearest or dearest > self._least or (ex.vetoes and is_objected(ex, candidates)):
            self._set_aside(ex)
            return
        shares, keys = self._shares(ex, ex.wall)
        counted = self._count(keys[0], dearest, int(ex.started * 1e6))
        purse = Purse(ex.model, costs, shares, keys, dearest, counted, costs)
        if counted is None:
            granted = self._limits.take(keys, dearest, int(ex.started * 1e6))
            if isinstance(granted, Refused):
                self._set_aside(ex, granted)
                return
            self.crowded = self._limits.crowded
            purse.pieces = ((granted, dearest),)
        self.admitted += 1
        ex.state[self] = purse
        self._write(Reserved(ex.id, ex.wall, self._place, dearest, shares))

    def on_done(self, ex: Exchange) -> None:
        """As `Budgeting`; straight for a call whose cost is known, and which was counted in one go."""
        purse: Purse | None = ex.state.get(self)
        if purse is None:
            return
        cost, counted = ex.cost_usd, purse.counted
        if cost is None or counted is None:
            super().on_done(ex)
            return
        amount = nanos(cost)
        if amount > purse.amount:
            self.overrun += 1
        self._recount(counted, amount)
        self._hold(Spent(ex.id, ex.wall, self._place, amount, purse.shares))

    def _set_aside(self, ex: Exchange, refused: Refused | None = None) -> None:
        """The general way. `refused`: what the store has said to the dearest of all its targets."""
        opened = self._open(ex)
        if opened is None:
            return
        purse, amounts = opened
        limits, now = self._limits, self._now()
        for amount in amounts:
            if not amount:
                self.admitted += 1
                return
            if self._may_fit(amount, refused):
                result = limits.take(purse.keys, amount, now)
                if not isinstance(result, Refused):
                    self.crowded = limits.crowded
                    self.admitted += 1
                    self._fill(ex, purse, amount, result)
                    return
                refused = result
        raise self._refusal(ex, purse, amounts[-1], refused)

    def on_usage(self, ex: Exchange) -> None:
        """Set aside what the next answer of a session may cost, or raise BudgetError."""
        lacks = self._lacks(ex)
        if lacks is not None:
            purse, more = lacks
            if more > self._least:
                raise self._refusal(ex, purse, more, None)
            result = self._limits.take(purse.keys, more, self._now())
            if isinstance(result, Refused):
                raise self._refusal(ex, purse, more, result)
            self._fill(ex, purse, more, result)

    def _settle(self, piece: Any, amount: int) -> None:
        if isinstance(piece, Granted):
            self._limits.settle(piece, amount, self._now())
        else:
            self._limits.recount(piece, amount)

    def _now(self) -> int:
        return int(self._monotonic() * 1e6)


def rules_of(config: BudgetConfig) -> list[Rule]:
    """Each amount of the config, as a rule."""
    return [
        Rule(Kind("money", limit.per, unit), amount, limit.on_store_failure)
        for limit in config.written
        for unit, amount in limit.amounts.items()
    ]
