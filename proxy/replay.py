"""One client of an answer that is given more than once: the `Dispatch` of an exchange that asks no provider itself.

To its run it is a dispatch, to its `Answer` both the dispatch and the attempt: bytes come from a tape, as fast as this
client takes them, and everything an answer means to an exchange (filters above, head, comment, row) is answer.py's as
ever. Where the chain above rewrites events, they are taken apart once more; else the tape's own marks do.

A client that leaves, is too late or too slow concerns nobody else. Its deadline is its own.

Not here: where the tape comes from (flight.py, a cache).
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING

from .answer import Answer
from .cache_note import name_origin
from .errors import AnswerRefusedError, SlowClientError, UpstreamTimeoutError
from .headers import passes_unread
from .own_fields import stream_comment, wants_comment
from .replies import error_reply
from .tape import Tape, TapeReader

if TYPE_CHECKING:
    from .dialect import StreamReader
    from .errors import GatewayError
    from .flight import Flight
    from .ring import Place
    from .run import Run
    from .tape import Recorded

READ_BYTES = 64 * 1024
"""Of the tape at a time."""


class Replay:
    """`flight` None: the tape is whole already. A `DeadlineHolder`."""

    __slots__ = ("_place", "_reader", "_seat", "_tape", "answer", "deadline", "flight", "operation", "run")

    def __init__(self, run: Run, tape: Tape, place: Place, flight: Flight | None = None) -> None:
        self.run = run
        self.operation = run.engine.operations[run.ex.face.operation]
        self.answer: Answer | None = None
        self.flight = flight
        self.deadline = run.ex.deadline
        self._tape = tape
        self._place = place
        self._seat = Seat(self)
        self._reader: StreamReader | None = None
        run.dispatch = self
        run.chain = run.chain.parts(run.ex.reached)[0]
        if self.deadline < inf:
            run.engine.deadlines.add(self)

    # -- from the run

    def start(self) -> None:
        """Play what there is; the rest comes."""
        if self._tape.head is not None:
            self.begin()

    def stop(self) -> None:
        """The client left."""
        if self.answer is not None:
            self.answer.stop()
        else:
            self.leave()

    def cut(self, error: GatewayError) -> None:
        """The gateway stops, or this client is too late or too slow: say so, in the way that is left."""
        if self.run.done:
            return
        if self.answer is not None:
            self.answer.cut(error)
        else:
            self.refuse(error)

    def let_go(self) -> None:
        """The exchange is over."""
        self.leave()
        self.answer = None
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.before_terminal = reader.rewrite = None
        del self._seat

    # -- from the answer, as its dispatch and its attempt

    def end(self, attempt: object, error: GatewayError | None, *, cancelled: bool = False) -> None:
        """No attempt has ended: there was none."""

    def pause(self) -> None:
        """The client is behind."""
        self._place.stalled = True

    def resume(self) -> None:
        """The client reads again."""
        self._place.stalled = False
        try:
            self.pump()
        except Exception as problem:
            self.run.crash(problem)
        if self.flight is not None:
            self.flight.caught_up()

    def leave(self) -> None:
        """It needs no more."""
        self.run.engine.deadlines.discard(self)
        if self.flight is not None:
            self.flight.leave(self)

    @property
    def request_id(self) -> str:
        """The provider's, where it was asked for this client, too."""
        return self._tape.request_id

    # -- from the tape

    def begin(self) -> None:
        """There is a head: it goes down, with what there is by now."""
        tape, run = self._tape, self.run
        head = tape.head
        assert head is not None  # noqa: S101 - narrows for the type checker: that is what we are told
        name_origin(run.ex, tape)
        if tape.body is not None:
            self.answer = Answer(self, self._seat, head, None)
            self.leave()
            self.answer.send(tape.body, None)
            return
        self._reader = self._open_reader() if tape.stream else None
        if self._reader is None and run.chain.answers and not passes_unread(head):
            raise AnswerRefusedError("The answer is of a kind, or a size, that a filter here cannot look into.")
        self.answer = answer = Answer(self, self._seat, head, self._reader)
        answer.begin(b"")
        self.pump()

    def switch(self, tape: Tape) -> None:
        """Somebody else has the answer: it waits for this one no longer."""
        place = tape.ring.join()
        assert place is not None  # noqa: S101 - narrows for the type checker: a whole answer has its beginning
        self._tape, self._place, self.flight = tape, place, None
        self.begin()

    def pump(self) -> None:
        """Give out what is behind, until the client has enough or there is no more."""
        tape, place = self._tape, self._place
        while not (place.stalled or place.lost or self.run.done):
            data = tape.ring.read(place, READ_BYTES)
            at_end = place.at == tape.ring.end
            if at_end and tape.over:
                self._finish(data)
            elif data:
                self.take(data)
            else:
                return

    def take(self, data: bytes) -> None:
        """The next bytes."""
        if self.answer is not None:
            self.answer.on_data(data)

    def over(self) -> None:
        """The tape has come to its end; what is behind goes down first."""
        if self._place.at == self._tape.ring.end and not self.run.done:
            self._finish(b"")

    def _finish(self, data: bytes) -> None:
        answer, error, reader = self.answer, self._tape.error, self._reader
        if answer is None:
            return
        if error is not None:
            if data:
                answer.on_data(data)
            answer.on_error(error)
            return
        if reader is not None:
            data = reader.feed(data) if data else b""
            if not reader.finished:
                data += reader.end()[0]
        answer.complete(data)

    # -- when it cannot go on

    def refuse(self, error: GatewayError) -> None:
        """The answer of this client is an error. Who only waited for the call of another says nothing to the log."""
        run = self.run
        self.leave()
        if run.done:
            return
        if run.leads is not None:
            run.refuse(error)
            return
        run.ex.error = error
        run.reply(error_reply(error, run.ex.id), error.outcome)

    def on_deadline(self) -> None:
        """The caller waits no longer."""
        self.deadline = inf
        self.run.engine.deadlines.discard(self)
        self._part(UpstreamTimeoutError("The answer was not whole in the time that the caller gives."))

    def too_slow(self) -> None:
        """It has missed what others have read."""
        self._part(SlowClientError("The answer was not read as fast as it came."))

    def _part(self, error: GatewayError) -> None:
        try:
            self.cut(error)
            self.refuse(error)  # nothing where it was cut: an answer that a filter still looks at is only let go of
        except Exception as problem:
            self.run.crash(problem)

    def _open_reader(self) -> StreamReader:
        """Whoever rewrites events gets each of them."""
        run, facts = self.run, self.run.ex.facts
        reader: StreamReader | None = None
        if run.chain.events and facts is not None:
            reader = self.operation.open_stream(facts)
        if reader is None:
            reader = TapeReader(self._tape)
        else:
            reader.rewrite = partial(run.chain.rewrite, run.ex, state={})
        if wants_comment(run.ex):
            reader.before_terminal = partial(stream_comment, run, reader)
        return reader


class Seat:
    """The attempt of a replay's `Answer`."""

    __slots__ = ("_replay",)

    def __init__(self, replay: Replay) -> None:
        self._replay = replay

    @property
    def request_id(self) -> str:
        """The provider's, where it was asked for this client, too."""
        return self._replay.request_id

    def pause(self) -> None:
        """The client is behind."""
        self._replay.pause()

    def resume(self) -> None:
        """The client reads again."""
        self._replay.resume()

    def stop(self) -> None:
        """The client left."""
        self._replay.leave()

    def linger(self) -> None:
        """It has everything."""
        self._replay.leave()

    def end_soon(self) -> None:
        """The flight sees to that."""


class Played:
    """What a filter gives that has a whole answer."""

    __slots__ = ("recorded",)

    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded

    def board(self, run: Run) -> None:
        """Play it to one client."""
        tape = Tape.of(self.recorded)
        place = tape.ring.join()
        assert place is not None  # noqa: S101 - narrows for the type checker: a whole answer has its beginning
        Replay(run, tape, place).start()
