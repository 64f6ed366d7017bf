"""A request body on its way through: from the client to the provider as fast as the slower of the two.

Until somebody is there to take it, what has come is held: first while what must be known of it is looked for (counted
among all held bodies), then, for the length of one read, because the client is paused. From then on each piece goes
out as it came in. It can be given away once: after the first byte has gone there is no second try.

Not here: what the bytes mean (the operation's `BodyReader`), framing (edge/ and upstream/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .errors import InvalidRequestError
from .upstream.call import BodySource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .dialect import BodyReader, Splice
    from .edge.downstream import Downstream, RequestHead
    from .upstream.call import BodySink

SMALL = 64 * 1024
"""A body announced as this small is held whole before it goes out: then it may be tried again."""
_PIECE = 256 * 1024


class UploadWatcher(Protocol):
    """The attempt that carries the body."""

    def body_waits(self) -> None:
        """The provider takes nothing at the moment."""

    def body_flows(self) -> None:
        """It takes more."""

    def body_passed(self) -> None:
        """It was given the last byte."""


class Upload(BodySource):
    """The body of one exchange. `collecting`: held without end until `release`, or until it is whole."""

    __slots__ = (
        "_announced", "_charged", "_downstream", "_held", "_sink", "_splices", "_stopped", "abandoned", "behind",
        "collecting",         "passed", "reader", "received", "watcher", "whole",
    )  # fmt: skip

    def __init__(self, downstream: Downstream, reader: BodyReader) -> None:
        self._downstream = downstream
        self.reader = reader
        self.length = self._announced = _announced(downstream.head)
        self.begun = False
        self.collecting = True
        self.received = 0
        self.whole = False
        """The client has sent all of it."""
        self.passed = False
        """And the provider was given all of it."""
        self.abandoned = False
        """The provider has answered without wanting the rest."""
        self.watcher: UploadWatcher | None = None
        self._held = bytearray()
        self._charged = 0
        self._splices: Sequence[Splice] = ()
        self._sink: BodySink | None = None
        self._stopped = False
        self.behind = False
        """The provider takes nothing at the moment."""

    @property
    def small(self) -> bool:
        """So little was announced that it is worth waiting for."""
        return self._announced is not None and self._announced <= SMALL

    # From the client.

    def take(self, data: bytes) -> None:
        """More of it. Raises what the client is told."""
        self.received += len(data)
        if self._announced is not None and self.received > self._announced:
            raise InvalidRequestError("The body is longer than its content-length.")
        if self.collecting:
            self._downstream.charge_body(len(data))
            self._charged += len(data)
            self._held += data
        elif self._sink is None or self.behind or self._held:
            self._held += data
            self._stop_client()
        else:
            self._give(self._sink, data)

    def end(self) -> None:
        """The client has sent the last byte. Raises what it is told where it sent less than it announced."""
        if self._announced is not None and self.received < self._announced:
            raise InvalidRequestError("The body is shorter than its content-length.")
        self.whole = True
        self._flush()

    def content(self) -> bytes:
        """All of a body that came to its end while it was collected. It stays counted."""
        content = bytes(self._held)
        self._held.clear()
        return content

    def release(self) -> None:
        """Enough is known: the client waits until somebody takes what is held."""
        self.collecting = False
        self._stop_client()

    def prepare(self, splices: Sequence[Splice]) -> None:
        """Replace these places of what is held on the way out. Only while it has not `begun`."""
        self._splices = splices
        if self._announced is not None:
            self.length = self._announced + sum(len(value) - (end - start) for start, end, value in splices)

    # From the provider's side.

    def start(self, sink: BodySink) -> None:
        self._sink = sink
        self._flush()

    def pause(self) -> None:
        self.behind = True
        self._stop_client()
        if self.watcher is not None:
            self.watcher.body_waits()

    def resume(self) -> None:
        self.behind = False
        if self.watcher is not None:
            self.watcher.body_flows()
        self._flush()

    def cancel(self) -> None:
        self._sink = None
        self.behind = False
        self._stop_client()

    # Inside.

    def _give(self, sink: BodySink, data: bytes) -> None:
        self.begun = True
        sink.put(data)

    def _flush(self) -> None:
        """Give what is held; then finish, or let the client go on."""
        sink = self._sink
        if sink is None or self.passed:
            return
        if self._held and not self.begun:
            self._held = _spliced(self._held, self._splices)
        while self._held and self._sink is sink and not self.behind:
            piece = bytes(self._held[:_PIECE])
            del self._held[:_PIECE]
            self._give(sink, piece)
        if self._held or self._sink is not sink:
            return
        if self._charged:
            self._downstream.charge_body(-self._charged)
            self._charged = 0
        if self.whole:
            self.passed = True
            self._sink = None
            sink.finish()
            if self.watcher is not None:
                self.watcher.body_passed()
        elif self._stopped and not self.behind:
            self._stopped = False
            self._downstream.resume_body()

    def _stop_client(self) -> None:
        if not self._stopped and not self.whole:
            self._stopped = True
            self._downstream.pause_body()


def _announced(head: RequestHead) -> int | None:
    value = head.header(b"content-length")
    return int(value) if value is not None and value.isdigit() else None


def _spliced(body: bytearray, splices: Sequence[Splice]) -> bytearray:
    """`body` with places replaced; the last one first, so that the others stay where they are."""
    for start, end, value in sorted(splices, reverse=True):
        body[start:end] = value
    return body
