"""One attempt to open a session: a handshake of our own with one provider, and what comes of its answer.

Everything about it belongs to the attempt, and nothing to the exchange: the next provider gets another key, and what a
client has sent meanwhile is held for whoever answers 101.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..headers import to_upstream
from ..upstream.call import UpstreamRequest
from .handshake import KEY_BYTES, Offer, protocols_of
from .tunnel import Tunnel
from .upward import Upward

if TYPE_CHECKING:
    from ..attempt import Attempt
    from ..dialect import RequestFacts
    from ..dispatch import Dispatch
    from ..plan import Target
    from ..upstream.call import ResponseHead


class Opening:
    """Of an exchange whose face is a WebSocket. `facts`: what its query says."""

    __slots__ = ("_dispatch", "_facts", "_offer", "_upward")

    def __init__(self, dispatch: Dispatch, facts: RequestFacts) -> None:
        run = dispatch.run
        self._dispatch = dispatch
        self._facts = facts
        self._offer = Offer(run.engine.rng.randbytes(KEY_BYTES), protocols_of(run.ex.head))
        self._upward = Upward(run.downstream)

    def request(self, target: Target) -> UpstreamRequest:
        """What is sent: the client's fields and sub-protocols, and the target's model in the query."""
        ex = self._dispatch.run.ex
        fields = to_upstream(ex.head, ex.client_request_id or ex.id.encode(), ex.graph.own_fields, verbatim=True)
        path = self._dispatch.operation.session_target(self._facts, target.model)
        return UpstreamRequest(b"GET", path, [*fields, *self._offer.fields()], b"", self._upward, upgrade=True)

    def tunnel(self, attempt: Attempt, head: ResponseHead) -> Tunnel:
        """The session that a provider's 101 opens. Raises ProtocolError for what is no 101, or not to our offer."""
        return Tunnel(
            self._dispatch,
            attempt,
            head,
            upward=self._upward,
            session=self._dispatch.operation.open_session(self._facts),
            protocol=self._offer.check(head),
        )
