"""A call that waits for a place in its cluster, for the one who started it no other than one that waits for an answer.

Not here: who waits, and who is next (admission.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import GatewayError
from .admission import overflow
from .call import Call

if TYPE_CHECKING:
    from .call import UpstreamRequest
    from .cluster import Cluster
    from .place import Holder, Needs


class QueuedCall(Call):
    """See the top. `deadline` is that of the wait."""

    __slots__ = ("_call", "_cluster", "_paused", "deadline", "holder", "model", "needs", "request", "tokens")

    def __init__(
        self, cluster: Cluster, request: UpstreamRequest, holder: Holder, model: str, needs: Needs, deadline: float
    ) -> None:
        self._cluster = cluster
        self._call: Call | None = None
        self._paused = False
        self.request = request
        self.holder = holder
        self.model = model
        self.needs = needs
        self.tokens = needs.tokens
        self.deadline = deadline

    def pause(self) -> None:
        self._paused = True
        if self._call is not None:
            self._call.pause()

    def resume(self) -> None:
        self._paused = False
        if self._call is not None:
            self._call.resume()

    def cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()
        else:
            self._cluster.admission.leave(self)

    # -- for the cluster

    def begin(self, now: float) -> None:
        """There is a place."""
        try:
            call = self._call = self._cluster.begin_queued(self, now)
        except GatewayError as error:
            self.holder.on_error(self, error)
            return
        if self._paused:
            call.pause()

    def refuse(self) -> None:
        """There will be none for it."""
        self._cluster.admission.leave(self)
        self.holder.on_error(self, overflow())

    def on_deadline(self) -> None:
        """It waited as long as a request may."""
        self.refuse()
