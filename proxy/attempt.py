"""One try at one target: has its answer really begun?

Until commit an attempt may fail and another take its place without the client noticing. A stream commits with its first
event that has content, reasoning, refusal, audio, a tool call or a finish; role chunks and pings before it are held,
for at most 64 KiB and 2 s. A plain answer of up to 8 MiB is collected whole, so it may fail at any byte. After commit
the bytes are answer.py's.

    WAITING ─ head ─┬─ stream ──── HOLDING ──┬─ commit ─ RELAYING ─ whole ─ LINGERING ─┐
                    ├─ plain ───── COLLECTING ┤                                         ├─ OVER
                    └─ any other ─ commit     └─ whole, or failed ─────────────────────┘

A WebSocket is RELAYING from its 101 on, and any other good answer to it is a failure. A good answer that begins while
the request's body still goes up is EARLY: it is put off until the body is over. A bad one ends the body.

Not here: how long it may take (patience.py), what follows a failure (succession.py).
"""

from __future__ import annotations

from enum import IntEnum
from math import inf
from typing import TYPE_CHECKING

from .answer import WholeAnswer
from .errors import BrokenAnswerError, ErrorEventError, ProtocolError, UpstreamTimeoutError
from .headers import LEAVE_ME, is_document
from .json_splice import is_no_json, is_object
from .patience import LINGER_SECONDS, Patience
from .upstream.place import PLAIN

if TYPE_CHECKING:
    from .answer import Answer
    from .dialect import AnswerFacts, StreamReader
    from .dispatch import Dispatch
    from .errors import GatewayError
    from .meters import Meter
    from .plan import Target
    from .upstream.call import Call, ResponseHead, UpstreamRequest
    from .upstream.credentials import Credential
    from .upstream.host import Host
    from .upstream.place import Needs

HELD_BYTES = 64 * 1024
COLLECTED_BYTES = 8 * 1024 * 1024
COLLECTED_PIECES = 4096
"""More are joined: a provider that sends byte by byte must not make us keep forty for each."""

_PLAIN_JSON = frozenset((b"application/json", b"application/json; charset=utf-8"))
"""What nearly all plain answers are."""
_CUT_SHORT = "The provider's answer was cut short."


class State(IntEnum):
    """Where an attempt stands."""

    WAITING = 0
    EARLY = 1
    COLLECTING = 2
    HOLDING = 3
    RELAYING = 4
    LINGERING = 5
    OVER = 6


WAITING, EARLY, COLLECTING, HOLDING, RELAYING, LINGERING, OVER = State


class Attempt(Patience):
    """Filters read `number`, `target`, `host`, `status`, `error`, `cancelled` and the times (monotonic seconds)."""

    __slots__ = (
        "_answer", "_call", "_dispatch", "_head", "_reader", "_relayed", "_size", "_state", "_taken", "_upload",
        "cancelled", "credential", "error", "host", "number", "request_id", "status", "target", "tokens",
    )  # fmt: skip

    takes_wholes = True

    host: Host | None
    """The endpoint that was picked; None while the cluster has no room."""
    credential: Credential | None
    error: GatewayError | None
    request_id: str
    """The provider's."""
    _call: Call | None
    """None once the message has ended: there is nothing to pause or to cancel."""
    _head: ResponseHead
    _reader: StreamReader | None
    _answer: Answer
    _relayed: bool
    """There is an `_answer`."""
    _taken: list[bytes]
    """What of it is held or collected, from the head on."""
    _size: int

    def __init__(self, dispatch: Dispatch, number: int, target: Target, started: float) -> None:
        run, timeouts = dispatch.run, target.cluster.timeouts
        ex = run.ex
        self.number = number
        self.target = target
        self.host = self.credential = self.error = self.opening = None
        self.tokens = self.status = 0
        self.request_id = ""
        self.cancelled = self._relayed = False
        self._dispatch = dispatch
        self._state = WAITING
        self._call = self._reader = None
        self._upload = upload = run.upload
        # The times (patience.py).
        self.started = started
        self.sent_at = self.head_at = self.ended_at = self._paused_at = None
        self._engine = run.engine
        self._timeouts = timeouts
        self._client_by = by = ex.deadline
        # Until the request has been sent, it has as long for that as it may take in all. How long the client may take
        # for its body is the edge's to say.
        self._total_at = self.deadline = min(started + timeouts.total, by) if upload is None else by
        facts = ex.facts
        self._streams = facts is not None and facts.stream

    def __repr__(self) -> str:
        return f"<Attempt {self.number} at {self.target!r} {self._state.name.lower()}>"

    # -- from the dispatcher and the answer

    def start(self, request: UpstreamRequest, needs: Needs = PLAIN) -> None:
        """Begin. Raises GatewayError where the cluster has no room or no host."""
        if self._upload is not None:
            self._upload.watcher = self
        self._call = self.target.cluster.start(request, self, self.target.model, self.started, needs)
        self._engine.deadlines.add(self)

    def stop(self) -> None:
        """Nobody waits for it any more. Harmless when it is over."""
        engine = self._engine
        engine.deadlines.discard(self)
        if self._state is LINGERING:
            engine.lingering.discard(self)
        self._state = OVER
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def linger(self) -> None:
        """The answer is whole. Where the message is not yet, let it end, so that its connection can be used again."""
        call = self._call
        if call is None:
            self.stop()
            return
        self._state = LINGERING
        self._engine.lingering.add(self)
        self.deadline = self._now() + LINGER_SECONDS
        call.resume()

    def let_go(self) -> None:
        """The exchange is over, and knows no more of it than its public fields; the message may still end."""
        del self._dispatch
        self.opening = None
        reader = self._reader
        if reader is not None:
            reader.before_terminal = reader.rewrite = None
        if self._relayed and self._state > RELAYING:
            del self._answer

    def end_soon(self) -> None:
        """The provider has said that it failed: what else it has to say must come now."""
        now = self._now()
        self._hasten(now)
        self._expect(now, self._reader)

    def pause(self) -> None:
        """The client is behind."""
        self._rest()
        if self._call is not None:
            self._call.pause()

    def resume(self) -> None:
        """The client reads again."""
        self._wake(self._reader)
        if self._call is not None:
            self._call.resume()

    # -- from the provider

    def on_head(self, call: Call, head: ResponseHead) -> None:
        """Decide how this answer is taken: held, collected or relayed."""
        run = self._dispatch.run
        try:
            if self.sent_at is None:
                self.on_sent(call)
            cluster = self.target.cluster
            if cluster.checked and self.host is not None and head.header(LEAVE_ME) is not None:
                run.engine.leave_alone(cluster.name, self.host.name)
            self._take_head(head)
        except Exception as error:
            run.crash(error)

    def _take_head(self, head: ResponseHead) -> None:
        run = self._dispatch.run
        now = self.head_at = run.engine.clock.monotonic()
        self._head = head
        self._taken, self._size = [], 0
        upload = self._upload
        if upload is not None and not upload.passed:
            if head.status < 300 and not upload.abandoned and self._call is not None:
                self._state = EARLY
                self._call.pause()
                self._total_at = self._client_by
                if upload.behind:
                    self.body_waits()
                else:
                    self.body_flows()
                return
            upload.cancel()
        status = self.status = head.status
        request_id = head.header(b"x-request-id")
        if request_id is not None:
            self.request_id = request_id.decode("ascii", "replace")
        if status < 300 and run.ex.face.websocket:
            self._switch(head)
            return
        kind = (head.header(b"content-type") or b"").lower()
        streams = kind.startswith(b"text/event-stream")
        facts = run.ex.facts
        # We ask for identity. A stream that is encoded all the same passes unread; its framing says if it is whole.
        if status < 300 and streams and facts is not None and head.header(b"content-encoding") in (None, b"identity"):
            self._reader = self._dispatch.open_stream(facts)
        if self._reader is not None:
            self._state = HOLDING
            self._hold_until(now)
        elif run.ex.head.method == "HEAD":
            self._commit()
        elif status >= 300 or not kind or is_document(kind):
            self._state = COLLECTING
            self.deadline = self._total_at
        else:
            self._commit()

    def on_whole(self, call: Call, head: ResponseHead, body: bytes) -> None:
        """A plain answer, all at once. A good one in JSON goes straight to its end; any other, piece by piece."""
        run, fields = self._dispatch.run, head.fields
        if (
            head.status >= 300
            or fields is None
            or fields.get(b"content-type") not in _PLAIN_JSON
            or b"content-encoding" in fields
            or self.opening is not None
            or self.target.cluster.checked
        ):
            super().on_whole(call, head, body)
            return
        try:
            self.head_at = run.engine.clock.monotonic()
            self.status = head.status
            request_id = fields.get(b"x-request-id")
            if request_id is not None:
                self.request_id = request_id.decode("ascii", "replace")
            self._call = None
            facts = self._dispatch.operation.read_answer(body)
            if facts.unreadable and is_no_json(body):
                self._fail(BrokenAnswerError(_CUT_SHORT))
                return
            self._state = OVER
            run.engine.deadlines.discard(self)
            self._dispatch.collected(self, head, body, facts)
        except Exception as error:
            run.crash(error)

    def on_data(self, call: Call, data: bytes) -> None:
        """Bytes of the answer. What comes after its end is nobody's."""
        state = self._state
        if state > RELAYING:
            return
        run = self._dispatch.run
        try:
            if state is RELAYING:
                reader = self._reader
                if reader is not None and reader.committed and self._paused_at is None:
                    until = self._engine.deadlines.soon + self._timeouts.idle
                    if until > self._total_at:
                        until = self._total_at
                    self.deadline = until
                self._answer.on_data(data)
            elif state is HOLDING:
                self._hold(data)
            elif state is COLLECTING:
                self._taken.append(data)
                self._size += len(data)
                if self._size > COLLECTED_BYTES:
                    self._commit()
                elif len(self._taken) > COLLECTED_PIECES:
                    self._taken = [b"".join(self._taken)]
            elif state is EARLY:
                self._taken.append(data)
        except Exception as error:
            run.crash(error)

    def on_end(self, call: Call, clean: bool) -> None:
        """The message ended."""
        if self._state is EARLY and self._upload is not None:
            self._upload.abandoned = True  # the provider wants no more of it
            self.body_passed()
        self._call = None
        state = self._state
        if state > RELAYING:
            self.stop()
            return
        run = self._dispatch.run
        try:
            if state is COLLECTING:
                self._end_collected(clean)
            elif state is HOLDING:
                self._end_held(clean)
            elif state is RELAYING:
                self._answer.on_end(clean)
            else:
                self._fail(BrokenAnswerError("The provider closed the connection without an answer."))
        except Exception as error:
            run.crash(error)

    def on_error(self, call: Call, error: GatewayError) -> None:
        """It will not be whole."""
        self._call = None
        if self._state > RELAYING:
            self.stop()
            return
        run = self._dispatch.run
        try:
            if self._state is RELAYING:
                self._answer.on_error(error)
            else:
                self._fail(error)
        except Exception as crash:
            run.crash(crash)

    # -- from the upload

    def body_waits(self) -> None:
        """The provider takes nothing: not for longer than it may be silent."""
        if self._state <= EARLY:
            self._expect_progress()

    def body_flows(self) -> None:
        """It takes more."""
        if self._state <= EARLY:
            self.deadline = self._total_at

    def body_passed(self) -> None:
        """The whole body has gone up: an answer that began early may go on."""
        call = self._call
        if self._state is EARLY and call is not None:
            try:
                self._take_early(call)
            except Exception as error:
                self._dispatch.run.crash(error)

    def _take_early(self, call: Call) -> None:
        self._state = WAITING
        pieces, self._taken = self._taken, []
        self.on_sent(call)
        self._take_head(self._head)
        for piece in pieces:
            self.on_data(call, piece)
        if self._paused_at is None and self._state < LINGERING:
            call.resume()

    # -- from the clock

    def on_deadline(self) -> None:
        """Too late: the held events go down, or the attempt has failed."""
        now, state = self._now(), self._state
        if state > RELAYING:
            self.stop()
            return
        run = self._dispatch.run
        try:
            if state is HOLDING and self._is_overheld(now):
                self._commit()
            else:
                sending = state <= EARLY and self._upload is not None and not self._upload.passed
                what = self._overdue(now, self._reader, sending=sending)
                error = UpstreamTimeoutError(f"The provider did not {what} in time.")
                if state is RELAYING:
                    self._answer.on_error(error)
                else:
                    self._fail(error)
        except Exception as error:
            run.crash(error)

    # -- before commit

    def _hold(self, data: bytes) -> None:
        reader = self._reader
        assert reader is not None  # noqa: S101 - narrows for the type checker: only a stream is held
        events = reader.feed(data)
        if events:
            self._taken.append(events)
            self._size += len(events)
        if reader.failed and not reader.committed:
            if not self._is_made_good(reader):
                self._commit()
        elif reader.committed or reader.finished or self._size > HELD_BYTES:
            self._commit()

    def _end_held(self, clean: bool) -> None:
        reader = self._reader
        assert reader is not None  # noqa: S101 - narrows for the type checker: only a stream is held
        whole = False
        if clean:
            last, whole = reader.end()
            if last:
                self._taken.append(last)
        if not whole and not reader.failed:
            self._fail(BrokenAnswerError("The provider's stream ended before it began."))
        elif reader.committed or not reader.failed or not self._is_made_good(reader):
            run = self._dispatch.run
            self._commit()
            if not run.done:
                self._answer.complete()

    def _is_made_good(self, reader: StreamReader) -> bool:
        """Whether another attempt takes the place of a stream that began with an error."""
        said = WholeAnswer(self, self._head, b"".join(self._taken), reader.facts())
        if not self._dispatch.is_followed(ErrorEventError("The provider's stream began with an error."), said):
            return False
        self.stop()
        return True

    def _end_collected(self, clean: bool, facts: AnswerFacts | None = None) -> None:
        """It is over. Whole, or cut? `facts`: what an encoded one says, once that is known."""
        body = b"".join(self._taken)
        if facts is None and self.status < 300:
            facts = self._dispatch.operation.read_answer(body)
            meter = self._dispatch.open_encoded(self._head) if facts.usage is None else None
            if meter is not None:
                self._taken = [body]
                self._read_encoded(meter, body, clean)
                return
        self._taken = []
        cut = not clean and not is_object(body)
        if cut or (facts is not None and facts.unreadable and self._belies_its_kind(body)):
            self._fail(BrokenAnswerError(_CUT_SHORT))
            return
        self._state = OVER
        self._engine.deadlines.discard(self)
        self._dispatch.collected(self, self._head, body, facts)

    def _read_encoded(self, meter: Meter, data: bytes, clean: bool) -> None:
        """Inflate it, a slice in each turn of the loop, as long as somebody waits for it."""
        if self._state is not COLLECTING:
            return
        run, clock = self._dispatch.run, self._engine.clock
        try:
            meter.feed(data)
            if meter.behind:
                clock.call_at(clock.monotonic(), self._read_encoded, meter, b"", clean)
            else:
                self._end_collected(clean, meter.facts())
        except Exception as error:
            run.crash(error)

    def _belies_its_kind(self, body: bytes) -> bool:
        """Whether a body that says it is JSON is none, its framing notwithstanding: a proxy on the way may have lost
        the rest. What is encoded is not ours to judge."""
        header = self._head.header
        kind = header(b"content-type") or b""
        return kind.startswith(b"application/json") and header(b"content-encoding") is None and is_no_json(body)

    def _commit(self) -> None:
        """From here on the client sees this attempt."""
        self._state = RELAYING
        taken, self._taken = b"".join(self._taken), []
        self._expect(self._now(), self._reader)
        self._answer = self._dispatch.commit(self, self._head, self._reader)
        self._relayed = True
        self._answer.begin(taken)

    def _switch(self, head: ResponseHead) -> None:
        """From here on it is a session, which has no end that a clock would know."""
        try:
            answer = self._dispatch.switch(self, head)
        except ProtocolError as error:
            self._fail(error)
            return
        self._state = RELAYING
        self._total_at = inf
        self._answer = answer
        self._relayed = True
        answer.begin(b"")

    def _fail(self, error: GatewayError) -> None:
        self.stop()
        self._dispatch.failed(self, error)

    def _now(self) -> float:
        return self._engine.clock.monotonic()
