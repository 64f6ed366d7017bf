"""Carries one exchange through its chain: prefix, body, route, rest, terminal, done.

    accept ─ prefix ─ admit ─ body ─ route ─ rest ─ Dispatch ─ attempts ─ Answer ─ finish
                │               │             │        │                    │
                └── refuse ─────┴─────────────┴────────┴────── reply ───────┴─ on_done, record

It is driven by callbacks from the client's side and, through `Dispatch`, from the provider's, with no task of its own:
a task is made only where a filter takes its time, and is cancelled when the client leaves. `finish` is the one
way out, runs once, and leaves exactly one record.

What is raised on the way is caught where the outside called in, and nowhere between: an error of ours becomes its
answer (`refuse`), anything else is a bug and becomes a 500, or a cut connection where an answer is under way (`crash`).

Bare callbacks instead of a coroutine, because this runs for every request: a task and its wake-ups cost as much as all
the filters together.
"""

from __future__ import annotations

from asyncio import CancelledError
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ClassVar

from .claims import pin, wanted
from .dispatch import Dispatch
from .ending import Ending
from .errors import (
    GatewayError,
    ModelTooLateError,
    ShuttingDownError,
    UnsupportedMediaTypeError,
)
from .exchange import Exchange
from .headers import REQUEST_ID, client_request_id
from .own_fields import EXPLAIN, OURS, read_wishes
from .replies import Reply
from .upload import Upload
from .websocket.handshake import check_upgrade

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from .accounting.record import Issued, Outcome
    from .chain import RequestStep
    from .dialect import BodyReader
    from .edge.downstream import RequestHead
    from .filter import Shared
    from .graph import Graph
    from .stateful import Ref


class Run(Ending):
    """One exchange on its way. The listener of its `Downstream`."""

    __slots__ = ()

    dispatches: ClassVar[type[Dispatch]] = Dispatch

    # -- from the top

    def start(self) -> None:
        """Find the face, run the prefix. Answers in any case; never raises."""
        engine, head = self.engine, self.downstream.head
        graph, clock, known = engine.graph, engine.clock, head.known
        if known is not None and known.faces is graph.faces:
            self.ex = Exchange(engine.next_id(), head, known.face, graph, clock.monotonic(), clock.wall())
        elif not self._meet(head, graph):
            return
        engine.live.add(self)
        try:
            self._advance(graph.prefix.requests)
        except Exception as error:
            self.fail(error)

    def _meet(self, head: RequestHead, graph: Graph) -> bool:
        """Read a head of which nothing is known: its face, the client's id, whether it asks anything of the gateway
        itself. False: it becomes no exchange, and is answered."""
        try:
            face = graph.faces.find(head.method, head.path)
            if head.websocket or face.websocket:
                check_upgrade(head, served=face.websocket)
        except GatewayError as error:
            self.turn_away(error)
            return False
        engine, clock, known = self.engine, self.engine.clock, head.known
        self.ex = ex = Exchange(engine.next_id(), head, face, graph, clock.monotonic(), clock.wall())
        ex.client_request_id = client_request_id(head)
        for name, _ in head.headers:
            if name[:11] == OURS:
                ex.asks = True
                ex.timings = [] if head.header(EXPLAIN) == b"1" else None
                return True
        if known is not None and head.header(REQUEST_ID) is None:
            known.faces, known.face = graph.faces, face
        return True

    def _advance(self, steps: tuple[RequestStep, ...]) -> None:
        """Run each `on_request`; go on with what follows once all have let pass."""
        ex = self.ex
        for step in steps:
            ex.reached = step.reached
            if ex.timings is not None:
                ex.timings.append((step.position, self.engine.clock.monotonic()))
            result = step.call(ex)
            if result is not None:
                self._hear(step, result)
                return
        ex.reached = self.chain.depth
        if ex.timings is not None:
            ex.timings.append((-1, self.engine.clock.monotonic()))
        if ex.route is None:
            self._after_prefix()
        else:
            self._after_rest()

    def _hear(self, step: RequestStep, result: Reply | Shared | CoroutineType[Any, Any, Reply | Shared | None]) -> None:
        """A filter answers, or takes its time: only the latter costs a task."""
        if isinstance(result, CoroutineType):
            self.await_later(self._await(step, result), result)
        else:
            self._take(result)

    async def _await(self, step: RequestStep, work: Coroutine[Any, Any, Reply | Shared | None]) -> None:
        """Wait for a filter and go on from there. Cancelled when the client leaves; the filter cleans up after
        itself."""
        try:
            result = await work
            if not self.done:  # else it made light of being cancelled
                self.task = None
                if result is not None:
                    self._take(result)
                else:
                    self._advance(step.rest)
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

    def _take(self, answer: Reply | Shared) -> None:
        """A filter answers: by itself, or with what others get, too."""
        if isinstance(answer, Reply):
            self.reply(answer)
        else:
            answer.board(self)

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
            head = ex.head
            if head.header(b"content-type") != _JSON or head.header(b"content-encoding") is not None:
                _check_media_type(ex)
            self.downstream.read_body(ex.graph.body_limit)
        elif face.websocket:
            ex.facts = facts = self.engine.operations[face.operation].read_head(ex.head)
            ex.model = facts.model
            self._choose_route()
        else:
            self._choose_route()

    def _open_body(self) -> BodyReader | None:
        ex = self.ex
        model = ex.face.model_in(ex.head.path) if ex.face.names_model else ""
        graph = ex.graph
        operation = self.engine.operations[ex.face.operation]
        return operation.open_body(ex.head, model, tracks=graph.tracks, divided=graph.divided)

    def on_body(self, body: bytes) -> None:
        """The request is complete: understand it, choose the route, run its filters."""
        ex = self.ex
        try:
            ex.bytes_in = len(body)
            face, depth = ex.face, ex.graph.json_depth
            operation = self.engine.operations[face.operation]
            if face.names_model:
                facts = operation.read_for(face.model_in(ex.head.path), body, max_depth=depth)
            else:
                facts = operation.read(body, max_depth=depth)
            ex.facts = facts
            ex.model = facts.model
            self._choose_route()
        except Exception as error:
            self.fail(error)

    def _choose_route(self) -> None:
        ex = self.ex
        graph = ex.graph
        ex.route = route = graph.route(ex) if graph.routes else graph.default
        if self.upload is not None and not (self.upload.reader.knows_model or ex.model) and route.provider is None:
            message = f"No field 'model' in the first {graph.body_limit} bytes: send it before the file."
            raise ModelTooLateError(message, param="model")
        if graph.tracks and ex.face.handler is None:
            refs = wanted(ex, self.engine.operations[ex.face.operation])
            if refs:
                self.engine.issuers.find([ref.id for ref in refs], partial(self._on_issuers, refs))
                return
        # From here on the route's filters count: whoever is refused before has met those of the prefix alone.
        self.chain = chain = route.chain
        ex.reserved_for = ex.model
        self._advance(chain.requests)

    def _on_issuers(self, refs: list[Ref], found: Mapping[str, Sequence[Issued]] | None) -> None:
        """It is known who made what the request names, at once or later; None: nobody could say."""
        if self.done:
            return
        try:
            pin(self.ex, refs, found)
            ex = self.ex
            assert ex.route is not None  # noqa: S101 - narrows for the type checker: it was chosen before we asked
            self.chain = chain = ex.route.chain
            ex.reserved_for = ex.model
            self._advance(chain.requests)
        except Exception as error:
            self.fail(error)

    def _after_rest(self) -> None:
        ex = self.ex
        if ex.model != ex.reserved_for:
            ex.reserved_for = ex.model
            if self.chain.reservations:
                self._advance(self.chain.reservations)
                return
        handler = ex.face.handler
        if handler is not None:
            self.reply(handler(ex))
        else:
            self.dispatch = dispatch = self.dispatches(self)
            dispatch.start()

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


_JSON = b"application/json"


def _check_media_type(ex: Exchange) -> None:
    """A JSON endpoint reads JSON whatever the content type says (`curl -d`), but neither forms with files nor
    encoded bodies."""
    encoding = ex.head.header(b"content-encoding")
    if encoding is not None and encoding.strip().lower() != b"identity":
        raise UnsupportedMediaTypeError("Send the body without content-encoding.")
    kind = ex.head.header(b"content-type")
    if kind is not None and kind.lower().startswith(b"multipart/"):
        raise UnsupportedMediaTypeError("This endpoint takes a JSON body.")
