"""HTTP/1.1 towards the client, hardened: the protocol class of which uvicorn's server makes one for each connection.

Three things make it safe where a plain server is not. Every byte that nobody wants yet is bounded: a head by the
limits of its grammar, the rest by `limits.unread` and then by the socket's own window. Every phase of a connection
has a deadline, in the one coarse timer that all share. And what is ambiguous is refused before anybody above hears of
it.

It is a bare asyncio protocol that calls the acceptor straight from `data_received`: a task, a future and a timer for
each request would cost as much as all the rest. Paths that the acceptor does not take go, as the same `Downstream`,
to the ASGI app (asgi_app.py); so every rule here holds for both.

A client that half-closes has left: it cannot be told from one that is gone, and nobody should pay for an answer to
nobody.

Not here: the grammar (request_head.py, head_reader.py), bodies (body.py), one request's answer (http_downstream.py),
sockets (listen.py).
"""

from __future__ import annotations

import asyncio
from enum import IntEnum
from typing import TYPE_CHECKING, Any, cast

import structlog

from ..clock import NEVER
from ..errors import BodyTimeoutError, GatewayError, InvalidRequestError, OverloadError
from ..replies import error_reply, internal_error
from ..websocket.handshake import NOT_HERE, check_handshake
from .body import RequestBody
from .head_reader import HeadReader
from .http_downstream import HttpDownstream
from .kernel_buffer import has_unread
from .request_head import may_be_whole
from .response_head import response_head
from .write_progress import WriteProgress

if TYPE_CHECKING:
    from .context import EdgeContext
    from .downstream import Acceptor
    from .request_head import HttpRequestHead

_CLOSE = b"connection: close\r\n"
_SOON = 0.0
"""A deadline for the next sweep to turn into a real one: so the hot path reads no clock."""
_STALL_CHECKS = 6
_OVER_LIMIT_WAIT = 1.0

_log = structlog.get_logger("headgate.edge")


class Phase(IntEnum):
    """What a connection waits for, and therefore what its deadline means."""

    OVER_LIMIT = 0
    HEAD = 1
    BODY = 2
    ANSWER = 3
    SKIP = 4
    IDLE = 5
    LINGER = 6


OVER_LIMIT, HEAD, BODY, ANSWER, SKIP, IDLE, LINGER = Phase  # an attribute of an enum class costs 50 ns more than a name


class HttpProtocol(asyncio.Protocol):
    """One connection. It serves one request at a time; the next ones wait, unread."""

    __slots__ = (
        "_body", "_client", "_exchange", "_heads", "_idle_since", "_leftover", "_linger_until", "_loop", "_now",
        "_phase", "_reading_paused", "advancing", "context", "deadline", "limits", "progress", "transport", "unread",
        "write_paused",
    )  # fmt: skip

    def __init__(
        self,
        context: EdgeContext,
        *,
        config: Any = None,
        server_state: Any = None,
        app_state: Any = None,
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.context = context
        self._now = context.clock.monotonic
        self._loop = _loop or asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self._client = ""
        self._exchange: HttpDownstream | None = None
        self._heads = HeadReader()
        self._body = RequestBody(0, context.budget)
        """Of the request that is served, or skipped."""
        self._leftover: RequestBody | None = None
        self._phase = HEAD
        self.advancing = self._reading_paused = False
        self._idle_since = self._linger_until = 0.0
        self.progress = WriteProgress(context.limits)
        self.limits = context.limits
        self.deadline = NEVER
        self.unread = b""
        self.write_paused = False

    def __repr__(self) -> str:
        return f"<HttpProtocol {self._client or '-'} {self._phase.name.lower()}>"

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        context, limits = self.context, self.limits
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(limits.write_buffer)
        peer = transport.get_extra_info("peername")
        self._client = peer[0] if isinstance(peer, tuple) else ""
        context.stats.accepted += 1
        context.connections.add(self)
        context.deadlines.add(self)
        above = len(context.connections) - limits.connections
        if above <= 0:
            self.deadline = self._now() + limits.head_timeout
            return
        context.stats.over_limit += 1
        self._phase = OVER_LIMIT
        self.deadline = self._now() + _OVER_LIMIT_WAIT
        if above > limits.connections // 8 + 1:
            self.kill()

    def data_received(self, data: bytes) -> None:
        phase = self._phase
        if phase is LINGER:
            self.deadline = min(self._now() + self.limits.linger_idle, self._linger_until)
            return
        if phase is OVER_LIMIT:
            self._refuse(OverloadError("Too many connections.", retry_after=1))
            return
        if self.unread:
            self.unread += data
            if phase is HEAD and not may_be_whole(self.unread, data, self.limits):
                return
        else:
            self.unread = data
        self._advance()

    def eof_received(self) -> None:
        if self._exchange is not None:
            self._lose(self._exchange)
        self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.context.deadlines.discard(self)
        self.context.connections.discard(self)
        self._phase = LINGER
        self.unread = b""
        self._leftover = None
        if self._exchange is not None:
            self._lose(self._exchange)

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._exchange is not None:
            self._exchange.resumed()
        elif self.unread:
            self._advance()

    def on_deadline(self) -> None:
        now = self._now()
        limits = self.limits
        phase = self._phase
        if phase >= ANSWER and self._watches_writing(now):
            return
        if phase is ANSWER:
            self.deadline = now + limits.write_stall / _STALL_CHECKS
        elif phase is IDLE:
            if self.deadline == _SOON:
                self._idle_since = now
            self.deadline = self._idle_since + (limits.last_call if self.context.draining else limits.keep_alive)
            if self.deadline <= now and not has_unread(self.transport):
                self.context.stats.idle_closed += 1
                self._close()
        elif phase is BODY:
            self.context.stats.body_timeouts += 1
            if self._exchange is not None:
                self._exchange.body_timed_out(self)
                self._advance()
        elif phase is HEAD:
            self.context.stats.head_timeouts += 1
            if self.unread:
                self._refuse(BodyTimeoutError(f"The request's header did not arrive within {limits.head_timeout:g} s."))
            else:
                self._close()
        else:
            self.kill()

    # What the server calls

    @property
    def is_idle(self) -> bool:
        """Nothing is asked for and nothing is under way."""
        return self._exchange is None and not self.unread and self._phase in (HEAD, IDLE)

    def shutdown(self) -> None:
        """Close at once if idle; an answer under way says `connection: close` where it has not begun."""
        if self.is_idle and not has_unread(self.transport):
            self._close()

    def last_call(self) -> None:
        """If idle: one more request may come, within `limits.last_call`."""
        if self.is_idle:
            self._phase = IDLE
            self._idle_since = self._now()
            self.deadline = self._idle_since + self.limits.last_call

    def kill(self) -> None:
        """Reset, whatever is under way; its acceptor hears that the client is gone."""
        self._phase = LINGER
        self.deadline = NEVER
        self.transport.abort()

    # What the request being served calls

    def wake(self) -> None:
        """Somebody wants what has arrived: now if we are at it, else on the next turn."""
        if not self.advancing:
            self._loop.call_soon(self._advance)

    def send(self, data: bytes, more: bytes = b"") -> None:
        """Hand bytes to the transport; they leave in this turn of the loop unless the client is behind."""
        self.progress.written += len(data) + len(more)
        if more:
            self.transport.writelines((data, more))
        else:
            self.transport.write(data)

    def answer_begins(self) -> None:
        """From here on a client that takes nothing is noticed."""
        self.deadline = _SOON

    def body_moves(self) -> None:
        """Enough of a body has come for the next wait to begin."""
        self._phase = BODY
        self.deadline = self._now() + self.limits.body_idle

    def body_rests(self) -> None:
        """The acceptor is behind: that the client sends nothing now is not its fault."""
        self._phase = ANSWER
        self.deadline = NEVER

    def body_is_over(self) -> None:
        """Whole, failed or unwanted: from here on it is the acceptor's turn."""
        self._phase = ANSWER
        self.deadline = NEVER

    def finished(self, exchange: HttpDownstream, body: RequestBody) -> None:
        """The answer is whole: on to the next request, or close."""
        if exchange.keep_alive and body.complete:
            self.rests()
            return
        self._exchange = None
        if not exchange.keep_alive:
            self._close(linger=not body.complete or exchange.head.websocket)
        else:
            self._leftover = body
            self._phase = SKIP
            self.deadline = self._now() + self.limits.body_idle
        if self.unread or self._reading_paused:
            self.wake()

    def rests(self) -> None:
        """The answer is whole, and the request was: on to the next one."""
        self._exchange = None
        self._phase = IDLE
        self.deadline = _SOON
        if self.unread or self._reading_paused:
            self.wake()

    def dropped(self, exchange: HttpDownstream) -> None:
        """The answer will never be whole. Where only the end of the connection would end it, reset it instead."""
        self._exchange = None
        if exchange.started and exchange.framed:
            self._close()
        else:
            self.kill()

    # Inside

    def _advance(self) -> None:
        """Go through what has arrived as far as it is wanted, then open or close the tap."""
        self.advancing = True
        try:
            while self._phase is not LINGER:
                exchange = self._exchange
                if exchange is not None:
                    if not exchange.advance(self):
                        break
                elif self._leftover is not None:
                    self.unread = self._leftover.skip(self.unread)
                    if not self._leftover.complete:
                        break
                    self._leftover = None
                    self._phase = IDLE
                    self.deadline = _SOON
                elif not self.unread or self.write_paused or not self._begin():
                    break
        finally:
            self.advancing = False
        if self.unread or self._reading_paused:
            self._turn_tap()

    def _turn_tap(self) -> None:
        """Read more from the socket, or for now no more."""
        full = len(self.unread) > self.limits.unread and self._phase is not LINGER
        if self.unread and self._exchange is not None and self._exchange.body_paused:
            full = True
        if full is not self._reading_paused and not self.transport.is_closing():
            self._reading_paused = full
            if full:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def _begin(self) -> bool:
        """Read a head and hand the request over. Whether there may be more to do at once."""
        context, heads, unread = self.context, self._heads, self.unread
        last = heads.known
        try:  # `read`, without a call for a head that comes again
            found = last.read(unread, self.limits.head_bytes) if last is not None else None
            if found is None:
                found = heads.read(unread, self.limits, self._client)
        except GatewayError as error:
            self._refuse(error)
            return False
        if found is None:
            if self._phase is IDLE:
                self._phase = HEAD
                self.deadline = self._now() + self.limits.head_timeout
            return False
        head, end = found
        self.unread = unread[end:]
        known = head.known
        acceptor = context.acceptor if known is not None and known.guard is context.guard else self._admit(head)
        if acceptor is None:
            return True
        context.stats.requests += 1
        self._phase = ANSWER
        self.deadline = NEVER
        body = self._body
        body.begin(head.length)
        exchange = self._exchange = HttpDownstream(self, head, body)
        try:
            acceptor.accept(exchange)
        except Exception:
            request_id = context.new_id()
            _log.exception("acceptor failed", request_id=request_id)
            if exchange.started:
                exchange.abort()
            elif exchange is self._exchange:
                self._exchange = None
                exchange.abandon()
                self._refuse(internal_error(), request_id=request_id)
        return True

    def _admit(self, head: HttpRequestHead) -> Acceptor | None:
        """Who takes the request; None: it is refused, or answered. A head that comes again and has no part of itself
        to be looked at each time is not asked again before the rules change."""
        context, known = self.context, head.known
        guard, method = context.guard, head.method
        objection = guard.check(head.fields.get(b"host"), head.fields.get(b"origin"))
        if objection is not None:
            self._refuse(objection, without_body=method == "HEAD")
            return None
        if context.proxies is not None:
            head.client = context.proxies.client(self._client, head.fields.get(b"x-forwarded-for"))
            known = None
        if context.cors is not None and self._is_preflight(head):
            return None
        acceptor = context.acceptor if context.acceptor.accepts(head.path) else context.app
        if head.websocket and (objection := _objection_to_websocket(head, acceptor is context.app)) is not None:
            self._refuse(objection, without_body=method == "HEAD")
            return None
        if known is not None and acceptor is context.acceptor and method != "OPTIONS":
            known.guard = guard
        return acceptor

    def _is_preflight(self, head: HttpRequestHead) -> bool:
        """Whether it was one, and is answered."""
        cors = self.context.cors
        headers = cors.preflight(head.fields) if cors is not None and head.method == "OPTIONS" else None
        if headers is None:
            return False
        self._phase = ANSWER
        self._body.begin(head.length)
        exchange = self._exchange = HttpDownstream(self, head, self._body)
        exchange.reply(204, headers, b"")
        return True

    def _refuse(self, error: GatewayError, *, without_body: bool = False, request_id: str | None = None) -> None:
        """Answer in place of the acceptor and end the connection: what follows need not be a request."""
        context = self.context
        context.stats.refused += 1
        request_id = request_id or context.new_id()
        reply = error_reply(error, request_id)
        id_value = request_id.encode()
        headers = [*reply.headers, (b"x-request-id", id_value), (b"x-headgate-request-id", id_value)]
        head = response_head(reply.status, headers, len(reply.body), chunked=False, connection=_CLOSE)
        self.send(head if without_body else head + reply.body)
        self._close(linger=True)

    def _close(self, *, linger: bool = False) -> None:
        """Close once all is sent. With `linger`, let the client finish first: a reset would swallow the answer."""
        self._phase = LINGER
        self.unread = b""
        self._leftover = None
        now = self._now()
        self.progress.begin(now)
        self._linger_until = now + self.limits.linger
        self.deadline = now + self.limits.linger_idle
        transport = self.transport
        if transport.is_closing():
            return
        if linger and transport.can_write_eof():
            transport.write_eof()
            if self._reading_paused:
                self._reading_paused = False
                transport.resume_reading()
        else:
            transport.close()

    def _lose(self, exchange: HttpDownstream) -> None:
        self._exchange = None
        self.context.stats.gone += 1
        exchange.lost()

    def _watches_writing(self, now: float) -> bool:
        """Whether bytes wait for the client; sees to the next look at them, or to the end of a client that stalls."""
        progress, transport = self.progress, self.transport
        if self.deadline == _SOON:
            progress.begin(now)
        if progress.has_stalled(transport, now):
            self.context.stats.write_stalls += 1
            self.kill()
            return True
        if not transport.get_write_buffer_size():
            return False
        self.deadline = now + self.limits.write_stall / _STALL_CHECKS
        return True


def _objection_to_websocket(head: HttpRequestHead, beside: bool) -> GatewayError | None:
    """Why one cannot be opened; the app beside the engine has none."""
    try:
        check_handshake(head)
    except GatewayError as error:
        return error
    return InvalidRequestError(NOT_HERE) if beside else None
