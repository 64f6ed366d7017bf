"""Carries one exchange through its chain: prefix, body, route, rest, terminal, done.

    accept ─ prefix ─ admit ─ body ─ route ─ rest ─ Dispatch ─ attempts ─ Answer ─ finish
                │               │             │        │                    │
                └── refuse ─────┴─────────────┴────────┴────── reply ───────┴─ on_done, record

It is driven by callbacks from the client's side and, through `Dispatch`, from the provider's, with no task of its own:
a task is made only where a filter's `on_request` is async, and is cancelled when the client leaves. `finish` is the one
way out, runs once, and leaves exactly one record.

Bare callbacks instead of a coroutine, because this runs for every request: a task and its wake-ups cost as much as all
the filters together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .dispatch import Dispatch
from .errors import (
    DownstreamError,
    GatewayError,
    InvalidRequestError,
    OverloadError,
    ShuttingDownError,
    UnsupportedMediaTypeError,
    UpstreamError,
)
from .exchange import Exchange
from .headers import client_request_id
from .replies import Reply, error_reply, internal_error
from .upstream.call import ResponseHead

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable

    from .accounting.record import Outcome
    from .chain import Chain, RequestStep
    from .edge.downstream import Downstream
    from .engine import Engine

MAX_TIMEOUT_MS = 86_400_000


class Run:
    """One exchange on its way. The listener of its `Downstream`."""

    __slots__ = ("chain", "dispatch", "done", "downstream", "engine", "ex", "task")

    def __init__(self, engine: Engine, downstream: Downstream) -> None:
        self.engine = engine
        self.downstream = downstream
        self.ex: Exchange
        self.chain: Chain
        self.dispatch: Dispatch | None = None
        self.task: asyncio.Task[None] | None = None
        self.done = False

    # -- from the top

    def start(self) -> None:
        """Find the face, run the prefix. Answers in any case; never raises."""
        engine, head = self.engine, self.downstream.head
        graph = engine.graph
        clock = engine.clock
        self.chain = graph.prefix
        try:
            face = graph.faces.find(head.method, head.path)
        except GatewayError as error:
            # Not an exchange: nothing of the gateway was used.
            id_ = engine.next_id()
            reply = error_reply(error, id_)
            self.done = True
            self.downstream.reply(reply.status, [*reply.headers, (b"x-request-id", id_.encode())], reply.body)
            return
        self.ex = ex = Exchange(engine.next_id(), head, face, graph, clock.monotonic(), clock.wall())
        engine.live.add(self)
        try:
            ex.client_request_id = client_request_id(head)
            if engine.draining:
                raise ShuttingDownError("The gateway is shutting down; send the request again.", retry_after=1.0)
            self._read_own_fields(ex)
        except GatewayError as error:
            self.refuse(error)
            return
        self._advance(graph.prefix.requests, 0)

    def _read_own_fields(self, ex: Exchange) -> None:
        timeout = ex.head.header(b"x-headgate-timeout-ms")
        if timeout is not None:
            if not (timeout.isdigit() and 0 < int(timeout[:12]) <= MAX_TIMEOUT_MS):
                raise InvalidRequestError(
                    "x-headgate-timeout-ms must be a whole number of milliseconds from 1 to a day."
                )
            ex.deadline = ex.started + int(timeout) / 1000

    def _advance(self, steps: tuple[RequestStep, ...], at: int) -> None:
        """Run `on_request` from step `at` on; go on with what follows once all have let pass."""
        ex = self.ex
        for index in range(at, len(steps)):
            step = steps[index]
            ex.reached = step.position
            try:
                result = step.call(ex)
            except GatewayError as error:
                self.refuse(error)
                return
            except Exception as error:
                self.crash(error)
                return
            if step.is_async:
                self.task = self.engine.spawn(self._await(result, steps, index))
                return
            if result is not None:
                self.reply(result)
                return
        if steps is ex.graph.prefix.requests and ex.route is None:
            self._after_prefix()
        else:
            self._after_rest()

    async def _await(self, pending: Awaitable[Reply | None], steps: tuple[RequestStep, ...], index: int) -> None:
        """Wait for one async filter. Cancelled when the client leaves; the filter cleans up after itself."""
        try:
            result = await pending
        except GatewayError as error:
            self.task = None
            self.refuse(error)
            return
        except Exception as error:
            self.task = None
            self.crash(error)
            return
        self.task = None
        if self.done:
            return
        if result is not None:
            self.reply(result)
            return
        self._advance(steps, index + 1)

    def _after_prefix(self) -> None:
        ex = self.ex
        face = ex.face
        ex.reached = len(ex.graph.prefix.filters) - 1
        try:
            if face.metered:
                self.engine.ledger.admit(ex)
            if not face.reads_body:
                self._choose_route()
                return
            _check_media_type(ex)
        except GatewayError as error:
            self.refuse(error)
            return
        self.downstream.read_body(ex.graph.body_limit)

    def on_body(self, body: bytes) -> None:
        """The request is complete: understand it, choose the route, run its filters."""
        if self.done:
            return
        ex = self.ex
        ex.bytes_in = len(body)
        try:
            operation = self.engine.operation(ex.face)
            ex.facts = facts = operation.read(body, max_depth=ex.graph.json_depth)
            ex.model = facts.model
        except GatewayError as error:
            self.refuse(error)
            return
        except Exception as error:
            self.crash(error)
            return
        self._choose_route()

    def _choose_route(self) -> None:
        ex = self.ex
        ex.route = route = ex.graph.route(ex)
        self.chain = route.chain
        self._advance(route.chain.requests, 0)

    def _after_rest(self) -> None:
        ex = self.ex
        ex.reached = len(self.chain.filters) - 1
        try:
            if ex.face.handler is not None:
                self.reply(ex.face.handler(ex))
                return
            self.dispatch = Dispatch(self)
            self.dispatch.start()
        except GatewayError as error:
            self.refuse(error)
        except Exception as error:
            self.crash(error)

    # -- from the client's side

    def on_body_error(self, error: GatewayError) -> None:
        """The body cannot be had."""
        if not self.done:
            self.refuse(error)

    def on_resume(self) -> None:
        """The client reads again."""
        if self.dispatch is not None and self.dispatch.answer is not None:
            self.dispatch.answer.on_resume()

    def on_gone(self) -> None:
        """The client left: stop the provider's work at once, charge what was delivered."""
        if self.done:
            return
        if self.task is not None:
            self.task.cancel()
            self.task = None
        if self.dispatch is not None:
            self.dispatch.client_gone()
        self.finish("cancelled", self.ex.status or 499)

    # -- the ways out

    def refuse(self, error: GatewayError) -> None:
        """Answer with an error of ours."""
        ex = self.ex
        ex.error = error
        face = ex.face
        if face.metered and not ex.admitted and (self.chain.admission < 0 or ex.reached > self.chain.admission):
            try:
                self.engine.ledger.admit(ex)
            except OverloadError as full:
                error = ex.error = full
        if error.detail is not None:
            self.engine.log.info("refused", id=ex.id, code=error.code, detail=error.detail)
        reply = error_reply(error, ex.id, attempts=len(ex.attempts))
        outcome: Outcome = (
            "failed"
            if isinstance(error, UpstreamError) or not isinstance(error, DownstreamError | OverloadError)
            else "refused"
        )
        self.reply(reply, outcome)

    def crash(self, error: Exception) -> None:
        """A bug: traceback to the log, 500 to the client, or a cut connection where an answer is under way."""
        self.engine.stats.internal_errors += 1
        self.engine.log.error("internal_error", id=self.ex.id, exc_info=error)
        if self.done:
            self.downstream.abort()  # harmless where the answer has ended
            return
        if self.dispatch is not None:
            self.dispatch.client_gone()
            if self.dispatch.answer is not None:
                self.ex.error = internal_error()
                self.downstream.abort()
                self.finish("failed", self.ex.status)
                return
        self.refuse(internal_error())

    def reply(self, reply: Reply, outcome: Outcome = "ok") -> None:
        """A whole answer of our own. It passes `on_response` of the filters above the one that gave it."""
        ex = self.ex
        head = ResponseHead(reply.status, list(reply.headers))
        head.headers += self.own_headers(None)
        if not self.respond(head):
            return
        ex.bytes_out = len(reply.body)
        self.finish(outcome, head.status)
        self.downstream.reply(head.status, head.headers, reply.body)

    def respond(self, head: ResponseHead) -> bool:
        """Run `on_response` of every filter that was passed, bottom to top; False if one of them broke."""
        ex = self.ex
        ex.status = head.status
        for position, on_response in self.chain.responses:
            if position <= ex.reached:
                try:
                    on_response(ex, head)
                except Exception as error:
                    self.engine.stats.internal_errors += 1
                    self.engine.log.error("filter_failed", id=ex.id, moment="on_response", exc_info=error)
                    self.downstream.abort()
                    if self.dispatch is not None:
                        self.dispatch.client_gone()
                    ex.error = internal_error()
                    self.finish("failed", 500)
                    return False
        return True

    def own_headers(self, upstream_id: bytes | None) -> list[tuple[bytes, bytes]]:
        """What every answer carries, whoever made it."""
        ex = self.ex
        id_ = ex.id.encode()
        fields = [
            (b"x-headgate-request-id", id_),
            ex.graph.field,
            (b"x-headgate-attempts", b"%d" % len(ex.attempts)),
        ]
        if upstream_id is None:
            fields.append((b"x-request-id", ex.client_request_id or id_))
        if ex.route is not None:
            fields.append(ex.route.field)
        return fields

    def finish(self, outcome: Outcome, status: int) -> None:
        """The exchange is over: `on_done` bottom to top, counters, the record. Once."""
        if self.done:
            return
        self.done = True
        engine, ex = self.engine, self.ex
        ex.outcome = outcome
        ex.status = status
        now = engine.clock.monotonic()
        for position, on_done in self.chain.done:
            if position <= ex.reached:
                try:
                    on_done(ex)
                except Exception as error:
                    engine.stats.internal_errors += 1
                    engine.log.error("filter_failed", id=ex.id, moment="on_done", exc_info=error)
        if ex.admitted:
            engine.stats.count(ex, now)
            engine.ledger.close(ex, now)
        elif ex.face.metered and ex.reached == self.chain.admission >= 0:
            engine.stats.refused_by_auth += 1
        engine.over(self)


def _check_media_type(ex: Exchange) -> None:
    """A JSON endpoint reads JSON whatever the content type says (`curl -d`), but neither forms with files nor
    encoded bodies."""
    encoding = ex.head.header(b"content-encoding")
    if encoding is not None and encoding.strip().lower() != b"identity":
        raise UnsupportedMediaTypeError("Send the body without content-encoding.")
    kind = ex.head.header(b"content-type")
    if kind is not None and kind.lower().startswith(b"multipart/"):
        raise UnsupportedMediaTypeError("This endpoint takes a JSON body.")
