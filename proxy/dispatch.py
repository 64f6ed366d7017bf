"""Attempts: which target now, has its answer really begun, and what follows a failure.

Until commit an attempt may fail and another take its place without the client noticing. A stream commits with its first
event that has content, reasoning, refusal, audio, a tool call or a finish; role chunks and pings before it are held,
for at most 64 KiB and 2 s. A plain answer of up to 8 MiB is collected whole, so it may fail at any byte. Nothing is
retried after commit.

Decisions are in plan.py; the committed answer is answer.py. What is here moves between them, on callbacks (see
call.py).
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from math import inf
from typing import TYPE_CHECKING

from .answer import Answer
from .clock import NEVER
from .errors import (
    BadStatusError,
    BrokenAnswerError,
    BusyStatusError,
    ErrorEventError,
    GatewayError,
    UpstreamAuthError,
    UpstreamTimeoutError,
)
from .filter import SkipTarget
from .headers import to_upstream
from .json_splice import is_object
from .plan import Plan, Target, build_plan, next_step, rejection
from .upstream.call import CallReceiver, ResponseHead, UpstreamRequest

if TYPE_CHECKING:
    from .clock import Timer
    from .dialect import AnswerFacts, StreamReader
    from .run import Run
    from .upstream.call import Call

HELD_BYTES = 64 * 1024
HELD_SECONDS = 2.0
COLLECTED_BYTES = 8 * 1024 * 1024
LINGER_SECONDS = 2.0
"""How long the rest of a message may take after its terminal event, so that the connection can be used again."""

_WAITING, _COLLECTING, _HOLDING, _RELAYING, _OVER = range(5)


class WholeAnswer:
    """A provider's answer that was collected to its end. `facts`: what a good one says."""

    __slots__ = ("attempt", "body", "facts", "head")

    def __init__(self, attempt: Attempt, head: ResponseHead, body: bytes, facts: AnswerFacts | None) -> None:
        self.attempt = attempt
        self.head = head
        self.body = body
        self.facts = facts


class Attempt(CallReceiver):
    """One try at one target. Filters read `number`, `target`, `endpoint`, `status`, `error` and the times
    (monotonic seconds)."""

    __slots__ = (
        "_answer",
        "_call",
        "_dispatch",
        "_paused",
        "_reader",
        "_size",
        "_state",
        "_taken",
        "deadline",
        "ended_at",
        "endpoint",
        "error",
        "head",
        "head_at",
        "number",
        "request_id",
        "sent_at",
        "started",
        "status",
        "target",
        "total_at",
    )

    def __init__(self, dispatch: Dispatch, number: int, target: Target, started: float) -> None:
        self._dispatch = dispatch
        self.number = number
        self.target = target
        self.endpoint = ""
        self.started = started
        self.sent_at: float | None = None
        self.head_at: float | None = None
        self.ended_at: float | None = None
        self.status = 0
        self.error: GatewayError | None = None
        self.request_id = ""
        self.head: ResponseHead | None = None
        self.deadline = NEVER
        self.total_at = inf
        self._call: Call | None = None
        self._reader: StreamReader | None = None
        self._answer: Answer | None = None
        self._state = _WAITING
        self._paused = False
        self._taken: list[bytes] = []
        self._size = 0

    # -- from the dispatcher

    def start(self, request: UpstreamRequest) -> None:
        """Begin."""
        run = self._dispatch.run
        run.engine.deadlines.add(self)
        self.total_at = self.deadline = run.ex.deadline
        self._call, self.endpoint = self.target.cluster.start(request, self)

    def stop(self) -> None:
        """Nobody waits for it any more."""
        if self._state != _OVER:
            self._state = _OVER
            if self._call is not None:
                self._call.cancel()
        self._dispatch.run.engine.deadlines.discard(self)

    def linger(self) -> None:
        """The answer is whole though the message has not ended: let it end, so that its connection can be used
        again."""
        if self._state == _OVER:
            self._dispatch.run.engine.deadlines.discard(self)
            return
        self._state = _OVER
        self.deadline = self._now() + LINGER_SECONDS
        if self._call is not None:
            self._call.resume()

    def pause(self) -> None:
        """The client is behind. Its own deadline is the edge's; silence of the provider is not counted meanwhile."""
        self._paused = True
        if self._call is not None:
            self._call.pause()
        self.deadline = self.total_at

    def resume(self) -> None:
        """The client reads again."""
        self._paused = False
        if self._state == _RELAYING:
            self._rest_until(self._now())
            if self._call is not None:
                self._call.resume()

    # -- from the provider

    def on_sent(self, call: Call) -> None:
        """The clock of the answer starts."""
        now = self.sent_at = self._now()
        timeouts = self.target.cluster.timeouts
        self.total_at = min(now + timeouts.total, self.total_at)
        facts = self._dispatch.run.ex.facts
        streams = facts is not None and facts.stream
        self.deadline = min(now + timeouts.first_token, self.total_at) if streams else self.total_at

    def on_head(self, call: Call, head: ResponseHead) -> None:
        """Decide how this answer is taken: held, collected or relayed."""
        try:
            self._take_head(head)
        except Exception as error:
            self._dispatch.run.crash(error)

    def _take_head(self, head: ResponseHead) -> None:
        now = self.head_at = self._now()
        self.head = head
        self.status = head.status
        request_id = head.header(b"x-request-id")
        self.request_id = request_id.decode("ascii", "replace") if request_id is not None else ""
        if self.sent_at is None and self._call is not None:
            self.on_sent(self._call)
        kind = (head.header(b"content-type") or b"").lower()
        facts = self._dispatch.run.ex.facts
        streams = kind.startswith(b"text/event-stream")
        # We ask for identity. A stream that is encoded all the same passes unread; its framing says if it is whole.
        readable = head.header(b"content-encoding") in (None, b"identity")
        if facts is not None and head.status < 300 and streams and readable:
            self._reader = self._dispatch.operation.open_stream(facts)
            self._answer = Answer(self._dispatch.run, self, self._reader)
            self._state = _HOLDING
            self.deadline = min(self.deadline, now + HELD_SECONDS)
        elif head.status >= 300 or not kind or b"json" in kind or (kind.startswith(b"text/") and not streams):
            self._state = _COLLECTING
            self.deadline = self.total_at
        else:
            self._commit()

    def on_data(self, call: Call, data: bytes) -> None:
        """Bytes of the answer."""
        state = self._state
        try:
            if state == _RELAYING:
                if not self._paused:
                    self._rest_until(self._dispatch.run.engine.deadlines.soon)
                if self._answer is not None:
                    self._answer.on_data(data)
            elif state == _HOLDING:
                self._hold(data)
            elif state == _COLLECTING:
                self._taken.append(data)
                self._size += len(data)
                if self._size > COLLECTED_BYTES:
                    self._commit()
        except Exception as error:
            self._dispatch.run.crash(error)

    def _hold(self, data: bytes) -> None:
        reader = self._reader
        assert reader is not None  # noqa: S101 - only a stream is held
        events = reader.feed(data)
        if events:
            self._taken.append(events)
            self._size += len(events)
        if reader.failed and not reader.committed and not reader.finished:
            error = ErrorEventError("The provider's stream began with an error.")
            if self._dispatch.would_retry(self, error):
                self._fail(error)
                return
            self._commit()
        elif reader.committed or reader.finished or self._size > HELD_BYTES:
            self._commit()

    def _commit(self) -> None:
        """From here on the client sees this attempt."""
        now = self._now()
        self._state = _RELAYING
        taken, self._taken = b"".join(self._taken), []
        reader = self._reader
        run = self._dispatch.run
        if reader is not None and reader.committed and run.ex.first_token_at is None:
            run.ex.first_token_at = now
        self._rest_until(now)
        if self._answer is None:
            self._answer = Answer(run, self, None)
        self._dispatch.answer = self._answer
        self._answer.begin(taken)

    def on_end(self, call: Call, clean: bool) -> None:
        """The message ended."""
        state, self._state = self._state, _OVER
        self._dispatch.run.engine.deadlines.discard(self)
        try:
            if state == _RELAYING and self._answer is not None:
                self._answer.on_end(clean)
            elif state == _HOLDING:
                self._end_held(clean)
            elif state == _COLLECTING:
                self._end_collected(clean)
            elif state == _WAITING:
                self._fail(BrokenAnswerError("The provider closed the connection without an answer."))
        except Exception as error:
            self._dispatch.run.crash(error)

    def _end_held(self, clean: bool) -> None:
        reader = self._reader
        assert reader is not None  # noqa: S101 - only a stream is held
        whole = False
        if clean:
            last, whole = reader.end()
            if last:
                self._taken.append(last)
        if not whole and not reader.failed:
            self._fail(BrokenAnswerError("The provider's stream ended before it began."))
            return
        self._commit()
        self._state = _OVER
        if self._answer is not None and not self._dispatch.run.done:
            self._answer.complete()

    def _end_collected(self, clean: bool) -> None:
        body, self._taken = b"".join(self._taken), []
        head = self.head
        assert head is not None  # noqa: S101 - collecting begins with a head
        if not clean and not is_object(body):
            self._fail(BrokenAnswerError("The provider's answer was cut short."))
            return
        facts = self._dispatch.operation.read_answer(body) if head.status < 300 else None
        self._dispatch.collected(WholeAnswer(self, head, body, facts))

    def on_error(self, call: Call, error: GatewayError) -> None:
        """It will not be whole."""
        state, self._state = self._state, _OVER
        self._dispatch.run.engine.deadlines.discard(self)
        try:
            if state == _RELAYING and self._answer is not None:
                self._answer.on_error(error)
            elif state != _OVER:
                self._fail(error)
        except Exception as crash:
            self._dispatch.run.crash(crash)

    # -- from the clock

    def on_deadline(self) -> None:
        """Too late: the held events go down, or the attempt has failed."""
        now = self._now()
        reader = self._reader
        if self._state == _OVER:
            if self._call is not None:
                self._call.cancel()
            self._dispatch.run.engine.deadlines.discard(self)
        elif self._state == _HOLDING and now < self.total_at and now < self._first_token_by():
            self._commit()
        else:
            what = "finish" if now >= self.total_at else "send a first token" if self._quiet(reader) else "go on"
            error = UpstreamTimeoutError(f"The provider did not {what} in time.")
            if self._state == _RELAYING and self._answer is not None:
                self._answer.on_error(error)
            else:
                self._fail(error)

    def _rest_until(self, now: float) -> None:
        """The next deadline of a stream that has begun: its first token, then silence; and always the total."""
        reader = self._reader
        if reader is None:
            self.deadline = self.total_at
        elif reader.committed:
            self.deadline = min(now + self.target.cluster.timeouts.idle, self.total_at)
        else:
            self.deadline = min(self._first_token_by(), self.total_at)

    def _first_token_by(self) -> float:
        return (self.sent_at or self.started) + self.target.cluster.timeouts.first_token

    @staticmethod
    def _quiet(reader: StreamReader | None) -> bool:
        return reader is None or not reader.committed

    def _fail(self, error: GatewayError) -> None:
        if self._call is not None and self._state != _OVER:
            self._call.cancel()
        self._state = _OVER
        self._dispatch.run.engine.deadlines.discard(self)
        self._dispatch.failed(self, error)

    def _now(self) -> float:
        return self._dispatch.run.engine.clock.monotonic()


class Dispatch:
    """The attempts of one exchange, one after the other."""

    __slots__ = ("_current", "_last", "_plan", "_skipped", "_timer", "_tried", "answer", "operation", "run")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.answer: Answer | None = None
        self.operation = run.engine.operation(run.ex.face)
        self._plan: Plan = Plan((), ())
        self._tried: list[Target] = []
        self._skipped: list[tuple[Target, str]] = []
        self._current: Attempt | None = None
        self._last: WholeAnswer | None = None
        self._timer: Timer | None = None

    def start(self) -> None:
        """Build the plan and begin. Raises GatewayError when nobody is left, or the model is unknown."""
        ex = self.run.ex
        self._plan = build_plan(ex.candidates, ex.vetoes, ex.scorer)
        for target in self._plan.targets:
            if self._launch(target):
                return
        raise rejection(ex.model, (*self._plan.vetoed, *self._skipped))

    def _vetoed(self, target: Target) -> bool:
        return any(veto.check(target) is not None for veto in self.run.ex.vetoes) or any(
            target is other for other, _ in self._skipped
        )

    def _launch(self, target: Target) -> bool:
        """Start an attempt, unless a filter skips the target."""
        run = self.run
        ex, now = run.ex, run.engine.clock.monotonic()
        attempt = Attempt(self, len(ex.attempts) + 1, target, now)
        try:
            for on_attempt in run.chain.attempts:
                on_attempt(ex, attempt)
        except SkipTarget as skip:
            self._skipped.append((target, skip.reason))
            return False
        facts = ex.facts
        body = self.operation.encode(facts, target.model) if facts is not None else b""
        request_id = ex.client_request_id or ex.id.encode()
        request = UpstreamRequest(
            b"POST", self.operation.target(ex.head.query), to_upstream(ex.head, request_id, ex.graph.own_fields), body
        )
        if not ex.attempts:
            target.cluster.retry_budget.count_first(now)
        ex.attempts.append(attempt)
        self._tried.append(target)
        self._current = attempt
        attempt.start(request)
        return True

    # -- from the attempt

    def collected(self, whole: WholeAnswer) -> None:
        """A whole answer: good, or an error that another target may make good."""
        run, attempt = self.run, whole.attempt
        error = self._error_of(whole)
        if error is None:
            self.answer = Answer(run, attempt, None)
            self.answer.send(whole)
            return
        self._last = whole
        self.failed(attempt, error)

    def _error_of(self, whole: WholeAnswer) -> GatewayError | None:
        status = whole.head.status
        if status < 400:
            if whole.facts is not None and whole.facts.error:
                return ErrorEventError("The provider answered with an error.")
            return None
        if status == 429:
            now = self.run.engine.clock.wall()
            return BusyStatusError("The provider is rate limiting.", retry_after=retry_after(whole.head, now))
        if status >= 500:
            return BadStatusError(f"The provider answered {status}.")
        if status in (401, 403) and whole.attempt.target.cluster.has_credential:
            name = whole.attempt.target.cluster.name
            return UpstreamAuthError(f"The provider '{name}' refused the gateway's credential: check its api_key.")
        return None

    def would_retry(self, attempt: Attempt, error: GatewayError) -> bool:
        """Whether a failure of this attempt would be followed by another, budget aside."""
        ex = self.run.ex
        return (
            ex.retry is not None
            and ex.face.repeatable
            and ex.retry.allows(error, len(ex.attempts))
            and next_step(
                self._plan,
                self._tried,
                error,
                remaining=self._remaining(),
                rng=self.run.engine.rng,
                vetoed=self._vetoed,
            )
            is not None
        )

    def failed(self, attempt: Attempt, error: GatewayError) -> None:
        """Before commit: try the next, or give up."""
        run = self.run
        ex = run.ex
        self.end_attempt(attempt, error)
        self._current = None
        policy = ex.retry
        if policy is None or not ex.face.repeatable or not policy.allows(error, len(ex.attempts)):
            self._give_up(error)
            return
        step = next_step(
            self._plan, self._tried, error, remaining=self._remaining(), rng=run.engine.rng, vetoed=self._vetoed
        )
        now = run.engine.clock.monotonic()
        if (
            step is None
            or self._remaining() <= step.delay
            or not step.target.cluster.retry_budget.take(
                now, percent=policy.budget_percent, min_per_second=policy.budget_min_per_second
            )
        ):
            self._give_up(error)
            return
        run.engine.stats.retries += 1
        step.target.cluster.rq_retry += 1
        self._timer = run.engine.clock.call_at(now + step.delay, self._retry, step.target, error)

    def _retry(self, target: Target, error: GatewayError) -> None:
        self._timer = None
        try:
            if self._vetoed(target) or not self._launch(target):
                self._give_up(error)
        except GatewayError as refusal:
            self.run.refuse(refusal)
        except Exception as crash:
            self.run.crash(crash)

    def _remaining(self) -> float:
        return self.run.ex.deadline - self.run.engine.clock.monotonic()

    def _give_up(self, error: GatewayError) -> None:
        """The last answer of a provider goes down as it is; else the error does."""
        if self._last is not None and not isinstance(error, UpstreamAuthError):
            self.run.ex.error = error
            self.answer = Answer(self.run, self._last.attempt, None)
            self.answer.send(self._last)
            return
        self.run.refuse(error)

    def end_attempt(self, attempt: Attempt, error: GatewayError | None) -> None:
        """The attempt is over: counted, and told to the filters, once."""
        if attempt.ended_at is not None:
            return
        run = self.run
        attempt.ended_at = run.engine.clock.monotonic()
        attempt.error = error
        cluster = attempt.target.cluster
        if error is None:
            cluster.rq_success += 1
        else:
            cluster.rq_error += 1
        for on_attempt_end in run.chain.attempt_ends:
            try:
                on_attempt_end(run.ex, attempt)
            except Exception as crash:
                run.engine.stats.internal_errors += 1
                run.engine.log.error("filter_failed", id=run.ex.id, moment="on_attempt_end", exc_info=crash)

    # -- from the run

    def client_gone(self) -> None:
        """Stop whatever is under way; charge what was delivered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        answer, current = self.answer, self._current
        if answer is not None:
            answer.stop()
        elif current is not None:
            current.stop()
            self.end_attempt(current, None)

    def cut(self, error: GatewayError) -> None:
        """The gateway stops: an answer under way ends with an error event, anything before it is refused."""
        if self.answer is not None:
            self.answer.cut(error)
            return
        self.client_gone()


def retry_after(head: ResponseHead, wall: float) -> float | None:
    """Seconds a provider asks to wait: `retry-after-ms`, or `retry-after` in seconds or as a date; None when
    neither is usable."""
    millis = head.header(b"retry-after-ms")
    try:
        if millis is not None:
            return max(0.0, float(millis) / 1000)
        value = head.header(b"retry-after")
        if value is None:
            return None
        text = value.decode("latin-1").strip()
        if text.replace(".", "", 1).isdigit():
            return float(text)
        return max(0.0, parsedate_to_datetime(text).timestamp() - wall)
    except (ValueError, TypeError, OverflowError):
        return None
