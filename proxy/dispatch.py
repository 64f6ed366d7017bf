"""The attempts of one exchange: which target now, and what follows a failure.

Retry and fallback are one thing. After a failure before commit the plan says who is next, the policy of the `retry`
filter whether there may be another at all, and the provider's budget whether it can bear one; vetoes are asked again
before each attempt. What a provider has answered is kept until another answer is better: when all tries are spent, the
last one goes down as it is.

Decisions are in plan.py, one try is attempt.py, the committed answer is answer.py. What is here moves between them.
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING

from .affinity import affinity
from .answer import Answer
from .attempt import Attempt
from .errors import (
    AnswerRefusedError,
    BadStatusError,
    BusyStatusError,
    ErrorEventError,
    NoTargetError,
    OverloadError,
    UpstreamAuthError,
    UpstreamTimeoutError,
)
from .filter import SkipTarget
from .headers import AZURE, below_v1, passes_unread, retry_after, to_upstream, without_version
from .hedging import Hedging
from .meters import open_meter
from .models import LEAST_BAD, QUEUE
from .own_fields import stream_comment, wants_comment
from .plan import NO_PLAN, Step, Target, Vetoed, build_plan, next_step, rejection
from .upstream.call import UpstreamRequest
from .upstream.cluster import OVERLOADED, PLAIN, UNHEALTHY, Needs
from .websocket.opening import Opening

if TYPE_CHECKING:
    from .answer import WholeAnswer
    from .clock import Timer
    from .dialect import AnswerFacts, RequestFacts, StreamReader
    from .errors import GatewayError
    from .run import Run
    from .upstream.call import ResponseHead
    from .websocket.tunnel import Tunnel


WAIT_SECONDS = 0.05
"""Between two looks of an exchange that waits for any target of its model."""
MAX_WAITING = 1024
"""Exchanges that may wait so at a time."""


class Dispatch:
    """The attempts of one exchange, one after the other."""

    __slots__ = (
        "_current", "_hedging", "_last", "_next", "_plan", "_timer", "_waits", "_waits_until",
        "answer", "operation", "run",
    )  # fmt: skip

    def __init__(self, run: Run) -> None:
        self.run = run
        self.operation = run.engine.operation(run.ex.face)
        self.answer: Answer | None = None
        """The committed answer: from here on nobody else is asked."""
        self._plan = NO_PLAN
        self._current: Attempt | None = None
        self._hedging: Hedging | None = None
        self._last: WholeAnswer | None = None
        self._timer: Timer | None = None
        self._next: Target | None = None
        self._waits = False
        """For any target to be free again."""
        self._waits_until = 0.0

    def start(self) -> None:
        """Build the plan and begin. Raises GatewayError when nobody is left, or the model is unknown."""
        ex = self.run.ex
        if ex.deadline < inf and self._remaining() <= 0:
            raise UpstreamTimeoutError("The time the caller gives was over before a provider could be asked.")
        if not self._begin():
            self._exhausted()

    def _begin(self, *, soft: bool = True, yielding: bool = True) -> bool:
        """Plan, and ask the first that lets itself be asked. `soft` False overrules who could be asked all the same,
        `yielding` False those filters alone that say so of themselves."""
        ex = self.run.ex
        vetoes = ex.vetoes if yielding else [veto for veto in ex.vetoes if not veto.yields]
        ex.skipped = ()
        plan = ex.plan = self._plan = build_plan(
            ex.candidates, vetoes, ex.scorer, self.run.engine.clock.monotonic(), soft=soft
        )
        for target in plan.targets:  # noqa: SIM110 - a generator costs a frame more
            if self._launch(target):
                return True
        return False

    def _exhausted(self) -> None:
        """Nobody can be asked now: refuse, wait, or ask who rests; as the model's entry says. Raises GatewayError."""
        run = self.run
        engine, ex = run.engine, run.ex
        vetoed = (*self._plan.vetoed, *ex.skipped)
        now = engine.clock.monotonic()
        policy = ex.graph.models.exhaustion(ex.model)
        ex.overruled = vetoed
        if policy.kind == LEAST_BAD and self._begin(soft=False):
            return
        if any(veto.yields for veto in ex.vetoes) and self._begin(yielding=False):
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

    def _wait_over(self) -> None:
        """Look again: whoever rested may be rested."""
        self._leave_queue()
        try:
            if not self._begin():
                self._exhausted()
        except Exception as problem:
            self.run.fail(problem)

    def stop(self) -> None:
        """Nobody waits any more. What was delivered is settled, and no filter is left with an attempt that has not
        ended."""
        self._leave_queue()
        current = self._current
        if self.answer is not None:
            self.answer.stop()
        elif current is not None:
            hedging = self._hedging
            if hedging is not None:
                hedging.left(self.run.engine.clock.monotonic())
                other = hedging.other(current)
                if other is not None:
                    self.lose(other)
            current.stop()
            self.end(current, None, cancelled=True)

    def cut(self, error: GatewayError) -> None:
        """The gateway stops: an answer under way ends with an error event, anything before it is given up."""
        if self.answer is not None:
            self.answer.cut(error)
        else:
            self.stop()

    def let_go(self) -> None:
        """The exchange is over: undo the circles of references."""
        self.answer = None
        hedging, self._hedging = self._hedging, None
        if hedging is not None:
            hedging.stop()

    # -- from the attempt

    def open_stream(self, facts: RequestFacts) -> StreamReader | None:
        """A reader for its stream; None where it is relayed as it is.

        What is added is settled before the first byte: all of it may come at once."""
        run = self.run
        reader = self.operation.open_stream(facts)
        if reader is None:
            return None
        if wants_comment(run.ex):
            reader.before_terminal = partial(stream_comment, run, reader)
        if run.chain.events:
            reader.rewrite = partial(run.chain.rewrite, run.ex, state={})
        return reader

    def commit(self, attempt: Attempt, head: ResponseHead, reader: StreamReader | None) -> Answer:
        """Its answer goes down as it comes. Raises AnswerRefusedError where a filter would have to read it whole."""
        if reader is None and self.run.chain.answers and not passes_unread(head):
            raise AnswerRefusedError("The answer is of a kind, or a size, that a filter here cannot look into.")
        self._settle_race(attempt)
        cluster = attempt.target.cluster
        if cluster.adapts and reader is not None and reader.committed:
            now = self.run.engine.clock.monotonic()
            cluster.on_first_token(now - attempt.started, self.run.engine.ledger.prompt_tokens(self.run.ex), now)
        facts, meter = self.run.ex.facts, None
        if reader is None and head.status < 300 and facts is not None:
            meter = open_meter(head, self.operation, facts)
        self.answer = Answer(self, attempt, head, reader, meter)
        return self.answer

    def read_encoded(self, head: ResponseHead, body: bytes) -> AnswerFacts | None:
        """What an encoded answer says; None for one that is not encoded, or cannot be read."""
        facts = self.run.ex.facts
        if facts is None or head.header(b"content-encoding") is None:
            return None
        meter = open_meter(head, self.operation, facts)
        if meter is None:
            return None
        meter.feed(body)
        return meter.facts()

    def switch(self, attempt: Attempt, head: ResponseHead) -> Tunnel:
        """Its 101 is passed on, and all that follows. Raises ProtocolError for what is no 101, or not to our offer."""
        assert attempt.opening is not None  # noqa: S101 - narrows for the type checker: only such an attempt switches
        self.answer = tunnel = attempt.opening.tunnel(attempt, head)
        return tunnel

    def collected(self, whole: WholeAnswer) -> None:
        """A whole answer: good, or an error that another target may make good."""
        error = self._error_of(whole)
        if error is None:
            if self._hedging is not None:
                self._settle_race(whole.attempt)
            self._send(whole)
        else:
            self._last = whole
            self.failed(whole.attempt, error)

    def failed(self, attempt: Attempt, error: GatewayError) -> None:
        """Before commit: the next one, or the end. Nothing follows while another is under way."""
        self.end(attempt, error)
        if self._current is None and not self._queue(error):
            self._give_up(error)

    def is_followed(self, error: GatewayError, said: WholeAnswer) -> bool:
        """Whether another attempt follows one that can still be committed. If so, it has ended; if not, it goes on."""
        alone = self._hedging is None or self._hedging.other(said.attempt) is None
        if alone and not self._queue(error):
            return False
        self._last = said
        self.end(said.attempt, error)
        self.run.engine.ledger.unsettle(self.run.ex)
        return True

    def end(self, attempt: Attempt, error: GatewayError | None, *, cancelled: bool = False) -> None:
        """The attempt is over: counted, and told to the filters, once."""
        if attempt.ended_at is not None:
            return
        run = self.run
        attempt.ended_at = run.engine.clock.monotonic()
        attempt.error = error
        attempt.cancelled = cancelled
        self._current = self._hedging.other(attempt) if self._hedging is not None else None
        attempt.target.cluster.end(attempt, attempt.ended_at, error, status=attempt.status, cancelled=cancelled)
        if run.chain.attempt_ends:
            self._tell_end(attempt)

    # -- from the hedge

    def may_hedge(self, first: Attempt) -> bool:
        """Whether a second attempt may run beside the first: that is still awaited, and everything allows one more."""
        ex, policy = self.run.ex, self.run.ex.retry
        return (
            self._current is first
            and self.answer is None
            and policy is not None
            and len(ex.attempts) < policy.attempts
            and self._remaining() > 0
            and not self._vetoed(first.target)
            and not self._strained(first.target)
        )

    def launch_rival(self, target: Target) -> Attempt | None:
        """A second attempt beside the first; None where a filter skips it."""
        first = self._current
        if not self._launch(target):
            self._current = first
            return None
        rival, self._current = self._current, first
        target.cluster.rq_hedged += 1
        return rival

    def lose(self, attempt: Attempt) -> None:
        """The other one was faster, or nobody waits: what it has cost is the exchange's."""
        attempt.stop()
        self.end(attempt, None, cancelled=True)
        self.run.engine.ledger.charge_prompt(self.run.ex, attempt.target)

    # -- inside

    def _settle_race(self, attempt: Attempt) -> None:
        """It has won, if there was anybody to win against."""
        hedging = self._hedging
        if hedging is not None:
            hedging.committed(attempt, self.run.engine.clock.monotonic())
            self.run.ex.attempt = self._current = attempt

    def _launch(self, target: Target) -> bool:
        """Start an attempt, unless a filter skips the target."""
        run = self.run
        ex, now = run.ex, run.engine.clock.monotonic()
        attempt = Attempt(self, len(ex.attempts) + 1, target, now)
        if run.chain.attempts and not self._is_let_pass(attempt):
            return False
        request = self._request(attempt, target)
        if not ex.attempts:
            target.cluster.retry_budget.count_first(now)
        ex.attempts.append(attempt)
        ex.attempt = self._current = attempt
        try:
            attempt.start(request, self._needs(target) if len(ex.attempts) > 1 or target.cluster.asks else PLAIN)
        except OverloadError as error:
            self._undo(attempt, UNHEALTHY if isinstance(error, NoTargetError) else OVERLOADED)
            return False
        if ex.retry is not None and ex.retry.hedge is not None and len(ex.attempts) == 1 and self._is_stream():
            self._hedging = Hedging(self, attempt, target.cluster.hedge(target.model, ex.retry.hedge))
        return True

    def _tell_end(self, attempt: Attempt) -> None:
        run = self.run
        for on_attempt_end in run.chain.attempt_ends:
            try:
                on_attempt_end(run.ex, attempt)
            except Exception as crash:
                run.bug(crash, moment="on_attempt_end")

    def _undo(self, attempt: Attempt, reason: str) -> None:
        """The cluster had no room for a request of its size: no attempt was made, and the filters hear of its end."""
        ex = self.run.ex
        ex.attempts.remove(attempt)
        ex.attempt = ex.attempts[-1] if ex.attempts else None
        self._current = None
        ex.skipped += (Vetoed(attempt.target, reason, soft=True),)
        attempt.ended_at = self.run.engine.clock.monotonic()
        attempt.cancelled = True
        self._tell_end(attempt)

    def _is_stream(self) -> bool:
        """A stream whose request can be sent twice."""
        run = self.run
        return run.upload is None and run.ex.face.repeatable and run.ex.facts is not None and run.ex.facts.stream

    def _needs(self, target: Target) -> Needs:
        """What the call asks of the cluster, as far as it wants to know."""
        ex, cluster, ledger = self.run.ex, target.cluster, self.run.engine.ledger
        tokens = ledger.estimate_tokens(ex) if cluster.counts_tokens else ledger.weigh(ex)
        key = affinity(ex) if cluster.is_sticky else None
        if len(ex.attempts) == 1:
            return Needs(tokens, key, ex.region)
        avoid = tuple(made.host for made in ex.attempts if made.host is not None and made.target is target)
        return Needs(tokens, key, ex.region, avoid)

    def _request(self, attempt: Attempt, target: Target) -> UpstreamRequest:
        """What goes to a target: the client's body with the target's model in it, whole or as it arrives."""
        run, operation = self.run, self.operation
        ex = run.ex
        head, facts, upload = ex.head, ex.facts, run.upload
        assert facts is not None  # noqa: S101 - narrows for the type checker: whoever dispatches has read the request
        if ex.face.websocket:
            attempt.opening = Opening(self, facts)
            return attempt.opening.request(target)
        fields = to_upstream(head, ex.client_request_id or ex.id.encode(), ex.graph.own_fields, verbatim=facts.verbatim)
        if upload is not None:
            upload.prepare(facts.splices(target.model))
        body = operation.encode(facts, target.model) if upload is None else b""
        if operation.verbatim:
            return UpstreamRequest(head.method.encode(), below_v1(head), fields, body, upload)
        query = head.query
        if query and head.path.startswith(AZURE):
            query = without_version(query)
        return UpstreamRequest(b"POST", operation.target(query), fields, body, upload)

    def _is_let_pass(self, attempt: Attempt) -> bool:
        """Ask every `on_attempt`. When one stops the attempt, those before it hear of its end."""
        ex = self.run.ex
        passed = []
        try:
            for step in self.run.chain.attempts:
                step.begin(ex, attempt)
                passed.append(step)
        except Exception as stop:
            attempt.cancelled = True
            for step in reversed(passed):
                try:
                    step.end(ex, attempt)
                except Exception as crash:
                    self.run.bug(crash, moment="on_attempt_end")
            if not isinstance(stop, SkipTarget):
                raise
            ex.skipped += (Vetoed(attempt.target, stop.reason, soft=False),)
            return False
        return True

    def _vetoed(self, target: Target) -> bool:
        for veto in self.run.ex.vetoes:
            if veto.check(target) is not None:
                return True
        return any(target is skipped.target for skipped in self.run.ex.skipped)

    def _strained(self, target: Target) -> bool:
        cluster = target.cluster
        return cluster.strained and cluster.objection(target.model, self.run.engine.clock.monotonic()) is not None

    def _spare(self, target: Target) -> bool:
        """Whether it has an endpoint or a key that this exchange has not tried."""
        made = [attempt for attempt in self.run.ex.attempts if attempt.target is target]
        hosts = [attempt.host for attempt in made if attempt.host is not None]
        keys = [attempt.credential for attempt in made if attempt.credential is not None]
        return target.cluster.has_spare(target.model, self.run.engine.clock.monotonic(), hosts, keys)

    def _step(self, error: GatewayError) -> Step | None:
        """Who is next, if policy, caller and budget allow another; it is then taken from the budget."""
        run = self.run
        ex, policy = run.ex, run.ex.retry
        sent = run.upload is not None and run.upload.begun
        if policy is None or sent or not ex.face.repeatable or not policy.allows(error, len(ex.attempts)):
            return None
        remaining = self._remaining()
        step = next_step(
            self._plan,
            [attempt.target for attempt in ex.attempts],
            error,
            remaining=remaining,
            rng=run.engine.rng,
            vetoed=self._vetoed,
            strained=self._strained,
            spare=self._spare,
        )
        if step is None or remaining <= step.delay:
            return None
        affordable = step.target.cluster.retry_budget.take(
            run.engine.clock.monotonic(),
            percent=policy.budget_percent,
            min_per_second=policy.budget_min_per_second,
        )
        return step if affordable else None

    def _queue(self, error: GatewayError) -> bool:
        """Let the next attempt follow after its back-off, if there may be one. Who had no room before may have some
        now."""
        ex = self.run.ex
        skipped = ex.skipped
        ex.skipped = tuple([one for one in skipped if not one.soft]) if skipped else ()
        step = self._step(error)
        if step is None:
            ex.skipped = skipped
            return False
        step.target.cluster.retries_waiting += 1
        self._next = step.target
        clock = self.run.engine.clock
        self._timer = clock.call_at(clock.monotonic() + step.delay, self._retry, error)
        return True

    def _leave_queue(self) -> Target | None:
        target, self._next = self._next, None
        if target is not None:
            target.cluster.retries_waiting -= 1
        if self._waits:
            self._waits = False
            self.run.engine.waiting -= 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return target

    def _retry(self, error: GatewayError) -> None:
        """The back-off is over. Whoever has become vetoed since then is passed over."""
        target = self._leave_queue()
        try:
            while target is not None:
                if not self._vetoed(target) and self._launch(target):
                    self.run.engine.stats.retries += 1
                    target.cluster.rq_retry += 1
                    return
                step = self._step(error)
                target = step.target if step is not None else None
            self._give_up(error)
        except Exception as problem:
            self.run.fail(problem)

    def _remaining(self) -> float:
        return self.run.ex.deadline - self.run.engine.clock.monotonic()

    def _error_of(self, whole: WholeAnswer) -> GatewayError | None:
        status = whole.head.status
        if status < 400:
            if whole.facts is not None and whole.facts.error:
                return ErrorEventError("The provider answered with an error.")
            return None
        attempt, clock = whole.attempt, self.run.engine.clock
        cluster = attempt.target.cluster
        if status == 429:
            wait = retry_after(whole.head.headers, clock.wall())
            if wait is not None:
                cluster.limited(attempt, attempt.target.model, clock.monotonic(), wait)
            return BusyStatusError("The provider is rate limiting.", retry_after=wait)
        if status >= 500:
            return BadStatusError(f"The provider answered {status}.")
        if status in (401, 403) and cluster.has_credential:
            if status == 401:
                cluster.refused(attempt, clock.monotonic())
            return UpstreamAuthError(
                f"The provider '{cluster.name}' refused the gateway's credential: check its api_key."
            )
        return None

    def _give_up(self, error: GatewayError) -> None:
        """The last answer of a provider goes down as it is; else the error does."""
        last, ex = self._last, self.run.ex
        if last is None or isinstance(error, UpstreamAuthError):
            self.run.refuse(error)
            return
        ex.error = error
        ex.attempt = last.attempt
        self._send(last)

    def _send(self, whole: WholeAnswer) -> None:
        self.answer = Answer(self, whole.attempt, whole.head, None)
        self.answer.send(whole)
