"""Whom an exchange asks where the first of its plan is not to be had, or has failed.

Retry and fallback are one thing. After a failure before commit the plan says who is next, the policy of the `retry`
filter whether there may be another at all, and the provider's budget whether it can bear one; vetoes are asked again
before each attempt. Where nobody of a plan can be asked, the model's entry says what follows (`on_exhausted`): a
refusal, a wait until somebody can be, or those who rest are asked all the same.

One timer is enough: an exchange waits for a back-off, or for anybody at all, and never for both.

Not here: how they are ordered (plan.py), the attempts themselves (dispatch.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .models import LEAST_BAD, QUEUE
from .plan import NO_PLAN, build_plan, next_step, rejection

if TYPE_CHECKING:
    from .clock import Timer
    from .dispatch import Dispatch
    from .errors import GatewayError
    from .plan import Step, Target


WAIT_SECONDS = 0.05
"""Between two looks of an exchange that waits for any target of its model."""
MAX_WAITING = 1024
"""Exchanges that may wait so at a time."""


class Succession:
    """Of one exchange that has a plan. It starts attempts by `Dispatch.launch`, and ends in `Dispatch.give_up`."""

    __slots__ = ("_dispatch", "_next", "_plan", "_timer", "_waits", "_waits_until")

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._plan = dispatch.run.ex.plan or NO_PLAN
        self._timer: Timer | None = None
        self._next: Target | None = None
        """Who is asked once the back-off is over."""
        self._waits = False
        """For any target to be free again."""
        self._waits_until = 0.0

    def begin(self, *, soft: bool = True, yielding: bool = True) -> bool:
        """Plan anew, and ask the first that lets itself be asked; False: nobody does. `soft` False overrules who could
        be asked all the same, `yielding` False those filters alone that say so of themselves."""
        dispatch = self._dispatch
        run = dispatch.run
        ex = run.ex
        vetoes = ex.vetoes if yielding else [veto for veto in ex.vetoes if not veto.yields]
        ex.skipped = ()
        now = self._now()
        plan = ex.plan = self._plan = build_plan(ex.candidates, vetoes, ex.scorer, now, soft=soft)
        for target in plan.targets:  # noqa: SIM110 - a generator costs a frame more
            if dispatch.launch(target, now):
                return True
        return False

    def exhausted(self) -> None:
        """Nobody can be asked now: refuse, wait, or ask who rests; as the model's entry says. Raises GatewayError."""
        run = self._dispatch.run
        engine, ex = run.engine, run.ex
        vetoed = (*self._plan.vetoed, *ex.skipped)
        now = engine.clock.monotonic()
        policy = ex.graph.models.exhaustion(ex.model)
        ex.overruled = vetoed
        if policy.kind == LEAST_BAD and self.begin(soft=False):
            return
        if any(veto.yields for veto in ex.vetoes) and self.begin(yielding=False):
            return
        if policy.kind == QUEUE and any(one.soft for one in vetoed):
            if self._waits_until == 0.0:
                self._waits_until = min(now + policy.seconds, ex.deadline)
            if now < self._waits_until and engine.waiting < MAX_WAITING:
                soonest = min(one.target.cluster.rests_for(one.target.model, now) for one in vetoed if one.soft)
                self._waits = True
                engine.waiting += 1
                when = min(now + max(soonest, WAIT_SECONDS), self._waits_until)
                self._timer = engine.clock.call_at(when, self._wait_over)
                return
        raise rejection(ex.model, vetoed, now)

    def follow(self, error: GatewayError) -> bool:
        """Let the next attempt follow after its back-off, if there may be one. Who had no room before may have some
        now."""
        run = self._dispatch.run
        ex = run.ex
        skipped = ex.skipped
        ex.skipped = tuple([one for one in skipped if not one.soft]) if skipped else ()
        step = self._step(error)
        if step is None:
            ex.skipped = skipped
            return False
        step.target.cluster.retries_waiting += 1
        self._next = step.target
        clock = run.engine.clock
        self._timer = clock.call_at(clock.monotonic() + step.delay, self._retry, error)
        return True

    def leave(self) -> Target | None:
        """Wait no longer; returns who would have been next. Harmless when it does not wait."""
        target, self._next = self._next, None
        if target is not None:
            target.cluster.retries_waiting -= 1
        if self._waits:
            self._waits = False
            self._dispatch.run.engine.waiting -= 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return target

    def is_vetoed(self, target: Target) -> bool:
        """Whether a filter objects to it now, or has skipped it."""
        ex = self._dispatch.run.ex
        for veto in ex.vetoes:
            if veto.check(target) is not None:
                return True
        return any(target is skipped.target for skipped in ex.skipped)

    def is_strained(self, target: Target) -> bool:
        """Whether its cluster objects now."""
        cluster = target.cluster
        return cluster.strained and cluster.objection(target.model, self._now()) is not None

    # -- from the clock

    def _wait_over(self) -> None:
        """Look again: whoever rested may be rested."""
        self.leave()
        try:
            if not self.begin():
                self.exhausted()
        except Exception as problem:
            self._dispatch.run.fail(problem)

    def _retry(self, error: GatewayError) -> None:
        """The back-off is over. Whoever has become vetoed since then is passed over."""
        dispatch, target = self._dispatch, self.leave()
        run = dispatch.run
        try:
            while target is not None:
                if not self.is_vetoed(target) and dispatch.launch(target, self._now()):
                    run.engine.stats.retries += 1
                    target.cluster.rq_retry += 1
                    return
                step = self._step(error)
                target = step.target if step is not None else None
            dispatch.give_up(error)
        except Exception as problem:
            run.fail(problem)

    # -- inside

    def _step(self, error: GatewayError) -> Step | None:
        """Who is next, if policy, caller and budget allow another; it is then taken from the budget."""
        run = self._dispatch.run
        ex, policy = run.ex, run.ex.retry
        sent = run.upload is not None and run.upload.begun
        if policy is None or sent or not ex.face.repeatable or not policy.allows(error, len(ex.attempts)):
            return None
        now = self._now()
        remaining = ex.deadline - now
        step = next_step(
            self._plan,
            [attempt.target for attempt in ex.attempts],
            error,
            remaining=remaining,
            rng=run.engine.rng,
            vetoed=self.is_vetoed,
            strained=self.is_strained,
            spare=self._is_spare,
        )
        if step is None or remaining <= step.delay:
            return None
        affordable = step.target.cluster.retry_budget.take(
            now, percent=policy.budget_percent, min_per_second=policy.budget_min_per_second
        )
        return step if affordable else None

    def _is_spare(self, target: Target) -> bool:
        """Whether it has an endpoint or a key that this exchange has not tried."""
        made = [attempt for attempt in self._dispatch.run.ex.attempts if attempt.target is target]
        hosts = [attempt.host for attempt in made if attempt.host is not None]
        keys = [attempt.credential for attempt in made if attempt.credential is not None]
        return target.cluster.has_spare(target.model, self._now(), hosts, keys)

    def _now(self) -> float:
        return self._dispatch.run.engine.clock.monotonic()
