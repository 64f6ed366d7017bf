"""One request over HTTP/1.1 and the answer to it: the `Downstream` that HttpProtocol hands to the acceptor.

It outlives neither its request nor its connection: once it has ended, was aborted or the client left, it knows no
connection any more, and a late call goes nowhere instead of into the next request's answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import BodyTimeoutError, GatewayError
from .downstream import Downstream
from .response_head import BODILESS, response_head, whole_answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .body import RequestBody
    from .downstream import BodyListener
    from .http_protocol import HttpProtocol
    from .request_head import HttpRequestHead

_CLOSE = b"connection: close\r\n"
_UPGRADE = b"connection: Upgrade\r\n"
_KEEP_ALIVE = b"connection: keep-alive\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
_JOINED_MAX = 64 * 1024
_NOT_ASKED, _COLLECTED, _FAILED, _SWITCHED = -1, -2, -3, -4
"""What stands where the limit of a body does that is asked for."""


class HttpDownstream(Downstream):
    """See `Downstream`. Between request and answer it decides whether the connection can be kept."""

    __slots__ = (
        "_announced", "_behind", "_body", "_chunked", "_connection", "_limit", "_mark", "_mute", "_streams", "_unsent",
        "body_paused", "framed", "keep_alive", "started",
    )  # fmt: skip

    head: HttpRequestHead
    _connection: HttpProtocol | None
    _streams: BodyListener | None
    body_paused: bool
    """The acceptor wants nothing more for now."""
    started: bool
    """An answer has begun. Of one that has not ended these are known, too:"""
    _announced: int | None
    _chunked: bool
    _mute: bool
    _unsent: bytes | None
    framed: bool
    keep_alive: bool

    def __init__(self, connection: HttpProtocol, head: HttpRequestHead, body: RequestBody) -> None:
        self.head = head
        self._connection = connection
        self._body = body
        self._limit = _NOT_ASKED
        self._mark = 0
        self._streams = None
        self.body_paused = self._behind = self.started = False

    # What the acceptor calls

    def read_body(self, limit: int) -> None:
        connection = self._connection
        if connection is None:
            return
        self._limit = limit
        head = self.head
        if head.expects_continue and not connection.unread and head.length <= limit:
            connection.send(_CONTINUE)
        if not connection.advancing:
            connection.wake()

    def stream_body(self, limit: int, to: BodyListener) -> None:
        self._streams = to
        self.read_body(limit)

    def pause_body(self) -> None:
        connection = self._connection
        if connection is not None and not self.body_paused:
            if self._limit == _SWITCHED:
                self.body_paused = True
            elif self._limit >= 0:
                self.body_paused = True
                connection.body_rests()

    def resume_body(self) -> None:
        connection = self._connection
        if connection is not None and self.body_paused:
            self.body_paused = False
            if self._limit != _SWITCHED:
                connection.body_moves()
            connection.wake()

    def charge_body(self, size: int) -> None:
        if self._connection is not None:
            self._body.charge(size)

    def start(self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None) -> None:
        connection = self._connection
        if connection is None:
            return
        failed = self._limit == _FAILED
        if not self._body.complete or self._limit >= 0:
            self._limit = _NOT_ASKED
            connection.body_is_over()
            if self.body_paused:
                self.body_paused = False
                connection.wake()  # or nobody would notice that the client leaves
        head = self.head
        without_body = status in BODILESS
        self._mute = without_body or head.method == "HEAD"
        self._announced = None if self._mute else length
        modern = head.http_version == "1.1"
        self._chunked = length is None and modern and not without_body
        self.framed = modern or length is not None or self._mute
        keep = head.keep_alive and self.framed and not failed and not connection.context.draining
        self.keep_alive = keep and (self._body.complete or self._can_skip_body(connection))
        field = (b"" if modern else _KEEP_ALIVE) if self.keep_alive else _CLOSE
        cors = connection.context.cors
        if cors is not None and (origin := head.fields.get(b"origin")) is not None:
            headers = [*headers, *cors.fields(origin)]
        self._unsent = response_head(
            status, headers, None if without_body else length, chunked=self._chunked, connection=field
        )
        self.started = True

    def switch(self, headers: Sequence[tuple[bytes, bytes]], to: BodyListener) -> None:
        connection = self._connection
        if connection is None:
            return
        self._streams = to
        self._limit = _SWITCHED
        self.started = True
        self.framed = self.keep_alive = self._chunked = self._mute = False
        self._unsent = self._announced = None
        connection.answer_begins()
        connection.send(response_head(101, headers, None, chunked=False, connection=_UPGRADE))
        connection.wake()

    def write(self, data: bytes) -> bool:
        connection = self._connection
        if connection is None or self._mute or not data:
            return True
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        elif self._announced is not None:
            self._announced -= len(data)
            if self._announced < 0:
                self.abort()
                return True
        unsent = self._unsent
        if unsent is None:  # `send`, without a call: this runs for every event
            connection.progress.written += len(data)
            connection.transport.write(data)
        else:
            self._unsent = None
            connection.answer_begins()
            if len(data) <= _JOINED_MAX:
                connection.send(unsent + data)
            else:
                connection.send(unsent, data)
        if connection.write_paused:
            self._behind = True
            return False
        return True

    def end(self) -> None:
        connection = self._connection
        if connection is None:
            return
        if not self.started or self._announced:
            self.abort()
            return
        tail = _LAST_CHUNK if self._chunked and not self._mute else b""
        if self._unsent is not None:
            connection.send(self._unsent + tail)
        elif tail:
            connection.send(tail)
        self._let_go()
        connection.finished(self, self._body)

    def reply(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        connection = self._connection
        if (
            connection is None
            or not (self._limit == _COLLECTED and self.head.is_plain)
            or (context := connection.context).draining
            or context.cors is not None
            or len(body) > _JOINED_MAX
            or status in BODILESS
        ):
            self.start(status, headers, len(body))
            self.write(body)
            self.end()
            return
        # The same, where nothing is left to be decided.
        data = whole_answer(status, headers, body)
        connection.progress.written += len(data)
        connection.transport.write(data)
        self._connection = None
        self._body.release()
        connection.rests()

    def abort(self) -> None:
        connection = self._connection
        if connection is not None:
            self._let_go()
            connection.dropped(self)

    # What the connection calls

    def advance(self, connection: HttpProtocol) -> bool:
        """Take what has arrived of a body that was asked for. Whether there may be more to do at once."""
        limit, streams = self._limit, self._streams
        if limit < 0:
            if limit == _SWITCHED and streams is not None:
                self._pass_frames(connection, streams)
            elif self.started and not self._body.complete:
                self._skip_body(connection)
            return False
        if streams is not None:
            return self._pass_on(connection, limit, streams)
        data = connection.unread
        try:
            if not (whole := self._body.is_all_of(data, limit)):
                connection.unread = self._body.collect(data, limit)
        except GatewayError as error:
            self._fail_body(connection, error)
            return True
        if not whole:
            return self._has_collected(connection)
        self._limit = _COLLECTED
        connection.unread = b""
        if self._mark:
            connection.body_is_over()
        self.listener.on_body(data)
        return False  # nothing is left to be read

    def _has_collected(self, connection: HttpProtocol) -> bool:
        """Some of a body that comes in pieces, or with something behind it."""
        body = self._body
        if body.complete:
            self._limit = _COLLECTED
            connection.body_is_over()
            self.listener.on_body(body.content())
            return True
        if not self._mark or body.received - self._mark >= connection.limits.body_progress:
            self._mark = body.received or 1
            connection.body_moves()
        return False

    def _pass_on(self, connection: HttpProtocol, limit: int, to: BodyListener) -> bool:
        """Hand on what has arrived. The listener may pause, answer or leave from inside: look again after each call."""
        body = self._body
        if self.body_paused:
            return False
        try:
            piece, connection.unread = body.take(connection.unread, limit)
        except GatewayError as error:
            self._fail_body(connection, error)
            return True
        if piece:
            if not body.complete and (not self._mark or body.received - self._mark >= connection.limits.body_progress):
                self._mark = body.received
                connection.body_moves()
            to.on_body_data(piece)
        if self._limit < 0 or self._connection is None:
            return True
        if not body.complete:
            if not self._mark:
                self._mark = 1
                connection.body_moves()
            return False
        if self.body_paused:
            return False
        self._limit = _NOT_ASKED
        connection.body_is_over()
        to.on_body_end()
        return True

    def _pass_frames(self, connection: HttpProtocol, to: BodyListener) -> None:
        """Hand on what has arrived since a `switch`."""
        if connection.unread and not self.body_paused:
            data, connection.unread = connection.unread, b""
            to.on_body_data(data)

    def body_timed_out(self, connection: HttpProtocol) -> None:
        """Too little of the body has come."""
        seconds = connection.limits.body_idle
        self._fail_body(connection, BodyTimeoutError(f"The body stopped arriving for {seconds:g} s."))

    def resumed(self) -> None:
        """The client reads again."""
        if self._behind:
            self._behind = False
            self.listener.on_resume()

    def lost(self) -> None:
        """The client left."""
        self._let_go()
        self.listener.on_gone()

    def abandon(self) -> None:
        """Somebody else answers."""
        self._let_go()

    def _fail_body(self, connection: HttpProtocol, error: GatewayError) -> None:
        self._limit = _FAILED
        self.body_paused = False
        self._body.release()
        connection.body_is_over()
        self.listener.on_body_error(error)

    def _can_skip_body(self, connection: HttpProtocol) -> bool:
        """Whether what is left of an unwanted body is little enough to read past it. Skips what is here already."""
        body = self._body
        if self.head.expects_continue and not body.received and not connection.unread:
            return False  # nobody knows whether the client will send it now
        self._skip_body(connection)
        return body.complete or 0 <= body.rest <= connection.limits.skipped_body

    def _skip_body(self, connection: HttpProtocol) -> None:
        """Throw away what is here of an unwanted body: what waits unread would hide that the client leaves."""
        try:
            connection.unread = self._body.skip(connection.unread)
        except GatewayError:
            connection.unread = b""

    def _let_go(self) -> None:
        self._connection = None
        self._streams = None
        self._body.release()
