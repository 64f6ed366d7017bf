"""The attempts of one exchange: each begins here, ends here once, and one of them becomes the answer.

What a provider has answered is kept until another answer is better: when all tries are spent, the last one goes down as
it is. Whatever begins is told to the filters and counted at its cluster, and so is its end, whoever ends it.

Who is asked, and when, is succession.py; one try is attempt.py; the committed answer is answer.py. What is here moves
between them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

from .answer import Answer, WholeAnswer
from .attempt import Attempt
from .decision_inputs import read_inputs
from .errors import (
    AnswerRefusedError,
    BusyStatusError,
    ErrorEventError,
    NoTargetError,
    OverloadError,
    UpstreamAuthError,
    UpstreamTimeoutError,
)
from .filter import SkipTarget
from .headers import passes_unread
from .hedging import Hedging
from .meters import open_meter
from .outgoing import is_repeatable_stream, needs_of, request_of
from .own_fields import stream_comment, wants_comment
from .plan import Vetoed, build_plan
from .statuses import failure_of
from .succession import Succession
from .upstream.cluster import OVERLOADED, UNHEALTHY
from .upstream.place import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .decision_inputs import Sampling
    from .dialect import AnswerFacts, RequestFacts, StreamReader
    from .errors import GatewayError
    from .exchange import Exchange
    from .meters import Meter
    from .plan import Target
    from .run import Run
    from .upstream.call import ResponseHead
    from .websocket.tunnel import Tunnel


class Dispatch:
    """The attempts of one exchange, one after the other."""

    __slots__ = ("_current", "_hedging", "_last", "_succession", "answer", "operation", "run")

    answers: ClassVar[type[Answer]] = Answer

    def __init__(self, run: Run) -> None:
        self.run = run
        self.operation = run.engine.operations[run.ex.face.operation]
        self.answer: Answer | None = None
        """The committed answer: from here on nobody else is asked."""
        self._succession: Succession | None = None
        self._current: Attempt | None = None
        self._hedging: Hedging | None = None
        self._last: WholeAnswer | None = None

    def start(self) -> None:
        """Make the first attempt. Raises GatewayError when nobody is left, or the model is unknown."""
        run = self.run
        ex, now = run.ex, run.engine.clock.monotonic()
        if ex.deadline <= now:
            raise UpstreamTimeoutError("The time the caller gives was over before a provider could be asked.")
        sampling = run.engine.sampling
        sampling.left -= 1
        if sampling.left < 0 or ex.timings is not None:
            self._read_inputs(sampling)
        plan = ex.plan = build_plan(ex.candidates, ex.vetoes, ex.scorer, now)
        for target in plan.targets:
            if self.launch(target, now):
                return
        self.succession.exhausted()

    @property
    def succession(self) -> Succession:
        """Who comes after the first: made when somebody asks, for most exchanges have nobody who does."""
        succession = self._succession
        if succession is None:
            succession = self._succession = Succession(self)
        return succession

    def _read_inputs(self, sampling: Sampling) -> None:
        """This exchange is one of a sample, or its caller wants to know."""
        if sampling.left < 0:
            sampling.draw()
        ex = self.run.ex
        ex.inputs = read_inputs(ex, self.run.engine.clock.monotonic())

    def stop(self) -> None:
        """Nobody waits any more. What was delivered is settled, and no filter is left with an attempt that has not
        ended."""
        if self._succession is not None:
            self._succession.leave()
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
        self.answer = self._succession = None
        if self._hedging is not None:
            self._hedging.stop()
            self._hedging = None
        for attempt in self.run.ex.attempts:
            attempt.let_go()

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
        self.answer = self.answers(self, attempt, head, reader, meter)
        return self.answer

    def open_encoded(self, head: ResponseHead) -> Meter | None:
        """A meter for a whole answer that is encoded; None for one that is not, or cannot be read."""
        facts = self.run.ex.facts
        if facts is None or head.header(b"content-encoding") is None:
            return None
        return open_meter(head, self.operation, facts)

    def switch(self, attempt: Attempt, head: ResponseHead) -> Tunnel:
        """Its 101 is passed on, and all that follows. Raises ProtocolError for what is no 101, or not to our offer."""
        assert attempt.opening is not None  # noqa: S101 - narrows for the type checker: only such an attempt switches
        self.answer = tunnel = attempt.opening.tunnel(attempt, head)
        return tunnel

    def collected(self, attempt: Attempt, head: ResponseHead, body: bytes, facts: AnswerFacts | None) -> None:
        """A whole answer: good, or an error that another target may make good. `facts`: what one with a good status
        says."""
        error: GatewayError | None = None
        if head.status >= 400:
            error = self._failure_of(attempt, head)
        elif facts is not None and facts.error:
            error = ErrorEventError("The provider answered with an error.")
        if error is None:
            if self._hedging is not None:
                self._settle_race(attempt)
            self.answer = answer = self.answers(self, attempt, head, None)
            answer.send(body, facts)
        else:
            self._last = WholeAnswer(attempt, head, body, facts)
            self.failed(attempt, error)

    def failed(self, attempt: Attempt, error: GatewayError) -> None:
        """Before commit: the next one, or the end. Nothing follows while another is under way."""
        self.end(attempt, error)
        if self._current is None and not self.succession.follow(error):
            self.give_up(error)

    def is_followed(self, error: GatewayError, said: WholeAnswer) -> bool:
        """Whether another attempt follows one that can still be committed. If so, it has ended; if not, it goes on."""
        alone = self._hedging is None or self._hedging.other(said.attempt) is None
        if alone and not self.succession.follow(error):
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
        ends = run.chain.attempt_ends
        if ends:
            self._tell(attempt, ends)

    # -- from the succession

    def launch(self, target: Target, now: float) -> bool:
        """Start an attempt; False where a filter skips the target, or its cluster has no room."""
        run, cluster = self.run, target.cluster
        ex = run.ex
        made = ex.attempts
        attempt = Attempt(self, len(made) + 1, target, now)
        for on_attempt, _ in run.chain.attempts:
            try:
                on_attempt(ex, attempt)
            except Exception as stop:
                if not self._is_skipped(attempt, on_attempt, stop):
                    raise
                return False
        request = request_of(self, attempt)
        needs = needs_of(run, target) if made or cluster.asks else PLAIN
        if not made:
            cluster.retry_budget.count_first(now)
        made.append(attempt)
        ex.attempt = self._current = attempt
        try:
            attempt.start(request, needs)
        except OverloadError as error:
            self._undo(attempt, UNHEALTHY if isinstance(error, NoTargetError) else OVERLOADED)
            return False
        policy = ex.retry
        if policy is not None and policy.hedge is not None and len(made) == 1 and is_repeatable_stream(run):
            self._hedging = Hedging(self, attempt, cluster.hedge(target.model, policy.hedge))
        return True

    def give_up(self, error: GatewayError) -> None:
        """The last answer of a provider goes down as it is; else the error does."""
        last, ex = self._last, self.run.ex
        if last is None or isinstance(error, UpstreamAuthError):
            self.run.refuse(error)
            return
        ex.error = error
        ex.attempt = last.attempt
        self.answer = answer = self.answers(self, last.attempt, last.head, None)
        answer.send(last.body, last.facts)

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
            and not self.succession.is_vetoed(first.target)
            and not self.succession.is_strained(first.target)
        )

    def launch_rival(self, target: Target) -> Attempt | None:
        """A second attempt beside the first; None where a filter skips it."""
        first = self._current
        if not self.launch(target, self.run.engine.clock.monotonic()):
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

    def _undo(self, attempt: Attempt, reason: str) -> None:
        """The cluster had no room for a request of its size: no attempt was made, and the filters hear of its end."""
        ex = self.run.ex
        ex.attempts.remove(attempt)
        ex.attempt = ex.attempts[-1] if ex.attempts else None
        self._current = None
        ex.skipped += (Vetoed(attempt.target, reason, soft=True),)
        attempt.ended_at = self.run.engine.clock.monotonic()
        attempt.cancelled = True
        self._tell(attempt, self.run.chain.attempt_ends)

    def _is_skipped(self, attempt: Attempt, by: Callable[[Exchange, Attempt], None], stop: Exception) -> bool:
        """The `on_attempt` of one filter has stopped the attempt: those before it hear of its end. Whether that means
        another target, or else that nobody may be asked."""
        attempt.cancelled = True
        steps = self.run.chain.attempts
        passed = [on_attempt == by for on_attempt, _ in steps].index(True)
        self._tell(attempt, [on_attempt_end for _, on_attempt_end in reversed(steps[:passed])])
        if not isinstance(stop, SkipTarget):
            return False
        self.run.ex.skipped += (Vetoed(attempt.target, stop.reason, soft=False, error=stop.error),)
        return True

    def _tell(self, attempt: Attempt, ends: Iterable[Callable[[Exchange, Attempt], None]]) -> None:
        """Its end, to filters: the bug of one is not another's."""
        run = self.run
        for on_attempt_end in ends:
            try:
                on_attempt_end(run.ex, attempt)
            except Exception as crash:
                run.bug(crash, moment="on_attempt_end")

    def _remaining(self) -> float:
        return self.run.ex.deadline - self.run.engine.clock.monotonic()

    def _failure_of(self, attempt: Attempt, head: ResponseHead) -> GatewayError | None:
        """What a bad status means, here and for the key that got it."""
        clock, cluster = self.run.engine.clock, attempt.target.cluster
        error = failure_of(head, cluster.name, has_credential=cluster.has_credential, wall=clock.wall())
        if isinstance(error, BusyStatusError) and error.retry_after is not None:
            cluster.limited(attempt, attempt.target.model, clock.monotonic(), error.retry_after)
        elif isinstance(error, UpstreamAuthError) and head.status == 401:
            cluster.refused(attempt, clock.monotonic())
        return error
