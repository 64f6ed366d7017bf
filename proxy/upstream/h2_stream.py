"""One call on an HTTP/2 connection: its request out, its answer in, each at the pace of the slower side.

An answer is passed on as it comes; while the call is paused it is held, and because what is held was not given back,
the provider stops after `STREAM_WINDOW` bytes of it. The other calls of the connection do not notice.

An answer is whole with END_STREAM and nothing else: a reset or a lost connection before it is a broken one.

Not here: the request's body (h2_sending.py), frames (h2_session.py), which connection (pool.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from h2.errors import ErrorCodes

from ..errors import BrokenAnswerError, GatewayError, ProtocolError, ResetError, UpstreamTimeoutError
from .h1_answer import MAX_INTERIM
from .h2_answer import NOT_HTTP, check_trailers, content_length, read_head
from .h2_frames import MAX_WINDOW, reset, window_update
from .h2_sending import Sending
from .h2_session import STREAM_WINDOW

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .call import ResponseHead
    from .h1 import H1Call
    from .h2_sending import StreamOwner

_GIVE_BACK = STREAM_WINDOW // 2


class H2Stream(Sending):
    """See the top. For its call it is the way to pause, resume and leave; `refused`, `reused` and `sent_at` say whether
    what failed may be sent once more."""

    __slots__ = (
        "_done", "_expected", "_held", "_held_end", "_held_head", "_holding", "_interim", "_left", "_owed", "_paused",
        "_received", "head_seen", "refused", "reused", "sent_at",
    )  # fmt: skip

    def __init__(self, owner: StreamOwner, call: H1Call, *, reused: bool, sent_at: float) -> None:
        super().__init__(owner, call)
        self.reused = reused
        """The connection has carried a call before."""
        self.sent_at = sent_at
        self.refused = False
        """The provider has said that it did not look at the request."""
        self.head_seen = False
        self._left = False
        """It is over for the connection; what is held may still go to the call."""
        self._interim = 0
        self._expected: int | None = None
        self._received = 0
        self._owed = 0
        """Bytes read and not given back to the provider's window."""
        self._paused = False
        self._holding = False
        self._held_head: ResponseHead | None = None
        self._held = bytearray()
        self._held_end: GatewayError | bool = False
        """True: it ended well."""
        self._done = False
        """The call has heard of its end, or has left."""

    def __repr__(self) -> str:
        return f"<H2Stream {self.id}{' left' if self._left else ''}>"

    # For its call.

    def pause(self) -> None:
        """Hold what comes from here on."""
        self._paused = self._holding = True

    def resume(self) -> None:
        """Pass on what is held, from the next turn of the loop, and then what comes."""
        if not self._paused:
            return
        self._paused = False
        if self._held or self._held_head is not None or self._held_end:
            self._owner.call_soon(self._release)
        else:
            self._holding = False
            self._give_back()

    def close(self) -> None:
        """Nobody waits for it any more: one RST_STREAM, where the provider does not yet take it for over."""
        self._done = True
        self._drop_held()
        self._leave(ErrorCodes.CANCEL)

    # From its connection.

    def announce(self) -> None:
        """The request was handed to the transport to its end."""
        call = self.call
        if not (self._done or self.head_seen or call.announced):
            call.announced = True
            call.receiver.on_sent(call)

    def on_fields(self, fields: Iterable[tuple[bytes, bytes]], ends: bool) -> None:
        """A head, an interim one, or trailers."""
        try:
            if self.head_seen:
                check_trailers(fields)
                if not ends:
                    raise ProtocolError(NOT_HTTP, detail="trailers that do not end the answer")
            else:
                head = read_head(fields)
                if head.status < 200:
                    self._check_interim(head, ends)
                    return
                self._take_head(head)
        except ProtocolError as error:
            self.fail(error, ErrorCodes.PROTOCOL_ERROR)
            return
        if ends:
            self._end()

    def on_data(self, data: bytes, length: int, ends: bool) -> None:
        """Content; `length` is what it takes of the window, padding included."""
        self._owed += length
        if self._owed > STREAM_WINDOW:
            self.fail(ProtocolError(NOT_HTTP, detail="more than the window allows"), ErrorCodes.FLOW_CONTROL_ERROR)
            return
        if not self.head_seen:
            self.fail(ProtocolError(NOT_HTTP, detail="content before the head"), ErrorCodes.PROTOCOL_ERROR)
            return
        if data:
            self._owner.session.overhead = 0
            self._received += len(data)
            if self._expected is not None and self._received > self._expected:
                detail = f"{self._received} bytes of {self._expected}"
                self.fail(ProtocolError(NOT_HTTP, detail=detail), ErrorCodes.PROTOCOL_ERROR)
                return
            if self._holding:
                self._held += data
            else:
                self.call.receiver.on_data(self.call, data)
        if ends:
            self._end()
        elif self._owed >= _GIVE_BACK:
            self._give_back()

    def on_reset(self, code: int) -> None:
        """The provider ends it."""
        detail = f"reset by the provider, {_name(code)}"
        if code == ErrorCodes.REFUSED_STREAM and not self.answered:
            self.refused = True
        self.fail(self.broken(detail))

    def on_window_update(self, increment: int) -> None:
        """The provider takes more."""
        self.window += increment
        if not increment or self.window > MAX_WINDOW:
            error = ProtocolError(NOT_HTTP, detail=f"a window that grows by {increment}")
            self.fail(error, ErrorCodes.FLOW_CONTROL_ERROR)

    @property
    def answered(self) -> bool:
        """Something of an answer was seen, if only an interim one: the provider has looked at the request."""
        return self.head_seen or self._interim > 0

    def broken(self, detail: str) -> GatewayError:
        """What it means that no more comes."""
        if self.answered:
            return BrokenAnswerError("The provider's answer broke off.", detail=detail)
        return ResetError("The provider closed the connection without an answer.", detail=detail)

    def stalled(self, seconds: float) -> None:
        """The provider has taken nothing of the request for so long."""
        detail = f"no room for the request in {seconds:g} s"
        self.fail(
            UpstreamTimeoutError("The provider did not take the request in time.", detail=detail), ErrorCodes.CANCEL
        )

    def fail(self, error: GatewayError, code: ErrorCodes | None = None) -> None:
        """It will not be whole; what is held before that is still passed on. `code` tells the provider."""
        if self._held_end is not False:
            return
        self._leave(code)
        if self._held or self._held_head is not None:
            self._held_end = error
        else:
            self._tell_end(error)

    # Inside.

    def _check_interim(self, head: ResponseHead, ends: bool) -> None:
        self._interim += 1
        if ends or head.status == 101 or self._interim > MAX_INTERIM:
            raise ProtocolError(NOT_HTTP, detail=f"status {head.status}, interim answer {self._interim}")

    def _take_head(self, head: ResponseHead) -> None:
        call = self.call
        length = content_length(head)
        if not call.content_expected or head.status in (204, 304):
            length = 0
        self._expected = length
        self._owner.session.overhead = 0
        self.head_seen = True
        if self.request_sent:
            call.body = b""  # it cannot be needed again, and may be large
            call.request = None
        if self._holding:
            self._held_head = head
        else:
            call.receiver.on_head(call, head)

    def _end(self) -> None:
        if self._left:
            return  # cancelled by who heard the last of it
        if self._expected is not None and self._received != self._expected:
            detail = f"{self._received} bytes of {self._expected}"
            self.fail(ProtocolError(NOT_HTTP, detail=detail))
            return
        self._leave(None if self.request_sent else ErrorCodes.CANCEL)
        if self._held or self._held_head is not None:
            self._held_end = True
        else:
            self._tell_end(True)

    def _leave(self, code: ErrorCodes | None = None) -> None:
        """No longer on the connection; `code` where the provider must hear of it."""
        if self._left:
            return
        self._left = True
        owner = self._owner
        if code is not None:
            owner.session.out.append(reset(self.id, code))
            owner.flush_soon()
        owner.on_over(self, reset=code is not None)
        self.stop_sending()

    def _give_back(self) -> None:
        """The provider may send as much again as was passed on; nothing while something may be held."""
        if self._owed >= _GIVE_BACK and not self._holding and not self._left:
            self._owner.session.out.append(window_update(self.id, self._owed))
            self._owner.flush_soon()
            self._owed = 0

    def _release(self) -> None:
        """Pass on what is held: head, content, end."""
        try:
            self._pass_on()
        except Exception as error:
            self._drop_held()
            self.fail(self._owner.on_bug(error), ErrorCodes.CANCEL)

    def _pass_on(self) -> None:
        call = self.call
        if self._paused:
            return
        head, self._held_head = self._held_head, None
        if head is not None:
            call.receiver.on_head(call, head)
        if self._held and not self._paused:
            data = bytes(self._held)
            self._held.clear()
            call.receiver.on_data(call, data)
        if self._paused:
            return
        self._holding = False
        self._give_back()
        end, self._held_end = self._held_end, False
        if end is not False:
            self._tell_end(end)

    def _tell_end(self, end: GatewayError | Literal[True]) -> None:
        if self._done:
            return
        self._done = True
        call = self.call
        if end is True:
            call.on_over()
            call.receiver.on_end(call, True)
        else:
            call.on_failed(end, self)

    def _drop_held(self) -> None:
        self._held_head = None
        self._held.clear()
        self._held_end = False


def _name(code: int) -> str:
    try:
        return ErrorCodes(code).name
    except ValueError:
        return f"code {code}"
