"""A WebSocket session between a client and a provider: frames pass as they are, both ways, and every end is told apart.

Three ends are possible. One of the two closed the session: its Close passes, the other's answer passes, and the
provider, who is the server, ends the connection. The client left: the provider hears 1001 and is let go at once. All
the rest is a cut: the provider broke off or broke the rules, nobody said anything for too long, or the gateway stops;
then both hear a Close of ours, which is never 1000, or where a frame has gone out by half, a closed connection.

What the session used is added up as the provider reports it, so it is on the record however the session ends.

Not here: frames (frames.py), the handshake (handshake.py), the target and what precedes the 101 (dispatch.py,
attempt.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..answer import Answer
from ..errors import (
    BrokenAnswerError,
    BudgetError,
    DownstreamError,
    FrameError,
    GatewayError,
    ProtocolError,
    SessionIdleError,
    UpstreamError,
    UpstreamTimeoutError,
)
from ..upstream.call import ResponseHead
from .frames import BROKEN, GOING_AWAY, NO_CODE, NORMAL, POLICY, PROTOCOL_ERROR, FrameScanner, encode_close
from .handshake import UPGRADE, accept_fields, without_handshake

if TYPE_CHECKING:
    from ..accounting.record import Outcome
    from ..attempt import Attempt
    from ..dialect import SessionReader
    from ..dispatch import Dispatch
    from .upward import Upward

CLOSE_SECONDS = 5.0
"""How long the end of a session may take once one side has closed it."""
_GOOD = frozenset((NORMAL, GOING_AWAY, NO_CODE))
"""Codes by which a provider ends a session as it should; 1001 also at the end of the time a session may last."""


class Tunnel(Answer):
    """See the top. It is the committed answer of its exchange, and takes what the client sends."""

    __slots__ = ("_accept", "_client", "_closed_by", "_provider", "_session", "_upward")

    def __init__(
        self,
        dispatch: Dispatch,
        attempt: Attempt,
        upstream: ResponseHead,
        *,
        upward: Upward,
        session: SessionReader,
        protocol: bytes | None,
    ) -> None:
        super().__init__(dispatch, attempt, upstream, None)
        self._attempt: Attempt = attempt
        self._accept = [UPGRADE[1], *accept_fields(self._run.ex.head.header(b"sec-websocket-key") or b"", protocol)]
        self._upward = upward
        self._session = session
        self._client = FrameScanner(masked=True)
        self._provider = FrameScanner(masked=False, messages=session)
        self._closed_by: FrameScanner | None = None
        """Who was the first to send a Close."""

    @property
    def ended_as(self) -> Outcome | None:
        """How the one who closed the session has ended it; None while nobody has."""
        if self._closed_by is None:
            return None
        failed = self._closed_by is self._provider and self._provider.close_code not in _GOOD
        return "upstream_error" if failed else "ok"

    def begin(self, taken: bytes) -> None:
        """101 goes down."""
        run = self._run
        head = ResponseHead(self._upstream.status, without_handshake(self._headers()) + self._accept)
        run.respond(head)
        run.downstream.switch(head.headers, self)
        run.started = True
        self._moves()

    # -- from the two sides

    def on_data(self, data: bytes) -> None:
        """From the provider."""
        ready = self._provider.feed(data)
        charged = bool(self._session.reports)
        if charged:
            self._charge()
        if ready:
            self._down(ready)
        if not (charged and self._run.chain.usages and self._is_ended()):
            self._look_at(self._provider)

    def on_body_data(self, data: bytes) -> None:
        """From the client."""
        run = self._run
        if run.done:
            return
        try:
            run.ex.bytes_in += len(data)
            ready = self._client.feed(data)
            if ready:
                self._upward.give(ready)
            self._look_at(self._client)
        except Exception as error:
            run.crash(error)

    def on_body_end(self) -> None:
        """Never told of a WebSocket."""
        raise NotImplementedError

    def on_resume(self) -> None:
        """The client reads again."""
        self._attempt.resume()
        if self._closed_by is None:
            self._moves()
        else:
            self._closes()

    def on_end(self, clean: bool) -> None:
        """The provider's connection ended."""
        if self._closed_by is not None:
            self.complete()
        else:
            self.cut(BrokenAnswerError("The provider's connection ended in the middle of the session."))

    def on_error(self, error: GatewayError) -> None:
        """The provider's connection broke, or it was silent for too long."""
        if self._closed_by is not None:
            self.complete()
        elif not isinstance(error, UpstreamTimeoutError):
            self.cut(error)
        elif self._upward.behind:
            self.cut(UpstreamTimeoutError("The provider did not take what it was sent in time."))
        else:
            self.cut(SessionIdleError("Nothing was said in this session for too long."))

    # -- the ends

    def complete(self, last: bytes = b"") -> None:
        """One of them has closed the session, and the other knows."""
        run = self._run
        self._part()
        run.finish(self.ended_as or "ok", run.ex.status)
        run.downstream.end()

    def cut(self, error: GatewayError) -> None:
        """Nobody has closed it, and it is over."""
        if self._closed_by is not None:
            self.complete()
            return
        run = self._run
        run.ex.error = error
        to_client, to_provider = _codes(error)
        self._settle()
        self._let_go(to_provider, error.message)
        at_fault = isinstance(error, UpstreamError)
        self._dispatch.end(self._attempt, error if at_fault else None, cancelled=not at_fault)
        run.finish("cancelled" if isinstance(error, DownstreamError) else "truncated", run.ex.status)
        if self._provider.between_frames:
            run.downstream.write(encode_close(to_client, error.message))
            run.downstream.end()
        else:
            run.downstream.abort()

    def stop(self) -> None:
        """The client left."""
        if self._closed_by is not None:
            self._part()
            return
        self._settle()
        self._let_go(GOING_AWAY, "The client left.")
        self._dispatch.end(self._attempt, None, cancelled=True)

    # -- inside

    def _part(self) -> None:
        """After a Close: what was used, whose fault it was, and nothing more for the provider."""
        ex, failed = self._run.ex, self.ended_as == "upstream_error"
        if failed:
            ex.error = BrokenAnswerError(f"The provider closed the session with {self._provider.close_code}.")
        self._settle()
        self._let_go()
        self._dispatch.end(self._attempt, ex.error if failed else None)

    def _look_at(self, scanner: FrameScanner) -> None:
        """After what came from one side: has it closed the session, or broken the rules?"""
        if scanner.error is not None:
            if scanner is self._client:
                self.cut(FrameError(f"What was sent is no WebSocket frame: {scanner.error}."))
            else:
                self.cut(ProtocolError("The provider sent what is no WebSocket frame.", detail=scanner.error))
        elif self._closed_by is None:
            if scanner.closed:
                self._closed_by = scanner
                self._closes()
            else:
                self._moves()

    def _moves(self) -> None:
        """Something was said, or may be said again: the silence begins now. It does not while the client is behind, for
        a provider that is not read cannot speak; how long that may last is the edge's to say."""
        attempt = self._attempt
        if not attempt.paused:
            attempt.deadline = self._run.engine.deadlines.soon + attempt.target.cluster.timeouts.idle

    def _closes(self) -> None:
        """From here on it must come to its end."""
        self._attempt.deadline = self._run.engine.clock.monotonic() + CLOSE_SECONDS

    def _let_go(self, code: int = NO_CODE, reason: str = "") -> None:
        """Part from the provider: with a Close where it has none yet and one can be sent now, else without."""
        upward, attempt = self._upward, self._attempt
        if self._client.closed or self._provider.closed:
            upward.end(b"")
        elif self._client.between_frames and upward.clear:
            mask = self._run.engine.rng.randbytes(4)
            upward.end(encode_close(code, reason, mask))
        else:
            attempt.stop()
            return
        attempt.linger()

    def _charge(self) -> None:
        session, run = self._session, self._run
        reports, session.reports = session.reports, []
        for usage in reports:
            run.engine.ledger.add(run.ex, usage)

    def _is_ended(self) -> bool:
        """Whether a filter ends the session for what it has used."""
        run = self._run
        try:
            for on_usage in run.chain.usages:
                on_usage(run.ex)
        except GatewayError as error:
            self.cut(error)
            return True
        return False

    def _settle(self) -> None:
        """Take in what is not reported yet."""
        self._session.close()
        self._charge()


def _codes(error: GatewayError) -> tuple[int, int]:
    """What the client and the provider are told in a Close of ours."""
    if isinstance(error, FrameError):
        return PROTOCOL_ERROR, GOING_AWAY
    if isinstance(error, ProtocolError):
        return BROKEN, PROTOCOL_ERROR
    if isinstance(error, UpstreamError):
        return BROKEN, BROKEN
    if isinstance(error, BudgetError):
        return POLICY, GOING_AWAY
    return GOING_AWAY, GOING_AWAY
