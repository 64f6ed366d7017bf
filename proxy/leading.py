"""The run that makes the call of a flight: the rest of the chain below the cache, plan, attempts, commit.

It is a `Run` like any other, on an exchange of its own beside the leader's, with the flight for a client. What it does
not do is what belongs to the leader's exchange: it leaves no record and counts nothing, says nothing of itself in the
head, and puts no comment into a stream. Its exchange has no deadline of the caller's: each client has its own.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .answer import Answer
from .dispatch import Dispatch
from .errors import AnswerRefusedError
from .headers import to_downstream
from .replies import internal_error
from .run import Run
from .tape import Recorded, kept_fields

if TYPE_CHECKING:
    from .dialect import AnswerFacts, RequestFacts, StreamReader
    from .edge.downstream import Headers
    from .errors import GatewayError
    from .flight import Flight
    from .replies import Reply
    from .tape import Tape


class Leading(Run):
    """The call of `flight`, for the exchange of `leader`."""

    __slots__ = ("_begin_at", "flight", "is_providers")

    def __init__(self, flight: Flight, leader: Run) -> None:
        super().__init__(leader.engine, flight)
        self.flight = flight
        self.ex = leader.ex.branch()
        assert self.ex.route is not None  # noqa: S101 - narrows for the type checker: the cache reads bodies
        self._begin_at = self.ex.reached
        self.chain = self.ex.route.chain.parts(self._begin_at)[1]
        self.is_providers = False
        """The answer is a provider's, and not a filter's."""

    def begin(self) -> None:
        """Enter the chain below the cache. Never raises."""
        try:
            self._advance(self.chain.requests)
        except Exception as error:
            self.fail(error)

    def recorded(self, tape: Tape) -> Recorded | None:
        """The answer, where it is whole, good, a provider's, and all of it is here."""
        head = tape.head
        if head is None or head.status != 200 or self.ex.outcome != "ok" or not self.is_providers:
            return None
        if tape.body is None and not tape.ring.keeps:
            return None
        pieces = (tape.body,) if tape.body is not None else tape.ring.pieces()
        now, fields = self.engine.clock.wall(), kept_fields(head.headers)
        return Recorded(self.ex.id, now, tape.provider, tape.model, fields, pieces, tape.stream, tape.comment_at)

    def refuse(self, error: GatewayError) -> None:
        """There is no answer: what that means is the flight's to say."""
        if self.done:
            return
        self.ex.error = error
        self.finish(error.outcome, error.status)
        self.flight.fail(self, error)

    def crash(self, error: BaseException) -> None:
        """A bug below the cache: as ever where an answer is under way, else an error like any other."""
        if self.done or self.started or isinstance(error, AnswerRefusedError):
            super().crash(error)
            return
        self.bug(error)
        try:
            if self.dispatch is not None:
                self.dispatch.stop()
        except Exception as another:
            self.bug(another)
        self.refuse(internal_error())

    def _own_head(self, reply: Reply) -> Headers:
        return list(reply.headers)

    def _keep(self, now: float, known: bool) -> None:  # what it has come to is the leader's to record
        self.engine.ledger.flush()  # whose client may read on for minutes
        self.flight.settle(self)


class LeadingDispatch(Dispatch):
    """The attempts of such a run. Their answer goes onto the tape."""

    __slots__ = ()

    run: Leading

    def open_stream(self, facts: RequestFacts) -> StreamReader | None:
        """A reader that leaves a mark where each client gets a comment of its own."""
        run = self.run
        reader = self.operation.open_stream(facts)
        if reader is None:
            return None
        reader.before_terminal = partial(run.flight.mark, run, reader)
        if run.chain.events:
            reader.rewrite = partial(run.chain.rewrite, run.ex, state={})
        return reader


class Recorder(Answer):
    """A provider's answer on its way onto the tape, without what belongs to one exchange."""

    __slots__ = ()

    _run: Leading

    def send(self, body: bytes, facts: AnswerFacts | None) -> None:
        """A collected answer."""
        self._run.is_providers = True
        super().send(body, facts)

    def begin(self, taken: bytes) -> None:
        """One that is relayed as it comes."""
        self._run.is_providers = True
        self._run.flight.tape.stream = self._reader is not None
        super().begin(taken)

    def complete(self, last: bytes = b"") -> None:
        """It is as whole as the provider made it."""
        reader = self._reader
        self._run.flight.tape.failed = reader is not None and reader.failed
        super().complete(last)

    def _headers(self) -> Headers:
        return to_downstream(self._upstream)

    def _cut_event(self, error: GatewayError) -> bytes:
        return b""  # each client is told in its own way


LeadingDispatch.answers = Recorder
Leading.dispatches = LeadingDispatch
