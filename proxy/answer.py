"""The committed answer, on its way down: nothing of it is taken back, and nothing is made up.

A stream goes down event by event as it comes. If it ends any other way than by its own terminal event, by the
provider's own error event, or by a clean end with a finish for every choice, it was cut: the client gets one error
event and no `[DONE]`, or, where half an event has already gone down, a closed connection. Bodies that are not streams
of events are relayed as they are and a cut closes the connection.

What the exchange used is settled here, where the last of its text is known. Its record is written before the last byte
leaves: a client that holds a whole answer has its row, whenever this process dies.
"""

from __future__ import annotations

from asyncio import CancelledError
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .accounting.prices import format_usd
from .claims import note
from .dialect import AnswerFacts
from .errors import BrokenAnswerError, ErrorEventError, UpstreamError
from .headers import to_downstream
from .measured import Measured
from .own_fields import own_fields, request_id
from .replies import NO_RETRY
from .upstream.call import ResponseHead

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from .accounting.record import Outcome
    from .attempt import Attempt
    from .dialect import Operation, StreamReader
    from .edge.downstream import Headers
    from .errors import GatewayError
    from .meters import Meter
    from .run import Run
    from .stateful import Said


class Source(Protocol):
    """Where the bytes come from: an attempt, or a replay (replay.py)."""

    @property
    def request_id(self) -> str:
        """The provider's."""

    def pause(self) -> None:
        """The client is behind."""

    def resume(self) -> None:
        """The client reads again."""

    def linger(self) -> None:
        """The answer is whole."""

    def stop(self) -> None:
        """Nobody waits for it any more."""

    def end_soon(self) -> None:
        """What else there is must come now."""


class Asker(Protocol):
    """Who has the source, and is told its end."""

    run: Run
    operation: Operation

    def end(self, attempt: Any, error: GatewayError | None, *, cancelled: bool = False) -> None:
        """It is over, by this error or well."""


class WholeAnswer(NamedTuple):
    """A provider's that has not gone down: another one may be better. `facts`: what one with a good status says."""

    attempt: Attempt
    head: ResponseHead
    body: bytes
    facts: AnswerFacts | None


class Answer:
    """One answer and its client. `reader` None: not a stream of events, or none that can be read; then `meter` sees a
    copy of it."""

    __slots__ = ("_attempt", "_dispatch", "_measured", "_observers", "_reader", "_run", "_upstream")

    def __init__(
        self,
        dispatch: Asker,
        attempt: Source,
        upstream: ResponseHead,
        reader: StreamReader | None,
        meter: Meter | None = None,
    ) -> None:
        self._dispatch = dispatch
        self._run = dispatch.run
        self._attempt = attempt
        self._upstream = upstream
        self._reader = reader
        self._measured = Measured(meter, attempt, dispatch.run) if meter is not None else None
        self._observers = dispatch.run.chain.observers

    @property
    def ended_as(self) -> Outcome | None:
        """What the provider itself said in a stream about its end, before the end: that it is whole, or failed."""
        reader = self._reader
        if reader is None:
            return None
        return "upstream_error" if reader.failed else "ok" if reader.whole else None

    # -- whole

    def send(self, body: bytes, facts: AnswerFacts | None) -> None:
        """A collected answer, in one piece with everything we know about it. `facts`: what one with a good status says,
        where that is not known yet."""
        run = self._run
        ex = run.ex
        if facts is not None:
            run.engine.ledger.settle(ex, facts)
            if ex.facts is not None and ex.facts.stores:
                self._note(self._dispatch.operation.read_objects(body))
        self._dispatch.end(self._attempt, None)
        if run.chain.answers:
            self._judge(body)
        else:
            self._send(body)

    def _judge(self, body: bytes) -> None:
        """Filters look at all of it before it goes down, and may replace it."""
        run = self._run
        for at, on_answer in enumerate(run.chain.answers):
            result = on_answer(run.ex, self._upstream, body)
            if not isinstance(result, bytes):
                run.await_later(self._await(at, result), result)
                return
            body = result
        self._send(body)

    async def _await(self, at: int, work: Coroutine[Any, Any, bytes]) -> None:
        """What a filter makes of a whole answer takes its time; go on from there. Cancelled when the client leaves."""
        run = self._run
        try:
            body = await work
            for on_answer in run.chain.answers[at + 1 :]:
                result = on_answer(run.ex, self._upstream, body)
                body = result if isinstance(result, bytes) else await result
        except (Exception, CancelledError) as error:
            if not run.done:  # else it was cancelled by us
                run.task = None
                run.crash(error)
            if isinstance(error, CancelledError):
                raise
        else:
            if not run.done:
                run.task = None
                try:
                    self._send(body)
                except Exception as error:
                    run.crash(error)

    def _send(self, body: bytes) -> None:
        """It goes down."""
        run, status, headers = self._run, self._upstream.status, self._headers()
        ex = run.ex
        if ex.error is not None and len(ex.attempts) > 1:
            headers.append(NO_RETRY)
        if run.chain.responses:
            head = ResponseHead(status, headers)
            run.respond(head)
            status, headers = head.status, head.headers
        ex.status = status
        if self._observers:
            self._observe(body)
        ex.bytes_out = len(body)
        run.finish("upstream_error" if status >= 400 or ex.error is not None else "ok", status)
        run.downstream.reply(status, headers, body)

    # -- as it comes

    def begin(self, taken: bytes) -> None:
        """The head goes down with the first bytes."""
        run, reader = self._run, self._reader
        ex = run.ex
        head = ResponseHead(self._upstream.status, self._headers())
        length: int | None = None
        if reader is None:
            announced = self._upstream.header(b"content-length")
            length = int(announced) if announced is not None else None
            if taken and ex.facts is not None and ex.facts.stores and self._upstream.status < 300:
                self._note(self._dispatch.operation.read_objects(taken))
            if self._measured is not None:
                self._measured.feed(taken)
        else:
            if reader.named is not None:
                self._note_named(reader)
            if reader.committed:
                ex.first_token_at = run.engine.clock.monotonic()
            if self._upstream.header(b"cache-control") is None:
                head.headers.append((b"cache-control", b"no-cache"))
            cost = run.engine.ledger.estimate_cost(ex)
            if cost is not None:
                head.headers.append((b"x-headgate-cost-estimate-usd", format_usd(cost).encode()))
        run.respond(head)
        run.downstream.start(head.status, head.headers, length)
        run.started = True
        if reader is not None and reader.finished:
            self.complete(taken)
        elif taken:
            self._down(taken)

    def on_data(self, data: bytes) -> None:
        """More of the body."""
        reader = self._reader
        if reader is None:
            if self._measured is not None:
                self._measured.feed(data)
            self._down(data)
            return
        if reader.passes(data):  # `_down`, without a call: this runs for every event
            run = self._run
            if self._observers:
                self._observe(data)
            run.ex.bytes_out += len(data)
            if not run.downstream.write(data):
                self._attempt.pause()
            return
        ready = reader.feed(data)
        if reader.named is not None:
            self._note_named(reader)
        if reader.committed and self._run.ex.first_token_at is None:
            self._run.ex.first_token_at = self._run.engine.clock.monotonic()
        if reader.finished:
            self.complete(ready)
            return
        if ready:
            self._down(ready)
        if reader.failed or reader.whole:
            self._attempt.end_soon()

    def on_resume(self) -> None:
        """The client reads again."""
        if self._measured is None or self._measured.on_client_reads():
            self._attempt.resume()

    def on_end(self, clean: bool) -> None:
        """The message ended. Whole, or cut? A last event without its end goes down only where nothing follows it."""
        if self._measured is not None and self._measured.puts_off(partial(self.on_end, clean)):
            return
        last, whole = b"", clean
        if self._reader is not None and clean:
            last, whole = self._reader.end()
            if self._reader.named is not None:
                self._note_named(self._reader)
        if whole or self.ended_as is not None:
            self.complete(last)
        else:
            self.cut(BrokenAnswerError("The provider's answer was cut short."))

    def on_error(self, error: GatewayError) -> None:
        """The connection broke, or the provider fell silent."""
        if self._measured is not None and self._measured.puts_off(partial(self.on_error, error)):
            return
        if self.ended_as is not None:
            self.complete()
        else:
            self.cut(error)

    # -- the ends

    def complete(self, last: bytes = b"") -> None:
        """The answer is as whole as the provider made it, once `last` has gone down."""
        run = self._run
        failed = self._reader is not None and self._reader.failed
        self._settle()
        self._attempt.linger()
        self._dispatch.end(self._attempt, ErrorEventError("The provider's stream failed.") if failed else None)
        if last:
            self._observe(last)
            run.ex.bytes_out += len(last)
        run.finish("upstream_error" if failed or run.ex.status >= 400 else "ok", run.ex.status)
        if last:
            run.downstream.write(last)
        run.downstream.end()

    def cut(self, error: GatewayError) -> None:
        """Say that the answer is not whole, in the way this answer still allows. Where nothing of it has gone down, it
        is only let go of."""
        run = self._run
        if not run.started:  # a filter takes its time over a whole answer
            self.stop()
            return
        run.ex.error = error
        self._settle()
        self._attempt.stop()
        at_fault = isinstance(error, UpstreamError)
        self._dispatch.end(self._attempt, error if at_fault else None, cancelled=not at_fault)
        event = self._cut_event(error)
        run.ex.bytes_out += len(event)
        run.finish("truncated", run.ex.status)
        if event:
            run.downstream.write(event)
            run.downstream.end()
        else:
            run.downstream.abort()

    def stop(self) -> None:
        """The client left."""
        self._attempt.stop()
        self._dispatch.end(self._attempt, None, cancelled=True)
        self._settle()

    # -- inside

    def _cut_event(self, error: GatewayError) -> bytes:
        """What says that a stream was cut; empty where nothing may be added to it."""
        reader = self._reader
        return b"" if reader is None or reader.mid_event else self._dispatch.operation.error_event(error)

    def _headers(self) -> Headers:
        """The provider's fields as the client sees them, with ours."""
        run = self._run
        headers = to_downstream(self._upstream)
        if not self._attempt.request_id:
            headers.append(request_id(run.ex))
        headers += own_fields(run.ex, run.engine.clock.monotonic())
        return headers

    def _note(self, said: Said) -> None:
        """Write down what the next bytes say of objects, before they go down."""
        attempt = self._run.ex.attempt
        if attempt is not None:
            note(self._run.ex, self._run.engine.issuers, said, attempt.target.cluster.name)

    def _note_named(self, reader: StreamReader) -> None:
        said, reader.named = reader.named, None
        if said is not None:
            self._note(said)

    def _down(self, data: bytes) -> None:
        run = self._run
        if self._observers:
            self._observe(data)
        run.ex.bytes_out += len(data)
        if not run.downstream.write(data):
            if self._measured is not None:
                self._measured.on_client_behind()
            self._attempt.pause()

    def _observe(self, data: bytes) -> None:
        """Show the bytes to every `on_bytes`; one that breaks is not asked again, and breaks nothing else."""
        for observe in self._observers:
            try:
                observe(self._run.ex, data)
            except Exception as error:
                self._run.bug(error, moment="on_bytes")
                self._observers = tuple(other for other in self._observers if other is not observe)

    def _settle(self) -> None:
        """Set what the exchange used, unless that is done."""
        ex, settle = self._run.ex, self._run.engine.ledger.settle
        if self._reader is not None:
            settle(ex, self._reader.facts())
        elif self._measured is not None:
            settle(ex, self._measured.end())
        elif ex.status < 300 and ex.facts is not None and ex.facts.characters:
            settle(ex, AnswerFacts())
