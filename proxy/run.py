"""Carries one exchange through its chain: prefix, body, route, rest, terminal, done.

    accept ─ prefix ─ admit ─ body ─ route ─ rest ─ Dispatch ─ attempts ─ Answer ─ finish
                │               │             │        │                    │
                └── refuse ─────┴─────────────┴────────┴────── reply ───────┴─ on_done, record

It is driven by callbacks from the client's side and, through `Dispatch`, from the provider's, with no task of its own:
a task is made only where a filter's `on_request` is async, and is cancelled when the client leaves. `finish` is the one
way out, runs once, and leaves exactly one record.

What is raised on the way is caught where the outside called in, and nowhere between: an error of ours becomes its
answer (`refuse`), anything else is a bug and becomes a 500, or a cut connection where an answer is under way (`crash`).

Bare callbacks instead of a coroutine, because this runs for every request: a task and its wake-ups cost as much as all
the filters together.
"""

from __future__ import annotations

from asyncio import CancelledError
from functools import partial
from typing import TYPE_CHECKING

from .claims import pin, wanted
from .dispatch import Dispatch
from .edge.downstream import NOBODY
from .errors import (
    AnswerRefusedError,
    GatewayError,
    ModelTooLateError,
    OverloadError,
    ShuttingDownError,
    UnsupportedMediaTypeError,
)
from .exchange import Exchange
from .headers import client_request_id
from .own_fields import EXPLAIN, OURS, own_fields, read_wishes, request_id
from .replies import Reply, error_reply, internal_error
from .upload import Upload
from .upstream.call import ResponseHead
from .websocket.handshake import check_upgrade

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

    from .accounting.record import Issued, Outcome
    from .chain import Chain, RequestStep
    from .dialect import BodyReader
    from .edge.downstream import Downstream, Headers
    from .engine import Engine
    from .stateful import Ref


class Run:
    """One exchange on its way. The listener of its `Downstream`."""

    __slots__ = ("chain", "dispatch", "done", "downstream", "engine", "ex", "started", "task", "upload")

    def __init__(self, engine: Engine, downstream: Downstream) -> None:
        self.engine = engine
        self.downstream = downstream
        self.ex: Exchange
        self.chain: Chain = engine.graph.prefix
        self.dispatch: Dispatch | None = None
        self.upload: Upload | None = None
        """The body, where it is passed on while it arrives."""
        self.task: asyncio.Task[None] | None = None
        self.started = False
        """The head of an answer has gone down, and the rest has not yet."""
        self.done = False

    # -- from the top

    def start(self) -> None:
        """Find the face, run the prefix. Answers in any case; never raises."""
        engine, head = self.engine, self.downstream.head
        graph, clock = engine.graph, engine.clock
        try:
            face = graph.faces.find(head.method, head.path)
            if head.websocket or face.websocket:
                check_upgrade(head, served=face.websocket)
        except GatewayError as error:
            self.turn_away(error)
            return
        self.ex = ex = Exchange(engine.next_id(), head, face, graph, clock.monotonic(), clock.wall())
        ex.client_request_id = client_request_id(head)
        for name, _ in head.headers:
            if name[:11] == OURS:
                ex.asks = True
                ex.timings = [] if head.header(EXPLAIN) == b"1" else None
                break
        engine.live.add(self)
        try:
            self._advance(graph.prefix.requests, 0)
        except Exception as error:
            self.fail(error)

    def turn_away(self, error: GatewayError) -> None:
        """Answer what never becomes an exchange: nothing of the gateway is used."""
        self.downstream.listener = NOBODY
        id_ = self.engine.next_id()
        reply, name = error_reply(error, id_), id_.encode()
        headers = [*reply.headers, (b"x-request-id", name), (b"x-headgate-request-id", name), self.engine.graph.field]
        self.downstream.reply(reply.status, headers, reply.body)

    def _advance(self, steps: tuple[RequestStep, ...], at: int) -> None:
        """Run `on_request` from step `at` on; go on with what follows once all have let pass."""
        ex = self.ex
        for index in range(at, len(steps)):
            step = steps[index]
            if step.position > ex.reached:
                ex.reached = step.position
            if ex.timings is not None:
                ex.timings.append((step.position, self.engine.clock.monotonic()))
            if step.is_async:
                self.task = self.engine.spawn(self._await(steps, index))
                return
            result = step.call(ex)
            if result is not None:
                self.reply(result)
                return
        ex.reached = len(self.chain.filters)
        if ex.timings is not None:
            ex.timings.append((-1, self.engine.clock.monotonic()))
        if ex.route is None:
            self._after_prefix()
        else:
            self._after_rest()

    async def _await(self, steps: tuple[RequestStep, ...], index: int) -> None:
        """Run one async filter, and go on from there. Cancelled when the client leaves; the filter cleans up after
        itself."""
        try:
            result = await steps[index].call(self.ex)
            if not self.done:  # else it made light of being cancelled
                self.task = None
                if result is not None:
                    self.reply(result)
                else:
                    self._advance(steps, index + 1)
        except Exception as error:
            if not self.done:
                self.task = None
                self.fail(error)
            elif not isinstance(error, GatewayError):
                self.bug(error)
        except CancelledError as error:
            if not self.done:  # not by us: something that the filter waited for was cancelled
                self.task = None
                self.crash(error)
            raise

    def _after_prefix(self) -> None:
        ex = self.ex
        face = ex.face
        if face.metered:
            self.engine.ledger.admit(ex)
        if self.engine.draining:
            raise ShuttingDownError("The gateway is shutting down; send the request again.", retry_after=1.0)
        if ex.asks:
            read_wishes(ex)
        if face.streams and (reader := self._open_body()) is not None:
            self.upload = Upload(self.downstream, reader)
            self.downstream.stream_body(ex.graph.upload_limit, self)
        elif face.reads_body:
            _check_media_type(ex)
            self.downstream.read_body(ex.graph.body_limit)
        elif face.websocket:
            ex.facts = facts = self.engine.operation(face).read_head(ex.head)
            ex.model = facts.model
            self._choose_route()
        else:
            self._choose_route()

    def _open_body(self) -> BodyReader | None:
        ex = self.ex
        model = ex.face.model_in(ex.head.path) if ex.face.names_model else ""
        graph = ex.graph
        return self.engine.operation(ex.face).open_body(ex.head, model, tracks=graph.tracks, divided=graph.divided)

    def on_body(self, body: bytes) -> None:
        """The request is complete: understand it, choose the route, run its filters."""
        ex = self.ex
        try:
            ex.bytes_in = len(body)
            operation, depth = self.engine.operation(ex.face), ex.graph.json_depth
            if ex.face.names_model:
                facts = operation.read_for(ex.face.model_in(ex.head.path), body, max_depth=depth)
            else:
                facts = operation.read(body, max_depth=depth)
            ex.facts = facts
            ex.model = facts.model
            self._choose_route()
        except Exception as error:
            self.fail(error)

    def _choose_route(self) -> None:
        ex = self.ex
        ex.route = route = ex.graph.route(ex)
        if self.upload is not None and not (self.upload.reader.knows_model or ex.model) and route.provider is None:
            message = f"No field 'model' in the first {ex.graph.body_limit} bytes: send it before the file."
            raise ModelTooLateError(message, param="model")
        if ex.graph.tracks and ex.face.handler is None:
            refs = wanted(ex, self.engine.operation(ex.face))
            if refs:
                self.engine.issuers.find([ref.id for ref in refs], partial(self._on_issuers, refs))
                return
        self._enter_rest(route.chain)

    def _enter_rest(self, chain: Chain) -> None:
        """From here on the route's filters count: whoever is refused before has met those of the prefix alone."""
        self.chain = chain
        self.ex.reserved_for = self.ex.model
        self._advance(chain.requests, 0)

    def _on_issuers(self, refs: list[Ref], found: Mapping[str, Sequence[Issued]] | None) -> None:
        """It is known who made what the request names, at once or later; None: nobody could say."""
        if self.done:
            return
        try:
            pin(self.ex, refs, found)
            assert self.ex.route is not None  # noqa: S101 - narrows for the type checker: it was chosen before we asked
            self._enter_rest(self.ex.route.chain)
        except Exception as error:
            self.fail(error)

    def _after_rest(self) -> None:
        ex = self.ex
        if ex.model != ex.reserved_for:
            ex.reserved_for = ex.model
            if self.chain.reservations:
                self._advance(self.chain.reservations, 0)
                return
        handler = ex.face.handler
        if handler is not None:
            self.reply(handler(ex))
        else:
            self.dispatch = Dispatch(self)
            self.dispatch.start()

    # -- from the client's side

    def on_body_data(self, data: bytes) -> None:
        """More of a body that is passed on: hold it until the model is known, then let it flow."""
        upload, ex = self.upload, self.ex
        if self.done or upload is None:
            return
        ex.bytes_in += len(data)
        reader = upload.reader
        try:
            reader.feed(data)
            upload.take(data)
            if not upload.collecting:
                if not ex.model and reader.facts.model:
                    ex.model = reader.facts.model
            elif not upload.small and (reader.knows_model or upload.received > ex.graph.body_limit):
                ex.facts = reader.facts
                ex.model = reader.facts.model
                upload.release()
                self._choose_route()
        except Exception as error:
            self._fail_body(error)

    def on_body_end(self) -> None:
        """The last byte of a body that is passed on. What is whole before it flows is sent like any other body."""
        upload, ex = self.upload, self.ex
        if self.done or upload is None:
            return
        try:
            upload.reader.end()
            if upload.collecting:
                upload.end()
                ex.facts = facts = upload.reader.whole(upload.content())
                ex.model = facts.model
                self.upload = None
                self._choose_route()
            else:
                upload.end()
        except Exception as error:
            self._fail_body(error)

    def on_body_error(self, error: GatewayError) -> None:
        """The body cannot be had."""
        self._fail_body(error)

    def _fail_body(self, error: Exception) -> None:
        """What has gone up of it is taken back by ending the attempt."""
        if self.dispatch is not None and not self.done:
            self.dispatch.stop()
        self.fail(error)

    def on_resume(self) -> None:
        """The client reads again."""
        if self.dispatch is not None and self.dispatch.answer is not None:
            self.dispatch.answer.on_resume()

    def on_gone(self) -> None:
        """The client left: stop the provider's work at once, charge what was delivered."""
        outcome: Outcome = "cancelled"
        try:
            if self.dispatch is not None:
                self.dispatch.stop()
                if self.dispatch.answer is not None:
                    outcome = self.dispatch.answer.ended_as or outcome
        except Exception as error:
            self.crash(error)
        else:
            self.finish(outcome, self.ex.status or 499)

    # -- the ways out

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
        self.engine.log.error("internal_error", id=self.ex.id, exc_info=error, **where)

    def finish(self, outcome: Outcome, status: int) -> None:
        """The exchange is over: `on_done` bottom to top, counters, the record. Once."""
        if self.done:
            return
        self.done = True
        engine, ex = self.engine, self.ex
        engine.live.discard(self)
        if self.task is not None:
            self.task.cancel()
            self.task = None
        ex.outcome = outcome
        ex.status = status
        for position, on_done in self.chain.done:
            if position <= ex.reached:
                try:
                    on_done(ex)
                except Exception as error:
                    self.bug(error, moment="on_done")
        now, known = engine.clock.monotonic(), ex.reached > self.chain.admission
        engine.decisions.keep(ex, now, known=known)
        if known:
            self._record(now)
        elif outcome == "refused":
            engine.stats.refused_by_auth += 1
        self._let_go()

    def _let_go(self) -> None:
        """Undo the circles of references, so that an exchange is freed by counting: left to the collector, its thirty
        objects and its bodies cost a tenth of the request."""
        self.downstream.listener = NOBODY
        if self.ex.vetoes:
            self.ex.vetoes = []  # they may know the exchange
        upload, self.upload = self.upload, None
        if upload is not None:
            upload.watcher = None
        dispatch, self.dispatch = self.dispatch, None
        if dispatch is not None:
            dispatch.let_go()
            for attempt in self.ex.attempts:
                attempt.let_go()

    def _record(self, now: float) -> None:
        engine, ex = self.engine, self.ex
        if not ex.face.metered:
            return
        engine.stats.count(ex, now)
        try:
            if not ex.admitted:
                engine.ledger.admit(ex)
        except OverloadError:
            return  # the ledger is full and its policy is to refuse: the client was told so
        engine.ledger.close(ex, now)


def _check_media_type(ex: Exchange) -> None:
    """A JSON endpoint reads JSON whatever the content type says (`curl -d`), but neither forms with files nor
    encoded bodies."""
    encoding = ex.head.header(b"content-encoding")
    if encoding is not None and encoding.strip().lower() != b"identity":
        raise UnsupportedMediaTypeError("Send the body without content-encoding.")
    kind = ex.head.header(b"content-type")
    if kind is not None and kind.lower().startswith(b"multipart/"):
        raise UnsupportedMediaTypeError("This endpoint takes a JSON body.")
