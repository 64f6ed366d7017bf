"""How an exchange ends: by an answer of its own, a refusal, a bug, or a cut; once, and leaving one record.

    reply ─────────┐
    refuse ─ reply ┤
    crash ─────────┼─ finish ─ on_done bottom to top, counters, the record
    Answer ────────┘

Whatever raised, an error of ours becomes its answer (`refuse`), and anything else is a bug: 500, or a cut connection
where an answer is under way (`crash`). `finish` comes before the last byte goes down: a client that holds a whole
answer has its row, whenever this process dies.

Not here: the way to an answer (run.py), the end of an answer that is relayed (answer.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .edge.downstream import NOBODY
from .errors import AnswerRefusedError, GatewayError, OverloadError
from .own_fields import own_fields, request_id
from .replies import Reply, error_reply, internal_error
from .upstream.call import ResponseHead

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine
    from typing import Any

    from .accounting.record import Done, Outcome
    from .chain import Chain
    from .dispatch import Dispatch
    from .edge.downstream import Downstream, Headers
    from .engine import Engine
    from .exchange import Exchange
    from .flight import Flight
    from .replay import Replay
    from .upload import Upload


class Ending:
    """What an exchange on its way holds, and the ways out of it."""

    __slots__ = ("chain", "dispatch", "done", "downstream", "engine", "ex", "leads", "started", "task", "upload")

    def __init__(self, engine: Engine, downstream: Downstream) -> None:
        self.engine = engine
        self.downstream = downstream
        self.ex: Exchange
        self.chain: Chain = engine.graph.prefix
        self.dispatch: Dispatch | Replay | None = None
        self.leads: Flight | None = None
        """What it makes a call for, others' clients included (flight.py)."""
        self.upload: Upload | None = None
        """The body, where it is passed on while it arrives."""
        self.task: asyncio.Task[None] | None = None
        self.started = False
        """The head of an answer has gone down, and the rest has not yet."""
        self.done = False

    def await_later(self, work: Coroutine[Any, Any, None], inner: Coroutine[Any, Any, object]) -> None:
        """Go on in a task, which is cancelled with the exchange. `inner` is what it will await, and has not begun: it
        is let go of where the task never begins either."""
        self.task = self.engine.spawn(work)
        self.task.add_done_callback(lambda _: inner.close())

    def turn_away(self, error: GatewayError) -> None:
        """Answer what never becomes an exchange: nothing of the gateway is used."""
        self.downstream.listener = NOBODY
        id_ = self.engine.next_id()
        reply, name = error_reply(error, id_), id_.encode()
        headers = [*reply.headers, (b"x-request-id", name), (b"x-headgate-request-id", name), self.engine.graph.field]
        self.downstream.reply(reply.status, headers, reply.body)

    def fail(self, error: Exception) -> None:
        """It cannot go on: by an error of ours, or by a bug."""
        if isinstance(error, GatewayError):
            self.refuse(error)
        else:
            self.crash(error)

    def refuse(self, error: GatewayError) -> None:
        """Answer with an error of ours."""
        ex = self.ex
        ex.error = error
        if error.detail is not None:
            provider = ex.attempts[-1].target.cluster.name if ex.attempts else None
            self.engine.log.info("refused", id=ex.id, code=error.code, provider=provider, detail=error.detail)
        self.reply(error_reply(error, ex.id, attempts=len(ex.attempts)), error.outcome)

    def crash(self, error: BaseException) -> None:
        """A bug: traceback to the log, 500 to the client, or a cut connection where an answer is under way.

        The 500 passes no filter: the bug may be in one of them.
        """
        if isinstance(error, AnswerRefusedError) and not self.done and self.ex.error is not error:
            self._refuse_answer(error)
            return
        self.bug(error)
        if self.done:  # while the last of the answer was said
            self.downstream.abort()
            return
        ex = self.ex
        ex.error = internal_error()
        try:
            if self.dispatch is not None:
                self.dispatch.stop()
        except Exception as another:
            self.bug(another)
        if self.started:
            self.finish("failed", ex.status)
            self.downstream.abort()
            return
        reply = error_reply(ex.error, ex.id, attempts=len(ex.attempts))
        headers = self._own_head(reply)
        ex.bytes_out = len(reply.body)
        self.finish("failed", reply.status)
        self.downstream.reply(reply.status, headers, reply.body)

    def _refuse_answer(self, error: AnswerRefusedError) -> None:
        """A filter's word on an answer: cut it where it is under way, else answer with the refusal."""
        try:
            if self.dispatch is not None:
                if self.started and self.dispatch.answer is not None:
                    self.dispatch.answer.cut(error)
                    return
                self.dispatch.stop()
            self.refuse(error)
        except Exception as problem:
            self.crash(problem)

    def reply(self, reply: Reply, outcome: Outcome | None = None) -> None:
        """A whole answer of our own. It passes `on_response` of the filters above the one that gave it."""
        try:
            head = ResponseHead(reply.status, self._own_head(reply))
            self.respond(head)
            self.ex.bytes_out = len(reply.body)
            self.finish(outcome or ("refused" if reply.status >= 400 else "ok"), head.status)
            self.downstream.reply(head.status, head.headers, reply.body)
        except Exception as error:
            self.crash(error)

    def cut(self, error: GatewayError) -> None:
        """The gateway stops: whatever is under way ends now, with an error that the client can see."""
        try:
            if self.dispatch is not None:
                self.dispatch.cut(error)
            if not self.done:
                self.refuse(error)
        except Exception as problem:
            self.crash(problem)

    def respond(self, head: ResponseHead) -> None:
        """Run `on_response` of every filter above the place the exchange has come to, bottom to top."""
        ex = self.ex
        for position, on_response in self.chain.responses:
            if position < ex.reached:
                on_response(ex, head)
        ex.status = head.status

    def _own_head(self, reply: Reply) -> Headers:
        return [*reply.headers, request_id(self.ex), *own_fields(self.ex, self.engine.clock.monotonic())]

    def bug(self, error: BaseException, **where: str) -> None:
        """The traceback of what should not have happened goes to the log, and nowhere else."""
        self.engine.stats.internal_errors += 1
        self.engine.ledger.flush()  # perhaps no record follows what was held for it
        self.engine.log.error("internal_error", id=self.ex.id, exc_info=error, **where)

    def finish(self, outcome: Outcome, status: int) -> None:
        """The exchange is over: `on_done` bottom to top, counters, the record, `on_record`. Once."""
        if self.done:
            return
        self.done = True
        if self.leads is not None and self.leads.outlives(self, outcome, status):
            return
        engine, ex, chain = self.engine, self.ex, self.chain
        engine.live.discard(self)
        if self.task is not None:
            self.task.cancel()
            self.task = None
        ex.outcome = outcome
        ex.status = status
        reached = ex.reached
        for position, on_done in chain.done:
            if position <= reached:
                try:
                    on_done(ex)
                except Exception as error:
                    self.bug(error, moment="on_done")
        record = self._keep(engine.clock.monotonic(), reached > chain.admission)
        for position, on_record in chain.records:
            if position <= reached:
                try:
                    on_record(ex, record)
                except Exception as error:
                    self.bug(error, moment="on_record")
        # Undo the circles of references, so that an exchange is freed by counting: left to the collector, its thirty
        # objects and its bodies cost a tenth of the request.
        self.downstream.listener = NOBODY
        if ex.vetoes:
            ex.vetoes = []  # they may know the exchange
        if self.upload is not None:
            self.upload.watcher = None
            self.upload = None
        dispatch = self.dispatch
        if dispatch is not None:
            self.dispatch = None
            dispatch.let_go()

    def _keep(self, now: float, known: bool) -> Done | None:
        """What stays of it: its decision, its counts, its record, which is given. `known`: auth let it in."""
        engine, ex = self.engine, self.ex
        engine.decisions.keep(ex, now, known=known)
        if not known:
            engine.stats.refused_by_auth += ex.outcome == "refused"
        elif ex.face.metered:
            engine.stats.count(ex, now)
            if ex.admitted or self._admit():
                return engine.ledger.close(ex, now)
        engine.ledger.flush()
        return None

    def _admit(self) -> bool:
        """One that was refused before it was admitted; False where the ledger is full and its policy is to refuse: the
        client was told so."""
        try:
            self.engine.ledger.admit(self.ex)
        except OverloadError:
            return False
        return True
