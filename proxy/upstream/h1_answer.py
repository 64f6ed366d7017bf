"""From the bytes of HTTP/1.1 answers to the callbacks of a receiver.

httptools is strict about most of RFC 9112. Refused here is what it lets pass: a transfer-coding other than `chunked`,
chunks in HTTP/1.0, 101 that nobody asked for, interim answers and heads without end, megabytes of chunk extensions or
trailers. It has no word for the end of the input, so what that means is decided here too.

Most answers are plain and come in one read: those are taken by plain_head.py, without a callback for each field.

Not here: the connection and what becomes of it (h1.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httptools

from ..errors import BrokenAnswerError, ProtocolError, ResetError
from .call import ResponseHead
from .plain_head import read_plain_head

if TYPE_CHECKING:
    from ..edge.downstream import Headers
    from ..errors import GatewayError
    from .h1 import H1Call

MAX_OVERHEAD = 64 * 1024
"""Bytes in a row without content: a head, or chunk extensions, or trailers."""

MAX_FIELDS = 200
MAX_INTERIM = 10

_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
_NOT_HTTP = "The provider's answer is not valid HTTP."


class AnswerReader:
    """Reads one answer after the other; `start` before each, `stop` after it.

    `whole` is only to be looked at after `feed` has returned: then it is known whether bytes followed the end.
    """

    __slots__ = (
        "_headers", "_interim", "_parser", "_until_close", "call", "head_seen", "keep_alive", "overhead", "rest",
        "upgraded", "whole",
    )  # fmt: skip

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.call: H1Call | None = None
        """For whose receiver it reads, from `start` to `stop`."""
        self._headers: Headers = []
        self._interim = 0
        self._until_close = False
        self.overhead = 0
        """Bytes since the last content or finished head."""
        self.head_seen = False
        self.whole = False
        self.upgraded = False
        """A 101 was seen that had been asked for: what follows is not HTTP, and is not for `feed`."""
        self.rest = b""
        """What came with it."""
        self.keep_alive = False
        """Once it is whole: nothing followed it, and the provider lets the connection live."""

    def start(self, call: H1Call) -> None:
        """What comes is for this call's receiver."""
        self.call = call

    def stop(self) -> None:
        """Nobody listens any more, not even to the rest of what is being fed; nothing of the call is kept."""
        self.call = None
        self.overhead = self._interim = 0
        self._until_close = self.head_seen = self.keep_alive = self.whole = False

    def feed(self, data: bytes) -> None:
        """Read on. Raises ProtocolError, and whatever the receiver raises."""
        if not (self.head_seen or self.overhead or self._interim) and self._take_whole(data):
            return
        self.overhead += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.rest = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            if self.whole:
                self.keep_alive = False
            elif self.call is not None:
                raise _reason(error) from error
        else:
            if self.overhead > MAX_OVERHEAD and not self.whole:
                raise ProtocolError(_NOT_HTTP, detail=f"{self.overhead} bytes without content")

    def ended_by(self, exc: Exception | None) -> GatewayError | None:
        """What the end of the connection means for an unfinished answer; None: that is how the message ends."""
        if not (self.head_seen or self.overhead or self._interim):
            return ResetError("The provider closed the connection without an answer.", detail=repr(exc))
        if (self._until_close or self.upgraded) and exc is None:
            return None
        return BrokenAnswerError("The provider's answer broke off.", detail=repr(exc) if exc else "closed too early")

    def _take_whole(self, data: bytes) -> bool:
        """Take an answer that is whole in one read, and plain; the parser, which stands between two answers, need not
        see it. Whether it was one. Those who take wholes have been asked before (h1.py)."""
        call = self.call
        if call is None or not call.content_expected or call.receiver.takes_wholes:
            return False
        found = read_plain_head(data)
        if found is None:
            return False
        head, end, length, keep_alive = found
        if end + length != len(data):
            return False
        self.head_seen = True
        call.receiver.on_head(call, head)
        if length and self.call is not None:
            call.receiver.on_data(call, data[end:])
        if self.call is not None:
            self.whole = True
            self.keep_alive = keep_alive
        return True

    # The parser calls these from inside `feed`.

    def on_message_begin(self) -> None:
        if self.whole:
            raise ProtocolError(_NOT_HTTP, detail="bytes after the end of the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        headers = self._headers
        self._headers = []
        call = self.call
        if call is None:
            return
        if len(headers) > MAX_FIELDS or (self.overhead > MAX_OVERHEAD and _size(headers) > MAX_OVERHEAD):
            raise ProtocolError(_NOT_HTTP, detail=f"a head of {len(headers)} fields, {_size(headers)} bytes")
        self.overhead = 0
        status = self._parser.get_status_code()
        if status == 101 and call.upgrade:
            self.head_seen = self.upgraded = True
            call.receiver.on_head(call, ResponseHead(status, headers))
            return
        if not 200 <= status <= 599:
            self._interim += 1
            if not 100 <= status <= 199 or status == 101 or self._interim > MAX_INTERIM:
                raise ProtocolError(_NOT_HTTP, detail=f"status {status}, interim answer {self._interim}")
            return
        framing = [field for field in headers if field[0] in _FRAMING]
        if not framing:
            self._until_close = True
        elif framing[0][0] == b"transfer-encoding":
            self._check_coding(framing)
        self.head_seen = True
        call.receiver.on_head(call, ResponseHead(status, headers))
        if not call.content_expected:
            self.whole = self.call is not None
            raise _HeadOnlyError

    def on_body(self, data: bytes) -> None:
        call = self.call
        if call is not None:
            self.overhead = 0
            call.receiver.on_data(call, data)

    def on_message_complete(self) -> None:
        self._headers.clear()  # trailers: dropped, and never the first fields of the next answer
        if self.head_seen and self.call is not None and not self.upgraded:
            self.whole = True
            self.keep_alive = self._parser.should_keep_alive()

    def _check_coding(self, framing: Headers) -> None:
        """httptools takes `gzip, chunked`, an unknown coding until the connection ends, and chunks in HTTP/1.0."""
        if len(framing) > 1 or framing[0][1].strip().lower() != b"chunked" or self._parser.get_http_version() != "1.1":
            raise ProtocolError(_NOT_HTTP, detail=f"transfer-encoding {framing!r}")


class _HeadOnlyError(Exception):
    """The answer to HEAD ends with its head; stops a parser that waits for more."""


def _reason(error: httptools.HttpParserError) -> Exception:
    """Bad bytes, an answer refused in a callback, or a receiver that raised."""
    if isinstance(error, httptools.HttpParserCallbackError) and isinstance(error.__context__, Exception):
        return error.__context__
    return ProtocolError(_NOT_HTTP, detail=str(error))


def _size(headers: Headers) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers)
