"""What a client sends over a WebSocket, on its way up: as fast as the provider takes it, with one read held at most.

The provider's connection pauses it, and it pauses the client. Before the provider's 101 nobody is there to take
anything, and nothing has `begun`: until then the request may be sent to another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..upstream.call import BodySource

if TYPE_CHECKING:
    from ..edge.downstream import Downstream
    from ..upstream.call import BodySink


class Upward(BodySource):
    """The frames of one client for one provider."""

    __slots__ = ("_downstream", "_ends", "_held", "_sink", "behind")

    def __init__(self, downstream: Downstream) -> None:
        self._downstream = downstream
        self._held = b""
        self._sink: BodySink | None = None
        self._ends = False
        self.length = None
        self.begun = False
        self.behind = False
        """The provider takes nothing at the moment."""

    # From the tunnel.

    @property
    def clear(self) -> bool:
        """Whatever is given now leaves now."""
        return self._sink is not None and not self.behind and not self._held

    def give(self, data: bytes) -> None:
        """More frames, or parts of them."""
        if self._sink is not None and self.clear:
            self._sink.put(data)
        else:
            self._held += data
            self._downstream.pause_body()

    def end(self, last: bytes) -> None:
        """`last`, and then nothing more: once it has left, the connection closes."""
        self._held += last
        self._ends = True
        self._flush()

    # From the provider's connection.

    def start(self, sink: BodySink) -> None:
        self._sink = sink
        self.begun = True
        self._flush()

    def pause(self) -> None:
        self.behind = True
        self._downstream.pause_body()

    def resume(self) -> None:
        self.behind = False
        self._flush()

    def cancel(self) -> None:
        self._sink = None

    def _flush(self) -> None:
        sink = self._sink
        if sink is None or self.behind:
            return
        held, self._held = self._held, b""
        if held:
            sink.put(held)
        if self._ends:
            self._sink = None
            sink.finish()
        elif not self.behind:
            self._downstream.resume_body()
