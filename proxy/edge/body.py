"""Request bodies: where one ends, and how much memory all of them may take.

A body is collected exactly to its end and not one byte further, so that what follows it is never read as part of it
nor it as a request. Its bytes are charged to the `BodyBudget` as they arrive, not as they are announced: an
announcement costs the client nothing, and must not be able to use up the memory of the others. What is charged is
released before the next body begins. A body that is passed on while it arrives is charged only for what is kept of it.
"""

from __future__ import annotations

import re

from ..errors import BodyTooLargeError, InvalidRequestError, OverloadError
from .request_head import CHUNKED, FIELD_LINE

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*+;[^\x00-\x08\x0a-\x1f\x7f]*+)?\r\n")
_TRAILERS = re.compile(rb"(?:" + FIELD_LINE + rb"\r\n)*+\r\n")
_CHUNK_LINE_MAX = 256
_TRAILERS_MAX = 8192
_OVERHEAD_FREE = 65536
_OVERHEAD_FACTOR = 8


class BodyBudget:
    """The bytes of all bodies held at this moment, and their bound."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, size: int) -> None:
        """Charge `size` bytes; raises OverloadError, and charges nothing, where they do not fit."""
        if self.used + size > self.limit:
            raise OverloadError("Too many request bodies are held at this moment.", retry_after=1)
        self.used += size

    def release(self, size: int) -> None:
        """Give `size` bytes back."""
        self.used -= size


class HeldBytes:
    """A body as it is collected, charged to the budget until `release`."""

    __slots__ = ("_budget", "_kept", "size")

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._kept: bytes | bytearray = b""
        self.size = 0

    def keep(self, piece: bytes, limit: int) -> None:
        """One more piece. Raises, and keeps nothing of it, where the body or all bodies grow too large."""
        size = self.size + len(piece)
        if size > limit:
            raise BodyTooLargeError(f"The body is larger than {limit} bytes.")
        self._budget.take(len(piece))
        self.size = size
        if not self._kept:
            self._kept = piece
            return
        # Pieces may be tiny: a list of them would weigh many times what they hold.
        if isinstance(self._kept, bytes):
            self._kept = bytearray(self._kept)
        self._kept += piece

    def charge(self, size: int) -> None:
        """Count `size` more bytes that somebody else keeps of this body. Raises OverloadError."""
        self._budget.take(size)
        self.size += size

    def content(self) -> bytes:
        """All of it; what came in one piece is that piece. It stays charged."""
        kept, self._kept = self._kept, b""
        return kept if isinstance(kept, bytes) else bytes(kept)

    def release(self) -> None:
        """Nobody holds these bytes any more; harmless when they were released."""
        self._kept = b""
        self._budget.used -= self.size
        self.size = 0


class RequestBody(HeldBytes):
    """One body after the other, taken off the front of what arrives: `collect` keeps it, `skip` throws it away."""

    __slots__ = ("_chunks", "complete", "received", "rest")

    rest: int
    """Bytes still to come, or CHUNKED for nobody knows."""
    _chunks: Chunks
    """Of a body of which nobody knows."""

    def __init__(self, length: int, budget: BodyBudget) -> None:
        super().__init__(budget)
        self.begin(length)

    def begin(self, length: int) -> None:
        """The next one. The one before was released."""
        self.rest = length
        self.received = 0
        self.complete = length == 0
        if length == CHUNKED:
            self._chunks = Chunks()

    def is_all_of(self, data: bytes, limit: int) -> bool:
        """Whether all of it has come at once, and nothing else. Then it is charged, and `data` are its bytes; else
        nothing has happened. Raises OverloadError."""
        size = self.rest
        if size != len(data) or self.received or size > limit:
            return False
        budget = self._budget
        used = budget.used + size
        if used > budget.limit:
            budget.take(size)  # which refuses
        budget.used = used
        self.size = self.received = size
        self.rest = 0
        self.complete = True
        return True

    def collect(self, data: bytes, limit: int) -> bytes:
        """Keep what belongs to the body and return what lies behind it. Raises what the client is told."""
        rest = self.rest
        if self.received + rest > limit:
            raise BodyTooLargeError(f"The body is larger than {limit} bytes.")
        piece, behind = self._split(data)
        self.received += len(piece)
        self.keep(piece, limit)
        return behind

    def take(self, data: bytes, limit: int) -> tuple[bytes, bytes]:
        """What belongs to the body, kept nowhere, and what lies behind it. Raises what the client is told."""
        if self.received + self.rest > limit:
            raise BodyTooLargeError(f"The body is larger than {limit} bytes.")
        piece, behind = self._split(data)
        self.received += len(piece)
        if self.received > limit:
            raise BodyTooLargeError(f"The body is larger than {limit} bytes.")
        return piece, behind

    def skip(self, data: bytes) -> bytes:
        """Throw away what belongs to the body and return what lies behind it. Raises where its framing is broken."""
        piece, behind = self._split(data)
        self.received += len(piece)
        return behind

    def _split(self, data: bytes) -> tuple[bytes, bytes]:
        if self.rest == CHUNKED:
            chunks = self._chunks
            piece, behind = chunks.feed(data)
            self.complete = chunks.complete
            return piece, behind
        size = len(data)
        if size <= self.rest:
            self.rest -= size
            self.complete = self.rest == 0
            return data, b""
        piece, behind = data[: self.rest], data[self.rest :]
        self.rest = 0
        self.complete = True
        return piece, behind


class Chunks:
    """The chunked coding, with bounds: on a chunk line, on the trailers (dropped), on all that is not content."""

    __slots__ = ("_after", "_chunk", "_content", "_overhead", "_pending", "complete")

    def __init__(self) -> None:
        self._pending = b""
        self._chunk = 0
        self._after = False
        self._overhead = 0
        self._content = 0
        self.complete = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """The content in `data`, and what lies behind the last chunk. Raises InvalidRequestError."""
        if self._pending:
            data = self._pending + data
            self._pending = b""
        content: list[bytes] = []
        at, end = 0, len(data)
        while at < end:
            if self._chunk:
                piece = data[at : at + self._chunk]
                content.append(piece)
                self._chunk -= len(piece)
                self._content += len(piece)
                at += len(piece)
                self._after = self._chunk == 0
                continue
            if self._after:
                if data[at : at + 2] != b"\r\n":
                    if end - at == 1 and data[at] == 0x0D:
                        break
                    raise InvalidRequestError("A chunk is not as long as it says.")
                at += 2
                self._after = False
                continue
            line = _CHUNK_LINE.match(data, at, at + _CHUNK_LINE_MAX)
            if line is None:
                if end - at >= _CHUNK_LINE_MAX or b"\n" in data[at:] or b"\r" in data[at:-1]:
                    raise InvalidRequestError("A chunk's length is malformed.")
                break
            size = int(line[1], 16)
            self._overhead += line.end() - at
            if self._overhead > _OVERHEAD_FREE + _OVERHEAD_FACTOR * self._content:
                raise InvalidRequestError("The chunks hold more framing than content.")
            if size == 0:
                trailers = _TRAILERS.match(data, line.end(), line.end() + _TRAILERS_MAX)
                if trailers is None:
                    if end - line.end() >= _TRAILERS_MAX or data.find(b"\r\n\r\n", line.end()) >= 0:
                        raise InvalidRequestError("The trailers are malformed.")
                    # The last chunk's line is read again with what comes next: count it once.
                    self._overhead -= line.end() - at
                    break
                self.complete = True
                at = trailers.end()
                break
            self._chunk = size
            at = line.end()
        if self.complete:
            return b"".join(content), data[at:]
        self._pending = data[at:]
        return b"".join(content), b""
